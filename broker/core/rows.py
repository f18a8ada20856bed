"""What the store keeps: one record a table row, and the snapshot a starting broker reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class AttemptRow(NamedTuple):
    """An attempt that ended without ending its task (the store's history)."""

    task: int
    number: int
    device_id: str | None
    outcome: str
    cause: str | None
    error_message: str | None
    assigned_ms: int | None
    started_ms: int | None
    ended_ms: int
    execution_seconds: float | None
    result: bytes = b""
    details: bytes = b""
    #: How many endings it stands for (requeues.py): itself, and those before it that were alike.
    times: int = 1


class OutcomeRow(NamedTuple):
    """How a task ended: exactly one a task."""

    task: int
    status: str
    device_id: str | None
    attempt: int
    assigned_ms: int | None
    started_ms: int | None
    completed_ms: int
    execution_seconds: float | None
    cause: str | None
    error_message: str | None
    retry_count: int
    result: bytes = b""
    details: bytes = b""
    #: When it ended on the cluster's age (`records/clock.py`), in seconds.
    ended_s: int = 0


class TaskRow(NamedTuple):
    """A submitted task as the store keeps it."""

    number: int
    created_ms: int
    task_type: str
    priority: int
    timeout_seconds: int
    max_retries: int
    document: bytes
    payload: bytes


class LiveRow(NamedTuple):
    """What differs from a freshly queued task for one that has not ended."""

    task: int
    attempt: int
    retries: int
    stored_retries: int
    #: Epoch ms before which it must not run; 0: none.
    not_before_ms: int
    #: Devices that said it cannot run there, each with its word.
    excluded: tuple[tuple[str, str], ...]
    killers: tuple[str, ...]
    tried: tuple[str, ...] = ()
    #: `(device, times, attempt)` of `Task.given_back`.
    given_back: tuple[tuple[str, int, int], ...] = ()


class DispatchRow(NamedTuple):
    """A batch of assignments: who may be running what after a restart."""

    number: int
    epoch: int
    token: int
    device_id: str
    at_ms: int
    #: `(task, attempt)` pairs.
    attempts: tuple[tuple[int, int], ...]


class DeviceRow(NamedTuple):
    """A registered device; `removed_ms` marks a tombstone."""

    device_id: str
    registered_ms: int
    removed_ms: int | None
    #: JSON object of everything else.
    document: bytes


class SubmissionRow(NamedTuple):
    """An answered submission with an Idempotency-Key."""

    owner: str
    key: str
    fingerprint: str
    first: int
    #: How many tasks, numbered from `first`.
    size: int
    #: Epoch ms; part of the tasks' ids.
    at_ms: int
    #: The same moment on the cluster's age, in seconds.
    at_s: int = 0


class AccessRow(NamedTuple):
    """A key or token that may speak to this main node; without a document it is deleted."""

    #: `device`, `token`, `admin` or `used` (an API key's last use).
    kind: str
    name: str
    document: bytes | None


class AuditRow(NamedTuple):
    """An event that is kept apart (`audit`)."""

    id: int
    type: str
    at_ms: int
    device_id: str | None
    data: dict[str, Any]


class Mark(NamedTuple):
    """Where the cluster's age (see `records/clock.py`) stood once, and what else only rises."""

    age_ms: int
    mono: float
    wall_ms: int
    #: Names the boot of the machine whose monotonic clock `mono` is of; empty when not known.
    boot: str
    #: Id of the newest event then.
    last_event: int


#: `(task, type, priority, status, device or None, second of the cluster's age when it ended)`;
#: status None: it lives.
IndexRow = tuple[int, str, int, str | None, str | None, int]


@dataclass
class Snapshot:
    """Everything the store gives a starting broker."""

    salt: int
    epoch: int
    next_task: int
    next_dispatch: int
    #: Tasks that have not ended, payload empty when larger than asked for, in order.
    live: list[TaskRow] = field(default_factory=list)
    #: The newest mark of the cluster's age; None in a new store.
    mark: Mark | None = None
    live_payload_bytes: dict[int, int] = field(default_factory=dict)
    deviations: dict[int, LiveRow] = field(default_factory=dict)
    dispatches: list[DispatchRow] = field(default_factory=list)
    devices: list[DeviceRow] = field(default_factory=list)
    #: Every task, in order.
    index: Iterable[IndexRow] = ()
    #: `(ended_s, status, execution_seconds or None)` of the last hour, oldest first.
    recent: list[tuple[int, str, float | None]] = field(default_factory=list)
    submissions: list[SubmissionRow] = field(default_factory=list)
    access: list[AccessRow] = field(default_factory=list)
    #: Events that are kept apart.
    audit: list[AuditRow] = field(default_factory=list)
    #: Persisted settings by section.
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    config_version: int = 1
    #: Live tasks whose row is not what was written: they cannot be run.
    damaged: list[int] = field(default_factory=list)
    #: What else was found damaged and left out, for people.
    warnings: list[str] = field(default_factory=list)
