"""A call of the admin socket, and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retire_cluster.broker.core.events import Now, Ticket


@dataclass(frozen=True)
class Call:
    """One admin call."""

    ticket: Ticket
    op: str
    args: dict[str, Any]
    blobs: Sequence[bytes]
    now: Now


@dataclass(frozen=True)
class Reply:
    """An answer: JSON data and the opaque texts that belong at paths of it."""

    data: dict[str, Any]
    blobs: Sequence[tuple[str, bytes]] = ()
