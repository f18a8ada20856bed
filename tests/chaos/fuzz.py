"""Broken messages for both sockets of the main node: seeded mutations of valid ones.

A mutation damages frames (bytes flipped, cut, dropped, doubled, swapped) or, keeping the JSON
valid, the header (values of other types and sizes, fields left out, renamed, nested).
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.task_types import BUILTIN
from tests.chaos.rig import QUICK, Rig

#: What may pile up by valid messages among the broken ones is kept small, so that memory tells.
SETTINGS = QUICK.replace("[scheduler]", "[scheduler]\nbacklog_limit = 300") + (
    "[retention]\nevent_rows = 1000\nfinished_rows = 500\n"
)
_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, "", "x",
    "\u0000", "é" * 50, "x" * 5_000, [], {}, [[]], [None], {"": None}, [1, "a", {}], "2**64",
    "00000000-0000-7000-8000-000000000000",
)  # fmt: skip


@dataclass
class Findings:
    """What the main node made of it."""

    frames: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    #: Errors that a client's message must never lead to.
    internal: list[str] = field(default_factory=list)
    rss_growth_mb: float = 0.0
    alive: bool = True
    seconds: float = 0.0


def bus_messages(rng: random.Random) -> Iterator[list[bytes]]:
    """Valid messages of a device, over and over."""
    types = tuple(BUILTIN[name] for name in ("echo", "sleep"))
    key = (1, 1, 5, 1)
    while True:
        session = f"s{rng.randrange(5)}"
        hello = msg.Hello(
            protocol=wire.PROTOCOL, device_id=f"fuzz-{rng.randrange(8)}", instance="i",
            session=session, version="1", role="worker", platform="linux", hostname="box",
            tags=("a", "b"), slots=2, capabilities={"cpu_count": 4, "memory_total_gb": 8.0},
            task_types=types, held=(msg.Held(key, True, 1.5),), unsent=(key,), accepting=True,
            uptime_seconds=3.0,
        )  # fmt: skip
        item = msg.FinishedItem(key, "success", 0.1, None, None)
        beat = msg.Heartbeat(session, rng.randrange(1, 99), held=(), metrics={"cpu_percent": 5.0})
        options: list[Any] = [
            hello, beat, msg.Started(session, (key,)), msg.Finished.of(session, 1, (item,)),
            msg.Progress(session, (msg.ProgressItem(key, 50.0, "half"),)),
            msg.ConfigAck(session, 1), msg.Pong(session, 7), msg.Drain(session, "why"),
            msg.Goodbye(session, "bye"),
        ]  # fmt: skip
        message = rng.choices(options, (6, 6, 3, 6, 3, 1, 1, 1, 1))[0]
        verb, header = message.write()
        blobs = [b'{"ok":1}', b"{}"] if isinstance(message, msg.Finished) else ()
        yield wire.encode(wire.BUS, verb, header, blobs)


def admin_messages(rng: random.Random, task_ids: list[str]) -> Iterator[list[bytes]]:
    """Valid calls of every operation, over and over."""
    task = {"task_type": "echo", "priority": "high", "requirements": {"min_cpu_cores": 1},
            "metadata": {"a": [1, {"b": 2}]}}  # fmt: skip
    number = 0
    while True:
        number += 1
        known = {"task_id": rng.choice(task_ids) if task_ids else "x"}
        device = {"device_id": f"fuzz-{rng.randrange(8)}"}
        calls: list[tuple[str, dict[str, Any], list[bytes]]] = [
            ("task.submit", {"tasks": [task]}, [b'{"n":1}']),
            ("task.submit", {"task": task, "count": 2, "owner": "o", "fingerprint": "f",
                             "idempotency_key": f"k{rng.randrange(9)}"}, [b"{}", b"{}"]),
            ("task.list", {"page": 1, "page_size": 20, "status": "queued"}, []),
            ("task.wait", {"task_ids": [known["task_id"]], "timeout_seconds": 0.01}, []),
            ("device.list", {"page": 1, "page_size": 5, "tags": ["a"]}, []),
            ("device.ping", {**device, "timeout_seconds": 0.1}, []),
            ("events.poll", {"since": 0, "wait_seconds": 0, "limit": 5}, []),
            ("config.get", {"section": "heartbeat"}, []),
            ("config.update", {"section": "heartbeat", "values": {"interval": 1}}, []),
            ("rate.hit", {"client": "me"}, []),
            ("facade.report", {"facade": "f", "requests": 1, "errors": 0, "total_ms": 2.0}, []),
        ]  # fmt: skip
        calls += [(f"task.{op}", known, []) for op in
                  ("get", "status", "result", "cancel", "retry", "explain")]  # fmt: skip
        calls += [(f"device.{op}", device, []) for op in
                  ("get", "status", "remove", "readmit", "drain", "resume")]  # fmt: skip
        calls += [(op, {}, []) for op in (
            "broker.info", "health", "cluster.status", "cluster.metrics", "cluster.config",
            "device.summary", "task.statistics", "task.types", "metrics", "config.reset",
        )]  # fmt: skip
        op, args, blobs = rng.choice(calls)
        yield wire.encode(wire.ADMIN, b"CALL", {"id": number, "op": op, "args": args}, blobs)


def mutate(frames: list[bytes], rng: random.Random) -> list[bytes]:
    """One to three mutations."""
    found = list(frames)
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = _mutate_header(found, rng) if rng.random() < 0.6 else _mutate_frames(found, rng)
    return found or [b""]


def _mutate_header(frames: list[bytes], rng: random.Random) -> list[bytes]:
    try:
        header = json.loads(frames[2])
        places = list(_places(header))
    except (IndexError, ValueError, TypeError):
        return _mutate_frames(frames, rng)
    if not places:
        return frames
    holder, key = rng.choice(places)
    draw = rng.random()
    if draw < 0.65:
        holder[key] = copy.deepcopy(rng.choice(_ODD))
    elif draw < 0.75:
        holder[key] = [holder[key]] * rng.choice((2, 50))
    elif draw < 0.85 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = {"deep": [[[[holder[key]]]]]}
    text = json.dumps(header)
    if rng.random() < 0.03:
        text = text.replace("0", rng.choice(("NaN", "1e999", "[" * 200 + "]" * 200)), 1)
    return [*frames[:2], text.encode("utf-8", "surrogatepass"), *frames[3:]]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(inside):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


def _mutate_frames(frames: list[bytes], rng: random.Random) -> list[bytes]:
    found = list(frames)
    if not found:
        return found
    at = rng.randrange(len(found))
    frame = found[at]
    draw = rng.randrange(7)
    if draw == 0 and frame:
        place = rng.randrange(len(frame))
        flipped = frame[place] ^ 1 << rng.randrange(8)
        found[at] = frame[:place] + bytes([flipped]) + frame[place + 1 :]
    elif draw == 1:
        found[at] = frame[: rng.randrange(len(frame) + 1)]
    elif draw == 2:
        del found[at]
    elif draw == 3:
        found.insert(at, frame)
    elif draw == 4:
        found[at], found[-1] = found[-1], frame
    elif draw == 5:
        found[at] = rng.randbytes(rng.choice((0, 1, 40, 3_000)))
    else:
        found += [b"x"] * rng.choice((1, 5, 30))
    return found


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def fuzz(rig: Rig, frames: int, *, seed: int = 1, warm_up: float = 0.3) -> Findings:
    """Send so many broken messages, half to each socket; what came of it.

    Memory counts from when a share `warm_up` of them was sent: pools and caches are full then.
    """
    assert rig.broker is not None
    rng = random.Random(seed)
    found = Findings()
    began = time.monotonic()
    ids = rig.submit("echo", {"n": 0}, 5)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets: dict[bytes, zmq.Socket[bytes]] = {}
    sources = {wire.BUS: bus_messages(rng), wire.ADMIN: admin_messages(rng, ids)}
    ports = {wire.BUS: rig.bus_port, wire.ADMIN: rig.admin_port}
    before = 0.0
    try:
        for number in range(frames):
            tag = wire.BUS if number % 2 else wire.ADMIN
            if number % 4_000 < 2:  # new connections now and then
                if tag in sockets:
                    sockets.pop(tag).close(0)
                sockets[tag] = context.socket(zmq.DEALER)
                sockets[tag].setsockopt(zmq.SNDTIMEO, 10_000)
                sockets[tag].connect(f"tcp://127.0.0.1:{ports[tag]}")
            # Most are broken; without some valid ones nothing would ever be registered.
            message = next(sources[tag])
            if rng.random() > 0.08:
                message = mutate(message, rng)
            if len(message) in range(2, 9) and rng.random() < 0.5:
                message = wire.fold(message)
                if rng.random() < 0.3:
                    message = _mutate_frames(message, rng) or [b""]
            sockets[tag].send_multipart(message)
            if number % 64 == 0:
                for each in sockets.values():
                    _drain(each, found)
            if number % 512 == 0:
                found.alive = found.alive and _answers(rig)
            if number == int(frames * warm_up):
                before = rss_mb(rig.broker.pid)
        time.sleep(0.3)
        for each in sockets.values():
            _drain(each, found)
        found.alive = found.alive and _answers(rig) and rig.broker.poll() is None
        found.rss_growth_mb = rss_mb(rig.broker.pid) - before
    finally:
        for each in sockets.values():
            each.close(0)
        context.term()
    found.frames = frames
    found.seconds = time.monotonic() - began
    return found


def _answers(rig: Rig) -> bool:
    """Whether the main node answers, on a machine that may have much else to do."""
    until = time.monotonic() + 10.0
    while not rig.broker_answers():
        if time.monotonic() > until:
            return False
    return True


def _drain(socket_: zmq.Socket[bytes], found: Findings) -> None:
    while True:
        try:
            frames = socket_.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        if wire.is_folded(frames):
            frames = wire.unfold(frames[0])
        verb = frames[1].decode("ascii", "replace")
        if verb == "ERROR":
            header = json.loads(frames[2])
            found.answers[header["code"]] += 1
            if header["status"] >= 500 and header["code"] not in (
                "QUEUE_FULL", "CLUSTER_UNAVAILABLE",
            ):  # fmt: skip
                found.internal.append(str(header)[:500])
        else:
            found.answers[verb] += 1


def raw_bytes(port: int, rng: random.Random, connections: int) -> None:
    """Connections that speak no ZMTP at all, or begin to and stop."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    for _ in range(connections):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as one:
            text = rng.choice((greeting, greeting[: rng.randrange(64)], b"GET / HTTP/1.1\r\n\r\n"))
            one.sendall(text + rng.randbytes(rng.randrange(200)))
