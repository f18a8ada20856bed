"""How much work a task makes, counted and not timed: what would slow the cluster down fails here.

The bounds are a little above what is needed today (docs/performance.md says what it means in time).
"""

from __future__ import annotations

import cProfile
import functools
import pstats
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.broker.admin.calls import Call
from retire_cluster.broker.admin.submit import make, submit
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.cluster import handle
from retire_cluster.broker.store.sqlite import SQLiteStore
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from tests.unit.broker.kit import Cluster, MakeCluster, Member, only

BATCH = 500


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStore:
    return SQLiteStore(tmp_path / "cluster.db")


@pytest.fixture
def statements(store: SQLiteStore) -> list[str]:
    """Every SQL statement that is run from now on, its first word."""
    found: list[str] = []
    store._db.set_trace_callback(lambda text: found.append(text.split(None, 1)[0].lower()))
    return found


def calls(work: Callable[[], Any]) -> int:
    """Python and C functions called while `work` runs: the same on every run of one version."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def batch(cluster: Cluster) -> Member:
    """A device with room for a batch of instant tasks."""
    return cluster.device(slots=1)


def test_a_batch_of_five_hundred_lives_in_a_dozen_statements(
    make_cluster: MakeCluster, store: SQLiteStore, statements: list[str]
) -> None:
    cluster = make_cluster(store=store)
    member = batch(cluster)
    statements.clear()
    cluster.submit(BATCH, task_type="echo")
    cluster.place()
    assert len(member.keys) == BATCH
    member.finish()
    # Three commits, two inserts of 250 rows each for tasks and for outcomes, one for the lease.
    assert statements.count("commit") == 3
    assert statements.count("insert") == 5
    assert len(statements) <= 12, statements


def test_a_batch_is_written_to_the_disk_in_few_calls(
    make_cluster: MakeCluster, store: SQLiteStore
) -> None:
    found = Path("/proc/thread-self/io")
    # Wine shows the file and counts in it what it does itself, too.
    if sys.platform != "linux" or not found.exists():
        pytest.skip("this system does not count a thread's calls")

    def writes() -> int:
        lines = dict(line.split(": ") for line in found.read_text("ascii").splitlines())
        return int(lines["syscw"])

    cluster = make_cluster(store=store)
    member = batch(cluster)
    before = writes()
    cluster.submit(BATCH, task_type="echo")
    cluster.place()
    member.finish()
    # The pages of three commits, two writes each in the log beside the file.
    assert 6 <= writes() - before <= 75


def test_one_task_lives_in_three_commits_and_three_inserts(
    make_cluster: MakeCluster, store: SQLiteStore, statements: list[str]
) -> None:
    cluster = make_cluster(store=store)
    member = batch(cluster)
    statements.clear()
    cluster.submit(1, task_type="echo")
    cluster.place()
    member.finish()
    assert statements.count("commit") == 3
    assert statements.count("insert") == 3
    assert len(statements) <= 9, statements


def test_what_was_just_told_is_not_read_from_the_disk(
    make_cluster: MakeCluster, store: SQLiteStore, statements: list[str]
) -> None:
    cluster = make_cluster(store=store)
    member, key = cluster.give()
    member.finish()
    statements.clear()
    assert cluster.call("task.result", {"task_id": cluster.public(key[0])})
    assert [word for word in statements if word != "select"] == []
    assert len(statements) <= 1, "only the check that the task is still kept"


def test_a_batch_is_one_message_of_five_frames_each_way(cluster: Cluster) -> None:
    member = batch(cluster)
    cluster.submit(BATCH, task_type="echo")
    (order,) = only(ins.SendAssign, cluster.place())
    assert len(order.tasks) == BATCH
    items = [msg.FinishedItem(key, "success", 0.0001, None, None) for key in member.keys]
    verb, header = msg.Finished.of(member.session, 1, items).write()
    frames = wire.encode(wire.BUS, verb, header, [b"{}", b""] * BATCH)
    assert len(frames) == 5
    assert len(frames[2]) <= 24 * BATCH, "bytes of the header"


def test_a_task_of_a_batch_costs_few_calls(make_cluster: MakeCluster, store: SQLiteStore) -> None:
    cluster = make_cluster(store=store)
    member = batch(cluster)
    cluster.is_checked = False

    def life() -> None:
        cluster.submit(BATCH, task_type="echo")
        cluster.place()
        member.finish()
        member.keys.clear()

    life()
    assert calls(life) / BATCH <= 60


def test_placing_costs_the_same_with_a_hundred_times_as_many_tasks_and_devices(
    make_cluster: MakeCluster,
) -> None:
    found = []
    for scale in (1, 100):
        cluster = make_cluster()
        cluster.is_checked = False
        members = [cluster.device(f"d{number}") for number in range(10 * scale)]
        cluster.submit(50 * scale)
        cluster.place()
        member = members[0]

        def cycle(cluster: Cluster = cluster, member: Member = member) -> None:
            member.finish()
            member.keys.clear()
            cluster.place()

        cycle()
        found.append(calls(cycle))
    assert found[1] <= 1.25 * found[0]


def test_a_queued_task_takes_less_than_a_kilobyte(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    cluster.is_checked = False
    payloads = [b'{"message":"%06d%s"}' % (number, b"x" * 80) for number in range(10_000)]
    spec = cluster.state.tasks[cluster.submit()[0]].spec
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        event = ev.TasksSubmitted([spec] * len(payloads), payloads)
        handle(cluster.state, event, cluster.now)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / len(payloads) <= 700, "bytes beside the payload"


def test_the_event_log_keeps_a_batch_as_one(cluster: Cluster) -> None:
    member = batch(cluster)
    before = len(cluster.state.log._kept)
    cluster.submit(BATCH, task_type="echo")
    cluster.place()
    member.finish()
    assert len(cluster.state.log._kept) - before == 4
    assert len(list(cluster.state.log.after(0))) >= 4 * BATCH


def test_a_list_of_any_filter_looks_at_few_lines(cluster: Cluster) -> None:
    ledger = cluster.state.ledger
    cluster.is_checked = False
    cluster.submit(20_000)
    member = batch(cluster)
    cluster.submit(3, task_type="echo", priority="urgent")
    cluster.place()
    member.finish()
    filters: list[dict[str, Any]] = [
        {"device_id": "box"}, {"task_type": "echo"}, {"priority": "urgent"},
        {"status": "success", "device_id": "box"}, {"status": "failed"}, {},
    ]  # fmt: skip
    cluster.call("task.list", {})  # compiles the schema
    for wanted in filters:
        assert calls(functools.partial(cluster.call, "task.list", wanted)) <= 2_500, wanted
    assert ledger.total == 20_003


def test_tasks_that_come_one_a_call_share_most_of_their_work(cluster: Cluster) -> None:
    cluster.is_checked = False
    args = {"task": {"task_type": "echo"}, "first_only": True, "wait_seconds": 60}

    def turn() -> None:
        for number in range(BATCH):
            call = Call((b"client", number), "task.submit", args, [b"{}"], cluster.now)
            submit.perform(cluster.admin, call)
        make(cluster.admin)

    turn()
    cluster.admin.begin_turn()
    assert calls(turn) / BATCH <= 75
    (stored,) = only(ins.StoreTasks, cluster.admin.turn)
    assert len(stored.rows) == BATCH
