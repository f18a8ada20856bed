"""What grows: queued tasks, devices, a full store. In one process, on its own processor time."""

from __future__ import annotations

import random
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.report import Figure
from retire_cluster.broker.admin.calls import Call
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.submit import make, submit
from retire_cluster.broker.admin.tasks import list_tasks
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.server import Broker
from retire_cluster.broker.store.sqlite import SQLiteStore
from retire_cluster.conf.settings import Settings
from retire_cluster.schemas.protocol.messages import (
    Finished,
    FinishedItem,
    Heartbeat,
    Hello,
    TypeInfo,
)
from retire_cluster.schemas.text.json_text import dumps

_TYPES = (TypeInfo("job", repeatable=True),)
_MILLION = 1_000_000
_CLASSES = 100
_QUEUED = (1_000, 10_000, 100_000, _MILLION)


@contextmanager
def _broker(folder: Path) -> Iterator[Broker]:
    settings = Settings(data_dir=folder)
    server = replace(settings.server, port=0, worker_port=0, event_port=0, worker_host="127.0.0.1")
    scheduler = replace(settings.scheduler, backlog_limit=10 * _MILLION)
    settings = settings.with_sections({"server": server, "scheduler": scheduler})
    broker = Broker(settings, SQLiteStore(folder / "cluster.db"))
    try:
        yield broker
    finally:
        broker.close()
        broker.context.term()


class _Cluster:
    """The main node's state machine and store, without sockets."""

    def __init__(self, broker: Broker) -> None:
        self.admin: AdminContext = broker._admin
        self.store = broker._store
        self.now = ev.Now(1_000.0, 1_700_000_000_000)
        self.held: dict[bytes, list[tuple[int, int, int, int]]] = {}

    def do(self, event: ev.Event) -> None:
        """An event, and its commit."""
        self.admin.apply(event, self.now)
        self.commit()

    def commit(self) -> None:
        turn = list(self.admin.turn)
        self.admin.begin_turn()
        writes = [one for one in turn if isinstance(one, ins.WRITES)]
        if writes:
            self.store.commit(writes)
        for one in turn:
            if isinstance(one, ins.SendAssign):
                lease = one.dispatch
                self.held.setdefault(one.routing, []).extend(
                    (task.number, task.attempt, lease.token, lease.epoch) for task in one.tasks
                )

    def join(self, number: int) -> None:
        hello = Hello(
            1, f"d{number}", "i", "s", "1", "worker", "linux", "h", (f"t{number % _CLASSES}",), 1,
            {"cpu_count": 4}, _TYPES,
        )  # fmt: skip
        self.do(ev.FromDevice(b"%d" % number, hello))

    def submit(self, count: int, size: int, tag: str = "") -> None:
        requirements = {"required_tags": [tag]} if tag else {}
        fields = {"task_type": "job", "requirements": requirements}
        for _ in range(0, count, size):
            args = {"task": fields, "count": size, "first_only": True}
            payload = [b'{"duration":1,"note":"' + b"x" * 80 + b'"}'] * size
            call = Call((b"c", 1), "task.submit", args, payload, self.now)
            submit.perform(self.admin, call)
            make(self.admin)
            self.commit()

    def fill(self, queued: int) -> None:
        """Submit until at least so many tasks are queued."""
        missing = queued - sum(cls.lanes.size for cls in self.admin.state.classes.values())
        if missing > 0:
            self.submit(missing, min(missing, 1_000))

    def finish(self, routing: bytes) -> None:
        keys = self.held.pop(routing)
        items = [FinishedItem(key, "success", 0.1, None, None) for key in keys]
        message = Finished.of("s", 1, items)
        self.do(ev.ResultsArrived(routing, message, [b"{}", b""] * len(keys)))

    def cycle_us(self, cycles: int) -> float:
        """Processor time, in microseconds, from one result to the next assignment."""
        routings = list(self.held)[:cycles]
        began = time.process_time()
        for routing in routings:
            self.finish(routing)
            self.do(ev.Place())
        return (time.process_time() - began) / len(routings) * 1e6


def _memory() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def queued(runs: int) -> list[Figure]:
    """A task's way from result to next assignment at 1,000 to 1,000,000 queued; lists; memory."""
    cycles = [Figure(f"cycle at {size:,} queued", "us") for size in _QUEUED]
    memory = Figure("memory of a queued task", "bytes")
    pages = Figure("GET /tasks with a filter at 1,000,000, p99", "ms")
    with tempfile.TemporaryDirectory() as name, _broker(Path(name)) as broker:
        cluster = _Cluster(broker)
        for number in range(200):
            cluster.join(number)
        cluster.fill(200)
        cluster.do(ev.Place())
        before = _memory()
        for figure, size in zip(cycles, _QUEUED, strict=True):
            for _ in range(runs):
                cluster.fill(size)
                figure.values.append(cluster.cycle_us(100))
        memory.values.append((_memory() - before) / _MILLION)
        pages.values += [_pages(cluster) for _ in range(runs)]
    return [*cycles, memory, pages]


def _pages(cluster: _Cluster) -> float:
    filters: list[dict[str, object]] = [
        {}, {"status": "queued"}, {"status": "success"}, {"status": "failed"},
        {"task_type": "job"}, {"priority": "normal"}, {"priority": "urgent"},
        {"device_id": "d1"}, {"status": "success", "device_id": "d1"}, {"page": 100},
    ]  # fmt: skip
    times = []
    for _ in range(10):
        for wanted in filters:
            began = time.perf_counter()
            call = Call((b"c", 1), "task.list", wanted, (), cluster.now)
            reply = list_tasks.perform(cluster.admin, call)
            assert reply is not None
            dumps(reply.data)
            times.append(1000 * (time.perf_counter() - began))
    return statistics.quantiles(times, n=100)[98]


def devices(runs: int) -> list[Figure]:
    """A task's way from result to next assignment with 10 and 10,000 devices in 100 classes."""
    found = []
    for count in (10, 1_000, 10_000):
        figure = Figure(f"cycle with {count:,} devices", "us")
        beats = Figure(f"a heartbeat with {count:,} devices", "us")
        with tempfile.TemporaryDirectory() as name, _broker(Path(name)) as broker:
            cluster = _Cluster(broker)
            for number in range(count):
                cluster.join(number)
            for number in range(min(count, _CLASSES)):
                cluster.submit(300, 300, f"t{number}")
            cluster.do(ev.Place())
            for _ in range(runs):
                figure.values.append(cluster.cycle_us(100))
                beats.values.append(_beats(cluster, count))
        found += [figure, beats]
    return found


def _beats(cluster: _Cluster, count: int) -> float:
    rng = random.Random(1)
    some = [rng.randrange(count) for _ in range(500)]
    began = time.process_time()
    for number in some:
        message = Heartbeat("s", 1, {"cpu_percent": 3.0}, None, config_version=1)
        cluster.do(ev.FromDevice(b"%d" % number, message))
    return (time.process_time() - began) / len(some) * 1e6


def restart(runs: int) -> list[Figure]:
    """Seconds from opening a store with 1,000,000 queued tasks to the first assignment."""
    took = Figure("restart with 1,000,000 queued", "s")
    size = Figure("the store on disk", "MB")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _broker(folder) as broker:
            cluster = _Cluster(broker)
            cluster.join(0)
            cluster.submit(_MILLION, 1_000)
        size.values.append((folder / "cluster.db").stat().st_size / 1e6)
        for _ in range(runs):
            began = time.perf_counter()
            with _broker(folder) as broker:
                cluster = _Cluster(broker)
                cluster.join(0)
                cluster.do(ev.Place())
                assert cluster.held, "nothing was assigned"
                took.values.append(time.perf_counter() - began)
    return [took, size]
