"""The event log: what happened, with one rising cursor that clients resume from.

Kept in memory, newest `size` events. Ids rise across restarts because the epoch is their upper
part. Events are compact tuples until somebody reads them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

#: Events one epoch may number; 2⁵³ (JavaScript's whole numbers) leaves room for 2 million epochs.
EPOCH_SPAN = 1 << 32


class Entry(NamedTuple):
    """One event as kept."""

    id: int
    type: str
    at_ms: int
    #: Task number and creation time, or 0.
    task: int
    created_ms: int
    device_id: str | None
    data: dict[str, Any]


class EventLog:
    """The newest events of this broker process."""

    def __init__(self, epoch: int, size: int = 100_000) -> None:
        self._next = epoch * EPOCH_SPAN + 1
        self._entries: deque[Entry] = deque(maxlen=size)

    @property
    def last(self) -> int:
        """Id of the newest event ever given here (a cursor: what comes after it is new)."""
        return self._next - 1

    @property
    def recorded(self) -> int:
        """How many events this process has recorded."""
        return self.last % EPOCH_SPAN

    def resize(self, size: int) -> None:
        """Keep this many events from now on; the oldest go first."""
        if size != self._entries.maxlen:
            self._entries = deque(self._entries, maxlen=size)

    def add(
        self,
        type_: str,
        at_ms: int,
        task: int = 0,
        created_ms: int = 0,
        device_id: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Append an event."""
        entry = Entry(self._next, type_, at_ms, task, created_ms, device_id, data or {})
        self._entries.append(entry)
        self._next += 1

    def after(self, since: int) -> Iterable[Entry]:
        """The kept events newer than a cursor, oldest first."""
        entries = self._entries
        if not entries or since >= entries[-1].id:
            return ()
        skip = max(0, since + 1 - entries[0].id)
        if skip > len(entries) // 2:  # walking from the near end is cheaper
            newest = list(itertools.islice(reversed(entries), len(entries) - skip))
            newest.reverse()
            return newest
        return itertools.islice(entries, skip, None)

    def gap(self, since: int) -> bool:
        """Whether events between a cursor and the oldest kept one are gone.

        Cursor 0 asks for whatever is kept, so nothing is missing to it.
        """
        if since == 0:
            return False
        if since >= self.last:
            return since > self.last
        return not self._entries or since + 1 < self._entries[0].id

    def select(
        self, since: int, limit: int, wanted: Callable[[Entry], bool]
    ) -> tuple[list[Entry], int]:
        """Up to `limit` matching events after a cursor, and the cursor to go on from."""
        found: list[Entry] = []
        cursor = max(since, 0)
        for entry in self.after(since):
            cursor = entry.id
            if wanted(entry):
                found.append(entry)
                if len(found) == limit:
                    break
        else:
            cursor = max(cursor, self.last) if since <= self.last else self.last
        return found, cursor
