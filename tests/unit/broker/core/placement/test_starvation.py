"""Priority orders; who has waited too long overtakes, one placement in ten and no more."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.model import Device, Task
from retire_cluster.broker.core.placement.assignment import _Pass
from retire_cluster.broker.core.placement.matching import why_not
from retire_cluster.broker.core.placement.starvation import BETWEEN
from retire_cluster.broker.core.placement.why_waiting import class_key
from retire_cluster.schemas.vocabulary import TaskStatus
from tests.unit.broker.kit import Cluster, MakeCluster, Member, only, settings_with

AGING = 60.0


@dataclass
class Placed:
    """One placement, in the order in which they were made."""

    number: int
    waited: float
    #: Better-ranked work was left standing that this device could have run.
    overtook: bool


@dataclass
class Watch:
    """Notes every placement of a cluster."""

    cluster: Cluster
    placed: list[Placed] = field(default_factory=list)

    def __post_init__(self) -> None:
        watch, give = self, _Pass._give

        def noted(self: _Pass, device: Device, tasks: list[Task]) -> None:
            for task in tasks:
                watch._note(task, device)
            give(self, device, tasks)

        self.patch = noted

    def _note(self, task: Task, device: Device) -> None:
        size = device.units_of(task.spec.task_type)
        better = (
            other
            for other in self.cluster.state.tasks.values()
            if other.status is TaskStatus.QUEUED
            and other.backlog is not None
            and other.spec.priority > task.spec.priority
            and device.units_of(other.spec.task_type) <= max(size, device.free_units)
            and not why_not(class_key(other), device)
        )
        waited = self.cluster.mono - task.queued_mono
        self.placed.append(Placed(task.number, waited, next(better, None) is not None))

    def check(self) -> None:
        """Nine placements lie between two that overtake, and those who do had waited."""
        found = [index for index, one in enumerate(self.placed) if one.overtook]
        for before, after in itertools.pairwise(found):
            assert after - before > BETWEEN, f"placements {before} and {after} overtook"
        assert all(self.placed[index].waited >= AGING for index in found)


@pytest.fixture
def watch(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Watch:
    found = Watch(cluster)
    monkeypatch.setattr(_Pass, "_give", found.patch)
    return found


def serve(cluster: Cluster, member: Member, *, rounds: int, seconds: float = 1.0) -> None:
    """A device that is never idle, while urgent work comes faster than it goes."""
    for _ in range(rounds):
        cluster.submit(2, priority="urgent")
        member.finish()
        member.keys.clear()
        cluster.pass_time(seconds)
        member.beat()
        cluster.place()


def test_an_urgent_task_goes_before_thousands_of_low_ones_however_long_they_waited(
    cluster: Cluster,
) -> None:
    cluster.submit(3_000, priority="low")
    member = cluster.device(slots=4)
    cluster.place()
    cluster.pass_time(100_000)
    member.beat()
    (urgent,) = cluster.submit(priority="urgent")
    member.finish(member.keys[0])
    cluster.place()
    assert urgent in member.record.attempts


def test_old_work_gets_one_placement_in_ten_beside_an_endless_stream_of_better_work(
    cluster: Cluster, watch: Watch
) -> None:
    low = set(cluster.submit(50, priority="low"))
    cluster.submit(20, priority="urgent")
    member = cluster.device()
    cluster.place()
    serve(cluster, member, rounds=60)
    assert not any(one.overtook for one in watch.placed[:50]), "nobody was old enough"
    serve(cluster, member, rounds=700)
    watch.check()
    overtaken = [one.number for one in watch.placed if one.overtook]
    assert set(overtaken) == low, "every one of them had its turn"
    assert overtaken == sorted(overtaken), "the one that waited longest first"
    assert len(watch.placed) - 60 >= 50 * BETWEEN


def test_the_longest_waiting_is_reached_in_whatever_class_it_waits(
    cluster: Cluster, watch: Watch
) -> None:
    (oldest,) = cluster.submit(priority="low", required_tags=["x"])
    cluster.pass_time(1)
    (next_one,) = cluster.submit(priority="normal", min_cpu_cores=1)
    cluster.pass_time(AGING)
    cluster.submit(20, priority="urgent")
    member = cluster.device(tags=("x",))
    cluster.place()
    serve(cluster, member, rounds=2 * (BETWEEN + 4))
    watch.check()
    assert [one.number for one in watch.placed if one.overtook] == [oldest, next_one]


def test_small_work_is_shared_one_in_ten_too(cluster: Cluster, watch: Watch) -> None:
    low = cluster.submit(100, task_type="echo", priority="low")
    cluster.pass_time(AGING + 1)
    cluster.submit(600, task_type="echo", priority="urgent")
    member = cluster.device(slots=1)
    cluster.place()
    watch.check()
    assert len(watch.placed) == 512
    assert 512 // (BETWEEN + 3) <= sum(one.number in low for one in watch.placed) <= 52
    assert len(member.record.attempts) == 512


def test_without_lesser_work_that_waited_small_work_still_goes_in_one_piece(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[int] = []
    give = _Pass._give

    def counted(self: _Pass, device: Device, tasks: list[Task]) -> None:
        pieces.append(len(tasks))
        give(self, device, tasks)

    monkeypatch.setattr(_Pass, "_give", counted)
    cluster.submit(5, task_type="echo", priority="low")
    cluster.submit(400, task_type="echo")
    cluster.device(slots=1)
    found = cluster.place()
    assert pieces == [400, 5]
    assert len(only(ins.SendAssign, found)) == 1


def test_a_stream_of_small_urgent_work_does_not_keep_a_whole_slot_from_old_work(
    cluster: Cluster,
) -> None:
    member = cluster.device(slots=1)
    cluster.submit(400, task_type="echo", priority="urgent")
    cluster.place()
    (old,) = cluster.submit(priority="low")
    cluster.pass_time(AGING + 1)
    member.beat()
    for _ in range(60):
        cluster.submit(20, task_type="echo", priority="urgent")
        member.finish(*member.keys[:20])
        cluster.place()
        if old in member.record.attempts:
            break
    assert old in member.record.attempts


def test_work_that_has_room_elsewhere_overtakes_nobody(cluster: Cluster, watch: Watch) -> None:
    cluster.device("plain")
    member = cluster.device("tagged", tags=("x",))
    cluster.submit(30, priority="urgent", required_tags=["x"])
    cluster.place()
    (low,) = cluster.submit(priority="low")
    cluster.place()
    assert cluster.status(low) == "assigned"
    assert low not in member.record.attempts
    assert not any(one.overtook for one in watch.placed)


def test_a_restart_gives_nobody_a_turn_beyond_the_share(cluster: Cluster, watch: Watch) -> None:
    low = cluster.submit(5, priority="low")
    cluster.submit(200, priority="urgent")
    member = cluster.device()
    cluster.place()
    serve(cluster, member, rounds=80)
    for _ in range(6):
        cluster.restart()
        member = cluster.device(held=())
        cluster.place()
        serve(cluster, member, rounds=BETWEEN - 1)
    watch.check()
    serve(cluster, member, rounds=60)
    watch.check()
    assert {one.number for one in watch.placed if one.overtook} == set(low)


def test_a_device_in_step_with_the_share_still_gives_everybody_a_turn(cluster: Cluster) -> None:
    # Ten devices get room in turn; only the last may run the old task, and always comes tenth.
    members = [cluster.device(f"d{number}") for number in range(9)]
    members.append(cluster.device("last", tags=("x",)))
    cluster.submit(40, priority="urgent")
    cluster.place()
    (old,) = cluster.submit(priority="low", required_tags=["x"])
    cluster.submit(500, priority="low")
    cluster.pass_time(AGING + 1)
    for turn in range(600):
        cluster.submit(1, priority="urgent")
        for one in members:
            one.beat()
        member = members[turn % 10]
        member.finish()
        cluster.place()
        if old in members[-1].record.attempts:
            return
    raise AssertionError("it starved")


@pytest.mark.no_cover
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_no_window_of_ten_has_two_that_overtake_and_nobody_starves(seed: int) -> None:
    rng = random.Random(seed)
    cluster = Cluster(settings_with(scheduler={"aging_seconds": AGING}), seed=seed)
    watch = Watch(cluster)
    give, _Pass._give = _Pass._give, watch.patch  # type: ignore[method-assign]
    try:
        members = [
            cluster.device(f"d{number}", slots=rng.choice((1, 2)), tags=("x",) if number else ())
            for number in range(rng.choice((1, 3)))
        ]
        priorities = ("low", "normal", "high", "urgent")
        early = cluster.submit(3, priority="low") + cluster.submit(2, priority="normal")
        for _ in range(250):
            kind = rng.choice(({}, {"min_cpu_cores": 1}, {"task_type": "echo"}))
            cluster.submit(rng.choice((1, 2, 4)), priority=rng.choice(priorities[2:]), **kind)
            if rng.random() < 0.1:
                cluster.submit(1, priority=rng.choice(priorities), **kind)
            if rng.random() < 0.02:
                (queued,) = cluster.submit(1, priority="normal")
                cluster.call("task.cancel", {"task_id": cluster.public(queued, cluster.wall_ms)})
            for member in members:
                member.beat()
                keys = member.keys
                member.finish(*rng.sample(keys, (len(keys) + 1) // 2)) if keys else None
            cluster.pass_time(rng.choice((0.5, 3.0)))
            cluster.place()
    finally:
        _Pass._give = give  # type: ignore[method-assign]
    watch.check()
    assert not [number for number in early if cluster.status(number) == "queued"]


def test_looking_for_who_waited_longest_costs_the_same_with_a_thousand_times_as_many_tasks(
    make_cluster: MakeCluster,
) -> None:
    from tests.unit.broker.test_work_counts import calls

    found = []
    for scale in (1, 1_000):
        cluster = make_cluster()
        cluster.is_checked = False
        member = cluster.device()
        for word in ("low", "normal", "high"):
            cluster.submit(20 * scale, priority=word)
        cluster.submit(200, priority="urgent")
        cluster.place()
        cluster.pass_time(AGING + 1)

        def cycle(cluster: Cluster = cluster, member: Member = member) -> None:
            for _ in range(2 * BETWEEN):
                member.finish()
                cluster.place()

        cycle()
        found.append(calls(cycle))
    assert found[1] <= 1.1 * found[0]
