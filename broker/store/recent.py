"""The newest outcomes of a store, in memory: whoever waited for a task asks for it right away."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from retire_cluster.broker.core.rows import OutcomeRow

#: Kept at most, by number and by bytes of results and details.
MOST_ROWS = 20_000
MOST_BYTES = 16 * 1024 * 1024


class RecentOutcomes:
    """What was committed last; what came together goes together, the oldest first."""

    def __init__(self, rows: int = MOST_ROWS, size: int = MOST_BYTES) -> None:
        self._most_rows, self._most_bytes = rows, size
        self._rows: dict[int, OutcomeRow] = {}
        #: Rows of one commit and their bytes; some may be replaced or forgotten by now.
        self._commits: deque[tuple[Sequence[OutcomeRow], int]] = deque()
        self._noted = self._bytes = 0

    def note(self, rows: Sequence[OutcomeRow]) -> None:
        """Add rows that are committed."""
        size = sum([len(row.result) + len(row.details) for row in rows])
        self._rows.update(zip([row.task for row in rows], rows, strict=True))
        self._commits.append((rows, size))
        self._noted += len(rows)
        self._bytes += size
        while self._noted > self._most_rows or self._bytes > self._most_bytes:
            gone, size = self._commits.popleft()
            self._noted -= len(gone)
            self._bytes -= size
            for row in gone:
                if self._rows.get(row.task) is row:
                    del self._rows[row.task]

    def forget(self, tasks: Iterable[int]) -> None:
        """Forget tasks that live again, or are deleted."""
        for task in tasks:
            self._rows.pop(task, None)

    def get(self, task: int) -> OutcomeRow | None:
        """Return a task's outcome, None when it is not among the newest."""
        return self._rows.get(task)
