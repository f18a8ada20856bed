"""The durable task queue that installs with pip alone: Huey on SQLite with `synchronous=FULL`."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.product import product
from bench.report import Figure, Unavailable, ratios
from bench.throughput import BATCH, PAYLOAD, WINDOW, rate

_APP = """
from huey import SqliteHuey
from huey.storage import SqliteStorage

class Full(SqliteStorage):
    def _create_connection(self):
        found = super()._create_connection()
        found.execute("pragma synchronous=full")
        return found

huey = SqliteHuey("peer", filename={path!r}, storage_class=Full)

@huey.task()
def echo(payload):
    return payload
"""


def huey(runs: int) -> list[Figure]:
    """Huey on SQLite (FULL), two worker processes, beside us: tasks/s and submit to result."""
    if importlib.util.find_spec("huey") is None:
        raise Unavailable("needs Huey: pip install huey")
    peer, peer_p50 = Figure("Huey, SQLite FULL", "tasks/s"), Figure("Huey p50", "ms")
    many, single = (
        Figure("product, batches of 500", "tasks/s"),
        Figure("product, single", "tasks/s"),
    )
    p50 = Figure("product p50", "ms")
    with _huey() as echo, product() as cluster:
        client = cluster.client()
        rate(client, 10_000, BATCH, WINDOW)
        for _ in range(runs):
            peer.values.append(_peer_rate(echo, 2_000))
            peer_p50.values.append(1000 * statistics.median(_peer_once(echo) for _ in range(100)))
            many.values.append(rate(client, 40_000, BATCH, WINDOW))
            single.values.append(rate(client, 4_000, 1, 200))
            times = [client.latency(PAYLOAD) for _ in range(200)]
            p50.values.append(1000 * statistics.median(times))
        client.close()
    return [
        peer, many, ratios("batches / Huey", many, peer), single,
        ratios("single / Huey", single, peer), peer_p50, p50, ratios("p50 / Huey", p50, peer_p50),
    ]  # fmt: skip


def _peer_rate(echo: Any, tasks: int) -> float:
    text = PAYLOAD.decode()
    began = time.perf_counter()
    results = [echo(text) for _ in range(tasks)]
    for result in results:
        result.get(blocking=True, timeout=60, backoff=1.0, max_delay=0.005)
    return tasks / (time.perf_counter() - began)


def _peer_once(echo: Any) -> float:
    began = time.perf_counter()
    echo(PAYLOAD.decode()).get(blocking=True, timeout=60, backoff=1.0, max_delay=0.001)
    return time.perf_counter() - began


@contextmanager
def _huey() -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "peer_app.py").write_text(_APP.format(path=str(folder / "peer.db")), "utf-8")
        consumer = subprocess.Popen(
            [
                sys.executable, "-m", "huey.bin.huey_consumer", "peer_app.huey", "-w", "2", "-k",
                "process", "-d", "0.001", "-m", "0.002", "-b", "1.0", "-q",
            ],
            cwd=folder,
        )  # fmt: skip
        sys.path.insert(0, name)
        try:
            import peer_app  # type: ignore[import-not-found]

            _peer_once(peer_app.echo)
            yield peer_app.echo
        finally:
            sys.path.remove(name)
            consumer.terminate()
            consumer.wait(20)
