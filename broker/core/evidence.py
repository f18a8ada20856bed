"""What an error tells of the task that it is about: the task's last events.

Read from the event log only when something failed; what goes well pays nothing for it.
"""

from __future__ import annotations

from typing import Final

from retire_cluster.broker.core.events import Event
from retire_cluster.broker.core.records.event_log import EventLog

#: Events of a task that an error tells, and characters of each.
EVENTS_TOLD: Final = 20
EVENT_CHARACTERS: Final = 300


class EventFailed(RuntimeError):
    """A rule met an error of its own; `__cause__` is that error, `history` as in `last_events`."""

    def __init__(self, event: Event, task: int, history: tuple[str, ...]) -> None:
        about = f" of task {task}" if task else ""
        super().__init__("\n  ".join((f"{type(event).__name__}{about} failed", *history)))
        self.task = task
        self.history = history


def last_events(log: EventLog, task: int) -> tuple[str, ...]:
    """The last events of a task as lines of text, oldest first; empty for no task (0)."""
    lines = []
    for entry in log.newest_of(task, EVENTS_TOLD) if task else ():
        device = f" on {entry.device_id}" if entry.device_id else ""
        line = f"event {entry.id} at {entry.at_ms} ms: {entry.type}{device} {entry.data}"
        lines.append(line[:EVENT_CHARACTERS])
    return tuple(lines)
