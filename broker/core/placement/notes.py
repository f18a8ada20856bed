"""What is noted of a device and a kind of task: records only, the rules are in passing_over.py
(who is left out, and for how long) and outliers.py (who fails what others do).
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple


class TaskKind(NamedTuple):
    """Tasks that a device may be passed over for."""

    task_type: str
    #: What their payload needs (`schemas.needs`); empty: all tasks of the type.
    needs: str


#: The longest that a device is passed over at a time.
LONGEST_SECONDS: Final = 3_600.0
_FORMS: Final = ([str, str, str, str, int, float, int], [str, str, str, str, int, int, int])


class Note:
    """A device is passed over for a kind of task until a time (passing_over.py)."""

    __slots__ = (
        "active", "cause", "message", "seconds", "since_mono", "since_s", "times", "until_mono",
    )  # fmt: skip

    def __init__(
        self,
        cause: str,
        message: str,
        since_mono: float,
        seconds: float,
        times: int,
        since_s: int = 0,
    ) -> None:
        #: `not_here`, `policy_denied`, or `failing`.
        self.cause = cause
        #: As the device said it, or what was seen of it.
        self.message = message
        self.since_mono = since_mono
        #: The cluster's age then (clock.py), which a restart does not begin anew.
        self.since_s = since_s
        self.seconds = seconds
        self.until_mono = since_mono + seconds
        #: How often in a row; each time lasts longer.
        self.times = times
        #: Over: kept only so that a next time lasts longer.
        self.active = True


def rows(notes: Mapping[TaskKind, Note]) -> list[list[Any]]:
    """Return the notes that hold, as the store keeps them."""
    return [
        [*kind, note.cause, note.message, note.since_s, note.seconds, note.times]
        for kind, note in notes.items()
        if note.active
    ]


def from_document(found: object, age_s: int, now_mono: float) -> dict[TaskKind, Note]:
    """Read notes from the store, as old and as long as they were.

    One that is damaged is left out: it only has a device asked once more.
    """
    notes: dict[TaskKind, Note] = {}
    for entry in found if isinstance(found, list) else ():
        if not isinstance(entry, list) or list(map(type, entry)) not in _FORMS:
            continue
        task_type, need, cause, message, since_s, seconds, times = entry
        # Age and length are bounded: whatever a file says, no device is left out for ever.
        passed = float(max(0, age_s - since_s))
        if 0.0 < seconds <= LONGEST_SECONDS and times > 0:
            since_mono = now_mono - passed
            notes[TaskKind(task_type, need)] = Note(
                cause, message, since_mono, seconds, times, since_s
            )
    return notes


#: Ends of notes that were taken back may be kept beside as many that hold, and so many more.
_STALE: Final = 64


class NoteIndex:
    """Which devices have notes on which kinds of task, and which of those end next."""

    __slots__ = ("_due", "_until", "size", "unstored")

    def __init__(self) -> None:
        self._until: dict[TaskKind, dict[str, float]] = {}
        #: `(until_mono, device id, kind)`; entries that `_until` does not have are stale.
        self._due: list[tuple[float, str, TaskKind]] = []
        #: Notes there are.
        self.size = 0
        #: Devices with notes that are not stored yet.
        self.unstored: dict[str, None] = {}

    @property
    def kinds(self) -> Collection[TaskKind]:
        """Kinds that some device has a note on."""
        return self._until.keys()

    def devices(self, kind: TaskKind) -> list[str]:
        """Return the ids of devices with a note on a kind."""
        return list(self._until.get(kind, ()))

    def add(self, device_id: str, kind: TaskKind, until_mono: float) -> None:
        """Add a device's note, or change until when it holds (monotonic seconds)."""
        known = self._until.setdefault(kind, {})
        self.size += device_id not in known
        known[device_id] = until_mono
        heapq.heappush(self._due, (until_mono, device_id, kind))
        if len(self._due) > 2 * self.size + _STALE:
            self._due = [
                (until, name, noted)
                for noted, devices in self._until.items()
                for name, until in devices.items()
            ]
            heapq.heapify(self._due)

    def drop(self, device_id: str, kind: TaskKind) -> None:
        """Remove a device's note on a kind."""
        known = self._until.get(kind, {})
        if known.pop(device_id, None) is not None:
            self.size -= 1
            if not known:
                del self._until[kind]

    def ended(self, now_mono: float, at_most: int) -> Iterator[tuple[str, TaskKind]]:
        """Yield notes whose time is over; the caller drops each or gives it more time."""
        for _ in range(at_most):
            while self._due and not self._holds(self._due[0]):
                heapq.heappop(self._due)
            if not self._due or self._due[0][0] > now_mono:
                return
            _, device_id, kind = heapq.heappop(self._due)
            yield device_id, kind

    def _holds(self, entry: tuple[float, str, TaskKind]) -> bool:
        until_mono, device_id, kind = entry
        return self._until.get(kind, {}).get(device_id) == until_mono

    def entries(self) -> int:
        """Return how many ends are kept, stale ones included."""
        return len(self._due)


class Record:
    """How a device does with a kind of task since it last did one well (outliers.py)."""

    __slots__ = ("at_mono", "bad", "firm", "others_bad", "others_ok", "said", "tasks")

    def __init__(self, others_ok: int, others_bad: int) -> None:
        #: When one failed last.
        self.at_mono = 0.0
        #: Attempts that failed here.
        self.bad = 0
        #: Different tasks among them, the last few.
        self.tasks: list[int] = []
        #: Of these, tasks that it said it cannot run and another device did well.
        self.firm: list[int] = []
        #: For what it would be passed over then: the cause, and its last word.
        self.said = ("", "")
        #: What the whole cluster had done of the kind when this began.
        self.others_ok = others_ok
        self.others_bad = others_bad


class Tally:
    """How often a kind of task ended well and otherwise, since it first failed."""

    __slots__ = ("bad", "ok")

    def __init__(self) -> None:
        self.ok = 0
        self.bad = 0
