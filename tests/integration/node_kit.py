"""The main node's side of the worker bus, for tests of a real worker process.

`Bus` is a loopback ROUTER that speaks the protocol; `start` starts workers that join it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import zmq

from retire_cluster.node.system import process_tree
from retire_cluster.schemas.protocol import messages, wire
from retire_cluster.schemas.protocol.messages import (
    AssignItem,
    AttemptKey,
    FinishedItem,
    HeartbeatConfig,
)

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and /proc")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
PATIENCE_SECONDS = 15.0
M = TypeVar("M")


class Ended(NamedTuple):
    item: FinishedItem
    #: `result_data`, decoded, or None.
    data: Any
    details: dict[str, Any]


class Bus:
    """The main node's side of the worker bus; answers heartbeats by itself."""

    def __init__(self, config: HeartbeatConfig | None = None) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.config = config or HeartbeatConfig(version=1, interval=0.5, timeout=20, max_missed=6)
        self.socket: zmq.Socket[bytes]
        self.port = 0
        self.bind()
        self.peer = b""
        self.session = ""
        self.epoch = 1
        self.acknowledge = True
        self.beats: list[float] = []
        self.seen: list[messages.FromDevice] = []
        self.ended: dict[int, Ended] = {}
        self.last = 0

    def bind(self) -> None:
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.socket.bind(f"tcp://127.0.0.1:{self.port or '*'}")
                break
            except zmq.ZMQError as error:
                # libzmq closes the old socket on a thread of its own, a little later.
                if error.errno != zmq.EADDRINUSE or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.port = int(endpoint.rpartition(":")[2])

    def close(self) -> None:
        self.socket.close(linger=0)

    def send(self, message: Any, *blobs: bytes) -> None:
        verb, header = message.write()
        self.socket.send_multipart([self.peer, *wire.encode(wire.BUS, verb, header, blobs)])

    def step(self, timeout_ms: int = 100) -> messages.FromDevice | None:
        """One message of the device, if there is one; the answers that always follow are sent."""
        if not self.socket.poll(timeout_ms):
            return None
        peer, *frames = self.socket.recv_multipart()
        decoded = wire.decode(wire.BUS, frames)
        message = messages.read_from_device(decoded.verb, decoded.header)
        self.peer = peer
        self.seen.append(message)
        if isinstance(message, messages.Heartbeat):
            self.beats.append(time.monotonic())
            self.send(messages.HeartbeatAck(message.session, message.beat, self.config.version))
        elif isinstance(message, messages.Finished):
            for index, item in enumerate(message.items):
                data, details = decoded.blobs[2 * index : 2 * index + 2]
                self.ended[item.key[0]] = Ended(
                    item, json.loads(data) if data else None, json.loads(details or b"{}")
                )
            if self.acknowledge:
                self.send(messages.FinishedAck(message.session, message.batch))
        return message

    def until(self, condition: Callable[[], Any], what: str = "the condition") -> Any:
        end = time.monotonic() + PATIENCE_SECONDS
        while not (found := condition()):
            assert time.monotonic() < end, f"waited in vain for {what}; seen: {self.seen[-5:]}"
            self.step(50)
        return found

    def expect(self, kind: type[M]) -> M:
        """The next message of a kind."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            message = self.step(100)
            if isinstance(message, kind):
                return message
        raise AssertionError(f"no {kind.__name__}; seen: {self.seen[-5:]}")

    def welcome(self) -> messages.Hello:
        """Takes a HELLO and welcomes whatever it has."""
        hello = self.expect(messages.Hello)
        self.session = hello.session
        keep = (*(row.key for row in hello.held), *hello.unsent)
        self.send(messages.Welcome(hello.session, self.epoch, keep, (), self.config))
        return hello

    def assign(self, task_type: str, payload: Any, timeout_seconds: int = 30) -> AttemptKey:
        return self.assign_all([(task_type, payload)], timeout_seconds)[0]

    def assign_all(
        self, tasks: list[tuple[str, Any]], timeout_seconds: int = 30
    ) -> list[AttemptKey]:
        items, blobs = [], []
        for task_type, payload in tasks:
            self.last += 1
            key = (self.last, 1, self.last + 1000, self.epoch)
            items.append(AssignItem(key, self.last, task_type, timeout_seconds))
            blobs.append(json.dumps(payload).encode())
        self.send(messages.Assign.of(self.session, tuple(items)), *blobs)
        return [item.key for item in items]

    def result(self, key: AttemptKey) -> Ended:
        self.until(lambda: key[0] in self.ended, f"the result of {key}")
        return self.ended[key[0]]

    def run(self, task_type: str, payload: Any, timeout_seconds: int = 30) -> Ended:
        return self.result(self.assign(task_type, payload, timeout_seconds))

    def started(self, key: AttemptKey) -> None:
        self.until(
            lambda: any(isinstance(m, messages.Started) and key in m.items for m in self.seen),
            f"the start of {key}",
        )


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def bus() -> Iterator[Bus]:
    bus = Bus()
    yield bus
    bus.close()
    bus.context.term()


@pytest.fixture
def start(bus: Bus, tmp_path: Path) -> Iterator[Start]:
    processes = []

    def start_worker(
        *flags: str,
        environ: dict[str, str] | None = None,
        folder: str | None = "w",
        python: str = sys.executable,
    ) -> subprocess.Popen[str]:
        command = [python, "-m", "retire_cluster.node"]
        command += ["--join", f"127.0.0.1:{bus.port}"]
        if folder is not None:
            command += ["--data-dir", str(tmp_path / folder)]
        process = subprocess.Popen(
            [*command, "--slots", "2", *flags],
            cwd=tmp_path,
            env={**os.environ, **(environ or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start_worker
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def without_walls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers as where the kernel has no Landlock: what holds there is not held by walls."""
    monkeypatch.setenv("RETIRE_CLUSTER_POLICY_SANDBOX", "none")


COMMAND = ("--allow", "command", "--allow-root")


def opened(folder: Path) -> dict[str, str]:
    """The environment of a worker whose owner opens a folder to tasks, which is made."""
    folder.mkdir(exist_ok=True)
    return {"RETIRE_CLUSTER_POLICY_FOLDERS": str(folder)}


def task_root(data_dir: Path) -> Path:
    """Where a worker's tasks have their folders."""
    inside = data_dir / "work"
    if inside.exists():
        return inside
    (noted,) = json.loads((data_dir / "task-processes.json").read_text())["roots"]
    return Path(noted)


def python(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(lines)]


def alive_with(mark: str) -> list[int]:
    """Processes whose command line holds a mark."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and mark.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(int(entry))
    return found


def children_of(pid: int) -> list[int]:
    """Task processes of a worker, at any depth."""
    return [process.pid for process in process_tree.descendants(pid)]


def is_running(pid: int) -> bool:
    process = process_tree.find(pid)
    return process is not None and process.state not in ("Z", "X")


def wait_until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
