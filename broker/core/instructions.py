"""What the shell must do: the outputs of `cluster.handle`.

Store instructions are committed together, before any of the others is performed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retire_cluster.broker.core.events import Ticket, WaitRequested
from retire_cluster.broker.core.model import Dispatch, Task
from retire_cluster.broker.core.rows import (
    AccessRow,
    AttemptRow,
    AuditRow,
    DeviceRow,
    DispatchRow,
    LiveRow,
    Mark,
    OutcomeRow,
    SubmissionRow,
    TaskRow,
)
from retire_cluster.schemas.protocol.messages import FromBroker

# --- store ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoreTasks:
    """Insert new tasks."""

    rows: Sequence[TaskRow]
    submissions: Sequence[SubmissionRow] = ()


@dataclass(frozen=True)
class StoreOutcomes:
    """Record how tasks ended; `deviating` ones have a live row that goes."""

    rows: Sequence[OutcomeRow]
    deviating: Sequence[int] = ()


@dataclass(frozen=True)
class StoreAttempts:
    """Record attempts that ended without ending their task."""

    rows: Sequence[AttemptRow]
    #: `(task, number)` of those that they stand for from now on.
    replaced: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class StoreLive:
    """Insert or replace what deviates from a fresh task."""

    rows: Sequence[LiveRow]


@dataclass(frozen=True)
class ReviveTasks:
    """Delete the outcomes of ended tasks that live again."""

    tasks: Sequence[int]


@dataclass(frozen=True)
class StoreDispatch:
    """Record a batch of assignments before it is sent."""

    row: DispatchRow


@dataclass(frozen=True)
class ForgetDispatches:
    """Delete batches whose attempts have all ended."""

    numbers: Sequence[int]


@dataclass(frozen=True)
class StoreDevices:
    """Insert or replace devices."""

    rows: Sequence[DeviceRow]


@dataclass(frozen=True)
class ForgetDevices:
    """Delete devices, tombstones included."""

    device_ids: Sequence[str]


@dataclass(frozen=True)
class StoreConfig:
    """Replace persisted settings sections."""

    sections: dict[str, dict[str, Any]]
    version: int


@dataclass(frozen=True)
class ForgetTasks:
    """Delete ended tasks with all that belongs to them (retention)."""

    tasks: Sequence[int]


@dataclass(frozen=True)
class ForgetSubmissions:
    """Delete idempotency records made before a second of the cluster's age."""

    before_s: int


@dataclass(frozen=True)
class StoreAccess:
    """Insert, replace or delete keys and tokens."""

    rows: Sequence[AccessRow]


@dataclass(frozen=True)
class StoreAudit:
    """Add events that are kept apart: denials, or what an administrator did."""

    rows: Sequence[AuditRow]
    denials: bool
    #: Id of the oldest that is kept: those before it are deleted.
    oldest: int


@dataclass(frozen=True)
class StoreMark:
    """Note where the cluster's age stands."""

    mark: Mark


Write = (
    StoreTasks | StoreOutcomes | StoreAttempts | StoreLive | ReviveTasks | StoreDispatch
    | ForgetDispatches | StoreDevices | ForgetDevices | StoreConfig | ForgetTasks
    | ForgetSubmissions | StoreAccess | StoreAudit | StoreMark
)  # fmt: skip
WRITES = (
    StoreTasks, StoreOutcomes, StoreAttempts, StoreLive, ReviveTasks, StoreDispatch,
    ForgetDispatches, StoreDevices, ForgetDevices, StoreConfig, ForgetTasks, ForgetSubmissions,
    StoreAccess, StoreAudit, StoreMark,
)  # fmt: skip

# --- after the commit ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Send a message to a device's connection."""

    routing: bytes
    message: FromBroker


@dataclass(frozen=True)
class SendAssign:
    """Send a batch of assignments; the shell reads payloads not kept in memory."""

    routing: bytes
    session: str
    dispatch: Dispatch
    tasks: Sequence[Task]


@dataclass(frozen=True)
class PingOver:
    """A `device.ping` is over: the shell answers the parked call."""

    ticket: Ticket
    device_id: str
    #: When it was asked for, epoch milliseconds.
    sent_ms: int
    #: Milliseconds of the round trip; None: the device did not answer.
    response_ms: float | None
    #: Milliseconds that the call was parked.
    duration_ms: float


@dataclass(frozen=True)
class Warn:
    """Write a warning to the main node's log."""

    text: str


@dataclass(frozen=True)
class WaitOver:
    """A `task.wait` is over: the shell reads the results and answers."""

    ticket: Ticket
    tasks: Sequence[int]
    #: As in `WaitRequested`.
    created_ms: Sequence[int] = field(default=(), compare=False)
    brief: bool = False
    answer_head: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, request: WaitRequested) -> WaitOver:
        """Make the one that ends a client's wait."""
        return cls(
            request.ticket,
            tuple(request.tasks),
            request.created_ms,
            request.brief,
            request.answer_head,
        )


Instruction = Write | Send | SendAssign | PingOver | Warn | WaitOver
