"""Stores that fail, lose and lie as disks do, around the real ones.

A *disk* outlives the main node's processes; each process opens it anew. `Faulty` is what the broker
sees: it lets a commit fail as a whole, fail half-way (SQLite then rolls back), or lets the process
die just before or just after it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.rows import AttemptRow, OutcomeRow, Snapshot, TaskRow
from retire_cluster.broker.store.base import Payloads, Store, StoreError, StoreFull
from retire_cluster.broker.store.memory import MemoryStore
from retire_cluster.broker.store.sqlite import SQLiteStore


class Crash(BaseException):
    """The main node's process dies here."""


class Disk(Protocol):
    """What stays when a process dies."""

    def open(self) -> Store:
        """The store as a new process finds it."""

    def lose(self) -> None:
        """The process died: what was not synced is gone."""


class MemoryDisk:
    """A `MemoryStore` that outlives processes. Everything committed is durable."""

    def __init__(self) -> None:
        self._store = MemoryStore()

    def open(self) -> Store:
        """See `Disk.open`."""
        return self._store

    def lose(self) -> None:
        """Nothing is ever unsynced."""

    def back_up(self) -> MemoryStore:
        """A copy of all that is committed."""
        return copy.deepcopy(self._store)

    def put_back(self, backup: MemoryStore) -> None:
        """What came after the copy is lost; no process runs meanwhile."""
        self._store = copy.deepcopy(backup)


class SQLiteDisk:
    """A SQLite file."""

    def __init__(self, path: Path, salt: int) -> None:
        self._path = path
        self._salt = salt
        self._store: SQLiteStore | None = None

    def open(self) -> Store:
        """See `Disk.open`."""
        self.lose()
        self._store = SQLiteStore(self._path)
        # The salt of a new store is the only number that it draws by itself.
        self._store._db.execute("insert or ignore into meta values('salt', ?)", (self._salt,))
        return self._store

    def lose(self) -> None:
        """The process died; SQLite forgets an open transaction."""
        if self._store is not None:
            self._store.close()
            self._store = None


class LazyDisk:
    """A disk that says "written" and is not: only every so many commits are synced.

    It breaks what the broker builds on; the suite uses it to show that a lost acknowledgement would
    be noticed.
    """

    def __init__(self, commits_per_sync: int = 4) -> None:
        self._durable = MemoryStore()
        self._unsynced: list[Sequence[ins.Write]] = []
        self._commits_per_sync = commits_per_sync

    def open(self) -> Store:
        """What a process sees: synced or not."""
        return _Unsynced(self)

    def lose(self) -> None:
        """See `Disk.lose`."""
        self._unsynced.clear()

    def seen(self) -> MemoryStore:
        """The durable store, after syncing: reading forces it out."""
        for writes in self._unsynced:
            self._durable.commit(writes)
        self._unsynced.clear()
        return self._durable

    def write(self, writes: Sequence[ins.Write]) -> None:
        """Keep in memory; sync when enough has gathered."""
        self._unsynced.append(writes)
        if len(self._unsynced) >= self._commits_per_sync:
            self.seen()


class _Unsynced(MemoryStore):
    """The face of a `LazyDisk`."""

    def __init__(self, disk: LazyDisk) -> None:
        super().__init__()
        self._disk = disk

    def commit(self, writes: Sequence[ins.Write]) -> None:
        """Pretend."""
        self._disk.write(writes)

    def load(self, begin: Callable[[int], int], inline_bytes: int) -> Snapshot:
        """See `Store.load`."""
        return self._disk.seen().load(begin, inline_bytes)

    def task(self, number: int) -> TaskRow | None:
        """See `Store.task`."""
        return self._disk.seen().task(number)

    def heads(self, numbers: Iterable[int]) -> dict[int, TaskRow]:
        """See `Store.heads`."""
        return self._disk.seen().heads(numbers)

    def openings(self, numbers: Iterable[int]) -> dict[int, tuple[bytes, bytes]]:
        return self._disk.seen().openings(numbers)

    def payloads(self, numbers: Iterable[int]) -> Payloads:
        """See `Store.payloads`."""
        return self._disk.seen().payloads(numbers)

    def outcomes(self, numbers: Iterable[int], *, results: bool) -> dict[int, OutcomeRow]:
        """See `Store.outcomes`."""
        return self._disk.seen().outcomes(numbers, results=results)

    def attempts(self, number: int) -> list[AttemptRow]:
        """See `Store.attempts`."""
        return self._disk.seen().attempts(number)


class Faulty:
    """What one process sees of a disk.

    :param told: is called with the writes once they are durable
    :param loading: is called before the store is read at a (re)start
    """

    def __init__(
        self,
        inner: Store,
        told: Callable[[Sequence[ins.Write]], None],
        loading: Callable[[], None],
    ) -> None:
        self.name = inner.name
        self.inner = inner
        self.commits = 0
        self._told = told
        self._loading = loading
        #: `fail`, `fail_midway`, `die_before`, `die_after` or nothing, for the next commit.
        self.next_commit = ""
        #: The disk is full or gone: nothing can be written or loaded.
        self.broken = False
        #: Payloads cannot be read just now.
        self.unreadable = False
        self.free = 100.0

    def load(self, begin: Callable[[int], int], inline_bytes: int) -> Snapshot:
        """See `Store.load`."""
        if self.broken:
            raise StoreError("the simulated disk cannot be read")
        self._loading()
        return self.inner.load(begin, inline_bytes)

    def commit(self, writes: Sequence[ins.Write]) -> None:
        """See `Store.commit`."""
        fate, self.next_commit = self.next_commit, ""
        if self.broken or fate == "fail":
            raise StoreFull("the simulated disk is full")
        if fate == "die_before":
            raise Crash("before a commit")
        if fate == "fail_midway":
            # A row that is in the store already: all that was written before it is to go.
            writes = [*writes, *_twice(self.inner)]
        self.inner.commit(writes)
        self.commits += 1
        self._told(writes)
        if fate == "die_after":
            raise Crash("after a commit, before anything was sent")

    def task(self, number: int) -> TaskRow | None:
        """See `Store.task`."""
        return self.inner.task(number)

    def heads(self, numbers: Iterable[int]) -> dict[int, TaskRow]:
        """See `Store.heads`."""
        return self.inner.heads(numbers)

    def openings(self, numbers: Iterable[int]) -> dict[int, tuple[bytes, bytes]]:
        return self.inner.openings(numbers)

    def payloads(self, numbers: Iterable[int]) -> Payloads:
        """See `Store.payloads`."""
        if self.unreadable:
            return Payloads({}, dict.fromkeys(numbers, "a simulated read error"))
        return self.inner.payloads(numbers)

    def outcomes(self, numbers: Iterable[int], *, results: bool) -> dict[int, OutcomeRow]:
        """See `Store.outcomes`."""
        return self.inner.outcomes(numbers, results=results)

    def attempts(self, number: int) -> list[AttemptRow]:
        """See `Store.attempts`."""
        return self.inner.attempts(number)

    def free_percent(self) -> float:
        """See `Store.free_percent`."""
        return self.free

    def close(self) -> None:
        """The disk closes itself."""


def _twice(store: Store) -> list[ins.Write]:
    found = store.task(1)
    return [] if found is None else [ins.StoreTasks([found])]
