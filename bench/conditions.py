"""The same batches under other conditions: encrypted, and on a disk whose every commit is slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.product import ProductClient, product
from bench.report import Figure, ratios
from bench.throughput import BATCH, PAYLOAD, WINDOW, rate

_TASKS = 40_000
_COMMIT_MS = 10.0


def encryption(runs: int) -> list[Figure]:
    """Durable tasks/s in batches of 500 with CURVE on every socket, beside the same without."""
    on, off = Figure("encrypted", "tasks/s"), Figure("plain", "tasks/s")
    with product(encrypted=True) as locked, product() as plain:
        sides = [(locked.client(), on), (plain.client(), off)]
        for client, _ in sides:
            rate(client, _TASKS // 4, BATCH, WINDOW)
        for _ in range(runs):
            for client, figure in sides:
                figure.values.append(rate(client, _TASKS, BATCH, WINDOW))
        for client, _ in sides:
            client.close()
    return [on, off, ratios("encrypted / plain", on, off)]


def slow_disk(runs: int) -> list[Figure]:
    """Durable tasks/s in batches when every commit takes 10 ms longer (an SD card)."""
    slow = Figure(f"each commit {_COMMIT_MS:g} ms slower", "tasks/s")
    fast = Figure("this disk", "tasks/s")
    single = Figure("one at a time on the slow disk, p50", "ms")
    lost = Figure("devices called offline meanwhile", "")
    with _main_node(_COMMIT_MS) as behind, _main_node(0.0) as usual:
        for client in (behind, usual):
            rate(client, _TASKS // 4, BATCH, WINDOW)
        for _ in range(runs):
            slow.values.append(rate(behind, _TASKS, BATCH, WINDOW))
            fast.values.append(rate(usual, _TASKS, BATCH, WINDOW))
            times = sorted(behind.latency(PAYLOAD) for _ in range(40))
            single.values.append(1000 * times[len(times) // 2])
            events = behind.call("events.poll", {"since": 0, "type": "device.offline"})["events"]
            lost.values.append(float(len(events)))
    return [slow, fast, ratios("slow / fast", slow, fast), single, lost]


@contextmanager
def _main_node(commit_ms: float) -> Iterator[ProductClient]:
    """A main node with two workers that beat each second."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RETIRE_CLUSTER_")}
    environment |= {
        "RETIRE_CLUSTER_SERVER_CURVE": "false",
        "RETIRE_CLUSTER_HEARTBEAT_INTERVAL": "1",
        "RETIRE_CLUSTER_HEARTBEAT_TIMEOUT": "4",
        "BENCH_COMMIT_MS": str(commit_ms),
    }
    running: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        running.append(
            subprocess.Popen([sys.executable, *command], env=environment, stderr=log, stdout=log)
        )

    with tempfile.TemporaryDirectory() as name, open(Path(name) / "log", "wb") as log:
        folder = Path(name)
        ports = ("--port", "0", "--worker-port", "0", "--event-port", "0")
        try:
            start("-m", "bench.slow_main", *ports, "--data-dir", name)
            document = _read(folder / "run" / "main.json")
            join = f"127.0.0.1:{document['worker_port']}"
            for number in (1, 2):
                start(
                    "-m", "retire_cluster.cli.main", "worker", "--join", join, "--slots", "2",
                    "--device-id", f"d{number}", "--data-dir", str(folder / f"d{number}"),
                )  # fmt: skip
            client = ProductClient(f"tcp://127.0.0.1:{document['admin_port']}")
            client.latency(PAYLOAD)
            yield client
            client.close()
        finally:
            for process in reversed(running):
                process.send_signal(signal.SIGTERM)
            for process in running:
                process.wait(30)


def _read(path: Path) -> dict[str, int]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            found: dict[str, int] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            time.sleep(0.05)
        else:
            return found
    raise RuntimeError("the main node did not start")
