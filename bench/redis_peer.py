"""What an expert builds by hand: two Redis Streams, every write synced before it is answered.

`appendfsync always`, a consumer group of two worker processes, no leases, retries or priorities.
Tasks of one batch are added by one script. It speaks through a socket file, which is a little
quicker than the loopback that the product uses.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing as mp
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.product import product
from bench.report import Figure, Unavailable, ratios
from bench.throughput import BATCH, PAYLOAD, WINDOW, rate

_TASKS, _RESULTS, _GROUP = "tasks", "results", "workers"
_START_SECONDS = 20.0
#: Entries that a worker or the client takes at once.
_TAKEN = 512
_ADD = """
for _, payload in ipairs(ARGV) do redis.call('XADD', KEYS[1], '*', 'p', payload) end
"""


def redis(runs: int) -> list[Figure]:
    """Redis Streams, synced always, two worker processes, beside us: tasks/s, submit to result."""
    if shutil.which("redis-server") is None or importlib.util.find_spec("redis") is None:
        raise Unavailable("needs the program redis-server, and the client: pip install redis")
    peer_many, peer_single = (
        Figure("Redis Streams, batches of 500", "tasks/s"),
        Figure("Redis Streams, single", "tasks/s"),
    )
    many, single = (
        Figure("product, batches of 500", "tasks/s"),
        Figure("product, single", "tasks/s"),
    )
    peer_p50, p50 = Figure("Redis Streams p50", "ms"), Figure("product p50", "ms")
    with _redis() as streams, product() as cluster:
        client = cluster.client()
        rate(client, 10_000, BATCH, WINDOW)
        streams.throughput(10_000, BATCH, WINDOW)
        for _ in range(runs):
            peer_many.values.append(40_000 / streams.throughput(40_000, BATCH, WINDOW))
            many.values.append(rate(client, 40_000, BATCH, WINDOW))
            peer_single.values.append(8_000 / streams.throughput(8_000, 1, 200))
            single.values.append(rate(client, 8_000, 1, 200))
            theirs = [streams.throughput(1, 1, 1) for _ in range(200)]
            peer_p50.values.append(1000 * statistics.median(theirs))
            ours = [client.latency(PAYLOAD) for _ in range(200)]
            p50.values.append(1000 * statistics.median(ours))
        client.close()
    return [
        peer_many, many, ratios("batches / Redis", many, peer_many), peer_single, single,
        ratios("single / Redis", single, peer_single), peer_p50, p50,
        ratios("p50 / Redis", p50, peer_p50),
    ]  # fmt: skip


class _Streams:
    """The client's side."""

    def __init__(self, path: str) -> None:
        self._db = _connect(path)
        self._add = self._db.register_script(_ADD)
        self._seen = "0"

    def throughput(self, tasks: int, batch: int, window: int) -> float:
        """Seconds to get `tasks` results, as `ProductClient.throughput`."""
        began = time.perf_counter()
        sent = got = 0
        while got < tasks:
            with self._db.pipeline(transaction=False) as calls:
                while sent < tasks and sent - got < window:
                    count = min(batch, tasks - sent)
                    if batch == 1:
                        calls.xadd(_TASKS, {"p": PAYLOAD})
                    else:
                        self._add(keys=[_TASKS], args=[PAYLOAD] * count, client=calls)
                    sent += count
                calls.execute()
            found = self._db.xread({_RESULTS: self._seen}, count=_TAKEN, block=10_000)
            if not found:
                raise RuntimeError("Redis Streams: no result within ten seconds")
            entries = found[0][1]
            if any(fields[b"p"] != PAYLOAD for _, fields in entries):
                raise RuntimeError("Redis Streams: a result is not what was sent")
            self._seen = entries[-1][0]
            got += len(entries)
        return time.perf_counter() - began


def _connect(path: str) -> Any:
    library = importlib.import_module("redis")
    # Parsed as before, whatever the client's newest default is.
    return library.Redis(unix_socket_path=path, protocol=2)


def _work(path: str, name: str) -> None:
    db = _connect(path)
    add = db.register_script(_ADD)
    while True:
        found = db.xreadgroup(_GROUP, name, {_TASKS: ">"}, count=_TAKEN, block=1_000)
        if not found:
            continue
        entries = found[0][1]
        with db.pipeline(transaction=False) as calls:
            payloads = [fields[b"p"] for _, fields in entries]
            if len(payloads) == 1:
                calls.xadd(_RESULTS, {"p": payloads[0]})
            else:
                add(keys=[_RESULTS], args=payloads, client=calls)
            calls.xack(_TASKS, _GROUP, *[number for number, _ in entries])
            calls.execute()


@contextmanager
def _redis() -> Iterator[_Streams]:
    with tempfile.TemporaryDirectory() as name:
        path = str(Path(name) / "redis.sock")
        server = subprocess.Popen(
            [
                "redis-server", "--port", "0", "--unixsocket", path, "--dir", name, "--save", "",
                "--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        workers: list[Any] = []
        try:
            _await_socket(server, path)
            _connect(path).xgroup_create(_TASKS, _GROUP, id="0", mkstream=True)
            context = mp.get_context("spawn")
            for number in range(2):
                worker = context.Process(target=_work, args=(path, f"w{number}"), daemon=True)
                worker.start()
                workers.append(worker)
            yield _Streams(path)
        finally:
            for worker in workers:
                worker.terminate()
                worker.join(10)
            server.terminate()
            server.wait(20)


def _await_socket(server: subprocess.Popen[bytes], path: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if Path(path).is_socket():
            return
        time.sleep(0.01)
    raise RuntimeError("redis-server did not start")
