"""The backlog of one requirement class: priority, age, returned tasks, lazy removal."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.broker.core.model import Task
from retire_cluster.broker.core.placement import backlog
from retire_cluster.broker.core.placement.backlog import Lanes
from retire_cluster.schemas.vocabulary import PRIORITIES, TaskStatus
from tests.unit.broker.kit import Cluster, task_spec


def task(number: int, priority: str = "normal", since: float = 0.0) -> Task:
    spec = task_spec(priority=priority)
    return Task(number, spec, 0, b"{}", TaskStatus.QUEUED, since)


def drain(lanes: Lanes, at_once: int = 1) -> list[int]:
    found = []
    while (head := lanes.head()) is not None:
        taken = lanes.take(head.lane, at_once)
        assert taken[0].number == head.number
        found += [one.number for one in taken]
    return found


def filled(*tasks: Task) -> Lanes:
    lanes = Lanes()
    for one in tasks:
        lanes.push((one,))
    return lanes


def test_an_empty_backlog_has_no_head() -> None:
    lanes = Lanes()
    assert lanes.head() is None
    assert lanes.take(0, 5) == []


def test_first_in_first_out_inside_a_priority() -> None:
    assert drain(filled(*map(task, range(1, 8))), at_once=3) == list(range(1, 8))


def test_higher_priorities_go_first() -> None:
    lanes = filled(*(task(number, word) for number, word in enumerate(PRIORITIES, 1)))
    assert lanes.size == 4
    assert drain(lanes) == [4, 3, 2, 1]
    assert lanes.size == 0


@pytest.mark.parametrize("waited", [59.0, 61.0, 100_000.0])
def test_waiting_lifts_nobody(waited: float) -> None:
    lanes = filled(task(1, "normal", since=0.0), task(2, "high", since=waited))
    assert drain(lanes) == [2, 1]


def test_who_has_waited_longest_in_a_lane_may_be_younger_by_number() -> None:
    lanes = filled(task(4, since=10.0), task(5, since=20.0))
    lanes.push((task(2, since=90.0),))
    oldest = lanes.oldest(1)
    assert oldest is not None
    assert oldest.number == 4
    assert lanes.take_oldest(1) is oldest
    assert lanes.size == 2
    assert drain(lanes) == [2, 5]
    assert lanes.take_oldest(1) is None


def test_returned_tasks_are_merged_in_by_age() -> None:
    lanes = filled(*map(task, (3, 5, 7)))
    lanes.push((task(4),))
    lanes.push((task(1),))
    lanes.push((task(6),))
    assert drain(lanes) == [1, 3, 4, 5, 6, 7]


def test_taking_stops_before_a_rival_but_takes_at_least_one() -> None:
    lanes = filled(*map(task, (1, 2, 5, 6)))
    assert [one.number for one in lanes.take(1, 10, before=5)] == [1, 2]
    assert [one.number for one in lanes.take(1, 10, before=4)] == [5]
    assert lanes.size == 1


def test_a_task_that_left_is_skipped() -> None:
    tasks = list(map(task, (2, 3, 4)))
    lanes = filled(*tasks, task(1))
    lanes.take(1, 1)[0].status = TaskStatus.ASSIGNED
    for gone in (tasks[0], tasks[2]):
        gone.status = TaskStatus.CANCELLED
        lanes.left()
    assert lanes.size == 1
    assert drain(lanes) == [3]


def test_a_task_cancelled_and_retried_while_it_waits_may_be_queued_twice() -> None:
    lanes = filled(task(9))
    for _ in range(3):
        again = task(4)
        lanes.push((again,))
        again.status = TaskStatus.CANCELLED
        lanes.left()
    lanes.push((task(4),))
    assert drain(lanes) == [4, 9]


def test_entries_of_tasks_that_left_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "_STALE_KEPT", 10)
    lanes = filled(task(1))
    for number in range(2, 200):
        one = task(number if number % 2 else 1_000 - number, PRIORITIES[number % 4])
        lanes.push((one,))
        one.status = TaskStatus.CANCELLED
        lanes.left()
    entries = sum(len(lane.fresh) + len(lane.returned) for lane in lanes._lanes)
    assert entries <= 12
    assert drain(lanes) == [1]


@given(st.integers(0, 2**32))
def test_the_order_is_that_of_a_sorted_list(seed: int) -> None:
    rng = random.Random(seed)
    lanes, naive, number = Lanes(), [], 0
    for _ in range(60):
        step = rng.random()
        if step < 0.5:
            number += 1
            naive.append(task(number, rng.choice(PRIORITIES)))
            lanes.push((naive[-1],))
        elif step < 0.65 and naive:
            gone = naive.pop(rng.randrange(len(naive)))
            gone.status = TaskStatus.CANCELLED
            lanes.left()
        elif step < 0.75 and number:
            back = task(rng.randint(1, number), rng.choice(PRIORITIES))
            if all(back.number != one.number for one in naive):
                naive.append(back)
                lanes.push((back,))
        elif naive:
            naive.sort(key=lambda one: (-one.spec.priority, one.number))
            head = lanes.head()
            assert head is not None
            assert lanes.take(head.lane, 1) == [naive[0]]
            naive.pop(0).status = TaskStatus.ASSIGNED
        assert lanes.size == len(naive)


def test_a_cancelled_queued_task_leaves_its_class(cluster: Cluster) -> None:
    numbers = cluster.submit(3, required_tags=["x"])
    cluster.call("task.cancel", {"task_id": cluster.public(numbers[0])})
    member = cluster.device(tags=("x",), slots=3)
    cluster.place()
    assert list(member.record.attempts) == numbers[1:]


def test_a_task_retried_by_hand_goes_before_younger_ones(cluster: Cluster) -> None:
    member, key = cluster.give(max_retries=0)
    member.start()
    member.fail()
    younger = cluster.submit(2)
    cluster.retry(key[0])
    cluster.place()
    assert list(member.record.attempts) == [key[0]]
    member.finish()
    cluster.place()
    assert list(member.record.attempts) == [younger[0]]
