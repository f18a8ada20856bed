"""What strangers may send: the wrong port, malformed frames, hostile values. The broker lives."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from retire_cluster.broker.client import AdminClient, NoAnswer
from retire_cluster.broker.net import clients
from retire_cluster.cli.target import Target
from retire_cluster.schemas import errors
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import Held
from retire_cluster.schemas.task_types import BUILTIN
from tests.integration.main_kit import (
    MainNode,
    MainProcess,
    RawDevice,
    eventually,
)

#: Mutated messages of one run, on each of the two sockets.
MUTATIONS = 3_000
GROWTH_BYTES = 20 * 1024 * 1024


def dropped(client: AdminClient) -> dict[str, int]:
    """The broker's counters of what it did not take."""
    found: dict[str, int] = client.call("metrics")["dropped_messages"]
    return found


def epoch(client: AdminClient) -> int:
    """Rises when the broker had to read its state anew: it met an error."""
    return int(client.call("broker.info")["epoch"])


# --- the wrong port ------------------------------------------------------------------------------


def test_a_worker_that_dials_the_admin_port_is_told_the_right_one(main_node: MainNode) -> None:
    lost = RawDevice(main_node.facts.admin_port)
    lost.hello()
    message = lost.expect(msg.Reject)
    assert message.code == "wrong_port"
    assert f"workers join port {main_node.facts.worker_port}" in message.message
    lost.close()


def test_an_admin_client_that_dials_the_worker_bus_is_told_the_right_port(
    main_node: MainNode,
) -> None:
    lost = AdminClient(port=main_node.facts.worker_port, timeout_seconds=10)
    with pytest.raises(errors.ClusterError, match=f"port {main_node.facts.admin_port}"):
        lost.call("health")
    lost.close()
    assert dropped(main_node.client)["wrong_port"] == 1


def test_a_malformed_call_to_the_wrong_port_is_answered_too(main_node: MainNode) -> None:
    lost = RawDevice(main_node.facts.worker_port, tag=wire.ADMIN)
    lost.socket.send_multipart([wire.ADMIN, b"x"])
    answer = lost.read()
    assert answer is not None
    assert (answer.verb, answer.header["id"], answer.header["code"]) == (
        b"ERROR", None, "WRONG_PORT",
    )  # fmt: skip
    lost.close()


@pytest.mark.parametrize("port", ["worker_port", "admin_port"])
@pytest.mark.parametrize(
    "call_id",
    [
        "[" * 300 + "]" * 300,
        '{"a":' * 300 + "1" + "}" * 300,
        '"' + "x" * 5_000 + '"',
        "1.5",
        "true",
    ],
    ids=["deep list", "deep object", "long text", "fraction", "flag"],
)
def test_an_id_that_no_answer_can_repeat_costs_its_call_and_nothing_else(
    main_node: MainNode, port: str, call_id: str
) -> None:
    before = epoch(main_node.client)
    lost = RawDevice(getattr(main_node.facts, port), tag=wire.ADMIN)
    header = f'{{"id":{call_id},"op":"health","args":{{}}}}'
    lost.socket.send_multipart([wire.ADMIN, b"CALL", header.encode()])
    answer = lost.read(10)
    assert answer is not None
    assert (answer.verb, answer.header["id"]) == (b"ERROR", None)
    assert epoch(main_node.client) == before, "the main node met an error and read its state anew"
    lost.close()


# --- calls that are not of the protocol ----------------------------------------------------------


@pytest.fixture
def raw(main_node: MainNode) -> Iterator[RawDevice]:
    """A bare connection to the admin socket."""
    found = RawDevice(main_node.facts.admin_port, tag=wire.ADMIN)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([b"RCA1"], "3 to 8 frames"),
        ([b"RCA2", b"CALL", b"{}"], "expected tag RCA1"),
        ([b"", b"", b""], "expected tag RCA1"),
        ([b"RCA1", b"CALL", b"{"], "not JSON"),
        ([b"RCA1", b"CALL", b"\xff"], "not JSON"),
        ([b"RCA1", b"CALL", b"[]"], "not a JSON object"),
        ([b"RCA1", b"CALL", b"[" * 100_000], "not JSON"),
        ([b"RCA1", b"CALL", b'{"a":NaN}'], "not JSON"),
        ([b"RCA1", b"CALL", b"{}", b"x"], "a body is two frames"),
        ([b"RCA1", b"CALL", b"{}", b"xyz", b""], "lengths frame"),
        ([b"RCA1", b"CALL", b"{}", b"\1\0\0\0", b""], "do not add up"),
        ([b"RCA1", b"CALL", b"{}", *[b"x"] * 30], "3 to 8 frames"),
        ([b"RCA1", b"CALL", b" " * (wire.MAX_HEADER_BYTES + 1)], "header is too large"),
        ([b"RCA1", b"SHOUT", b"{}"], "unknown verb"),
        ([b"RCA2 is not known here"], "3 to 8 frames"),
        ([b"RCA1\x00"], "a message in one frame"),
        ([b"RCA1\xff" + bytes(400)], "a message in one frame"),
        ([b"RCA1\x02\x04\x00"], "cut off"),
        ([b"RCA1\x02\x04\0\0\0\x02\0\0\0CALL{"], "do not add up"),
        ([b"RCA1\x02\x04\0\0\0\x02\0\0\0CALL{}}"], "do not add up"),
        ([b"RCA1\x01\x04\0\0\0CALL"], "3 to 8 frames"),
        ([b"RCA1\x02\x04\0\0\0\x02\0\0\0CALL{}"], "id: must be"),
        ([b"RCA1", b"CALL", b"{}"], "id: must be"),
        ([b"RCA1", b"CALL", b'{"id":true}'], "id: must be"),
        ([b"RCA1", b"CALL", b'{"id":1}'], "op: must be"),
        ([b"RCA1", b"CALL", b'{"id":1,"op":"health","args":[]}'], "args: must be"),
    ],
)
def test_a_call_that_cannot_be_read_is_answered_with_what_is_wrong(
    main_node: MainNode, raw: RawDevice, frames: list[bytes], text: str
) -> None:
    raw.socket.send_multipart(frames)
    answer = raw.read()
    assert answer is not None
    assert (answer.verb, answer.header["code"]) == (b"ERROR", "VALIDATION_ERROR")
    assert text in answer.header["message"]
    assert main_node.call("health")


def test_an_unknown_operation_is_answered(main_node: MainNode) -> None:
    with pytest.raises(errors.NotFound, match="no operation 'nonsense'"):
        main_node.call("nonsense")


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = {"a": found}
    return found


def test_arguments_nested_very_deep_are_refused_and_nothing_breaks(
    main_node: MainNode, raw: RawDevice
) -> None:
    before = epoch(main_node.client)
    for op in ("task.submit", "task.list", "config.update", "events.poll", "rate.hit"):
        for depth in (200, 300, 900):
            args = '{"task":' + '{"metadata":' * depth + "1" + "}" * depth + "}"
            header = '{"id":1,"op":"' + op + '","args":' + args + "}"
            raw.socket.send_multipart(
                [b"RCA1", b"CALL", header.encode(), *wire.pack_blobs([b"{}"])]
            )
            answer = raw.read()
            assert answer is not None
            assert answer.header["code"] == "VALIDATION_ERROR", (op, depth)
    assert epoch(main_node.client) == before


# --- devices that mean ill -----------------------------------------------------------------------


def test_hostile_values_of_a_device_are_refused_or_left_out(main_node: MainNode) -> None:
    before = epoch(main_node.client)
    device = main_node.socket()
    device.hello(capabilities=nested(200))
    assert device.expect(msg.Reject).code == "bad_hello"
    device.hello(capabilities={"note": "x" * 1_000_000})
    assert device.expect(msg.Reject).code == "bad_hello"
    device.join()
    device.send(
        msg.Heartbeat(
            device.session, 1, {"cpu_percent": nested(200), "x": nested(200)}, config_version=1
        )
    )
    device.expect(msg.HeartbeatAck)
    (task_id,) = main_node.submit()
    key = device.next_task()[0]
    device.send(msg.Heartbeat(device.session, 2, {}, (Held(key, True, 1e12),), config_version=1))
    device.expect(msg.HeartbeatAck)
    device.send(msg.Progress(device.session, (msg.ProgressItem(key, 5.0, "\u202e\n"),)))
    device.finished(key, result=b"no JSON", details=b"[[[")
    device.expect(msg.FinishedAck)
    for op in ("task.get", "task.status", "task.result", "task.explain"):
        assert main_node.call(op, task_id=task_id)
    assert main_node.call("task.result", task_id=task_id)["result_data"] is None
    assert main_node.call("device.get", device_id="box")["metrics"]["cpu_percent"] is None
    assert epoch(main_node.client) == before


def test_a_devices_text_that_is_not_unicode_reaches_neither_store_nor_events(
    main_node: MainNode,
) -> None:
    before = epoch(main_node.client)
    device = main_node.device()
    (task_id,) = main_node.submit()
    key = device.next_task()[0]
    progress = {"session": device.session, "items": [[*key, 5.0, "\udce9"]]}
    row = [key[2], key[3], "failed", "error", "caf\udce9", [key[0]], [key[1]], [0.1]]
    finished = {"session": device.session, "batch": 1, "groups": [row]}
    for verb, header, blobs in (
        (b"PROGRESS", progress, []),
        (b"FINISHED", finished, [b'"\\ud800"', b"{}"]),
        (b"DRAIN", {"session": device.session, "reason": "\ud800"}, []),
    ):
        frames = [wire.BUS, verb, json.dumps(header).encode(), *wire.pack_blobs(blobs)]
        device.socket.send_multipart(frames if blobs else frames[:3])
    eventually(lambda: dropped(main_node.client).get("malformed") == 3, "three dropped messages")
    details = b'{"logs": {"a": 1}, "error_traceback": 5}'
    device.finished(key, result=b'{"a": "\\ud800"}', details=details)
    device.expect(msg.FinishedAck)
    found = main_node.call("task.result", task_id=task_id)
    assert (found["status"], found["result_data"]) == ("success", None)
    assert (found["logs"], found["error_traceback"]) == ("", None)
    assert epoch(main_node.client) == before


def test_a_device_that_never_reads_does_not_stop_the_others(main_node: MainNode) -> None:
    deaf = main_node.socket("deaf")
    deaf.socket.setsockopt(zmq.RCVHWM, 1)
    deaf.hello(slots=1024)
    for _ in range(300):
        deaf.send(msg.Started("no session", ((1, 1, 1, 1),)))
    fine = main_node.device("fine", tags=("fine",))
    (task_id,) = main_node.submit(requirements={"required_tags": ["fine"]})
    fine.finished(fine.next_task()[0])
    eventually(lambda: main_node.status(task_id) == "success", "success")


# --- random mutations ----------------------------------------------------------------------------


def bus_corpus() -> list[list[bytes]]:
    """Every message that a device may send."""
    key = (1, 1, 5, 1)
    hello = msg.Hello(
        1, "fuzz", "i", "s", "1", "worker", "linux", "h", ("a",), 2, {"cpu_count": 4},
        (BUILTIN["echo"], BUILTIN["sleep"]), (Held(key, True, 1.0),), (key,),
    )  # fmt: skip
    items = (msg.FinishedItem(key, "success", 0.5, None, None),)
    messages: list[Any] = [
        hello,
        msg.Heartbeat("s", 1, {"cpu_percent": 1.0}, (Held(key, False, 0.0),)),
        msg.Started("s", (key,)),
        msg.Progress("s", (msg.ProgressItem(key, 5.0, "x"),)),
        msg.Finished.of("s", 1, items),
        msg.ConfigAck("s", 1),
        msg.Pong("s", 1),
        msg.Drain("s", "why"),
        msg.Goodbye("s", "why"),
    ]
    found = []
    for message in messages:
        verb, header = message.write()
        blobs = [b'{"a":1}', b"{}"] if isinstance(message, msg.Finished) else []
        found.append(wire.encode(wire.BUS, verb, header, blobs))
    return found


def admin_corpus(task_id: str) -> list[list[bytes]]:
    """A call of most operations."""
    calls: list[tuple[str, dict[str, Any], int]] = [
        ("broker.info", {}, 0),
        ("metrics", {}, 0),
        ("cluster.metrics", {}, 0),
        ("device.list", {"page": 1, "page_size": 5, "tags": ["a"]}, 0),
        ("device.get", {"device_id": "fuzz"}, 0),
        ("device.ping", {"device_id": "fuzz", "timeout_seconds": 0.1}, 0),
        ("device.drain", {"device_id": "fuzz"}, 0),
        ("device.resume", {"device_id": "fuzz"}, 0),
        ("task.submit", {"task": {"task_type": "echo", "priority": "high"}, "count": 2}, 2),
        ("task.submit", {"tasks": [{"task_type": "sleep", "metadata": {"a": 1}}]}, 1),
        ("task.list", {"page": 2, "status": "queued", "after": task_id}, 0),
        ("task.get", {"task_id": task_id}, 0),
        ("task.cancel", {"task_id": task_id}, 0),
        ("task.retry", {"task_id": task_id}, 0),
        ("task.result", {"task_id": task_id}, 0),
        ("task.explain", {"task_id": task_id}, 0),
        ("task.wait", {"task_ids": [task_id], "timeout_seconds": 0.0}, 0),
        ("task.statistics", {}, 0),
        ("config.update", {"section": "heartbeat", "values": {"interval": 5}}, 0),
        ("config.get", {"section": "server"}, 0),
        ("events.poll", {"since": 0, "wait_seconds": 0, "limit": 3, "type": "task"}, 0),
        ("rate.hit", {"client": "c", "per_minute": 5}, 0),
        ("facade.report", {"facade": "f", "requests": 1, "errors": 0, "total_ms": 1.0}, 0),
    ]
    return [
        wire.encode(wire.ADMIN, b"CALL", {"id": 1, "op": op, "args": args}, [b'{"a":1}'] * blobs)
        for op, args, blobs in calls
    ]


ODD: list[Any] = [
    None, True, -1, 0, 2**53, 2**63, 1e300, "", "x" * 300, "\u0000", [], {}, [[]], {"a": 1}, -0.5,
]  # fmt: skip


def mutate(rng: random.Random, frames: list[bytes]) -> list[bytes]:
    """One message with something wrong in it, or nothing."""
    found = list(frames)
    kind = rng.randrange(8)
    at = rng.randrange(len(found))
    if kind == 0:
        data = bytearray(found[at])
        for _ in range(rng.randint(1, 4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        found[at] = bytes(data)
    elif kind == 1:
        found[at] = found[at][: rng.randrange(len(found[at]) + 1)]
    elif kind == 2:
        found.insert(at, rng.randbytes(rng.randrange(40)))
    elif kind == 3:
        del found[at]
    elif kind == 4:
        found[at] = found[at] * rng.randint(2, 5)
    elif kind == 5:
        rng.shuffle(found)
    else:
        # Well formed, but with a value that does not belong there.
        whole = wire.unfold(frames[0]) if wire.is_folded(frames) else frames
        found = [*whole[:2], json.dumps(twist(rng, json.loads(whole[2]))).encode(), *whole[3:]]
        found = wire.fold(found) if wire.is_folded(frames) else found
    return found or [b""]


def twist(rng: random.Random, value: Any) -> Any:
    """A JSON value with one part of it replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(sorted(value))
        return {**value, name: twist(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], twist(rng, value[at]), *value[at + 1 :]]
    return rng.choice(ODD)


@pytest.mark.parametrize("seed", [1])
def test_random_mutations_on_both_sockets_leave_the_broker_alive_and_small(
    start_main: Callable[..., MainProcess], seed: int
) -> None:
    main = start_main("--store", "memory://", "--debug")
    client = main.ready()
    process = psutil.Process(main.process.pid)
    rng = random.Random(seed)
    (task_id,) = client.call("task.submit", {"task": {"task_type": "sleep"}}, [b"{}"])["task_ids"]
    corpora = {"worker_port": bus_corpus(), "admin_port": admin_corpus(task_id)}
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def rain(count: int) -> None:
        for name, corpus in corpora.items():
            socket = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 2_000)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.connect(f"tcp://127.0.0.1:{main.ports[name]}")
            for number in range(count):
                # Valid ones in between, so that the odd ones meet a registered device and tasks.
                whole = rng.choice(corpus)
                if number % 3 == 0:
                    whole = wire.fold(whole)
                socket.send_multipart(whole if number % 5 == 0 else mutate(rng, whole))
                while socket.poll(0):
                    socket.recv_multipart()
            client.call("health")
            socket.close()

    rain(MUTATIONS // 5)
    first_epoch, first_dropped = epoch(client), sum(dropped(client).values())
    before = process.memory_info().rss
    rain(MUTATIONS)
    counters = eventually(
        lambda: (found := dropped(client)) and sum(found.values()) > first_dropped + 500 and found,
        "counters of dropped messages",
    )
    assert counters["malformed"] > 500
    assert process.memory_info().rss - before < GROWTH_BYTES
    # No message made the broker lose its state, and nothing was logged as unexpected.
    said = main.said()
    assert "a turn failed" not in said, said[-3000:]
    assert epoch(client) == first_epoch
    assert said.count("malformed") < 100, "it is logged once a peer"
    (task_id,) = client.call("task.submit", {"task": {"task_type": "echo"}}, [b"{}"])["task_ids"]
    assert client.call("task.get", {"task_id": task_id})["payload"] == {}
    context.destroy(0)


@pytest.mark.parametrize(
    ("protocol", "spoken", "cure"),
    [
        (0, "no admin protocol that is known here", "update this program"),
        (2, "admin protocol 2", "update the main node's machine"),
        ("two", "no admin protocol that is known here", "update this program"),
        ([2**60], "no admin protocol that is known here", "update this program"),
    ],
)
def test_a_call_of_another_version_is_told_so_in_one_line(
    main_node: MainNode, protocol: object, spoken: str, cure: str
) -> None:
    other = RawDevice(main_node.facts.admin_port, tag=wire.ADMIN)
    calls: tuple[dict[str, Any], ...] = (
        {"protocol": protocol, "op": {}}, {"op": "health"}, {"op": "health", "protocol": 1},
    )  # fmt: skip
    for number, header in enumerate(calls):
        call = {"id": number, "args": {}, **header}
        other.socket.send_multipart(wire.encode(wire.ADMIN, b"CALL", call))
        answer = other.read(10)
        assert answer is not None
        assert answer.header["id"] == number
        if number:
            assert answer.verb == b"REPLY", "the first version may be left out"
            continue
        assert (answer.verb, answer.header["code"]) == (b"ERROR", "WRONG_PROTOCOL")
        message = answer.header["message"]
        assert message.startswith(f"this program speaks {spoken}, the main node 1 (retire-cluster ")
        assert cure in message
    other.close()


def test_tooling_of_another_version_says_so_and_nothing_else(
    main_node: MainNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shown is what the main node says; a program that is up already helps nobody."""
    text = "this program speaks admin protocol 1, the main node 2 (retire-cluster 9.9): update"
    monkeypatch.setattr(clients, "admin_refusal", lambda *_: text)
    encode = wire.encode

    def other(tag: bytes, verb: bytes, header: dict[str, Any], *blobs: Any) -> list[bytes]:
        found = {**header, "protocol": 2} if verb == b"CALL" else header
        return encode(tag, verb, found, *blobs)

    monkeypatch.setattr(wire, "encode", other)
    target = Target("127.0.0.1", main_node.facts.admin_port, "--cluster-port", tmp_path)
    client = AdminClient(port=target.port, timeout_seconds=10)
    with pytest.raises(NoAnswer) as caught:
        client.call("health")
    client.close()
    assert target.unreachable(caught.value).message == text
