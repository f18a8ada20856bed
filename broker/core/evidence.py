"""What an error tells of the task that it is about: the task's last events.

Read from the event log only when something failed; what goes well pays nothing for it.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final

from retire_cluster.broker.core.events import Event
from retire_cluster.broker.core.model import Task
from retire_cluster.broker.core.records.event_log import EventLog

#: Events of a task that an error tells, and characters of each.
EVENTS_TOLD: Final = 20
EVENT_CHARACTERS: Final = 300


class EventFailed(RuntimeError):
    """A rule met an error of its own; `__cause__` is that error, `history` is as in `history`."""

    def __init__(self, event: Event, task: int, history: tuple[str, ...]) -> None:
        about = f" of task {task}" if task else ""
        super().__init__("\n  ".join((f"{type(event).__name__}{about} failed", *history)))
        self.task = task
        self.history = history


def history(log: EventLog, task: int) -> tuple[str, ...]:
    """The last events of a task as lines of text, oldest first; empty when none is kept."""
    lines = []
    for entry in log.newest_of(task, EVENTS_TOLD):
        device = f" on {entry.device_id}" if entry.device_id else ""
        line = f"event {entry.id} at {entry.at_ms} ms: {entry.type}{device} {entry.data}"
        lines.append(line[:EVENT_CHARACTERS])
    return tuple(lines)


def task_of(event: Event, trace: TracebackType | None) -> int:
    """The number of the task that was being worked on when an error was raised; 0: unknown.

    It is the innermost local variable `task` of the trace, or the task that the event names.
    """
    found = getattr(event, "task", 0)
    while trace is not None:
        task = trace.tb_frame.f_locals.get("task")
        if isinstance(task, Task):
            found = task.number
        trace = trace.tb_next
    return found if isinstance(found, int) else 0
