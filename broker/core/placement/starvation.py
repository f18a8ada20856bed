"""Against starvation: who has waited longest overtakes, in one placement of ten at most.

Priority always orders; this share alone keeps a steady stream of urgent work from starving the
rest. A placement *overtakes* when better-ranked work that has a device with room is left standing
for it. Between two that overtake there are at least nine that do not, whatever happens, and only
tasks older than `scheduler.aging_seconds` do. How many more than nine varies: a device that gets
room at every tenth placement would otherwise never see the tenth's turn.

Nothing is scanned: a class has four lanes, and the first of each is enough.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable

from retire_cluster.broker.core.model import Task
from retire_cluster.broker.core.placement.matching import TaskClass

#: Placements between two that overtake, at least.
BETWEEN = 9
_MORE = 3


class Share:
    """How near the next placement is that may overtake; part of the cluster's state."""

    __slots__ = ("_rng", "left")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        #: Placements still to be made before one may overtake. A main node that starts anew counts
        #: from the beginning: a restart gives nobody a turn beyond the share.
        self.left = BETWEEN

    def placed(self, count: int) -> None:
        """Count tasks that were placed in their order."""
        self.left = max(0, self.left - count)

    def overtook(self) -> None:
        """Count a task that was placed before better-ranked work."""
        self.left = BETWEEN + self._rng.randrange(_MORE)


class Waiting:
    """Who has waited beyond a time, longest first; for one pass of placing.

    :param classes: where to look
    :param below: the best rank's lane: nobody of it overtakes anybody
    :param since_mono: who began to wait later than this is left out
    """

    def __init__(self, classes: Iterable[TaskClass], below: int, since_mono: float) -> None:
        self._since = since_mono
        self._order = 0
        #: `(queued_mono, number, order, lane, class, task)`.
        self._heap: list[tuple[float, int, int, int, TaskClass, Task]] = []
        for cls in classes:
            for lane in cls.lanes.lanes_below(below):
                self._add(cls, lane)

    def _add(self, cls: TaskClass, lane: int) -> None:
        task = cls.lanes.oldest(lane)
        if task is not None and task.queued_mono <= self._since:
            self._order += 1
            entry = (task.queued_mono, task.number, self._order, lane, cls, task)
            heapq.heappush(self._heap, entry)

    def before(self, lane: int, since_mono: float) -> tuple[TaskClass, int] | None:
        """Return the class and lane of who has waited longest.

        None when that is nobody, or not below `lane`, or no longer than since `since_mono`.
        """
        heap = self._heap
        while heap:
            waited, _, _, own, cls, task = heap[0]
            if task.backlog is cls and cls.lanes.oldest(own) is task:
                return (cls, own) if own < lane and waited <= since_mono else None
            heapq.heappop(heap)
            self._add(cls, own)
        return None

    def drop(self) -> None:
        """Leave the first of them out: it cannot go now."""
        heapq.heappop(self._heap)

    def drop_all(self) -> None:
        """Leave all of them out of this pass."""
        self._heap.clear()
