"""Ended tasks in the order in which they ended: the first to delete, without a search.

Twelve bytes a task: its number and the second when it ended (on the cluster's age, `clock.py`),
which only rises. A task that was run again leaves its old entry behind; whoever reads asks the
ledger whether an entry still holds.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence


class RetentionQueue:
    """A queue of `(second, task)`."""

    def __init__(self) -> None:
        self._tasks = array("Q")
        self._seconds = array("I")

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, tasks: Sequence[int], second: int) -> None:
        """Add tasks that ended in a second of the cluster's age."""
        if len(tasks) == 1:
            self._tasks.append(tasks[0])
            self._seconds.append(second)
            return
        self._tasks.extend(tasks)
        self._seconds.extend(array("I", (second,)) * len(tasks))

    def sort(self) -> None:
        """Sort by when tasks ended what was added in another order (at a restore)."""
        seconds = self._seconds
        order = sorted(range(len(seconds)), key=seconds.__getitem__)
        self._tasks = array("Q", map(self._tasks.__getitem__, order))
        self._seconds = array("I", map(seconds.__getitem__, order))

    def take(
        self, before: int, surplus: int, limit: int, holds: Callable[[int, int], bool]
    ) -> list[int]:
        """Take out up to `limit` tasks that ended before a second, or are the first `surplus`.

        `holds(task, second)`: whether a task is still there and ended then. Taken are the entries.
        """
        found: dict[int, None] = {}
        seen = 0
        for task, second in zip(self._tasks, self._seconds, strict=True):
            if len(found) == limit:
                break
            if task not in found and holds(task, second):
                if second >= before and surplus <= 0:
                    break
                surplus -= 1
                found[task] = None
            seen += 1
        del self._tasks[:seen]
        del self._seconds[:seen]
        return list(found)

    def current(self, holds: Callable[[int, int], bool]) -> int:
        """Return how many tasks have an entry that holds. Raises `AssertionError` if unsorted."""
        assert all(a <= b for a, b in zip(self._seconds, self._seconds[1:], strict=False)), (
            "tasks are not in the order in which they ended"
        )
        pairs = zip(self._tasks, self._seconds, strict=True)
        return len({task for task, second in pairs if holds(task, second)})
