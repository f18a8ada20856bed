"""What happened, as the session is told of it. Plain data, from the agent, a test or a simulator.

Times are no part of it: whoever hands an event over says when, in monotonic seconds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from retire_cluster.node.core.records import Result
from retire_cluster.schemas.protocol.messages import AttemptKey, FromBroker, ProgressItem, TypeInfo


class Opened(NamedTuple):
    """The loop begins."""


class LinkUp(NamedTuple):
    """The transport reached the main node."""


class LinkDown(NamedTuple):
    """The transport lost the main node, or could not reach it."""

    reason: str
    #: Whether the reason names its own cure, so that general advice is left out.
    cured: bool = False


class Received(NamedTuple):
    """A well-formed message of the main node came in."""

    message: FromBroker
    #: The payloads of an ASSIGN, one an item; otherwise empty.
    blobs: list[bytes]


class Started(NamedTuple):
    """Attempts began to run."""

    keys: list[AttemptKey]


class Progressed(NamedTuple):
    """Attempts told how far they are."""

    items: list[ProgressItem]


class Ended(NamedTuple):
    """Attempts ended."""

    results: list[Result]


class CapabilitiesChanged(NamedTuple):
    """The device's capabilities are known, or known better."""

    #: All of them, for HELLO.
    capabilities: dict[str, Any]


class OffersChanged(NamedTuple):
    """The device offers other task types."""

    task_types: tuple[TypeInfo, ...]
    #: Own types that are not offered, each with the reason.
    left_out: tuple[str, ...]


class Tick(NamedTuple):
    """A turn of the loop is over: what gathered is sent, and what is due is done."""


class StopAsked(NamedTuple):
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
    | CapabilitiesChanged
    | OffersChanged
    | Tick
    | StopAsked
)
