"""The messages ASSIGN and FINISHED: many attempts in one message, by column.

What the attempts of a group have in common is written once, the rest as one list a field. A message
for five hundred alike tasks is read and written in a few steps instead of a few thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

from retire_cluster.schemas.protocol.fields import (
    MAX_ITEMS,
    AttemptKey,
    Header,
    numbers,
    rows,
    text,
    whole,
    wholes,
)
from retire_cluster.schemas.protocol.wire import WireError
from retire_cluster.schemas.vocabulary import Cause, Outcome

_OUTCOMES = frozenset(outcome.value for outcome in Outcome)
_CAUSES = frozenset(cause.value for cause in Cause)


def _check_columns(items: str, *columns: list[Any]) -> None:
    if len({len(column) for column in columns}) != 1:
        raise WireError(f"{items}: the columns of a group are equally long")


def _read_row(row: object, size: int) -> list[Any]:
    if not isinstance(row, list) or len(row) != size:
        raise WireError(f"groups: each group has {size} fields")
    return row


def _check_size(groups: Iterable[FinishedGroup | AssignGroup]) -> None:
    if sum(len(group.tasks) for group in groups) > MAX_ITEMS:
        raise WireError(f"groups: at most {MAX_ITEMS} items are taken in one message")


class AssignItem(NamedTuple):
    """One attempt to run; its payload is the blob at the same position."""

    key: AttemptKey
    #: The task's creation time: with the message's salt it makes the public id.
    created_ms: int
    task_type: str
    timeout_seconds: int


class AssignGroup(NamedTuple):
    """Attempts of one type with one time limit."""

    task_type: str
    timeout_seconds: int
    tasks: list[int]
    attempts: list[int]
    created_ms: list[int]


class _Grouped:
    """The writing and counting of groups that both messages share."""

    verb: ClassVar[bytes]
    groups: tuple[Any, ...]

    def write(self) -> tuple[bytes, dict[str, Any]]:
        """Return verb and header for `wire.encode`."""
        header = dict(vars(self))
        header["groups"] = [list(group) for group in self.groups]
        return self.verb, header

    @property
    def count(self) -> int:
        """Return how many attempts the message holds."""
        return sum(len(group.tasks) for group in self.groups)


@dataclass(frozen=True)
class Assign(_Grouped):
    """Hand out attempts under one lease; one payload blob an item, in the order of the groups."""

    verb: ClassVar[bytes] = b"ASSIGN"
    session: str
    #: Number of the lease.
    token: int
    epoch: int
    #: Salt of the main node's store (`schemas.ids`).
    salt: int
    groups: tuple[AssignGroup, ...]

    @classmethod
    def of(cls, session: str, items: Iterable[AssignItem], salt: int = 0) -> Assign:
        """Group the items of one lease, in order."""
        groups = []
        token = epoch = 0
        for (kind, limit), some in groupby(items, lambda item: item[2:]):
            found = list(some)
            token, epoch = found[0].key[2:]
            groups.append(
                AssignGroup(
                    kind, limit, [item.key[0] for item in found], [item.key[1] for item in found],
                    [item.created_ms for item in found],
                )
            )  # fmt: skip
        return cls(session, token, epoch, salt, tuple(groups))

    @property
    def items(self) -> tuple[AssignItem, ...]:
        """Return the attempts one by one."""
        return tuple(
            AssignItem((task, attempt, self.token, self.epoch), created_ms, kind, limit)
            for kind, limit, *columns in self.groups
            for task, attempt, created_ms in zip(*columns, strict=True)
        )

    @classmethod
    def read(cls, header: Header) -> Assign:
        """Read a header. Raises `WireError`."""
        groups = []
        for row in rows(header, "groups"):
            kind, limit, tasks, attempts, created = _read_row(row, 5)
            if not isinstance(kind, str):
                raise WireError("groups: a task type is a text")
            if type(limit) is not int or limit < 1:
                raise WireError("groups.timeout_seconds: a whole number from 1 is required")
            group = AssignGroup(
                kind, limit, wholes(tasks, "groups.tasks", low=1),
                wholes(attempts, "groups.attempts", low=1), wholes(created, "groups.created_ms"),
            )  # fmt: skip
            _check_columns("groups", *group[2:])
            groups.append(group)
        _check_size(groups)
        return cls(
            text(header, "session", limit=100), whole(header, "token"), whole(header, "epoch"),
            whole(header, "salt"), tuple(groups),
        )  # fmt: skip


class FinishedItem(NamedTuple):
    """How one attempt ended, as its device says."""

    key: AttemptKey
    outcome: str
    execution_seconds: float
    cause: str | None
    error_message: str | None


class FinishedGroup(NamedTuple):
    """Attempts of one lease that ended alike."""

    token: int
    epoch: int
    outcome: str
    cause: str | None
    error_message: str | None
    tasks: list[int]
    attempts: list[int]
    execution_seconds: list[float]

    def items(self) -> Iterator[FinishedItem]:
        """Return the attempts one by one."""
        for task, attempt, seconds in zip(
            self.tasks, self.attempts, self.execution_seconds, strict=True
        ):
            key = (task, attempt, self.token, self.epoch)
            yield FinishedItem(key, self.outcome, seconds, self.cause, self.error_message)


@dataclass(frozen=True)
class Finished(_Grouped):
    """Report attempts that ended; two blobs an item, `result_data` and `details`, may be empty."""

    verb: ClassVar[bytes] = b"FINISHED"
    session: str
    batch: int
    groups: tuple[FinishedGroup, ...]

    @classmethod
    def of(cls, session: str, batch: int, items: Iterable[tuple[Any, ...]]) -> Finished:
        """Group rows that begin like `FinishedItem`: neighbours that ended alike share a group."""
        groups: list[FinishedGroup] = []
        before: tuple[Any, ...] = ()
        for key, outcome, took, cause, message, *_ in items:
            form = (key[2], key[3], outcome, cause, message)
            if form != before:
                before = form
                groups.append(FinishedGroup(*form, [], [], []))
                _, _, _, _, _, tasks, attempts, seconds = groups[-1]
            tasks.append(key[0])
            attempts.append(key[1])
            seconds.append(took)
        return cls(session, batch, tuple(groups))

    @property
    def items(self) -> tuple[FinishedItem, ...]:
        """Return the attempts one by one."""
        return tuple(item for group in self.groups for item in group.items())

    @classmethod
    def read(cls, header: Header) -> Finished:
        """Read a header. Raises `WireError`."""
        groups = []
        for row in rows(header, "groups"):
            token, epoch, outcome, cause, message, tasks, attempts, seconds = _read_row(row, 8)
            token, epoch = wholes([token, epoch], "groups: a lease")
            if not isinstance(outcome, str) or outcome not in _OUTCOMES:
                raise WireError("groups.outcome: not an outcome of the protocol")
            if cause is not None and (not isinstance(cause, str) or cause not in _CAUSES):
                raise WireError("groups.cause: not a cause of the protocol")
            if message is not None and not isinstance(message, str):
                raise WireError("groups.error_message: a text or null is required")
            group = FinishedGroup(
                token, epoch, outcome, cause, message, wholes(tasks, "groups.tasks", low=1),
                wholes(attempts, "groups.attempts", low=1),
                numbers(seconds, "groups.execution_seconds"),
            )  # fmt: skip
            _check_columns("groups", *group[5:])
            groups.append(group)
        _check_size(groups)
        return cls(text(header, "session", limit=100), whole(header, "batch"), tuple(groups))
