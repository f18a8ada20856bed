"""The table of a task's states: policy picks the event, the table picks the state.

A pair that is not in `TRANSITIONS` raises and changes nothing. Every status that a task ever gets
comes from `after`; tests/unit/broker/core/test_transitions.py reads the code for that.
"""

from __future__ import annotations

from typing import Final, Literal

from retire_cluster.schemas.vocabulary import TaskStatus

_S = TaskStatus

TaskEvent = Literal[
    "submit", "delay", "due", "assign", "start", "wait", "succeed", "fail", "time_out", "cancel",
    "retry", "damage",
]  # fmt: skip

#: (state, event) → state. `None` is a task that does not exist yet. `damage`: what the store has of
#: it is not what was written.
TRANSITIONS: Final[dict[tuple[TaskStatus | None, TaskEvent], TaskStatus]] = {
    (None, "submit"): _S.QUEUED,
    (None, "delay"): _S.PENDING,
    (_S.PENDING, "due"): _S.QUEUED,
    (_S.PENDING, "cancel"): _S.CANCELLED,
    (_S.PENDING, "damage"): _S.FAILED,
    (_S.QUEUED, "assign"): _S.ASSIGNED,
    (_S.QUEUED, "cancel"): _S.CANCELLED,
    (_S.QUEUED, "fail"): _S.FAILED,
    (_S.QUEUED, "damage"): _S.FAILED,
    (_S.ASSIGNED, "start"): _S.RUNNING,
    (_S.ASSIGNED, "wait"): _S.PENDING,
    (_S.ASSIGNED, "cancel"): _S.CANCELLED,
    (_S.ASSIGNED, "fail"): _S.FAILED,
    (_S.ASSIGNED, "time_out"): _S.TIMEOUT,
    (_S.ASSIGNED, "damage"): _S.FAILED,
    (_S.RUNNING, "succeed"): _S.SUCCESS,
    (_S.RUNNING, "wait"): _S.PENDING,
    (_S.RUNNING, "cancel"): _S.CANCELLED,
    (_S.RUNNING, "fail"): _S.FAILED,
    (_S.RUNNING, "time_out"): _S.TIMEOUT,
    (_S.FAILED, "retry"): _S.QUEUED,
    (_S.TIMEOUT, "retry"): _S.QUEUED,
    (_S.CANCELLED, "retry"): _S.QUEUED,
    # A success whose result is lost is none; how another one ended is still known.
    (_S.SUCCESS, "damage"): _S.FAILED,
    (_S.FAILED, "damage"): _S.FAILED,
    (_S.TIMEOUT, "damage"): _S.TIMEOUT,
    (_S.CANCELLED, "damage"): _S.CANCELLED,
}

EVENTS: Final = frozenset(event for _, event in TRANSITIONS)


class IllegalTransition(RuntimeError):
    """A task met an event that its state does not allow; nothing changed.

    :param task: its number, 0 where it is not known
    :param history: its last events, as `evidence.last_events` gives them
    """

    def __init__(
        self, status: TaskStatus | None, event: str, task: int = 0, history: tuple[str, ...] = ()
    ) -> None:
        state = status or "new"
        name = f"task {task}, which is {state}," if task else f"a task that is {state}"
        what = f"{name} cannot take the event {event!r}"
        super().__init__("\n  ".join((what, *history)))
        self.status = status
        self.event = event
        self.task = task
        self.history = history


def after(status: TaskStatus | None, event: TaskEvent) -> TaskStatus:
    """Return the state after an event; raises `IllegalTransition` for a pair not in the table."""
    try:
        return TRANSITIONS[status, event]
    except KeyError:
        raise IllegalTransition(status, event) from None
