"""A call of the admin socket, its answer, and a call that waits for events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from retire_cluster.broker.core.events import Now, Ticket

#: Seconds that a call may be parked.
MAX_WAIT_SECONDS: Final = 60


@dataclass(frozen=True, repr=False)
class Call:
    """One admin call."""

    ticket: Ticket
    op: str
    args: dict[str, Any]
    blobs: Sequence[bytes]
    now: Now

    def __repr__(self) -> str:
        size = sum(map(len, self.blobs))
        return f"<Call {self.ticket[1]!r} {self.op} {sorted(self.args)} and {size} bytes>"


@dataclass(frozen=True)
class Reply:
    """An answer: JSON data and the opaque texts that belong at paths of it."""

    data: dict[str, Any]
    blobs: Sequence[tuple[str, bytes]] = ()


@dataclass(frozen=True, repr=False)
class ParkedPoll:
    """An `events.poll` that is answered when something has happened, or its time is up."""

    ticket: Ticket
    args: dict[str, Any]
    #: Id of the last event that its client knows.
    since: int
    deadline_mono: float
    #: When what has happened since is looked at; None while nothing has.
    look_mono: float | None = None

    def __repr__(self) -> str:
        return f"<ParkedPoll {self.ticket[1]!r} after {self.since}, until {self.deadline_mono:.3f}>"

    @property
    def wake_mono(self) -> float:
        """The monotonic time (s) at which the loop looks at it, whatever happens."""
        return self.deadline_mono if self.look_mono is None else self.look_mono
