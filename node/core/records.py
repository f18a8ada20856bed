"""What the session, the runner and the spool say to each other.

Events tell the session what happened; instructions are what it wants done. All of it is plain
data: the session can be driven by a test, a simulator or the agent's loop alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from retire_cluster.schemas.ids import TaskIds
from retire_cluster.schemas.protocol.messages import AttemptKey, FromBroker, FromDevice, TypeInfo


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

    @property
    def task_id(self) -> str:
        """The task's public id."""
        return self.ids.public(self.key[0], self.created_ms)


class Result(NamedTuple):
    """How one attempt ended here; kept until the main node has it."""

    key: AttemptKey
    outcome: str
    execution_seconds: float
    cause: str | None
    error_message: str | None
    #: JSON text of `result_data`, or empty.
    data: bytes
    #: JSON text of `details`, or empty.
    details: bytes


class Told(NamedTuple):
    """How far an attempt says it is."""

    key: AttemptKey
    percent: float | None
    message: str


@dataclass(frozen=True)
class Introduction:
    """What stays the same in every HELLO of one process."""

    device_id: str
    #: Random text, one a process.
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
    #: What tasks are kept from, and by what.
    walls: tuple[str, ...] = ()


# Why an attempt is ended before its own end.
CANCELLED = "cancelled"
TIMEOUT = "timeout"
RELEASED = "released"
FENCED = "fenced"
ABANDONED = "abandoned"
UNSTARTED = "unstarted"


# --- events ---------------------------------------------------------------------------------


class Opened(NamedTuple):
    """The loop begins."""


class LinkUp(NamedTuple):
    """The transport reached the main node."""


class LinkDown(NamedTuple):
    """The transport lost the main node, or could not reach it."""

    reason: str
    #: The reason names its own cure, so general advice is left out.
    cured: bool = False


class Received(NamedTuple):
    """A well-formed message of the main node."""

    message: FromBroker
    blobs: list[bytes]


class Started(NamedTuple):
    """Attempts began to run."""

    keys: list[AttemptKey]


class Progressed(NamedTuple):
    """Attempts told how far they are."""

    items: list[Told]


class Ended(NamedTuple):
    """Attempts ended."""

    results: list[Result]


class Learned(NamedTuple):
    """The device's capabilities are known, or known better."""

    capabilities: dict[str, Any]


class Offers(NamedTuple):
    """What this device offers has changed."""

    task_types: tuple[TypeInfo, ...]
    #: Own types that are not offered, each with the reason.
    left_out: tuple[str, ...]


class Tick(NamedTuple):
    """A turn of the loop is over: flush what gathered, look at the clock."""


class Stop(NamedTuple):
    """The owner wants the worker to go; a second one wants it at once."""

    reason: str


Event = (
    Opened
    | LinkUp
    | LinkDown
    | Received
    | Started
    | Progressed
    | Ended
    | Learned
    | Offers
    | Tick
    | Stop
)


# --- instructions ---------------------------------------------------------------------------


class Connect(NamedTuple):
    """Drop the socket, if there is one, and dial with a new one."""


class Send(NamedTuple):
    """Send this message. A heartbeat's metrics are filled in by the shell."""

    message: FromDevice
    blobs: tuple[bytes, ...] = ()


class Run(NamedTuple):
    """Run these attempts as slots become free."""

    attempts: list[Attempt]


class Kill(NamedTuple):
    """End these attempts, their whole process trees, for one of the reasons above."""

    keys: list[AttemptKey]
    reason: str


class Keep(NamedTuple):
    """Store these results so that they outlive the process."""

    results: list[Result]


class Forget(NamedTuple):
    """These stored results are no longer needed."""

    keys: list[AttemptKey]


class Say(NamedTuple):
    """A line for the log."""

    #: `info`, `warning` or `error`.
    level: str
    text: str


class Exit(NamedTuple):
    """Leave with this exit code once everything said before is sent."""

    code: int


Instruction = Connect | Send | Run | Kill | Keep | Forget | Say | Exit
