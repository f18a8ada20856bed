"""What is damaged in the store, or could not be sent: dealt with in the turn after it was found.

A damaged task is failed, and so is one whose damaged result was asked for; whoever asked is
answered after that.
"""

from __future__ import annotations

import logging
from typing import TypeAlias

from retire_cluster.broker.admin.calls import Call
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.registry import AdminOperation
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.instructions import WaitOver
from retire_cluster.broker.store.base import RowDamaged, StoreError

log = logging.getLogger("broker")

#: A question that reads the store: a call, or a wait that is over.
Read: TypeAlias = "tuple[AdminOperation, Call] | WaitOver"


class FollowUps:
    """Events and reads that a turn leaves to the next."""

    def __init__(self) -> None:
        self.events: list[ev.Event] = []
        #: Reads that met a damaged row: asked again when it has been dealt with.
        self.reads: list[Read] = []
        #: Ended tasks whose damaged result was dealt with since the store was loaded.
        self._quarantined: set[int] = set()

    def __repr__(self) -> str:
        return f"<FollowUps: {self.events!r:.200}, {len(self.reads)} reads>"

    @property
    def tickets(self) -> list[ev.Ticket]:
        """The tickets of the calls that wait for the next turn."""
        return [one.ticket if isinstance(one, WaitOver) else one[1].ticket for one in self.reads]

    def clear(self) -> None:
        """Forget everything: the store is loaded anew."""
        self.events, self.reads, self._quarantined = [], [], set()

    def take_reads(self) -> list[Read]:
        """Return the reads to be performed again in this turn, and forget them."""
        found, self.reads = self.reads, []
        return found

    def apply(self, admin: AdminContext, now: ev.Now) -> None:
        """Apply the events, and log which tasks are damaged."""
        public, tasks = admin.state.ids.public, admin.state.tasks
        for event in self.events:
            if isinstance(event, ev.ResultDamaged):
                task_id = public(event.task, event.created_ms)
                log.error("the result of task %s is damaged in the store: it fails", task_id)
            elif isinstance(event, ev.TaskDamaged) and event.task in tasks:
                task_id = public(event.task, tasks[event.task].created_ms)
                log.error("task %s is damaged in the store: it is not run", task_id)
            admin.apply(event, now)
        self.events.clear()

    def quarantine(self, damage: RowDamaged, admin: AdminContext) -> bool:
        """Have the next turn discard a damaged outcome; return False if none can be discarded."""
        number = damage.task
        if number in self._quarantined or number in admin.state.tasks:
            return False
        try:
            heads = admin.store.heads((number,))
            outcomes = admin.store.outcomes((number,), results=False)
        except StoreError as error:
            log.error("task %d: %s", number, error)
            return False
        if number not in heads or number not in outcomes:
            return False
        self._quarantined.add(number)
        event = ev.ResultDamaged(number, heads[number].created_ms, outcomes[number])
        self.events.append(event)
        return True

    def put_off(self, damage: RowDamaged, read: Read, admin: AdminContext) -> bool:
        """Keep a read for the next turn if that deals with the damage; return whether it does."""
        waits = any(
            isinstance(event, ev.ResultDamaged) and event.task == damage.task
            for event in self.events
        )
        if not waits and not self.quarantine(damage, admin):
            return False
        self.reads.append(read)
        return True
