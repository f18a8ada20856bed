"""Devices with a valid key that say far too much: others are served, memory stays."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context

import psutil
import pytest

from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.task_types import BUILTIN
from tests.integration.main_kit import MainNode, RawDevice, eventually

#: What a submission may take beside a flood, in seconds: it took 0.3 without budgets.
MOST_SECONDS = 0.1
#: Own types of the flooder's HELLO: each one's schema costs the main node work.
TYPES = (
    *(BUILTIN[name] for name in ("echo", "sleep")),
    *(
        msg.TypeInfo(f"own{number}", "", {f"f{n}": {"type": "string"} for n in range(5)})
        for number in range(80)
    ),
)
#: Kinds that are no message of the bus.
READ_FOR_NOTHING = ("MALFORMED", "CALL")


def _flood(port: int, device_id: str, kind: str) -> None:
    """Say one thing for ever (a process of its own)."""
    device = RawDevice(port, device_id)
    device.join(task_types=TYPES, slots=4)
    session = device.session
    if kind == "HELLO":
        hello = msg.Hello(
            wire.PROTOCOL, device_id, f"{os.getpid()}", session, "1", "worker", "linux", "host",
            (), 4, {"cpu_count": 4}, TYPES,
        )  # fmt: skip
        frames = wire.encode(wire.BUS, *hello.write())
    elif kind == "PROGRESS":
        key = device.next_task()[0]
        device.started(key)
        items = tuple(msg.ProgressItem(key, 1.0, "x" * 1_000) for _ in range(50))
        frames = wire.encode(wire.BUS, *msg.Progress(session, items).write())
    elif kind == "MALFORMED":
        header = b'{"groups":[%s[]]}' % (b"[]," * 600_000)
        frames = [wire.BUS, b"FINISHED", header]
    elif kind == "CALL":
        header = b'{"id":1,"args":[%s[]]}' % (b"[]," * 600_000)
        frames = [wire.ADMIN, b"CALL", header]
    else:
        stale = tuple(
            msg.FinishedItem((number, 9, 9, 9), "success", 0.0, None, None)
            for number in range(1, 3_000)
        )
        blobs = [b""] * (2 * len(stale))
        frames = wire.encode(wire.BUS, *msg.Finished.of(session, 1, stale).write(), blobs)
    while True:
        device.socket.send_multipart(frames)
        if kind not in READ_FOR_NOTHING:  # what is answered there is of another protocol
            device.pump()


@contextmanager
def flooding(node: MainNode, kind: str) -> Iterator[None]:
    """A device that floods; it has begun to when this begins."""
    process = get_context("spawn").Process(
        target=_flood, args=(node.facts.worker_port, "flooder", kind), daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def submit_seconds(node: MainNode, count: int = 25) -> list[float]:
    """What submissions take, one after another."""
    took = []
    for _ in range(count):
        began = time.monotonic()
        node.submit(requirements={"required_tags": ["nowhere"]})
        took.append(time.monotonic() - began)
    return took


def dropped(node: MainNode, least: int = 200) -> Callable[[], bool]:
    return lambda: node.call("metrics")["dropped_messages"].get("over_budget", 0) > least


def test_hello_without_end_does_not_slow_others_and_is_told(main_node: MainNode) -> None:
    with flooding(main_node, "HELLO"):
        eventually(dropped(main_node), "messages that are dropped")
        took = submit_seconds(main_node)
        assert statistics.median(took) < MOST_SECONDS, sorted(took)
        found = eventually(
            lambda: main_node.call("device.get", device_id="flooder")["messages_dropped"],
            "what was dropped of it",
        )
        assert found["HELLO"] > 50
    events = main_node.call("events.poll", since=0, type="device.flooding")["events"]
    assert [event["device_id"] for event in events] == ["flooder"]
    assert events[0]["data"]["kinds"] == ["HELLO"]


def test_results_of_attempts_that_it_does_not_have_do_not_slow_others(main_node: MainNode) -> None:
    with flooding(main_node, "FINISHED"):
        eventually(dropped(main_node), "messages that are dropped")
        took = submit_seconds(main_node)
    assert statistics.median(took) < MOST_SECONDS, sorted(took)


@pytest.mark.parametrize("kind", READ_FOR_NOTHING)
def test_large_messages_that_are_none_do_not_slow_others(main_node: MainNode, kind: str) -> None:
    with flooding(main_node, kind):
        eventually(dropped(main_node, 20), "messages that are dropped")
        took = submit_seconds(main_node)
    assert statistics.median(took) < MOST_SECONDS, sorted(took)


def test_progress_without_end_takes_no_memory_and_leaves_the_events_of_others(
    main_node: MainNode,
) -> None:
    main_node.device("bystander").close()
    main_node.call("device.remove", device_id="bystander")
    main_node.submit(task_type="sleep")
    before = psutil.Process().memory_info().rss
    with flooding(main_node, "PROGRESS"):
        eventually(dropped(main_node), "messages that are dropped")
        assert statistics.median(submit_seconds(main_node)) < MOST_SECONDS
    grown = psutil.Process().memory_info().rss - before
    assert grown < 20 * 1024 * 1024, f"{grown >> 20} MiB"
    events = main_node.call("events.poll", since=0, type="device.removed")["events"]
    assert [event["device_id"] for event in events] == ["bystander"]
    told = main_node.call("events.poll", since=0, type="task.progress")["events"]
    assert 0 < len(told) <= 300
