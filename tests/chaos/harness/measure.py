"""Figures: how fast faults are noticed and repaired, and what slow clients can do.

Real processes; default settings where the figure is about them. Each function returns numbers, it
judges nothing: `run.py` puts them beside their targets, the tests assert.
"""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from retire_cluster.schemas.errors import ClusterError
from tests.chaos.rig import Rig, eventually

#: The contract's defaults.
DEFAULTS = "[api]\nrate_limit = false\n[worker]\nslots = 4\n"


def dead_device(rig: Rig, interval: float, max_missed: int, lease: float) -> dict[str, float]:
    """kill -9 of a device with a running task.

    `noticed_heartbeats`: from its last heartbeat until it was offline, in heartbeats.
    `requeued_after_lease_seconds`: from the end of the lease until its task waited again.
    """
    rig.admin.call(
        "config.update",
        {"section": "heartbeat",
         "values": {"interval": interval, "max_missed": max_missed, "timeout": lease}},
    )  # fmt: skip
    device = rig.start_device("mortal")
    rig.await_online("mortal")
    (task,) = rig.submit("sleep", {"duration": 600})
    eventually(lambda: rig.status(task) == "running", "it runs")
    beats = _beats(rig)
    eventually(lambda: _beats(rig) > beats, "a heartbeat", 2 * interval + 5)
    last_beat = time.monotonic()
    device.kill()
    eventually(lambda: "mortal" not in rig.online(), "it is offline", 2 * lease)
    noticed = time.monotonic() - last_beat
    eventually(lambda: rig.status(task) in ("queued", "pending"), "its task waits", 2 * lease)
    requeued = time.monotonic() - last_beat
    rig.admin.call("task.cancel", {"task_id": task})
    return {
        "noticed_seconds": noticed,
        "noticed_heartbeats": noticed / interval,
        "requeued_seconds": requeued,
        "requeued_after_lease_seconds": requeued - lease,
    }


def _beats(rig: Rig) -> int:
    return int(rig.admin.call("device.get", {"device_id": "mortal"})["total_heartbeats"])


def restart_with_backlog(rig: Rig, queued: int) -> dict[str, float]:
    """kill -9 of the main node with so many queued tasks; seconds to answers and to work."""
    device = rig.start_device("worker")
    rig.await_online("worker")
    device.stop()
    while rig.admin.call("task.statistics")["queue_stats"]["total_tasks"] < queued:
        rig.submit("sleep", {"duration": 0.001}, 1_000)
    rig.start_device("worker")
    rig.await_online("worker")
    assert rig.broker is not None
    rig.broker.kill()
    # As an operator would: a new interpreter that has to import everything first.
    command = [sys.executable, "-m", "retire_cluster.broker.cli", *rig.broker_arguments()]
    began = time.monotonic()
    with (rig.folder / "cold.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        rig.await_broker()
        answered = time.monotonic() - began
        events = rig.client(25.0).call(
            "events.poll", {"since": 0, "wait_seconds": 20, "type": "task.assigned", "limit": 1}
        )["events"]
        dispatched = time.monotonic() - began
    finally:
        process.terminate()
        process.wait(15)
    assert events, "nothing was dispatched"
    return {"answers_seconds": answered, "first_dispatch_seconds": dispatched}


# --- slow clients --------------------------------------------------------------------------------


class SlowClients:
    """Clients that do as little as they may: all of them on threads of one small loop."""

    def __init__(self, port: int, bus_port: int) -> None:
        self._port = port
        self._bus_port = bus_port
        self._open: list[socket.socket] = []
        self._over = threading.Event()
        self._rng = random.Random(1)

    def writers(self, count: int) -> None:
        """They send one header a second and never end the request."""
        rows = [self._connect(self._port) for _ in range(count)]
        for one in rows:
            with contextlib.suppress(OSError):
                one.sendall(b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\n")
        self._trickle(rows)

    def readers(self, count: int, path: str = "/api/v1/openapi.json") -> None:
        """They ask for a large answer again and again and read nothing of it."""
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for _ in range(count):
            one = self._connect(self._port, receive_bytes=2_048)
            with contextlib.suppress(OSError):
                one.sendall(request * 4)

    def polls(self, count: int) -> None:
        """They park in long polls, read the answer and park again."""
        request = b"GET /api/v1/events?wait=25 HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for _ in range(count):
            with contextlib.suppress(OSError):
                self._connect(self._port).sendall(request)

    def idle_on_the_bus(self, count: int) -> None:
        """They connect to the worker bus and say nothing."""
        for _ in range(count):
            self._connect(self._bus_port)

    def close(self) -> None:
        """They all go."""
        self._over.set()
        for one in self._open:
            one.close()

    def _connect(self, port: int, receive_bytes: int = 0) -> socket.socket:
        one = socket.socket()
        if receive_bytes:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        one.settimeout(10)
        with contextlib.suppress(OSError):
            one.connect(("127.0.0.1", port))
        self._open.append(one)
        return one

    def _trickle(self, rows: list[socket.socket]) -> None:
        def work() -> None:
            while not self._over.wait(0.8):
                for one in rows:
                    with contextlib.suppress(OSError):
                        one.sendall(b"X-Slow: 1\r\n")

        threading.Thread(target=work, daemon=True).start()


def under_slow_clients(
    rig: Rig, *, writers: int, readers: int, polls: int, idle: int, seconds: float
) -> dict[str, Any]:
    """Times of `/health` and the flow of tasks while they are all there."""
    slow = SlowClients(rig.api_port, rig.bus_port)
    times: list[float] = []
    failures = 0
    done = 0
    try:
        slow.idle_on_the_bus(idle)
        slow.polls(polls)
        slow.readers(readers)
        slow.writers(writers)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                status, _ = rig.http("GET", "/health")
                failures += status != 200
            except OSError:
                failures += 1
            times.append(time.monotonic() - began)
            if len(times) % 10 == 0:
                with contextlib.suppress(ClusterError):
                    done += len(rig.finish(rig.submit("echo", {"n": 1}, 10), 10))
            time.sleep(0.02)
    finally:
        slow.close()
    ordered = sorted(times)
    return {
        "requests": len(times), "failures": failures, "tasks_done": done,
        "health_p50_ms": 1000 * ordered[len(ordered) // 2],
        "health_p99_ms": 1000 * ordered[int(len(ordered) * 0.99)],
        "health_max_ms": 1000 * ordered[-1],
    }  # fmt: skip
