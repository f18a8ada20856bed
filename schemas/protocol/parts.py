"""Parts that several messages of the worker bus share: attempts, task types, settings."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple

from retire_cluster.schemas.needs import read_allows
from retire_cluster.schemas.protocol.fields import (
    AttemptKey,
    Header,
    attempt_key,
    flag,
    number,
    rows,
    text,
    whole,
)
from retire_cluster.schemas.protocol.wire import WireError


class BusMessage:
    """A message whose fields are its header, unless it writes them otherwise."""

    verb: ClassVar[bytes]

    def write(self) -> tuple[bytes, dict[str, Any]]:
        """Return verb and header for `wire.encode`."""
        return self.verb, dict(vars(self))


class Held(NamedTuple):
    """An attempt that a device was given and has not finished."""

    key: AttemptKey
    started: bool
    elapsed_seconds: float


def read_held(header: Header, name: str) -> tuple[Held, ...]:
    """Read the rows that `write_held` makes. Raises `WireError`."""
    found = []
    for row in rows(header, name):
        key = attempt_key(row, 6, name)
        if not isinstance(row[4], bool):
            raise WireError(f"{name}: started is true or false")
        found.append(Held(key, row[4], number(row[5], f"{name}.elapsed_seconds")))
    return tuple(found)


def write_held(held: Held) -> list[object]:
    """Return a `held` row: `[task, attempt, token, epoch, started, elapsed_seconds]`."""
    return [*held.key, held.started, round(held.elapsed_seconds, 3)]


class ProgressItem(NamedTuple):
    """How far one attempt is."""

    key: AttemptKey
    #: 0 to 100, or None when unknown.
    percent: float | None
    message: str


@dataclass(frozen=True)
class TypeInfo:
    """A task type as a device advertises it."""

    name: str
    description: str = ""
    #: Cerberus-dialect schema of the payload's fields, or None for any object.
    payload_schema: dict[str, Any] | None = None
    repeatable: bool = False
    instant: bool = False
    #: Which payloads the device's owner allows (`schemas.needs`), as far as that is told.
    allows: dict[str, Any] = field(default_factory=dict)
    #: Name and version of the package an own type comes from.
    distribution: str = ""
    distribution_version: str = ""

    @classmethod
    def read(cls, row: object) -> TypeInfo:
        """Read an entry of HELLO's `task_types`. Raises `WireError`."""
        if not isinstance(row, dict):
            raise WireError("task_types: each entry is an object")
        schema = row.get("payload_schema")
        if schema is not None and not isinstance(schema, dict):
            raise WireError("task_types.payload_schema: an object or null is required")
        return cls(
            name=text(row, "name", limit=100),
            description=text(row, "description", default="", limit=1000),
            payload_schema=schema,
            repeatable=flag(row, "repeatable", False),
            instant=flag(row, "instant", False),
            allows=read_allows(row.get("allows")),
            distribution=text(row, "distribution", default="", limit=100),
            distribution_version=text(row, "distribution_version", default="", limit=100),
        )


def read_task_types(header: Header) -> tuple[TypeInfo, ...]:
    """Read task types; leave out a malformed one, which must not keep its device out."""
    found = []
    for row in rows(header, "task_types")[:500]:
        with contextlib.suppress(WireError):
            found.append(TypeInfo.read(row))
    return tuple(found)


#: How many types are named as left out; of further ones only the number is sent.
MAX_LEFT_OUT: Final = 50


def first_left_out(reasons: Sequence[str]) -> tuple[str, ...]:
    """Return as many of the reasons as a message takes, and how many more there are."""
    if len(reasons) <= MAX_LEFT_OUT:
        return tuple(reasons)
    return (*reasons[: MAX_LEFT_OUT - 1], f"and {len(reasons) - MAX_LEFT_OUT + 1} more")


@dataclass(frozen=True)
class HeartbeatConfig:
    """The liveness settings that a device keeps to."""

    version: int
    #: Seconds between heartbeats.
    interval: float
    #: Seconds without one until attempts are given to others (the lease).
    timeout: float
    #: Missed heartbeats after which the device counts as offline.
    max_missed: int

    @classmethod
    def read(cls, header: Header) -> HeartbeatConfig:
        return cls(
            version=whole(header, "version"),
            interval=number(header.get("interval"), "interval", low=0.01, high=86_400),
            timeout=number(header.get("timeout"), "timeout", low=0.02, high=864_000),
            max_missed=whole(header, "max_missed", low=1, high=10_000),
        )


#: The reason of a DRAIN that an administrator asked for: the wire has no other word for it, and a
#: device that obeys says it again in its heartbeats (`Heartbeat.obeys_administrator`).
DRAINED_BY_ADMINISTRATOR: Final = "drained by the administrator"


@dataclass(frozen=True)
class Drain(BusMessage):
    """Stop taking new attempts: asked of a device, or announced by one."""

    verb = b"DRAIN"
    session: str
    reason: str = ""

    @classmethod
    def by_administrator(cls, session: str) -> Drain:
        """Make the message for a drain that an administrator asked for."""
        return cls(session, DRAINED_BY_ADMINISTRATOR)

    @classmethod
    def read(cls, header: Header) -> Drain:
        return cls(
            text(header, "session", limit=100), text(header, "reason", default="", limit=500)
        )
