"""What only time asks for."""

from __future__ import annotations

from typing import Any

import pytest

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core import sweeps
from retire_cluster.broker.core.sweeps import SWEEPS
from retire_cluster.schemas.vocabulary import TaskStatus
from tests.unit.broker.kit import Cluster, MakeCluster, only, settings_with, task_spec


def test_the_table_names_every_sweep_and_how_often_it_runs() -> None:
    assert {name: sweep.every for name, sweep in SWEEPS.items()} == {
        "deadlines": 1, "liveness": 1, "limits": 1, "upkeep": 1, "unschedulable": 1, "devices": 30,
        "retention": 60,
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(SWEEPS))
def test_a_sweep_of_an_empty_cluster_does_nothing(cluster: Cluster, name: str) -> None:
    assert swept(cluster, name) == []


def swept(cluster: Cluster, name: str = "retention") -> list[ins.Instruction]:
    """What a sweep leads to, beside a mark of the cluster's age."""
    return [found for found in cluster.tick(name) if not isinstance(found, ins.StoreMark)]


def test_only_changed_devices_are_stored(cluster: Cluster) -> None:
    member = cluster.device()
    cluster.device("other")
    assert cluster.tick("devices") == []
    member.beat()
    (stored,) = cluster.tick("devices")
    assert isinstance(stored, ins.StoreDevices)
    assert [row.device_id for row in stored.rows] == ["box"]
    assert cluster.tick("devices") == []


def test_slot_use_is_measured_of_online_devices(cluster: Cluster) -> None:
    cluster.give()
    cluster.device("idle")
    cluster.tick("upkeep")
    assert cluster.state.stats.slot_utilization() == 50.0
    cluster.live_on(16)
    cluster.tick("upkeep")
    assert cluster.state.stats.slot_utilization() == 50.0


def test_a_task_whose_time_was_moved_is_woken_by_its_newest_only(cluster: Cluster) -> None:
    (number,) = cluster.submit(delay=5)
    cluster.state.wait_until(cluster.task(number), cluster.mono + 9)
    cluster.live_on(6)
    assert cluster.status(number) == "pending"
    cluster.live_on(4)
    assert cluster.status(number) == "queued"


def ended(cluster: Cluster, count: int) -> list[int]:
    numbers = cluster.submit(count)
    for number in numbers:
        cluster.do(ev.CancelRequested(number))
    return numbers


def test_tasks_that_ended_long_ago_are_forgotten(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings_with(retention={"finished_days": 1.0}))
    (live,) = cluster.submit(required_tags=["x"])
    old = ended(cluster, 2)
    cluster.pass_time(86_300)
    young = ended(cluster, 1)
    assert swept(cluster) == []
    cluster.pass_time(200)
    assert swept(cluster) == [ins.ForgetTasks(tuple(old))]
    ledger = cluster.state.ledger
    assert [number for number in (live, *old, *young) if ledger.has(number)] == [live, *young]
    assert ledger.total == 2
    assert cluster.store.task(old[0]) is None


def test_no_more_ended_tasks_are_kept_than_allowed(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings_with(retention={"finished_rows": 3}))
    numbers = ended(cluster, 5)
    assert swept(cluster) == [ins.ForgetTasks(tuple(numbers[:2]))]
    assert swept(cluster) == []


def test_one_pass_deletes_a_bounded_number(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "RETENTION_BATCH", 4)
    cluster = make_cluster(settings_with(retention={"finished_rows": 1}))
    numbers = ended(cluster, 10)
    passes = [only(ins.ForgetTasks, swept(cluster)) for _ in range(4)]
    assert [len(one[0].tasks) if one else 0 for one in passes] == [4, 4, 1, 0]
    assert cluster.state.ledger.status(numbers[-1]) is TaskStatus.CANCELLED


def test_what_one_pass_leaves_goes_a_batch_a_second_and_not_a_batch_a_minute(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "RETENTION_BATCH", 4)
    cluster = make_cluster(settings_with(retention={"finished_rows": 1}))
    numbers = ended(cluster, 10)
    assert swept(cluster, "upkeep") == [], "only retention begins it"
    cluster.tick("retention")
    for left in (2, 1, 1):
        swept(cluster, "upkeep")
        assert cluster.state.ledger.total == left
    assert cluster.state.ledger.has(numbers[-1])


def test_idempotency_records_are_forgotten_after_their_hours(cluster: Cluster) -> None:
    def submit(key: str) -> Any:
        return cluster.do(
            ev.TasksSubmitted([task_spec()], [b"{}"], (), [ev.Keyed(0, 1, "me", key, "p")])
        )

    submit("old")
    cluster.pass_time(86_000)
    submit("young")
    assert swept(cluster) == []
    cluster.pass_time(500)
    assert swept(cluster) == [ins.ForgetSubmissions(101)]
    assert list(cluster.state.submissions) == [("me", "young")]
    cluster.restart()
    assert list(cluster.state.submissions) == [("me", "young")]
