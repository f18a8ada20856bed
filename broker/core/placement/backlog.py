"""Queued tasks of one requirement class: by priority, first in first out inside one.

Waiting lifts nobody: who has waited longest can be asked for (`oldest`), and starvation.py says
when it goes before better-ranked work.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from retire_cluster.broker.core.model import Task
from retire_cluster.schemas.vocabulary import Priority, TaskStatus

_QUEUED = TaskStatus.QUEUED
_TOP = int(Priority.URGENT)
#: Entries of tasks that left otherwise than by `take` are swept out when there are more than this.
_STALE_KEPT = 1_000


class Head(NamedTuple):
    """The next task of a class, ordered as dispatch wants it (smallest first)."""

    #: Negated priority.
    rank: int
    #: Task number: older first.
    number: int
    lane: int
    #: When it began to wait.
    since_mono: float


class _Lane:
    """One priority: fresh tasks in order of arrival, returned ones (retries) merged in by age."""

    __slots__ = ("_order", "fresh", "returned")

    def __init__(self) -> None:
        self.fresh: deque[Task] = deque()
        #: The middle number only keeps tasks themselves from being compared: a task that was
        #: cancelled and retried may be here twice.
        self.returned: list[tuple[int, int, Task]] = []
        self._order = itertools.count()

    def push(self, tasks: Sequence[Task]) -> None:
        """Add tasks in rising order."""
        if not self.fresh or self.fresh[-1].number < tasks[0].number:
            self.fresh.extend(tasks)
        else:
            for task in tasks:
                heapq.heappush(self.returned, (task.number, next(self._order), task))

    def head(self) -> Task | None:
        """Return the oldest queued task; entries of tasks that have left are dropped on the way."""
        fresh, returned = self.fresh, self.returned
        while fresh and fresh[0].status is not _QUEUED:
            fresh.popleft()
        while returned and returned[0][2].status is not _QUEUED:
            heapq.heappop(returned)
        if returned and (not fresh or returned[0][0] < fresh[0].number):
            return returned[0][2]
        return fresh[0] if fresh else None

    def oldest(self) -> Task | None:
        """Return who has waited longest: a returned task may be older by number and not by time."""
        first = self.head()
        if first is None:
            return None
        for other in (self.fresh[0] if self.fresh else None, *(e[2] for e in self.returned[:1])):
            if (
                other is not None
                and other.status is _QUEUED
                and other.queued_mono < first.queued_mono
            ):
                first = other
        return first

    def pop_oldest(self) -> Task | None:
        """Take out who has waited longest."""
        task = self.oldest()
        if task is None:
            return None
        if self.fresh and self.fresh[0] is task:
            self.fresh.popleft()
        else:
            heapq.heappop(self.returned)
        return task

    def pop(self, limit: int, before: int | None) -> list[Task]:
        """Take out up to `limit` tasks in order, after the first only those below `before`."""
        found: list[Task] = []
        fresh, returned = self.fresh, self.returned
        while len(found) < limit:
            task = self.head()
            if task is None or (before is not None and found and task.number >= before):
                break
            if not (fresh and fresh[0] is task):
                heapq.heappop(returned)
                found.append(task)
                continue
            # Fresh ones follow each other until a returned one is older, or the limit is reached.
            end = returned[0][0] if returned else None
            if before is not None and (end is None or before < end):
                end = before
            found.append(fresh.popleft())
            while fresh and len(found) < limit and (end is None or fresh[0].number < end):
                task = fresh.popleft()
                if task.status is _QUEUED:
                    found.append(task)
        return found

    def sweep(self) -> None:
        """Drop every entry of a task no longer queued."""
        self.fresh = deque(task for task in self.fresh if task.status is _QUEUED)
        self.returned = [entry for entry in self.returned if entry[2].status is _QUEUED]
        heapq.heapify(self.returned)


class Lanes:
    """The backlog of one requirement class."""

    __slots__ = ("_aside", "_lanes", "_stale", "aside", "size")

    def __init__(self) -> None:
        self._lanes = tuple(_Lane() for _ in Priority)
        #: By priority, those that are set aside for a while; who is so longest is first.
        self._aside: tuple[deque[Task], ...] = tuple(deque() for _ in Priority)
        #: How many are there.
        self.aside = 0
        #: Tasks queued in it.
        self.size = 0
        #: Entries (at most) of tasks that left and are still in a lane.
        self._stale = 0

    def push(self, tasks: Sequence[Task]) -> None:
        """Queue tasks of one priority, in rising order."""
        self._lanes[tasks[0].spec.priority].push(tasks)
        self.size += len(tasks)

    def left(self) -> None:
        """Note that a task, whose status says so already, left otherwise than by `take`."""
        self.size -= 1
        self._stale += 1
        # A class that no device can serve never pops its entries: they must not pile up.
        if self._stale > max(_STALE_KEPT, self.size):
            self._stale = 0
            for lane in self._lanes:
                lane.sweep()
            for aside in self._aside:
                kept = [task for task in aside if task.status is _QUEUED]
                self.aside -= len(aside) - len(kept)
                aside.clear()
                aside.extend(kept)

    def set_aside(self, task: Task) -> None:
        """Queue a task that was taken, out of its lane until its turn to be brought back."""
        self._aside[task.spec.priority].append(task)
        self.aside += 1
        self.size += 1

    def bring_back(self, limit: int) -> int:
        """Bring back up to `limit` tasks of each priority that were set aside; returns how many."""
        back = 0
        for lane, aside in zip(self._lanes, self._aside, strict=True):
            for _ in range(min(limit, len(aside))):
                task = aside.popleft()
                self.aside -= 1
                if task.status is _QUEUED:
                    lane.push((task,))
                    back += 1
        return back

    def head(self) -> Head | None:
        """Return who is next, or None when nothing is queued."""
        if not self.size:
            return None
        for index in range(_TOP, -1, -1):
            task = self._lanes[index].head()
            if task is not None:
                return Head(-index, task.number, index, task.queued_mono)
        return None

    def lanes_below(self, lane: int) -> list[int]:
        """Return the lesser lanes that may hold tasks."""
        return [n for n in range(lane) if self._lanes[n].fresh or self._lanes[n].returned]

    def oldest(self, lane: int) -> Task | None:
        """Return who has waited longest in a lane."""
        return self._lanes[lane].oldest()

    def take_oldest(self, lane: int) -> Task | None:
        """Take out who has waited longest in a lane."""
        task = self._lanes[lane].pop_oldest()
        if task is not None:
            self.size -= 1
        return task

    def take(self, lane: int, limit: int, before: int | None = None) -> list[Task]:
        """Take out up to `limit` tasks of a lane in order, only those numbered below `before`."""
        found = self._lanes[lane].pop(limit, before)
        self.size -= len(found)
        return found
