"""Stores: the same tests for memory and SQLite; addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.rows import (
    AttemptRow,
    DeviceRow,
    DispatchRow,
    LiveRow,
    Mark,
    SubmissionRow,
)
from retire_cluster.broker.store.base import Store, StoreError
from retire_cluster.broker.store.memory import MemoryStore
from retire_cluster.broker.store.opening import open_store
from retire_cluster.broker.store.sqlite import SQLiteStore
from tests.unit.broker.kit import WALL_MS
from tests.unit.broker.store.kit import load, outcome, task

Reopen = Callable[[], Store]


@pytest.fixture(params=["memory", "sqlite"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """Opens the same store, again after the first time."""
    kept = MemoryStore()
    opened: list[Store] = []

    def open_again() -> Store:
        for store in opened:
            store.close()
        if request.param == "memory":
            return kept
        opened.append(SQLiteStore(tmp_path / "cluster.db"))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()


def test_a_new_store_is_empty_and_numbers_begin_at_one(reopen: Reopen) -> None:
    store = reopen()
    found = load(store)
    assert (found.epoch, found.next_task, found.next_dispatch) == (1, 1, 1)
    assert (found.config_version, found.config) == (1, {})
    assert not any((found.live, found.devices, found.dispatches, found.submissions, found.recent))
    assert found.index == []
    assert 0 <= found.salt < 2**34
    assert store.commits == 0


def test_each_load_is_a_new_epoch_of_the_same_cluster(reopen: Reopen) -> None:
    first, second = load(reopen()), load(reopen())
    assert (second.epoch, second.salt) == (first.epoch + 1, first.salt)


def test_everything_written_is_read_again(reopen: Reopen) -> None:
    store = reopen()
    load(store)
    live = LiveRow(
        1, 2, 1, 3, 99, (("refused", "no ffmpeg"),), ("died", "died too"), (), (("liar", 7, 9),)
    )
    dispatch = DispatchRow(4, 1, 2**53 - 1, "box", 77, ((1, 2), (3, 1)))
    device = DeviceRow("box", 5, None, b'{"tags":[]}')
    gone = DeviceRow("gone", 6, 7, b"{}")
    submission = SubmissionRow("me", "key", "print", 1, 3, WALL_MS, 8)
    attempt = AttemptRow(1, 1, None, "lost", "worker_lost", "why", None, None, 9, None, b"r", b"d")
    store.commit(
        [
            ins.StoreTasks([task(1), task(2), task(3, b"x" * 101)], [submission]),
            ins.StoreLive((live,)),
            ins.StoreDispatch(dispatch),
            ins.StoreDevices((device, gone)),
            ins.StoreAttempts((attempt,)),
            ins.StoreOutcomes([outcome(2)]),
            ins.StoreConfig({"heartbeat": {"interval": 7}, "server": {}}, 5),
        ]
    )
    assert store.commits == 1
    store = reopen()
    found = load(store)
    assert found.live == [task(1), task(3, b"")]
    assert found.live_payload_bytes == {1: 7, 3: 101}
    assert found.deviations == {1: live}
    assert found.dispatches == [dispatch]
    assert sorted(found.devices) == [device, gone]
    assert found.submissions == [submission]
    assert (found.config, found.config_version) == ({"heartbeat": {"interval": 7}, "server": {}}, 5)
    assert found.index == [
        (1, "echo", 1, None, None, 0),
        (2, "echo", 1, "failed", "box", 9),
        (3, "echo", 1, None, None, 0),
    ]
    assert found.recent == [(9, "failed", 0.5)]
    assert (found.next_task, found.next_dispatch) == (4, 5)
    assert store.task(3) == task(3, b"x" * 101)
    assert store.task(4) is None
    assert set(store.heads([1, 2, 9])) == {1, 2}
    assert store.payloads([1, 3, 9]).read == {1: b'{"a":1}', 3: b"x" * 101}
    assert store.outcomes([1, 2], results=True) == {2: outcome(2)}
    assert store.outcomes([2], results=False)[2][:11] == outcome(2)[:11]
    assert (store.attempts(1), store.attempts(2)) == ([attempt], [])


def test_things_are_replaced_and_forgotten(reopen: Reopen) -> None:
    store = reopen()
    load(store)
    live = LiveRow(1, 1, 0, 0, 0, (), ())
    store.commit([ins.StoreTasks([task(n) for n in range(1, 4)]), ins.StoreLive((live,))])
    store.commit([ins.StoreDispatch(DispatchRow(n, 1, 1, "b", 1, ((1, n),))) for n in (1, 2)])
    store.commit([ins.StoreLive((live._replace(attempt=5),)), ins.ForgetDispatches((1,))])
    store.commit([ins.StoreOutcomes([outcome(1), outcome(2)], (1,))])
    store.commit([ins.StoreDevices((DeviceRow("a", 1, None, b"1"), DeviceRow("b", 1, None, b"1")))])
    store.commit([ins.StoreDevices((DeviceRow("a", 1, 2, b"2"),)), ins.ForgetDevices(("b", "c"))])
    found = load(store)
    assert [row.number for row in found.live] == [3]
    assert found.deviations == {}
    assert [row.number for row in found.dispatches] == [2]
    assert found.devices == [DeviceRow("a", 1, 2, b"2")]
    store.commit([ins.ReviveTasks((1,)), ins.StoreLive((live,))])
    found = load(store)
    assert [row.number for row in found.live] == [1, 3]
    assert found.deviations == {1: live}
    store.commit([ins.StoreOutcomes([outcome(1, status="success")], (1,))])
    assert store.outcomes([1], results=False)[1].status == "success"


def test_settings_are_kept_by_section(reopen: Reopen) -> None:
    store = reopen()
    load(store)
    store.commit([ins.StoreConfig({"heartbeat": {"interval": 7}, "server": {"a": 1}}, 2)])
    store.commit([ins.StoreConfig({"heartbeat": {}}, 3)])
    found = load(reopen())
    assert (found.config, found.config_version) == ({"heartbeat": {}, "server": {"a": 1}}, 3)


def test_old_submissions_are_forgotten(reopen: Reopen) -> None:
    store = reopen()
    load(store)
    rows = [SubmissionRow("me", str(at), "p", 1, 1, WALL_MS, at) for at in (10, 20, 30)]
    for number, row in enumerate(rows, 1):
        store.commit([ins.StoreTasks([task(number)], [row])])
    store.commit([ins.ForgetSubmissions(20)])
    assert sorted(load(store).submissions) == rows[1:]


def test_only_the_last_hour_counts_as_recent(reopen: Reopen) -> None:
    store = reopen()
    load(store)
    store.commit([ins.StoreTasks([task(n) for n in (1, 2, 3)])])
    ends = {1: 9_000, 2: 9_000 - 3_600, 3: 9_000 - 3_600 + 1}
    store.commit([ins.StoreOutcomes([outcome(n, ended_s=at) for n, at in ends.items()])])
    store.commit([ins.StoreMark(Mark(9_000_000, 1.0, WALL_MS, "boot", 7))])
    assert [row[0] for row in load(store).recent] == [ends[3], ends[1]]


@pytest.mark.parametrize(
    "wrong",
    [
        ins.StoreOutcomes([outcome(3), outcome(1)]),
        ins.StoreOutcomes([outcome(3), outcome(3)]),
        ins.StoreTasks([task(8), task(2)]),
        ins.StoreTasks([task(8), task(8)]),
    ],
    ids=["ended already", "ends twice", "exists already", "made twice"],
)
def test_a_commit_is_all_or_nothing(reopen: Reopen, wrong: ins.Write) -> None:
    store = reopen()
    load(store)
    store.commit([ins.StoreTasks([task(n) for n in (1, 2, 3)]), ins.StoreOutcomes([outcome(1)])])
    device = ins.StoreDevices((DeviceRow("box", 1, None, b"{}"),))
    with pytest.raises(StoreError):
        store.commit([device, ins.StoreTasks([task(7)]), wrong, ins.StoreTasks([task(9)])])
    assert store.commits == 1
    found = load(store)
    assert [row[0] for row in found.index] == [1, 2, 3]
    assert found.devices == []
    assert set(store.outcomes([1, 3], results=False)) == {1}
    # And the store goes on.
    store.commit([device, ins.StoreTasks([task(7)]), ins.ReviveTasks((1,))])
    store.commit([ins.StoreOutcomes([outcome(1)])])
    assert load(store).next_task == 8


def test_a_task_may_end_again_in_the_turn_that_revived_it(reopen: Reopen) -> None:
    store = reopen()
    load(store)
    store.commit([ins.StoreTasks([task(1)]), ins.StoreOutcomes([outcome(1)])])
    store.commit([ins.ReviveTasks((1,)), ins.StoreOutcomes([outcome(1, status="cancelled")])])
    assert store.outcomes([1], results=False)[1].status == "cancelled"


def test_numbers_are_never_used_again_after_retention(reopen: Reopen) -> None:
    store = reopen()
    load(store)
    store.commit([ins.StoreTasks([task(n) for n in range(1, 11)])])
    store.commit([ins.StoreOutcomes([outcome(n) for n in range(1, 11)])])
    store.commit([ins.StoreAttempts((AttemptRow(5, 1, None, "lost", None, None, 1, 1, 1, 1),))])
    store.commit([ins.ForgetTasks(tuple(range(1, 11)))])
    assert store.attempts(5) == []
    assert store.outcomes([5], results=True) == {}
    for _ in range(2):
        found = load(reopen())
        assert (found.index, found.next_task) == ([], 11)


def test_many_rows_are_written_and_read(reopen: Reopen) -> None:
    store = reopen()
    load(store)
    numbers = range(1, 1_001)
    store.commit([ins.StoreTasks([task(n) for n in numbers])])
    store.commit([ins.StoreOutcomes([outcome(n) for n in numbers])])
    assert len(store.heads(numbers)) == len(store.payloads(numbers).read) == 1_000
    assert len(store.outcomes(numbers, results=True)) == 1_000
    store.commit([ins.ForgetTasks(tuple(numbers[:999]))])
    assert [row[0] for row in load(store).index] == [1_000]


def test_free_space_is_a_share(reopen: Reopen) -> None:
    assert 0.0 <= reopen().free_percent() <= 100.0


def test_a_store_is_opened_by_its_address(tmp_path: Path) -> None:
    path = tmp_path / "a b.db"
    store = open_store(f"sqlite:///{path.as_posix()}")
    assert (type(store), store.name) == (SQLiteStore, f"sqlite:///{path.as_posix()}")
    store.close()
    assert isinstance(open_store("memory://"), MemoryStore)


@pytest.mark.parametrize("url", ["postgres://x/y", "sqlite://x", "memory://x", ""])
def test_another_address_is_refused_with_the_cure(url: str) -> None:
    with pytest.raises(StoreError, match="use sqlite:///FILE or memory://"):
        open_store(url)
