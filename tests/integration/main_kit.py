"""A real main node on loopback, in a thread or as a process; devices made of one bare socket."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zmq

from retire_cluster.broker.client import AdminClient
from retire_cluster.broker.net.opening import TICKS_ENDPOINT, MainKeys
from retire_cluster.broker.server import Broker
from retire_cluster.broker.store.opening import open_store
from retire_cluster.broker.sweeper import Sweeper
from retire_cluster.conf import curve
from retire_cluster.conf.curve import ClientKeys
from retire_cluster.conf.settings import Settings
from retire_cluster.schemas.ids import TaskIds
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import AttemptKey
from retire_cluster.schemas.task_types import BUILTIN

PATIENCE_SECONDS = 30.0
M = TypeVar("M")


def eventually(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """The condition's first true value; fails the test when it stays false."""
    until = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > until:
            pytest.fail(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)


def settings_for(folder: Path, **sections: dict[str, Any]) -> Settings:
    """Settings with every port free to choose and quick sweeps."""
    base = Settings(data_dir=folder)
    fields: dict[str, dict[str, Any]] = {
        "server": {"port": 0, "worker_port": 0, "event_port": 0},
        "scheduler": {"sweep_interval_seconds": 0.05, "retry_base_seconds": 0.01},
        "database": {"min_free_percent": 0.0},
    }
    for name, given in sections.items():
        fields.setdefault(name, {}).update(given)
    changed = {name: replace(getattr(base, name), **values) for name, values in fields.items()}
    return base.with_sections(changed)


class MainNode:
    """A broker that runs in a thread of this process."""

    def __init__(self, settings: Settings, *, keys: ClientKeys | None = None) -> None:
        self.settings = settings
        locks = None
        if keys is not None:
            locks = MainKeys(curve.server_pair(settings.data_dir), keys.pair.public)
        store = open_store(settings.store_url)
        self.broker = Broker(settings, store, keys=locks, rng=random.Random(5))
        self.facts = self.broker.facts
        interval = settings.scheduler.sweep_interval_seconds
        self.sweeper = Sweeper(self.broker.context, TICKS_ENDPOINT, interval)
        self._thread = threading.Thread(target=self.broker.run, name="broker")
        self.client = AdminClient(
            port=self.facts.admin_port, timeout_seconds=PATIENCE_SECONDS, keys=lambda: keys
        )
        self._devices: list[RawDevice] = []
        self.sweeper.start()
        self._thread.start()

    def call(self, op: str, blobs: Sequence[bytes] = (), /, **args: Any) -> dict[str, Any]:
        """An admin operation's data."""
        return self.client.call(op, args, blobs)

    def submit(self, payload: bytes = b"{}", count: int = 1, **task: Any) -> list[str]:
        """Ids of new tasks that are alike."""
        task.setdefault("task_type", "sleep")
        args = {"task": task, "count": count, "brief": True}
        found: list[str] = self.client.call("task.submit", args, [payload] * count)["task_ids"]
        return found

    def status(self, task_id: str) -> str:
        """A task's status."""
        return str(self.call("task.status", task_id=task_id)["status"])

    def device(self, device_id: str = "box", **hello: Any) -> RawDevice:
        """A device that has been welcomed."""
        device = self.socket(device_id)
        device.join(**hello)
        return device

    def socket(self, device_id: str = "box", keys: ClientKeys | None = None) -> RawDevice:
        """A device that has not said HELLO."""
        device = RawDevice(self.facts.worker_port, device_id, keys=keys)
        self._devices.append(device)
        return device

    def stop(self) -> None:
        """End the thread and close everything; once is enough."""
        if not self._thread.is_alive():
            return
        for device in self._devices:
            device.close()
        self.client.close()
        self.sweeper.stop()
        ticks = self.broker.context.socket(zmq.PUSH)
        ticks.connect(TICKS_ENDPOINT)
        ticks.send(b"stop")
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "the broker's loop does not end"
        ticks.close()
        self.broker.close()
        self.broker.context.term()


class RawDevice:
    """A DEALER that speaks docs/protocol.md by hand."""

    def __init__(
        self,
        port: int,
        device_id: str = "box",
        *,
        tag: bytes = wire.BUS,
        keys: ClientKeys | None = None,
    ) -> None:
        self.device_id = device_id
        self.tag = tag
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDTIMEO, int(PATIENCE_SECONDS * 1000))
        if keys is not None:
            curve.lock(self.socket, keys)
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        self.session = ""
        self.batch = 0
        self._count = 0
        self._waiting: list[wire.Message] = []
        #: `(key, task id, type, payload)` of every assignment so far.
        self.assigned: list[tuple[AttemptKey, str, str, bytes]] = []

    def close(self) -> None:
        """Gone without a word."""
        self.socket.close(0)
        self._context.term()

    def send(self, message: Any, blobs: Sequence[bytes] = ()) -> None:
        """One message."""
        verb, header = message.write()
        self.socket.send_multipart(wire.encode(self.tag, verb, header, blobs))

    def read(self, seconds: float = PATIENCE_SECONDS) -> wire.Message | None:
        """The next message, None when none comes in time."""
        if self._waiting:
            return self._waiting.pop(0)
        if not self.socket.poll(int(seconds * 1000)):
            return None
        return wire.decode(self.tag, self.socket.recv_multipart())

    def expect(self, kind: type[M], seconds: float = PATIENCE_SECONDS) -> M:
        """The next message of a kind; others before it are passed over (assignments noted)."""
        until = time.monotonic() + seconds
        while True:
            found = self.read(max(0.0, until - time.monotonic()))
            if found is None:
                pytest.fail(f"no {kind.__name__} within {seconds:g} s")
            message = msg.read_from_broker(found.verb, found.header)
            if isinstance(message, msg.Assign):
                self._note(message, found.blobs)
            if isinstance(message, kind):
                return message

    def pump(self, seconds: float = 0.0) -> None:
        """Read what is there; note assignments."""
        while (found := self.read(seconds)) is not None:
            message = msg.read_from_broker(found.verb, found.header)
            if isinstance(message, msg.Assign):
                self._note(message, found.blobs)
            seconds = 0.0

    def _note(self, message: msg.Assign, payloads: Sequence[bytes]) -> None:
        assert message.session == self.session
        ids = TaskIds(message.salt)
        for item, payload in zip(message.items, payloads, strict=True):
            self.assigned.append(
                (item.key, ids.public(item.key[0], item.created_ms), item.task_type, payload)
            )

    def join(self, **changes: Any) -> msg.Welcome:
        """HELLO, and the WELCOME that follows."""
        self.hello(**changes)
        return self.expect(msg.Welcome)

    def hello(self, **changes: Any) -> None:
        """HELLO with these fields changed."""
        self._count += 1
        self.session = f"{self.device_id} {self._count}"
        fields: dict[str, Any] = {
            "protocol": wire.PROTOCOL,
            "device_id": self.device_id,
            "instance": f"{self.device_id} {id(self)}",
            "session": self.session,
            "version": "1",
            "role": "worker",
            "platform": "linux",
            "hostname": "host",
            "tags": (),
            "slots": 1,
            "capabilities": {"cpu_count": 4, "memory_total_gb": 8},
            "task_types": tuple(BUILTIN[name] for name in ("echo", "sleep", "command")),
        }
        self.send(msg.Hello(**{**fields, **changes}))

    def knock(self) -> None:
        """HELLO at a door that may be shut already: a refused DEALER has nobody to send to."""
        self.socket.setsockopt(zmq.SNDTIMEO, 0)
        with contextlib.suppress(zmq.Again):
            self.hello()

    def next_task(self) -> tuple[AttemptKey, str, str, bytes]:
        """The next assignment that was not taken yet."""
        while not self.assigned:
            self.expect(msg.Assign)
        return self.assigned.pop(0)

    def started(self, *keys: AttemptKey) -> None:
        """STARTED."""
        self.send(msg.Started(self.session, keys))

    def finished(
        self,
        *keys: AttemptKey,
        outcome: str = "success",
        cause: str | None = None,
        result: bytes = b'{"ok":true}',
        details: bytes = b"",
    ) -> int:
        """FINISHED; the number of its batch."""
        self.batch += 1
        error = None if outcome == "success" else "it broke"
        items = tuple(msg.FinishedItem(key, outcome, 0.01, cause, error) for key in keys)
        self.send(msg.Finished.of(self.session, self.batch, items), [result, details] * len(keys))
        return self.batch


class MainProcess:
    """`retire-cluster-main` as a process."""

    def __init__(
        self, folder: Path, *flags: str, python: Sequence[str] = (), **options: Any
    ) -> None:
        self.folder = folder
        ports = ("--port", "0", "--worker-port", "0", "--event-port", "0")
        command = [
            sys.executable, *(python or ("-m", "retire_cluster.broker.cli")),
            "--data-dir", str(folder), *ports, *flags,
        ]  # fmt: skip
        self.errors = (folder.parent / f"{folder.name}.stderr").open("wb")
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.errors, stderr=self.errors,
            env=quiet_environment(), **options,
        )  # fmt: skip
        self.client: AdminClient | None = None

    def ready(self) -> AdminClient:
        """A client once it serves."""
        path = self.folder / "run" / "main.json"

        def announced() -> dict[str, Any] | None:
            assert self.process.poll() is None, f"the main node ended: {self.said()}"
            with contextlib.suppress(OSError, ValueError):
                found: dict[str, Any] = json.loads(path.read_text())
                return found if found["pid"] == self.process.pid else None
            return None

        self.ports = eventually(announced, "the main node's ports")
        self.client = AdminClient(port=self.ports["admin_port"], timeout_seconds=PATIENCE_SECONDS)
        self.client.call("broker.info")
        return self.client

    def said(self) -> str:
        """Its output so far."""
        return Path(self.errors.name).read_text("utf-8", "replace")

    def end(self, *, kill: bool = False) -> int:
        """Stop it, or kill it; its exit code."""
        if self.client is not None:
            self.client.close()
            self.client = None
        if self.process.poll() is None:
            (self.process.kill if kill else self.process.terminate)()
        code = self.process.wait(PATIENCE_SECONDS)
        self.errors.close()
        return code


def quiet_environment() -> dict[str, str]:
    """This process's environment without settings of the product, but that sockets are plain.

    Bare sockets speak to these main nodes; `test_gate.py` is about encrypted ones.
    """
    plain = {k: v for k, v in os.environ.items() if not k.startswith("RETIRE_CLUSTER_")}
    return {**plain, "RETIRE_CLUSTER_SERVER_CURVE": "false"}


@pytest.fixture
def main_node(tmp_path: Path) -> Iterator[MainNode]:
    """A main node with a SQLite store in a thread."""
    node = MainNode(settings_for(tmp_path))
    yield node
    node.stop()


@pytest.fixture
def start_main(tmp_path: Path) -> Iterator[Callable[..., MainProcess]]:
    """Starts main node processes; the ones left over are killed at the end of the test."""
    started: list[MainProcess] = []

    def start(*flags: str, folder: Path | None = None, **options: Any) -> MainProcess:
        started.append(MainProcess(folder or tmp_path / "data", *flags, **options))
        return started[-1]

    yield start
    for process in started:
        process.end(kill=True)
