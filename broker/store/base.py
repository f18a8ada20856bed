"""Where tasks outlive the process: the interface of all stores, and their errors.

A turn's writes are committed together or not at all. Reads serve details and results of tasks, and
raise `StoreError` when the medium fails; counting and listing never come here (see `ledger`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.rows import AttemptRow, OutcomeRow, Snapshot, TaskRow

HOUR_SECONDS = 3_600


class StoreError(RuntimeError):
    """The store cannot be opened or used; the text is one line with cause and cure."""


class StoreFull(StoreError):
    """A commit failed for want of space; nothing of it was written."""


class StoreDamaged(StoreError):
    """The whole store cannot be trusted."""


class RowDamaged(StoreError):
    """What the store kept of one task is not what was written; other tasks are not concerned."""

    def __init__(self, task: int, what: str, name: str) -> None:
        super().__init__(f"{what} {task} is damaged in the store {name}")
        self.task = task


class StoreTrouble(StoreError):
    """Something cannot be read now, tried again in vain; it says nothing about what is stored."""


class Payloads(NamedTuple):
    """Payloads as far as they could be read; those in neither are damaged or gone."""

    read: dict[int, bytes]
    #: Those that may be read later, and why not now.
    unread: dict[int, str]


class Store(Protocol):
    """What the broker needs of a store. Used from one thread only."""

    #: For people: where it keeps things.
    name: str
    #: Commits done since it was opened.
    commits: int

    def load(self, begin: Callable[[int], int], inline_bytes: int) -> Snapshot:
        """Return everything that a starting main node needs, and begin a new epoch.

        `begin` makes it of the newest number that is known to have been used
        (`event_log.fresh_epoch`).

        Payloads of live tasks above `inline_bytes` are left out. Raises `StoreError`.
        """

    def commit(self, writes: Sequence[ins.Write]) -> None:
        """Write all of it durably or none of it. Raises `StoreFull`, `StoreError`."""

    def task(self, number: int) -> TaskRow | None:
        """Return one task, None if absent. Raises `RowDamaged` if it is not what was written."""

    def heads(self, numbers: Iterable[int]) -> dict[int, TaskRow]:
        """Return tasks without document and payload, for lists."""

    def openings(self, numbers: Iterable[int]) -> dict[int, tuple[bytes, bytes]]:
        """Return tasks' documents and the beginnings of their payloads, for labels in lists."""

    def payloads(self, numbers: Iterable[int]) -> Payloads:
        """Return payloads of tasks; raises nothing, whatever the medium does."""

    def outcomes(self, numbers: Iterable[int], *, results: bool) -> dict[int, OutcomeRow]:
        """Return how tasks ended, with or without results and details.

        Raises `RowDamaged` when one with its result is not what was written.
        """

    def attempts(self, number: int) -> list[AttemptRow]:
        """Return a task's attempts that did not end it, oldest first."""

    def free_percent(self) -> float:
        """Return the free space where it writes, in percent. Raises `StoreError`."""

    def close(self) -> None:
        """Close files; everything committed stays."""
