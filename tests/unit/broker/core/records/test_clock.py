"""Things get old by time that passed, whatever the wall clock is set to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.devices.access import Token
from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.records.clock import (
    REBOOT_SECONDS,
    ClusterClock,
    jump_seconds,
    resume,
)
from retire_cluster.broker.core.records.retention_queue import RetentionQueue
from retire_cluster.broker.core.rows import Mark
from retire_cluster.broker.store.sqlite import SQLiteStore
from retire_cluster.conf.curve import new_pair
from tests.unit.broker.kit import Cluster, MakeCluster, only, settings_with, task_spec

DAY = 86_400
YEAR = 365 * DAY


def ended(cluster: Cluster, count: int = 1) -> list[int]:
    numbers = cluster.submit(count)
    for number in numbers:
        cluster.do(ev.CancelRequested(number))
    return numbers


def keyed(cluster: Cluster, key: str) -> None:
    cluster.do(ev.TasksSubmitted([task_spec()], [b"{}"], (), [ev.Keyed(0, 1, "me", key, "p")]))


def gone(cluster: Cluster) -> list[int]:
    found = only(ins.ForgetTasks, cluster.tick("retention"))
    return [number for write in found for number in write.tasks]


def set_clock(cluster: Cluster, seconds: float) -> None:
    cluster.wall_ms += round(seconds * 1000)


def token(cluster: Cluster, seconds: int) -> str:
    key = new_pair().public
    expires = cluster.state.clock.age_ms(cluster.now) + 1000 * seconds
    cluster.do(ev.TokenMade(Token("t", key, cluster.wall_ms, expires, 1)))
    return key


def is_open(cluster: Cluster, key: str) -> bool:
    return cluster.state.access.may_connect("bus", key, cluster.state.clock.age_ms(cluster.now))


@pytest.mark.parametrize("days", [30, -30, 3_650, -3_650])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_clock_that_is_set_right_makes_nothing_old(
    make_cluster: MakeCluster, days: int, restarts: bool
) -> None:
    cluster = make_cluster()
    (number,) = ended(cluster)
    keyed(cluster, "k")
    door = token(cluster, 3_600)
    set_clock(cluster, days * DAY)
    if restarts:
        cluster.restart()
    cluster.pass_time(60)
    assert gone(cluster) == []
    assert cluster.state.ledger.has(number)
    assert ("me", "k") in cluster.state.submissions
    assert is_open(cluster, door)


def test_a_clock_that_was_years_ahead_for_a_while_keeps_nothing_for_ever(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    set_clock(cluster, 10 * YEAR)
    early = ended(cluster)
    keyed(cluster, "early")
    door = token(cluster, 3_600)
    cluster.restart()
    set_clock(cluster, -10 * YEAR)
    late = ended(cluster)
    keyed(cluster, "late")
    cluster.restart()
    cluster.pass_time(25 * 3_600)
    assert gone(cluster) == []
    assert cluster.state.submissions == {}
    assert not is_open(cluster, door)
    cluster.pass_time(6 * DAY)
    assert gone(cluster) == early + late


def test_each_task_gets_old_for_itself(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings_with(retention={"finished_days": 7}))
    first, *others = cluster.submit(4)
    for number in others:
        cluster.do(ev.CancelRequested(number))
    cluster.pass_time(29 * DAY)
    cluster.do(ev.CancelRequested(first))
    cluster.pass_time(6 * DAY)
    assert gone(cluster) == others
    assert cluster.state.ledger.has(first)
    cluster.pass_time(DAY + 1)
    assert gone(cluster) == [first]


def test_what_ended_first_goes_first_when_there_are_too_many(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings_with(retention={"finished_rows": 2}))
    numbers = cluster.submit(4)
    for number in reversed(numbers):
        cluster.do(ev.CancelRequested(number))
        cluster.pass_time(1)
    cluster.restart()
    assert gone(cluster) == numbers[:1:-1]
    assert gone(cluster) == []


def test_a_task_that_ran_again_is_as_old_as_its_last_end(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings_with(retention={"finished_days": 7}))
    (number,) = ended(cluster)
    cluster.pass_time(5 * DAY)
    cluster.retry(number)
    cluster.pass_time(5 * DAY)
    assert gone(cluster) == []
    cluster.do(ev.CancelRequested(number))
    cluster.pass_time(6 * DAY)
    assert gone(cluster) == []
    cluster.pass_time(2 * DAY)
    assert gone(cluster) == [number]


def test_ages_go_on_over_restarts_and_reboots(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings_with(retention={"finished_days": 2}))
    (number,) = ended(cluster)
    for _ in range(4):
        cluster.pass_time(6 * 3_600)
        cluster.restart()
    assert gone(cluster) == []
    cluster.tick("retention")
    for _ in range(3):
        cluster.reboot(8 * 3_600)
        ended(cluster)
    assert gone(cluster) == []
    cluster.pass_time(3_600)
    assert gone(cluster) == [number]


def test_a_damaged_mark_makes_everything_new_and_is_told(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    store = SQLiteStore(tmp_path / "cluster.db")
    kept = make_cluster(store=store)
    (number,) = ended(kept)
    kept.pass_time(6 * DAY)
    kept.tick("retention")
    kept.store.commit([ins.StoreMark(Mark(2**62, 0.0, 0, "", 0))])
    store._db.execute("update meta set value = replace(value, '4611', '9611') where name = 'mark'")
    kept.restart()
    assert any("mark" in warning for warning in kept.warnings)
    kept.pass_time(2 * DAY)
    assert gone(kept) == []
    assert kept.state.ledger.has(number)


MARK = Mark(1_000_000, 500.0, 1_700_000_000_000, "b", 7)


@pytest.mark.parametrize(
    ("mono", "wall_seconds", "boot", "passed", "told"),
    [
        (600.0, 100, "b", 100, ""),
        (600.0, 30 * DAY, "b", 100, "30.0 days ahead of the one"),
        (600.0, -30 * DAY, "b", 100, "30.0 days behind the one"),
        (5.0, 3_600, "c", 3_600, ""),
        (5.0, 30 * DAY, "c", REBOOT_SECONDS, "away for 30.0 days"),
        (5.0, -30 * DAY, "c", 0, "30.0 days behind"),
        (5.0, 3_600, "b", 3_600, ""),
        (600.0, 3_600, "", 3_600, ""),
    ],
)
def test_a_gap_counts_as_far_as_it_is_known(
    mono: float, wall_seconds: int, boot: str, passed: int, told: str
) -> None:
    now = Now(mono, MARK.wall_ms + 1000 * wall_seconds)
    mark = MARK if boot else MARK._replace(boot="")
    clock, text = resume(mark, now, boot)
    assert clock.age_ms(now) == MARK.age_ms + 1000 * passed
    assert told in text
    assert bool(text) == bool(told)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e7),
            st.integers(-(10**12), 10**12),
            st.sampled_from(["on", "start", "boot"]),
        ),
        max_size=30,
    )
)
def test_the_age_never_goes_back_and_never_beyond_what_passed(
    steps: list[tuple[float, int, str]],
) -> None:
    mono, wall_ms, boot = 100.0, 1_700_000_000_000, 0
    clock = ClusterClock(Now(mono, wall_ms), boot="0")
    before = clock.age_ms(Now(mono, wall_ms))
    for seconds, jump_ms, what in steps:
        mark = clock.mark(Now(mono, wall_ms), 0, 0.0)
        mono, wall_ms = mono + seconds, wall_ms + jump_ms
        most = seconds
        if what == "boot":
            boot, mono, most = boot + 1, 1.0, REBOOT_SECONDS
        if what != "on":
            clock, _ = resume(mark, Now(mono, wall_ms), str(boot))
        now_ms = clock.age_ms(Now(mono, wall_ms))
        assert -1 <= now_ms - before <= 1000 * most + 2
        before = now_ms


def test_a_jump_is_told_from_time_that_passes() -> None:
    before = Now(10.0, 1_000_000)
    assert jump_seconds(before, Now(310.0, 1_300_000)) == 0
    assert jump_seconds(before, Now(10.5, 1_003_000)) == 0
    assert jump_seconds(before, Now(10.5, 1_000_500 + 30 * DAY * 1000)) == 30 * DAY
    assert jump_seconds(before, Now(10.5, 500)) == pytest.approx(-1_000)


@given(st.data())
def test_the_queue_of_endings_agrees_with_a_sorted_list(data: Any) -> None:
    queue, when, second = RetentionQueue(), {}, 0
    for step in data.draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), max_size=30)):
        task, wait = step
        second += wait
        if task not in when:
            queue.add((task,), second)
            when[task] = second
        else:
            del when[task]  # it runs again
    before = data.draw(st.integers(0, 60))
    surplus = data.draw(st.integers(-3, 5))

    def holds(task: int, at: int) -> bool:
        return when.get(task) == at

    assert queue.current(holds) == len(when)
    order = sorted(when, key=when.__getitem__)
    due = [task for index, task in enumerate(order) if when[task] < before or index < surplus]
    found = queue.take(before, surplus, 100, holds)
    assert sorted(found) == sorted(due) or [when[t] for t in found] == [when[t] for t in due]


def test_a_task_has_not_waited_longer_than_there_is_a_cluster_whatever_the_clock_says(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    numbers = cluster.submit(2)
    cluster.pass_time(100.0)
    cluster.tick("retention")
    cluster.wall_ms += 10 * 365 * 86_400_000
    cluster.restart()
    waited = [cluster.mono - cluster.task(number).queued_mono for number in numbers]
    assert all(seconds <= 102.0 for seconds in waited), waited
