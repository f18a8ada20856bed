"""What happens after an attempt that did not succeed: causes, budgets, poison, jitter."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.broker.core.model import Task
from retire_cluster.broker.core.retry import Decision, backoff_seconds, decide
from retire_cluster.conf.sections import Scheduler
from retire_cluster.schemas.vocabulary import Cause, TaskStatus
from tests.unit.broker.kit import task_spec


class Longest(random.Random):
    """Draws the largest number it may."""

    def uniform(self, a: float, b: float) -> float:
        return b


def after(
    cause: str,
    *,
    started: bool = True,
    used: int = 0,
    said_before: bool = False,
    **task_fields: Any,
) -> Decision:
    budget = task_fields.pop("max_retries", 3)
    task = Task(1, task_spec(max_retries=budget), 0, b"{}", TaskStatus.RUNNING, 0.0)
    task.retries = used
    for name, value in task_fields.items():
        setattr(task, name, frozenset(value))
    return decide(
        task,
        cause,
        Scheduler(retry_base_seconds=2.0, retry_cap_seconds=300.0, poison_devices=3),
        Longest(),
        started=started,
        said_before=said_before,
    )


@pytest.mark.parametrize("cause", [Cause.ERROR, Cause.TIMEOUT, Cause.WORKER_LOST])
def test_these_causes_cost_a_retry_and_wait_longer_each_time(cause: Cause) -> None:
    waits = [after(cause, used=used) for used in range(3)]
    assert [found.delay_seconds for found in waits] == [2.0, 4.0, 8.0]
    assert all(found.costs_retry and found.final is None for found in waits)


@pytest.mark.parametrize(
    ("cause", "final"),
    [
        (Cause.ERROR, TaskStatus.FAILED),
        (Cause.TIMEOUT, TaskStatus.TIMEOUT),
        (Cause.WORKER_LOST, TaskStatus.FAILED),
    ],
)
@pytest.mark.parametrize("budget", [0, 1, 10])
def test_without_a_retry_left_the_task_ends(cause: Cause, final: TaskStatus, budget: int) -> None:
    assert after(cause, used=budget, max_retries=budget) == Decision(final)
    if budget:
        assert after(cause, used=budget - 1, max_retries=budget).final is None


def test_a_deterministic_error_is_never_retried() -> None:
    assert after(Cause.DETERMINISTIC) == Decision(TaskStatus.FAILED)


@pytest.mark.parametrize("cause", [Cause.POLICY_DENIED, Cause.NOT_HERE])
def test_what_one_device_cannot_is_tried_elsewhere_free_of_charge_once_a_device(
    cause: Cause,
) -> None:
    assert after(cause, excluded=dict.fromkeys("abc", "no"), max_retries=0) == Decision(None)
    assert after(cause, said_before=True, max_retries=0) == Decision(TaskStatus.FAILED)
    assert after(cause, said_before=True).costs_retry


@pytest.mark.parametrize("budget", [0, 3])
def test_an_attempt_lost_before_it_started_costs_nothing(budget: int) -> None:
    assert after(Cause.WORKER_LOST, started=False, max_retries=budget) == Decision(None)


def test_three_devices_lost_on_a_task_end_it_as_poison_whatever_retries_are_left() -> None:
    assert after(Cause.WORKER_LOST, killers={"a", "b"}, max_retries=10).final is None
    found = after(Cause.WORKER_LOST, killers={"a", "b", "c"}, max_retries=10)
    assert found.final is TaskStatus.FAILED
    assert found.note == "POISON: 3 devices were lost running it"
    # Other causes do not count as the devices' deaths.
    assert after(Cause.ERROR, killers={"a", "b", "c"}).final is None


@given(st.integers(0, 200), st.integers(), st.floats(0, 3600), st.floats(0, 86_400))
def test_the_wait_is_full_jitter_below_base_times_two_to_the_n_and_the_cap(
    retries: int, seed: int, base: float, cap: float
) -> None:
    found = backoff_seconds(retries, random.Random(seed), base, cap)
    assert 0.0 <= found <= cap
    assert found <= base * 2.0 ** min(retries, 32) or found == cap


def test_the_waits_spread_over_the_whole_range() -> None:
    rng = random.Random(3)
    waits = [backoff_seconds(3, rng, 2.0, 300.0) for _ in range(2_000)]
    assert min(waits) < 0.5
    assert max(waits) > 15.5
    assert 7.5 < sum(waits) / len(waits) < 8.5
