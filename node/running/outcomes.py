"""How an attempt that gave no result of its own ended, in the words that its submitter reads."""

from __future__ import annotations

from typing import NamedTuple

from retire_cluster.node.core.records import (
    CANCELLED,
    FENCED,
    RELEASED,
    TIMEOUT,
    UNSTARTED,
    Attempt,
)
from retire_cluster.node.process.keeper import SIGNAL_BASE
from retire_cluster.node.running.slot import Died
from retire_cluster.schemas.vocabulary import Cause, Outcome

_SIGXCPU = 24


class Verdict(NamedTuple):
    """An outcome, its cause and its message."""

    outcome: Outcome
    cause: Cause | None
    message: str


def of_dead_process(task_type: str, died: Died) -> Verdict:
    """What a process that ended without an answer means for its attempt."""
    code, words = died.code, died.words
    if code is None:
        return Verdict(Outcome.FAILED, Cause.ERROR, words)
    cause = Cause.ERROR
    if task_type == "python_eval" and code == SIGNAL_BASE + _SIGXCPU:
        cause = Cause.DETERMINISTIC
        message = "payload.expression: needs more processor time than it may have"
    elif abs(code) > SIGNAL_BASE:
        message = f"the task's process was killed by signal {abs(code) - SIGNAL_BASE}"
    elif code < 0:
        message = f"the task's process was killed by signal {-code}"
    else:
        message = f"the task's process ended by itself with exit code {code}"
    return Verdict(Outcome.FAILED, cause, f"{message}: {words}" if words else message)


def of_killed(
    attempt: Attempt, reason: str, *, ran_seconds: float, start_seconds: float
) -> Verdict | None:
    """What it means that the worker ended a running attempt; None: nobody is to be told.

    :param start_seconds: how long its process had to be ready
    """
    if reason == CANCELLED:
        return Verdict(Outcome.CANCELLED, None, "cancelled")
    if reason == TIMEOUT:
        message = f"did not end within {attempt.timeout_seconds} s"
        return Verdict(Outcome.TIMEOUT, Cause.TIMEOUT, message)
    if reason == UNSTARTED:
        message = f"it never started: its process was not ready within {start_seconds:g} s"
        return Verdict(Outcome.FAILED, Cause.ERROR, message)
    if reason == RELEASED:
        message = f"stopped after {ran_seconds:.1f} s because the device is going"
        return Verdict(Outcome.RELEASED, None, message)
    if reason == FENCED:
        message = (
            f"stopped after {ran_seconds:.1f} s because the device lost the main node"
            " (worker.on_lease_loss = kill)"
        )
        return Verdict(Outcome.FAILED, Cause.WORKER_LOST, message)
    return None


def of_waiting(reason: str) -> Verdict | None:
    """What it means that the worker ended a waiting attempt; None: nobody is to be told."""
    if reason == CANCELLED:
        outcome, cause = Outcome.CANCELLED, None
    elif reason == TIMEOUT:
        outcome, cause = Outcome.TIMEOUT, Cause.TIMEOUT
    elif reason in (RELEASED, FENCED):
        outcome, cause = Outcome.RELEASED, None
    else:
        return None
    return Verdict(outcome, cause, f"{outcome.value} before it started")
