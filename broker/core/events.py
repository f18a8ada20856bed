"""What can happen to the cluster: the inputs of `cluster.handle`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from retire_cluster.broker.core.devices.access import AdminKey, Token
from retire_cluster.broker.core.model import TaskSpec
from retire_cluster.broker.core.rows import OutcomeRow
from retire_cluster.conf.spec import Section
from retire_cluster.schemas.protocol.messages import (
    ConfigAck,
    Drain,
    Enrol,
    Finished,
    Goodbye,
    Heartbeat,
    Hello,
    Pong,
    Progress,
    Started,
)

#: Names one admin call: the caller's routing id and its correlation id.
Ticket = tuple[bytes, Any]


class Now(NamedTuple):
    """The time of an event."""

    #: Monotonic seconds: for deadlines.
    mono: float
    #: Epoch milliseconds: for timestamps only.
    wall_ms: int


@dataclass(frozen=True)
class FromDevice:
    """A device's message other than FINISHED, and the connection it came by."""

    routing: bytes
    message: Hello | Enrol | Heartbeat | Started | Progress | ConfigAck | Pong | Drain | Goodbye
    #: The peer's IP address as the transport says; empty when unknown.
    address: str = ""
    #: The public key its connection proved; None on a bus without CURVE.
    key: str | None = None


@dataclass(frozen=True)
class Flooded:
    """A connection said more than it may: so many of its messages, by verb, are dropped."""

    #: The key that the connection proved, or its routing id on a bus without CURVE.
    who: str | bytes
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class ResultsArrived:
    """A FINISHED batch with its blobs: two an item, `result_data` and `details`."""

    routing: bytes
    message: Finished
    blobs: Sequence[bytes]
    #: As in `FromDevice`.
    key: str | None = None


class Keyed(NamedTuple):
    """Tasks among those of one event that a client submitted with an Idempotency-Key."""

    #: Index of the first.
    start: int
    size: int
    owner: str
    key: str
    fingerprint: str


@dataclass(frozen=True)
class TasksSubmitted:
    """New tasks, one payload each."""

    specs: Sequence[TaskSpec]
    payloads: Sequence[bytes]
    #: Seconds to wait before each may run; empty: none waits.
    delays_seconds: Sequence[float] = ()
    #: Which of them came with an Idempotency-Key.
    keyed: Sequence[Keyed] = ()


@dataclass(frozen=True)
class CancelRequested:
    """A client cancels a task that has not ended."""

    task: int


@dataclass(frozen=True)
class TaskDamaged:
    """A task's payload can no longer be read from the store: it cannot be run."""

    task: int


@dataclass(frozen=True)
class NotSent:
    """An assignment was committed and could not be sent: nobody has the attempt."""

    task: int
    #: The dispatch's.
    token: int
    reason: str


@dataclass(frozen=True)
class ResultDamaged:
    """An ended task's stored outcome is not what was written."""

    task: int
    created_ms: int
    #: What can still be read of it, without result and details.
    outcome: OutcomeRow


@dataclass(frozen=True)
class RetryRequested:
    """A client retries an ended task; everything needed is read from the store by the shell."""

    task: int
    spec: TaskSpec
    created_ms: int
    payload: bytes
    #: The ended attempt's row, kept as history.
    outcome: OutcomeRow


@dataclass(frozen=True)
class PingRequested:
    """A client wants a round trip to a device."""

    ticket: Ticket
    device_id: str
    timeout_seconds: float


@dataclass(frozen=True)
class DeviceRemoved:
    """An administrator removes a device."""

    device_id: str


@dataclass(frozen=True)
class DeviceReadmitted:
    """An administrator lifts a removed device's tombstone."""

    device_id: str


@dataclass(frozen=True)
class TokenMade:
    """An administrator made a join token; one with the same id is replaced."""

    token: Token


@dataclass(frozen=True)
class TokenRevoked:
    """An administrator takes a join token back."""

    token_id: str


@dataclass(frozen=True)
class AdminKeyAdded:
    """An administrator lets a key in from elsewhere."""

    admin: AdminKey


@dataclass(frozen=True)
class AdminKeyRevoked:
    """An administrator shuts a key out."""

    name: str


@dataclass(frozen=True)
class ApiKeysUsed:
    """A facade says which API keys were used, by id, and when (epoch ms)."""

    uses: Mapping[str, int]


@dataclass(frozen=True)
class ApiKeysChanged:
    """API keys were made or revoked; the keys themselves are the facade's."""

    #: Whether they were made; else they are no longer.
    are_new: bool
    key_ids: Sequence[str]
    scopes: Sequence[str] = ()


@dataclass(frozen=True)
class DeviceAuthorised:
    """An administrator gives a device a key: it joins without a token."""

    device_id: str
    key: str
    #: Only asked whether that would do.
    trial: bool = False


@dataclass(frozen=True)
class DrainRequested:
    """An administrator drains a device, or resumes it."""

    device_id: str
    drained: bool


@dataclass(frozen=True)
class ConfigChanged:
    """New settings sections, already validated as a whole."""

    sections: dict[str, Section]
    #: The values that outlive this process, by section.
    persisted: dict[str, dict[str, Any]]
    #: Dotted names of what changed.
    updated_fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class WaitRequested:
    """A client waits until tasks have ended; the unfinished ones are listed."""

    ticket: Ticket
    tasks: Sequence[int]
    unfinished: frozenset[int]
    timeout_seconds: float
    #: When each of `tasks` was submitted, for the answer.
    created_ms: Sequence[int] = ()
    #: Statuses and results only.
    brief: bool = False
    #: What the answer begins with, where it is brief.
    answer_head: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tick:
    """A sweep is due."""

    sweep: str


@dataclass(frozen=True)
class Place:
    """Queued tasks may be placed; the shell says so once a turn."""


Event = (
    FromDevice | Flooded | ResultsArrived | TasksSubmitted | CancelRequested | TaskDamaged
    | NotSent | ResultDamaged | RetryRequested | PingRequested | DeviceRemoved | DeviceReadmitted
    | DrainRequested | ConfigChanged | WaitRequested | Tick | Place | TokenMade | TokenRevoked
    | AdminKeyAdded | AdminKeyRevoked | DeviceAuthorised | ApiKeysUsed | ApiKeysChanged
)  # fmt: skip
