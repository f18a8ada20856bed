"""The retry policy: what follows an attempt that did not succeed.

The rules are promised in docs/guarantees.md: causes kept apart, full jitter, a poison guard.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from retire_cluster.broker.core.model import Task
from retire_cluster.conf.sections import Scheduler
from retire_cluster.schemas.vocabulary import ELSEWHERE, Cause, TaskStatus


@dataclass(frozen=True)
class Decision:
    """What to do with a task: run it again after a wait, or end it."""

    #: The final status, or None to run again.
    final: TaskStatus | None
    #: Seconds to wait before running again.
    delay_seconds: float = 0.0
    #: Whether this run used up a retry.
    costs_retry: bool = False
    #: Added to the error message when it ends here.
    note: str = ""


def backoff_seconds(retries: int, rng: random.Random, base: float, cap: float) -> float:
    """Return the wait before retry n (from 0), full jitter: uniform in 0 to min(cap, base · 2ⁿ)."""
    return rng.uniform(0.0, min(cap, base * 2.0 ** min(retries, 32)))


def decide(
    task: Task,
    cause: str,
    scheduler: Scheduler,
    rng: random.Random,
    *,
    started: bool,
    said_before: bool = False,
) -> Decision:
    """Decide what to do with a task whose attempt ended with `cause`.

    `started` tells whether the lost attempt had begun to run; one that had not is put back free of
    charge. So many different devices lost on it as `poison_devices` says end it; the caller has
    noted this one in `task.killers`. `said_before`: this device had said already that it cannot run
    the task, so that saying it again is not free: no task goes round for ever.
    """
    final = TaskStatus.TIMEOUT if cause == Cause.TIMEOUT else TaskStatus.FAILED
    if cause == Cause.DETERMINISTIC:
        return Decision(final)
    if cause in ELSEWHERE and not said_before:
        return Decision(None)
    if cause == Cause.WORKER_LOST:
        if len(task.killers) >= scheduler.poison_devices:
            return Decision(final, note=f"POISON: {len(task.killers)} devices were lost running it")
        if not started:
            return Decision(None)
    if task.retries >= task.spec.max_retries:
        return Decision(final)
    base, cap = scheduler.retry_base_seconds, scheduler.retry_cap_seconds
    delay = backoff_seconds(task.retries, rng, base, cap)
    return Decision(None, delay_seconds=delay, costs_retry=True)
