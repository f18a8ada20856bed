"""Clients that wait for tasks to end (`task.wait`), until a deadline."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from retire_cluster.broker.core.events import WaitRequested

#: Stale deadlines are kept beside as many that hold, and so many more.
_STALE_KEPT = 100


@dataclass(eq=False, repr=False)
class Wait:
    """A parked `task.wait`; equal to itself only."""

    request: WaitRequested
    #: Numbers of the tasks that have not ended.
    unfinished: set[int]
    deadline_mono: float

    def __repr__(self) -> str:
        left = f"{len(self.unfinished)} of {len(self.request.tasks)} tasks"
        return f"<Wait {self.request.ticket[1]!r} for {left}, until {self.deadline_mono:.3f}>"


class Waits:
    """All parked waits, by task and by deadline."""

    __slots__ = ("_serial", "all", "by_task", "due")

    def __init__(self) -> None:
        #: All of them, oldest first.
        self.all: dict[Wait, None] = {}
        #: The same by the number of each task that they wait for.
        self.by_task: dict[int, list[Wait]] = {}
        #: `(deadline_mono, serial, wait)`, the next first; entries may be stale.
        self.due: list[tuple[float, int, Wait]] = []
        self._serial = 0

    def park(self, wait: Wait) -> None:
        """Add a wait for tasks, all of which are live."""
        self.all[wait] = None
        for number in wait.unfinished:
            self.by_task.setdefault(number, []).append(wait)
        # Most end long before their deadline; their entries must not pile up until then.
        if len(self.due) > 2 * len(self.all) + _STALE_KEPT:
            self.due = [entry for entry in self.due if entry[2] in self.all]
            heapq.heapify(self.due)
        self._serial += 1
        heapq.heappush(self.due, (wait.deadline_mono, self._serial, wait))

    def finish(self, number: int) -> list[Wait]:
        """Note that a task has ended; returns the waits that are over with it."""
        over = []
        for wait in self.by_task.pop(number):
            wait.unfinished.discard(number)
            if not wait.unfinished:
                del self.all[wait]
                over.append(wait)
        return over

    def expire(self, now_mono: float) -> list[Wait]:
        """Take out the waits whose deadline is over, oldest first."""
        found = []
        while self.due and self.due[0][0] <= now_mono:
            _, serial, wait = heapq.heappop(self.due)
            if wait in self.all:
                del self.all[wait]
                found.append((serial, wait))
        over = [wait for _, wait in sorted(found)]
        for wait in over:
            for number in wait.unfinished:
                left = [other for other in self.by_task[number] if other is not wait]
                if left:
                    self.by_task[number] = left
                else:
                    del self.by_task[number]
        return over

    def next_deadline(self) -> float | None:
        """Return the monotonic time of the first deadline; None without one."""
        while self.due and self.due[0][2] not in self.all:
            heapq.heappop(self.due)
        return self.due[0][0] if self.due else None
