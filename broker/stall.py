"""A turn whose commit failed, or which met an error of ours: the state is loaded anew.

Meanwhile clients are refused and devices wait; what they have not had acknowledged they say again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

from retire_cluster.broker.admin.calls import Call
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.registry import AdminOperation
from retire_cluster.broker.core.events import Ticket
from retire_cluster.broker.core.instructions import PingOver, WaitOver
from retire_cluster.broker.damage import FollowUps
from retire_cluster.broker.store.base import StoreError

log = logging.getLogger("broker")

#: Seconds between two tries of loading the state.
RELOAD_SECONDS: Final = 1.0


class Stall:
    """Whether the main node waits for its store, and why."""

    def __init__(self) -> None:
        #: Why clients are refused; empty: they are not.
        self.reason = ""
        self._reload_mono = 0.0

    def __repr__(self) -> str:
        return f"<Stall: {self.reason or 'none'}>"

    def begin(self, reason: str, mono: float) -> None:
        """Stall; the first try of loading the state is now, or a second after the last."""
        self.reason = reason
        self._reload_mono = max(mono, self._reload_mono)

    def seconds_left(self, mono: float) -> float:
        """Return the seconds until the state is loaded again; 0 and less: now."""
        return self._reload_mono - mono

    def reload(self, load: Callable[[], AdminContext], mono: float) -> AdminContext | None:
        """Return what operations work on from now on; None while the store still fails."""
        if self.seconds_left(mono) > 0:
            return None
        self._reload_mono = mono + RELOAD_SECONDS
        try:
            found = load()
        except StoreError as error:
            self.reason = str(error)
            return None
        log.info("the state is read anew, clients are served again")
        self.reason = ""
        return found


def tickets_of_all(
    admin: AdminContext, reads: Iterable[tuple[AdminOperation, Call]], follow_ups: FollowUps
) -> list[Ticket]:
    """Return the tickets of all who wait for an answer and get none from a failed turn."""
    found = [ticket for ticket, _ in admin.answers]
    found += [call.ticket for _, call in reads]
    found += [one.ticket for one in admin.turn if isinstance(one, (PingOver, WaitOver))]
    found += follow_ups.tickets
    found += [poll.ticket for poll in admin.polls]
    found += [wait.request.ticket for wait in admin.state.waits.all]
    found += [ping.ticket for ping in admin.state.pings.values()]
    found += [one.call.ticket for one in admin.batch.submissions]
    return found
