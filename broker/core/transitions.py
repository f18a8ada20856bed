"""The table of a task's states: policy picks the event, the table picks the state.

A pair that is not in `TRANSITIONS` raises and changes nothing. Every status that a task ever gets
comes from `after`; tests/unit/broker/core/test_transitions.py reads the code for that.
"""

from __future__ import annotations

from typing import Final

from retire_cluster.schemas.vocabulary import TaskStatus

_S = TaskStatus

#: (state, event) → state. `None` is a task that does not exist yet.
TRANSITIONS: Final[dict[tuple[TaskStatus | None, str], TaskStatus]] = {
    (None, "submit"): _S.QUEUED,
    (None, "delay"): _S.PENDING,
    (_S.PENDING, "due"): _S.QUEUED,
    (_S.PENDING, "cancel"): _S.CANCELLED,
    (_S.PENDING, "fail"): _S.FAILED,
    (_S.QUEUED, "assign"): _S.ASSIGNED,
    (_S.QUEUED, "cancel"): _S.CANCELLED,
    (_S.QUEUED, "fail"): _S.FAILED,
    (_S.ASSIGNED, "start"): _S.RUNNING,
    (_S.ASSIGNED, "wait"): _S.PENDING,
    (_S.ASSIGNED, "cancel"): _S.CANCELLED,
    (_S.ASSIGNED, "fail"): _S.FAILED,
    (_S.ASSIGNED, "time_out"): _S.TIMEOUT,
    (_S.RUNNING, "succeed"): _S.SUCCESS,
    (_S.RUNNING, "wait"): _S.PENDING,
    (_S.RUNNING, "cancel"): _S.CANCELLED,
    (_S.RUNNING, "fail"): _S.FAILED,
    (_S.RUNNING, "time_out"): _S.TIMEOUT,
    (_S.FAILED, "retry"): _S.QUEUED,
    (_S.TIMEOUT, "retry"): _S.QUEUED,
    (_S.CANCELLED, "retry"): _S.QUEUED,
}

EVENTS: Final = frozenset(event for _, event in TRANSITIONS)


class IllegalTransition(RuntimeError):
    """A task was told something that its state does not allow; nothing changed."""

    def __init__(self, status: TaskStatus | None, event: str) -> None:
        super().__init__(f"a task that is {status or 'new'} cannot take the event {event!r}")
        self.status = status
        self.event = event


def after(status: TaskStatus | None, event: str) -> TaskStatus:
    """The state after an event; raises `IllegalTransition`."""
    try:
        return TRANSITIONS[status, event]
    except KeyError:
        raise IllegalTransition(status, event) from None
