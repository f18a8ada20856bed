"""The product as a user runs it, `retire-cluster up` in its own process, and a client of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from retire_cluster.conf import curve
from retire_cluster.conf.curve import ClientKeys
from retire_cluster.conf.neighbours import tooling_keys
from retire_cluster.schemas.protocol import wire

_START_SECONDS = 60.0


@dataclass
class Product:
    """A running cluster."""

    admin_port: int
    api_port: int
    folder: Path

    def client(self) -> ProductClient:
        """A pipelining client of its admin socket."""
        keys = tooling_keys(self.folder, "", "127.0.0.1", self.admin_port)
        return ProductClient(f"tcp://127.0.0.1:{self.admin_port}", keys)


class ProductClient:
    """Submits and awaits through the admin socket, several calls under way (docs/protocol.md)."""

    def __init__(self, url: str, keys: ClientKeys | None = None) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        if keys is not None:
            curve.lock(self._socket, keys)
        self._socket.connect(url)
        self._calls = 0

    def throughput(self, payload: bytes, tasks: int, batch: int, window: int) -> float:
        """Seconds to get `tasks` results, `batch` a call, `window` under way at most."""
        began = time.perf_counter()
        waiting: dict[int, int] = {}
        sent = got = 0
        while got < tasks:
            while sent < tasks and sent - got < window:
                count = min(batch, tasks - sent)
                args = {
                    "task": {"task_type": "echo"}, "count": count, "first_only": True,
                    "wait_seconds": 60,
                }  # fmt: skip
                waiting[self._call("task.submit", args, [payload] * count)] = count
                sent += count
            header = self._answer()
            count = waiting.pop(header["id"])
            if header["data"]["statuses"] != ["success"] * count:
                raise RuntimeError("not all tasks ended well within a minute")
            got += count
        return time.perf_counter() - began

    def latency(self, payload: bytes) -> float:
        """Seconds from submitting one task to its result."""
        return self.throughput(payload, 1, 1, 1)

    def call(self, op: str, args: dict[str, object]) -> dict[str, Any]:
        """The data of one operation; nothing else is under way."""
        self._call(op, args)
        data: dict[str, Any] = self._answer()["data"]
        return data

    def _call(self, op: str, args: dict[str, object], blobs: list[bytes] | None = None) -> int:
        self._calls += 1
        header = {"id": self._calls, "op": op, "args": args}
        frames = wire.encode(wire.ADMIN, b"CALL", header, blobs or ())
        self._socket.send_multipart(wire.fold(frames))
        return self._calls

    def _answer(self) -> dict[str, Any]:
        message = wire.decode(wire.ADMIN, self._socket.recv_multipart())
        if message.verb != b"REPLY":
            raise RuntimeError(f"the cluster answered {message.header}")
        return message.header

    def close(self) -> None:
        """Disconnect."""
        self._socket.close(0)


@contextmanager
def product(
    workers: int = 2,
    slots: int = 2,
    *,
    encrypted: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Product]:
    """A cluster in a temporary folder on free ports of loopback; `environment`: more settings."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [
            sys.executable, "-m", "retire_cluster.cli.main", "up", "--port", "0",
            "--cluster-port", "0", "--worker-port", "0", "--event-port", "0",
            "--data-dir", name, "--workers", str(workers), "--slots", str(slots),
            "--no-rate-limit",
        ]  # fmt: skip
        variables = {k: v for k, v in os.environ.items() if not k.startswith("RETIRE_CLUSTER_")}
        variables["RETIRE_CLUSTER_SERVER_CURVE"] = "true" if encrypted else "false"
        variables["RETIRE_CLUSTER_SERVER_WORKER_HOST"] = "127.0.0.1"
        variables |= environment or {}
        with open(folder / "up.log", "wb") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=variables, text=True
            )
            try:
                _await_ready(process, folder)
                places = json.loads((folder / "endpoints.json").read_text("utf-8"))
                yield Product(places["main"]["admin_port"], places["api"]["port"], folder)
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()


def _await_ready(process: subprocess.Popen[str], folder: Path) -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + _START_SECONDS
    seen: deque[str] = deque(maxlen=20)
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        if line.startswith("ready "):
            return
        if not line:
            break
        seen.append(line)
    text = (folder / "up.log").read_text("utf-8", "replace")[-2000:]
    raise RuntimeError(f"the cluster did not start: {''.join(seen)}{text}")
