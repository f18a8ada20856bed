"""What a device knows of itself, of each attempt that it holds, and of how an attempt ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from retire_cluster.schemas.ids import TaskIds
from retire_cluster.schemas.protocol.messages import AttemptKey, Hello, TypeInfo
from retire_cluster.schemas.protocol.wire import PROTOCOL


class Attempt:
    """One attempt that this device holds. Slotted: five hundred of them come in one message."""

    __slots__ = (
        "created_ms",
        "ids",
        "key",
        "payload",
        "repeatable",
        "started_at",
        "task_type",
        "timeout_seconds",
    )

    def __init__(
        self,
        key: AttemptKey,
        created_ms: int,
        ids: TaskIds,
        task_type: str,
        timeout_seconds: int,
        payload: bytes,
        repeatable: bool,
    ) -> None:
        #: Task, number of the attempt, token and epoch, as the main node gave them.
        self.key = key
        #: Epoch ms of the main node when the task was submitted.
        self.created_ms = created_ms
        self.ids = ids
        self.task_type = task_type
        #: Seconds it may run, counted from its start.
        self.timeout_seconds = timeout_seconds
        #: The payload's JSON text, not decoded.
        self.payload = payload
        #: Running it twice does no harm.
        self.repeatable = repeatable
        #: Monotonic second of its start, or None while it waits.
        self.started_at: float | None = None

    def __repr__(self) -> str:
        state = "waits" if self.started_at is None else f"runs since {self.started_at:.3f}"
        return f"<Attempt {self.key[1]} of {self.task_id} ({self.task_type}) {state}>"

    @property
    def task_id(self) -> str:
        """The task's public id."""
        return self.ids.public(self.key[0], self.created_ms)


class Result(NamedTuple):
    """How one attempt ended here; kept until the main node has it."""

    key: AttemptKey
    #: A value of `Outcome`.
    outcome: str
    #: How long it ran, in seconds; 0 for one that did not begin.
    execution_seconds: float
    #: A value of `Cause`; None for a success and where there is none to name.
    cause: str | None
    error_message: str | None
    #: JSON text of `result_data`, or empty.
    data: bytes
    #: JSON text of `details`, or empty.
    details: bytes


@dataclass(frozen=True)
class Introduction:
    """What every HELLO of one process says; only the task types may change meanwhile."""

    device_id: str
    #: Random text that tells one process of a device from the next.
    instance: str
    version: str
    role: str
    platform: str
    hostname: str
    tags: tuple[str, ...]
    slots: int
    task_types: tuple[TypeInfo, ...]
    #: Own types that are not offered, each with the reason.
    left_out: tuple[str, ...] = ()
    #: What tasks are kept from, and by what, each `what: which`.
    walls: tuple[str, ...] = ()

    def hello(self, session: str, capabilities: Mapping[str, Any]) -> Hello:
        """Return a HELLO that says this much, of a device without attempts and results."""
        return Hello(
            protocol=PROTOCOL,
            device_id=self.device_id,
            instance=self.instance,
            session=session,
            version=self.version,
            role=self.role,
            platform=self.platform,
            hostname=self.hostname,
            tags=self.tags,
            slots=self.slots,
            capabilities=dict(capabilities),
            task_types=self.task_types,
            walls=self.walls,
        )


# Why an attempt is ended before its own end.
#: A client cancelled it.
CANCELLED = "cancelled"
#: Its time is over.
TIMEOUT = "timeout"
#: The device goes, or takes no work: another may have the attempt.
RELEASED = "released"
#: The lease is over, and the attempt may not run twice.
FENCED = "fenced"
#: The main node wants no result of it.
ABANDONED = "abandoned"
#: Its process was not ready in time.
UNSTARTED = "unstarted"
