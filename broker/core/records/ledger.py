"""One line for every retained task: status, type, priority, device. Counts and lists without SQL.

Columns are compact arrays indexed by task number; counts are kept per (status, priority, type,
device), so no total is ever scanned for. The newest-first listing walks the columns and jumps over
what a status filter rules out at C speed.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retire_cluster.broker.core.records.retention_queue import RetentionQueue
from retire_cluster.schemas.vocabulary import PRIORITIES, TERMINAL, TaskStatus

STATUSES = tuple(TaskStatus)
_CODE = {status: code for code, status in enumerate(STATUSES, 1)}
_ENDED = frozenset(_CODE[status] for status in TERMINAL)
#: Column code of a number that has no task (never used, or deleted).
_ABSENT = 0
NO_DEVICE = 0
#: Numbers of status, priority, type and device; None: any.
_Test = tuple["int | None", "int | None", "int | None", "int | None"]


class Names:
    """Texts numbered in order of appearance."""

    __slots__ = ("_numbers", "texts")

    def __init__(self, *texts: str) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}
        for text in texts:
            self.number(text)

    def number(self, text: str) -> int:
        """Return a text's number; a new text gets the next one."""
        found = self._numbers.get(text)
        if found is None:
            found = self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return found

    def known(self, text: str) -> int | None:
        """Return a text's number; None when it never appeared."""
        return self._numbers.get(text)


@dataclass(frozen=True)
class TaskFilter:
    """Which tasks a list shows; None means any."""

    status: TaskStatus | None = None
    task_type: str | None = None
    priority: int | None = None
    device_id: str | None = None


class Ledger:
    """A line for each retained task, in columns, and counts of them."""

    def __init__(self) -> None:
        #: Number of the task at position 0 of the columns.
        self._base = 1
        self._status = bytearray()
        self._priority = bytearray()
        self._type = array("I")
        self._device = array("I")
        #: Second of the cluster's age when it ended, 0 while it lives.
        self._ended = array("I")
        self._endings = RetentionQueue()
        self._types = Names()
        self._devices = Names("")
        #: (status code, priority, type, device) → how many.
        self._cube: Counter[tuple[int, int, int, int]] = Counter()
        self.total = 0

    # --- writing ---------------------------------------------------------------------------------

    def add(
        self,
        task: int,
        status: TaskStatus,
        task_type: str,
        priority: int,
        device_id: str | None = None,
        ended_s: int = 0,
    ) -> None:
        """Add a line; task numbers only rise."""
        self.extend(task, 1, status, task_type, priority, device_id, ended_s)

    def extend(
        self,
        first: int,
        count: int,
        status: TaskStatus,
        task_type: str,
        priority: int,
        device_id: str | None = None,
        ended_s: int = 0,
    ) -> None:
        """Add lines of `count` tasks that have all in common, numbered from `first`."""
        if not self._status:
            self._base = first
        gap = first - self._base - len(self._status)
        if gap < 0:
            raise ValueError(f"task {first} is older than the ledger's newest line")
        if gap:
            self._append(gap, _ABSENT, 0, 0, 0, 0)
        code, kind = _CODE[status], self._types.number(task_type)
        device = self._devices.number(device_id or "")
        self._append(count, code, priority, kind, device, ended_s)
        if code in _ENDED:
            self._endings.add(range(first, first + count), ended_s)
        self._cube[code, priority, kind, device] += count
        self.total += count

    def _append(
        self, count: int, code: int, priority: int, kind: int, device: int, ended_s: int
    ) -> None:
        if count == 1:
            self._status.append(code)
            self._priority.append(priority)
            self._type.append(kind)
            self._device.append(device)
            self._ended.append(ended_s)
            return
        self._status.extend(bytes((code,)) * count)
        self._priority.extend(bytes((priority,)) * count)
        self._type.extend(array("I", (kind,)) * count)
        self._device.extend(array("I", (device,)) * count)
        self._ended.extend(array("I", (ended_s,)) * count)

    def move(self, task: int, status: TaskStatus, device_id: str | None, ended_s: int = 0) -> None:
        """Set a task's status and device; `ended_s`: when it ended, on the cluster's age."""
        self.move_all((task,), status, device_id, ended_s)

    def move_all(
        self, tasks: Sequence[int], status: TaskStatus, device_id: str | None, ended_s: int = 0
    ) -> None:
        """Do the same as `move` for different tasks that all go to one status and device."""
        device, code = self._devices.number(device_id or ""), _CODE[status]
        start = tasks[0] - self._base
        end = start + len(tasks)
        lived = self._status[start] not in _ENDED
        if len(tasks) > 1 and lived and self._is_one_block(tasks, start, end):
            if code in _ENDED:
                self._endings.add(tasks, ended_s)
            self._recount(start, code, device, len(tasks))
            count = len(tasks)
            self._status[start:end] = bytes((code,)) * count
            self._device[start:end] = array("I", (device,)) * count
            self._ended[start:end] = array("I", (ended_s,)) * count
            return
        for task in tasks:
            at = task - self._base
            if code in _ENDED and not self._ended_at(task, ended_s):
                self._endings.add((task,), ended_s)
            self._recount(at, code, device, 1)
            self._status[at], self._device[at], self._ended[at] = code, device, ended_s

    def _is_one_block(self, tasks: Sequence[int], start: int, end: int) -> bool:
        """Return whether tasks are neighbours with lines that are alike; found out at C speed."""
        count = end - start
        return (
            list(tasks) == list(range(tasks[0], tasks[0] + count))
            and self._status.count(self._status[start], start, end) == count
            and self._priority.count(self._priority[start], start, end) == count
            and self._type[start:end] == self._type[start : start + 1] * count
            and self._device[start:end] == self._device[start : start + 1] * count
        )

    def _recount(self, at: int, code: int, device: int, count: int) -> None:
        """Count `count` lines like the one at a position under another status and device."""
        priority, kind = self._priority[at], self._type[at]
        self._count_down((self._status[at], priority, kind, self._device[at]), count)
        self._cube[code, priority, kind, device] += count

    def drop(self, task: int) -> None:
        """Remove a task's line."""
        at = task - self._base
        line = (self._status[at], self._priority[at], self._type[at], self._device[at])
        self._count_down(line, 1)
        self._status[at] = _ABSENT
        self.total -= 1

    def compact(self) -> None:
        """Give back the memory of deleted lines at the old end."""
        kept = len(self._status) - len(self._status.lstrip(b"\0"))
        if kept:
            for column in (self._status, self._priority, self._type, self._device, self._ended):
                del column[:kept]
            self._base += kept

    def _count_down(self, line: tuple[int, int, int, int], count: int) -> None:
        left = self._cube[line] - count
        if left:
            self._cube[line] = left
        else:
            del self._cube[line]

    # --- reading ---------------------------------------------------------------------------------

    def has(self, task: int) -> bool:
        """Return whether there is such a task."""
        at = task - self._base
        return 0 <= at < len(self._status) and self._status[at] != _ABSENT

    def status(self, task: int) -> TaskStatus:
        """Return a present task's status."""
        return STATUSES[self._status[task - self._base] - 1]

    def task_type(self, task: int) -> str:
        """Return a present task's type."""
        return self._types.texts[self._type[task - self._base]]

    def ended_s(self, task: int) -> int:
        """Return the second of the cluster's age when a present task ended; 0 while it lives."""
        return self._ended[task - self._base]

    def count(self, wanted: TaskFilter) -> int:
        """Return how many tasks a filter lets through."""
        if wanted == TaskFilter():
            return self.total
        test = self._numbers(wanted)
        if test is None:
            return 0
        return sum(
            count
            for line, count in self._cube.items()
            if all(want is None or want == got for want, got in zip(test, line, strict=True))
        )

    def ended(self) -> int:
        """Return how many retained tasks have ended."""
        return sum(count for (code, _, _, _), count in self._cube.items() if code in _ENDED)

    def by_status(self) -> dict[str, int]:
        """Return the count of every status, zeros included."""
        found = dict.fromkeys((status.value for status in STATUSES), 0)
        for (code, _, _, _), count in self._cube.items():
            found[STATUSES[code - 1].value] += count
        return found

    def by_priority(self, statuses: frozenset[TaskStatus] | None = None) -> dict[str, int]:
        """Return the count of every priority, of some statuses only if given."""
        found = dict.fromkeys(PRIORITIES, 0)
        for (code, priority, _, _), count in self._cube.items():
            if statuses is None or STATUSES[code - 1] in statuses:
                found[PRIORITIES[priority]] += count
        return found

    def by_type(self) -> dict[str, int]:
        """Return the count of every task type that has tasks."""
        found: Counter[str] = Counter()
        for (_, _, kind, _), count in self._cube.items():
            found[self._types.texts[kind]] += count
        return dict(found)

    def by_device(self) -> dict[str, int]:
        """Return the count of every device that has tasks."""
        found: Counter[str] = Counter()
        for (_, _, _, device), count in self._cube.items():
            if device != NO_DEVICE:
                found[self._devices.texts[device]] += count
        return dict(found)

    def by_device_and_status(self) -> dict[tuple[str, TaskStatus], int]:
        """Return the count of every device and status."""
        found: Counter[tuple[str, TaskStatus]] = Counter()
        for (code, _, _, device), count in self._cube.items():
            if device != NO_DEVICE:
                found[self._devices.texts[device], STATUSES[code - 1]] += count
        return dict(found)

    def page(
        self, wanted: TaskFilter, skip: int, size: int, before: int | None = None
    ) -> list[int]:
        """Return task numbers newest first, after the first `skip`, below `before` if given."""
        found: list[int] = []
        for task in self._walk(wanted, before):
            if skip:
                skip -= 1
                continue
            found.append(task)
            if len(found) == size:
                break
        return found

    def sort_endings(self) -> None:
        """Put ended tasks in the order in which they ended; a restore adds them by number."""
        self._endings.sort()

    def over_longest(self, before_s: int, surplus: int, limit: int) -> list[int]:
        """Return up to `limit` tasks that ended before a second, or are the first `surplus` to end.

        The caller drops them: they are not named again.
        """
        return self._endings.take(before_s, surplus, limit, self._ended_at)

    def _ended_at(self, task: int, second: int) -> bool:
        at = task - self._base
        return (
            0 <= at < len(self._status) and self._status[at] in _ENDED and self._ended[at] == second
        )

    def check_endings(self) -> None:
        """Raise `AssertionError` unless each ended task is known by when it ended."""
        found, ended = self._endings.current(self._ended_at), self.ended()
        assert found == ended, f"{ended} tasks have ended, {found} are known by when"

    def _numbers(self, wanted: TaskFilter) -> _Test | None:
        kind = device = None
        if wanted.task_type is not None:
            kind = self._types.known(wanted.task_type)
            if kind is None:
                return None
        if wanted.device_id is not None:
            device = self._devices.known(wanted.device_id)
            if device is None or device == NO_DEVICE:
                return None
        code = None if wanted.status is None else _CODE[wanted.status]
        return (code, wanted.priority, kind, device)

    def _walk(self, wanted: TaskFilter, before: int | None) -> Iterator[int]:
        test = self._numbers(wanted)
        left = self.count(wanted)
        if test is None:
            return
        code, priority, kind, device = test
        end = len(self._status)
        if before is not None:
            end = max(0, min(end, before - self._base))
        status, priorities, types, devices = self._status, self._priority, self._type, self._device
        for at in self._candidates(test, end):
            if not left:
                return
            found = status[at]
            if (
                found != _ABSENT
                and (code is None or found == code)
                and (priority is None or priorities[at] == priority)
                and (kind is None or types[at] == kind)
                and (device is None or devices[at] == device)
            ):
                left -= 1
                yield self._base + at

    def _candidates(self, test: _Test, end: int) -> Iterator[int]:
        """Yield positions before `end` where the rarest of the wanted values is, newest first."""
        columns = (self._status, self._priority, self._type, self._device)
        rarest, fewest = None, self.total
        for index, value in enumerate(test):
            if value is not None:
                count = sum(n for line, n in self._cube.items() if line[index] == value)
                if rarest is None or count < fewest:
                    rarest, fewest = index, count
        if rarest is None:
            return iter(range(end - 1, -1, -1))
        value = test[rarest]
        assert value is not None
        return _places(columns[rarest], value, end)


def _places(column: bytearray | array[int], value: int, end: int) -> Iterator[int]:
    """Yield positions of a value in a column before `end`, newest first, found at C speed."""
    if isinstance(column, bytearray):
        size, content = 1, bytes(column[:end])
    else:
        size, content = column.itemsize, column[:end].tobytes()
    needle = value.to_bytes(size, sys.byteorder)
    at = len(content)
    while True:
        at = content.rfind(needle, 0, at)
        if at < 0:
            return
        if at % size == 0:
            yield at // size
        else:
            # Parts of two neighbours look like it: go on from just before its end.
            at += size - 1
