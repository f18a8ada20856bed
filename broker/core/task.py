"""A task and the table of its states.

Policy picks the event, `TRANSITIONS` picks the state; a pair that is not in the table raises and
changes nothing. Only tasks that have not ended live in memory as `Task`; ended ones are in the
store, with one line each in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from retire_cluster.schemas.protocol.messages import Key
from retire_cluster.schemas.vocabulary import TaskStatus

if TYPE_CHECKING:
    from retire_cluster.broker.core.device import Device
    from retire_cluster.broker.core.placement.given_back import Times
    from retire_cluster.broker.core.placement.matching import TaskClass

_S = TaskStatus

#: (state, event) → state. `None` is a task that does not exist yet.
TRANSITIONS: Final[dict[tuple[TaskStatus | None, str], TaskStatus]] = {
    (None, "submit"): _S.QUEUED,
    (None, "delay"): _S.PENDING,
    (_S.PENDING, "due"): _S.QUEUED,
    (_S.PENDING, "cancel"): _S.CANCELLED,
    (_S.PENDING, "fail"): _S.FAILED,
    (_S.QUEUED, "assign"): _S.ASSIGNED,
    (_S.QUEUED, "cancel"): _S.CANCELLED,
    (_S.QUEUED, "fail"): _S.FAILED,
    (_S.ASSIGNED, "start"): _S.RUNNING,
    (_S.ASSIGNED, "wait"): _S.PENDING,
    (_S.ASSIGNED, "cancel"): _S.CANCELLED,
    (_S.ASSIGNED, "fail"): _S.FAILED,
    (_S.ASSIGNED, "time_out"): _S.TIMEOUT,
    (_S.RUNNING, "succeed"): _S.SUCCESS,
    (_S.RUNNING, "wait"): _S.PENDING,
    (_S.RUNNING, "cancel"): _S.CANCELLED,
    (_S.RUNNING, "fail"): _S.FAILED,
    (_S.RUNNING, "time_out"): _S.TIMEOUT,
    (_S.FAILED, "retry"): _S.QUEUED,
    (_S.TIMEOUT, "retry"): _S.QUEUED,
    (_S.CANCELLED, "retry"): _S.QUEUED,
}

EVENTS: Final = frozenset(event for _, event in TRANSITIONS)


class IllegalTransition(RuntimeError):
    """A task was told something that its state does not allow; nothing changed."""

    def __init__(self, status: TaskStatus | None, event: str) -> None:
        super().__init__(f"a task that is {status or 'new'} cannot take the event {event!r}")
        self.status = status
        self.event = event


def after(status: TaskStatus | None, event: str) -> TaskStatus:
    """The state after an event; raises `IllegalTransition`."""
    try:
        return TRANSITIONS[status, event]
    except KeyError:
        raise IllegalTransition(status, event) from None


@dataclass(frozen=True)
class TaskSpec:
    """What tasks of one request have in common; shared by all tasks of the same form."""

    task_type: str
    #: 0 (low) to 3 (urgent).
    priority: int
    timeout_seconds: int
    max_retries: int
    #: JSON object `{"requirements", "metadata"}` as the client gave them, defaults filled in.
    document: bytes


class Dispatch:
    """One batch of assignments to one device: the lease that its attempts share."""

    __slots__ = ("device_id", "epoch", "number", "open", "token")

    def __init__(self, number: int, epoch: int, token: int, device_id: str) -> None:
        #: The store's key of this batch.
        self.number = number
        self.epoch = epoch
        self.token = token
        self.device_id = device_id
        #: Attempts of it that have not ended.
        self.open = 0


class Task:
    """A task that has not ended. Monotonic times end in `_mono`, wall-clock ones in `_ms`.

    What a fresh task does not have yet are class attributes: hundreds of tasks are made at once,
    and setting each of these on each of them would cost as much as all the rest.
    """

    not_before_mono = 0.0
    attempt = 0
    retries = 0
    dispatch: Dispatch | None = None
    device: Device | None = None
    backlog: TaskClass | None = None
    assigned_ms: int | None = None
    started_ms: int | None = None
    started_mono: float | None = None
    #: When its device was last known to have it.
    confirmed_mono = 0.0
    #: `(percent or None, message)` as the device last told.
    progress: tuple[float | None, str] | None = None
    #: Devices that said it cannot run there, free of charge once each, and what they said.
    excluded: Mapping[str, str] = MappingProxyType({})
    #: Devices where an attempt did not end well, the first few: others are tried before them.
    tried: frozenset[str] = frozenset()
    #: Devices that were lost while running it (poison guard).
    killers: frozenset[str] = frozenset()
    #: Device → how often it gave the task back, free of charge (given_back.py).
    given_back: Mapping[str, Times] = MappingProxyType({})
    #: Whether the store has a `live` row for it.
    deviates = False
    #: How often it was placed and could not be sent.
    unsent = 0
    #: Retries used before the last manual retry (`retries` counts one generation).
    stored_retries = 0

    def __init__(
        self,
        number: int,
        spec: TaskSpec,
        created_ms: int,
        payload: bytes | None,
        status: TaskStatus,
        queued_mono: float,
    ) -> None:
        self.number = number
        self.spec = spec
        self.created_ms = created_ms
        #: The payload's JSON text while it is kept in memory; None: read it from the store.
        self.payload = payload
        self.status = status
        #: When it began to wait in its backlog; aging counts from here.
        self.queued_mono = queued_mono

    @property
    def key(self) -> Key:
        """The current attempt's key on the wire."""
        assert self.dispatch is not None
        return (self.number, self.attempt, self.dispatch.token, self.dispatch.epoch)

    @property
    def retry_count(self) -> int:
        """Retries over all generations."""
        return self.stored_retries + self.retries
