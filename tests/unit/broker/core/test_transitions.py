"""The table of task states: every (state, event) pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.cluster import handle
from retire_cluster.broker.core.invariants import check_invariants
from retire_cluster.broker.core.model import Task
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.broker.core.transitions import (
    EVENTS,
    TRANSITIONS,
    IllegalTransition,
    TaskEvent,
    after,
)
from retire_cluster.schemas.vocabulary import TERMINAL, TaskStatus
from tests.unit.broker.kit import Cluster, task_spec

STATES = (None, *TaskStatus)
LEGAL = list(TRANSITIONS.items())
ILLEGAL = [
    (state, event)
    for state in STATES
    for event in sorted(EVENTS)
    if (state, event) not in TRANSITIONS
]


@pytest.mark.parametrize(("pair", "state"), LEGAL)
def test_a_pair_in_the_table_leads_to_its_state(
    pair: tuple[TaskStatus | None, TaskEvent], state: TaskStatus
) -> None:
    assert after(*pair) is state


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_any_other_pair_raises_and_names_both(state: TaskStatus | None, event: TaskEvent) -> None:
    with pytest.raises(IllegalTransition) as caught:
        after(state, event)
    assert (caught.value.status, caught.value.event) == (state, event)
    assert event in str(caught.value)
    assert (state.value if state else "new") in str(caught.value)


def test_the_table_is_the_contracts() -> None:
    ways: dict[TaskStatus | None, set[TaskStatus]] = {}
    for (state, _), target in TRANSITIONS.items():
        ways.setdefault(state, set()).add(target)
    s = TaskStatus
    ended = {s.CANCELLED, s.FAILED, s.TIMEOUT}
    assert ways == {
        None: {s.QUEUED, s.PENDING},
        s.PENDING: {s.QUEUED, s.CANCELLED, s.FAILED},
        s.QUEUED: {s.ASSIGNED, s.CANCELLED, s.FAILED},
        s.ASSIGNED: {s.RUNNING, s.PENDING, *ended},
        s.RUNNING: {s.SUCCESS, s.PENDING, *ended},
        # A stored outcome that is damaged: a success fails, any other ending stays what it was.
        s.SUCCESS: {s.FAILED},
        s.FAILED: {s.QUEUED, s.FAILED},
        s.TIMEOUT: {s.QUEUED, s.TIMEOUT},
        s.CANCELLED: {s.QUEUED, s.CANCELLED},
    }


def test_nothing_leads_out_of_success_but_a_damaged_result() -> None:
    assert [pair[1] for pair in TRANSITIONS if pair[0] is TaskStatus.SUCCESS] == ["damage"]
    assert {pair[1] for pair in TRANSITIONS if pair[0] in TERMINAL} == {"retry", "damage"}


def test_the_events_of_the_table_are_all_that_are_named() -> None:
    assert set(get_args(TaskEvent)) == EVENTS


@pytest.mark.parametrize(("state", "event"), [pair for pair in ILLEGAL if pair[0] is not None])
def test_an_illegal_event_changes_neither_the_task_nor_the_counts_nor_the_feed(
    cluster: Cluster, state: TaskStatus, event: TaskEvent
) -> None:
    (number,) = cluster.submit()
    task = cluster.task(number)
    genuine = task.status
    task.status = state
    counts, events = cluster.state.ledger.by_status(), cluster.state.log.last
    with pytest.raises(IllegalTransition):
        cluster.state.move(task, event, cluster.now)
    assert task.status is state
    assert (cluster.state.ledger.by_status(), cluster.state.log.last) == (counts, events)
    task.status = genuine


def test_a_failing_handler_leaves_no_instructions_for_the_next_event() -> None:
    cluster = Cluster()
    _, key = cluster.give()
    # A state that the rules never produce: the handler fails after it has told the store something.
    cluster.task(key[0]).status = TaskStatus.PENDING
    with pytest.raises(IllegalTransition):
        handle(cluster.state, ev.DeviceRemoved("box"), cluster.now)
    assert handle(cluster.state, ev.Tick("deadlines"), cluster.now) == []


def test_a_key_names_task_attempt_token_and_epoch(cluster: Cluster) -> None:
    _, key = cluster.give()
    task = cluster.task(key[0])
    assert task.dispatch is not None
    assert key == (1, 1, task.dispatch.token, cluster.state.epoch)


def test_retries_count_over_all_generations() -> None:
    task = Task(1, task_spec(), 0, b"{}", TaskStatus.QUEUED, 0.0)
    task.stored_retries, task.retries = 2, 3
    assert task.retry_count == 5


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda state, task: state.tasks.__setitem__(99, task), "is filed under 99"),
        (lambda state, task: setattr(task, "status", TaskStatus.FAILED), "has ended"),
        (lambda state, task: setattr(task, "status", TaskStatus.RUNNING), "differs in the ledger"),
        (lambda state, task: setattr(task, "dispatch", None), "lease disagree"),
        (lambda state, task: setattr(task, "device", None), "has no device"),
        (lambda state, task: task.device.attempts.clear(), "not on its device"),
        (lambda state, task: state.running.__setitem__(task.number, task), "`running` disagree"),
        (lambda state, task: setattr(task.device, "used_units", 3), "counts 3"),
        (lambda state, task: setattr(task, "device", state.devices["idle"]), "not on its device"),
        (lambda state, task: state.devices.pop("box"), "is on a stranger"),
        (lambda state, task: state.devices["idle"].attempts.update({1: task}), "is elsewhere"),
        (lambda state, task: state.devices["idle"].attempts.update({9: task}), "ended task 9"),
        (lambda state, task: state.free.clear(), "is not free"),
        (lambda state, task: state.connections.clear(), "box has no connection"),
        (lambda state, task: setattr(state, "online_count", 7), "counted 7"),
        (lambda state, task: state.waiting.clear(), "not looked at"),
        (lambda state, task: state.waits.by_task.update({9: []}), "9 has ended and is waited for"),
        (
            lambda state, task: state.ledger.add(50, TaskStatus.QUEUED, "x", 1),
            "the ledger has 3 live tasks",
        ),
    ],
)
def test_every_broken_rule_is_noticed(
    damage: Callable[[ClusterState, Task], object], complaint: str
) -> None:
    cluster = Cluster()
    _, key = cluster.give()
    cluster.device("idle", role="mobile")
    cluster.submit(required_tags=["nobody has it"])
    damage(cluster.state, cluster.task(key[0]))
    with pytest.raises(AssertionError, match=complaint):
        check_invariants(cluster.state)
