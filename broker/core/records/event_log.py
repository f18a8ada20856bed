"""The event log: what happened, with one rising cursor that clients resume from.

Kept in memory, newest `size` events. Those that are kept apart are stored, too (audit_rows.py): a
broker begins with those of its forerunners, which keep their numbers. A broker's events are
numbered from its epoch on, and the next one's epoch lies beyond. It is made of time and of chance,
so that a backup that is restored does not number other events alike: a cursor from before lies in a
gap. What happens to many tasks at once is kept as one burst; events are made of it only when
somebody reads them.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.records.audit import ACTS, DENIALS, DENIALS_KEPT

#: An epoch lies at least so far beyond the newest event that is known of the one before …
EPOCH_STEP = 1 << 30
#: … and at least at so many a second since 2024: until 2160 all stays below 2⁵³ (JavaScript) …
_IDS_A_SECOND = 1 << 20
_SINCE_S = 1_704_067_200
_TIME_LIMIT = 1 << 52
#: … and further by so many random bits.
_RANDOM_BITS = 31
#: Bytes of texts that devices and their tasks sent; of more, old events go earlier.
MOST_TEXT_BYTES = 32 * 1024 * 1024


def fresh_epoch(newest: int, now: Now, rng: random.Random) -> int:
    """Return the epoch of a broker whose forerunners are known to have used ids up to `newest`."""
    by_time = (now.wall_ms // 1000 - _SINCE_S) * _IDS_A_SECOND
    if not 0 <= by_time < _TIME_LIMIT:
        by_time = 0  # no clock to go by
    return max(by_time, newest + EPOCH_STEP) + rng.getrandbits(_RANDOM_BITS)


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


class Burst(NamedTuple):
    """The same event of several tasks; its ids follow each other from `id`."""

    id: int
    type: str
    at_ms: int
    tasks: Sequence[int]
    #: One creation time a task.
    created_ms: Sequence[int]
    device_id: str | None
    #: One for all of them, or one a task.
    data: dict[str, Any] | Sequence[dict[str, Any]]

    def entries(self, start: int) -> Iterator[Entry]:
        """Yield its events from position `start` on."""
        ids = range(self.id + start, self.id + len(self.tasks))
        data: Iterable[dict[str, Any]]
        data = repeat(self.data) if isinstance(self.data, dict) else self.data[start:]
        return map(
            Entry, ids, repeat(self.type), repeat(self.at_ms), self.tasks[start:],
            self.created_ms[start:], repeat(self.device_id), data,
        )  # fmt: skip


class Apart:
    """The newest events of a kind that nothing else pushes out.

    :param size: how many
    """

    def __init__(self, size: int) -> None:
        self._kept: deque[Entry] = deque(maxlen=size)
        #: The newest so many of them are not stored yet.
        self.new = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield them, oldest first."""
        return iter(self._kept)

    @property
    def oldest(self) -> int:
        """The id of the oldest; 0: there is none."""
        return self._kept[0].id if self._kept else 0

    def resize(self, size: int) -> None:
        """Keep this many from now on."""
        if size != self._kept.maxlen:
            self._kept = deque(self._kept, maxlen=size)

    def add(self, entry: Entry, *, is_stored: bool = False) -> None:
        """Add an event that is newer than all others."""
        self._kept.append(entry)
        self.new += not is_stored

    def take_new(self) -> list[Entry]:
        """Return those not stored yet; they count as stored from now on."""
        count, self.new = min(self.new, len(self._kept)), 0
        return list(self._kept)[-count:] if count else []


class EventLog:
    """The newest events of this broker process, and more of those that are kept apart (audit.py).

    :param size: events kept
    :param acts: of those that an administrator brought about, kept beyond that
    :param text_bytes: of texts from outside, kept at most
    """

    def __init__(
        self,
        epoch: int,
        size: int = 100_000,
        acts: int = 10_000,
        text_bytes: int = MOST_TEXT_BYTES,
    ) -> None:
        self._first = self._next = epoch + 1
        #: Id of the oldest event that is kept; of a burst at the old end a part may be gone.
        self._oldest = self._next
        self._size = size
        self._kept: deque[Entry | Burst] = deque()
        self.acts = Apart(acts)
        self.denials = Apart(DENIALS_KEPT)
        self._most_text, self._text = text_bytes, 0

    @property
    def last(self) -> int:
        """Id of the newest event ever given here (a cursor: what comes after it is new)."""
        return self._next - 1

    @property
    def recorded(self) -> int:
        """How many events this process has recorded."""
        return self._next - self._first

    def resize(self, size: int, acts: int | None = None) -> None:
        """Keep this many events from now on; the oldest go first."""
        self._size = size
        if acts is not None:
            self.acts.resize(acts)
        self._trim()

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
        self._kept.append(entry)
        self._next += 1
        if type_ in ACTS:
            self.acts.add(entry)
        elif type_ in DENIALS:
            self.denials.add(entry)
        self._text += _text(entry.data)
        self._trim()

    def add_burst(
        self,
        type_: str,
        at_ms: int,
        tasks: Sequence[int],
        created_ms: Sequence[int],
        device_id: str | None,
        data: dict[str, Any] | Sequence[dict[str, Any]],
    ) -> None:
        """Append the same event of several tasks (at least one); see `Burst`."""
        self._kept.append(Burst(self._next, type_, at_ms, tasks, created_ms, device_id, data))
        self._next += len(tasks)
        self._text += _text(data)
        self._trim()

    def _trim(self) -> None:
        oldest = self._next - self._size
        kept = self._kept
        if oldest > self._oldest:
            self._oldest = oldest
            while kept and _end(kept[0]) <= oldest:
                self._text -= _text(kept.popleft().data)
        while self._text > self._most_text and len(kept) > 1:
            gone = kept.popleft()
            self._text -= _text(gone.data)
            self._oldest = max(self._oldest, _end(gone))

    def after(self, since: int) -> Iterator[Entry]:
        """Yield the kept events newer than a cursor, oldest first."""
        first = max(since + 1, self._oldest)
        if since + 1 < self._oldest:
            # What is kept apart is older than all else that is.
            apart = heapq.merge(self.acts, self.denials, key=_id)
            yield from [entry for entry in apart if since < entry.id < self._oldest]
        if first >= self._next:
            return
        if first - self._oldest < self._next - first:
            found: Iterable[Entry | Burst] = (e for e in self._kept if _end(e) > first)
        else:  # walking from the near end is cheaper
            newest = []
            for each in reversed(self._kept):
                if _end(each) <= first:
                    break
                newest.append(each)
            newest.reverse()
            found = newest
        for each in found:
            if isinstance(each, Entry):
                yield each
            else:
                yield from each.entries(max(0, first - each.id))

    def newest_of(self, task: int, limit: int) -> list[Entry]:
        """Return the newest kept events of a task, at most `limit`, oldest first."""
        found: list[Entry] = []
        for kept in reversed(self._kept):
            if len(found) == limit:
                break
            if isinstance(kept, Entry):
                found += [kept] if kept.task == task else []
            elif task in kept.tasks:
                found.append(next(kept.entries(kept.tasks.index(task))))
        return found[::-1]

    def gap(self, since: int) -> bool:
        """Return whether events between a cursor and the oldest kept one are gone.

        Cursor 0 asks for whatever is kept, so nothing is missing to it.
        """
        if since == 0:
            return False
        if since >= self.last:
            return since > self.last
        return since + 1 < self._oldest

    def select(
        self, since: int, limit: int, wanted: Callable[[Entry], bool]
    ) -> tuple[list[Entry], int]:
        """Return up to `limit` matching events after a cursor, and the cursor to go on from."""
        found: list[Entry] = []
        if since > self.last:
            # Of another epoch: all of this one is new to it; what was before, it may know.
            since = self._first - 1
        cursor = max(since, 0)
        for entry in self.after(since):
            cursor = entry.id
            if wanted(entry):
                found.append(entry)
                if len(found) == limit:
                    break
        else:
            cursor = max(cursor, self.last)
        return found, cursor


def _text(data: dict[str, Any] | Sequence[dict[str, Any]]) -> int:
    """Return the bytes of an event's texts that somebody outside may choose."""
    first = data if isinstance(data, dict) else data[0]
    words = (first.get("message"), first.get("reason"))
    return sum([sys.getsizeof(word) for word in words if word])


def _id(entry: Entry) -> int:
    return entry.id


def _end(kept: Entry | Burst) -> int:
    """Return the id after its last one."""
    return kept.id + (1 if isinstance(kept, Entry) else len(kept.tasks))
