"""Operations are performed and calls answered; nothing that fails here leaves a client waiting."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.registry import AdminOperation
from retire_cluster.broker.admin.waits import unread, waited
from retire_cluster.broker.core.events import Now, Ticket
from retire_cluster.broker.core.instructions import WaitOver
from retire_cluster.broker.damage import FollowUps
from retire_cluster.broker.net.clients import Clients
from retire_cluster.broker.store.base import RowDamaged, StoreError, StoreTrouble
from retire_cluster.schemas.errors import ClusterError, ClusterUnavailable, InternalError

log = logging.getLogger("broker")

#: What a client is told whose operation was committed and whose answer then failed.
DONE: Final = (
    "What was asked for has been done and is kept, but the answer failed in the main node; its log"
    " has the details. Look before asking for it again."
)


class Answering:
    """Performs operations and answers their calls.

    :param now: gives the time
    """

    def __init__(self, clients: Clients, follow_ups: FollowUps, now: Callable[[], Now]) -> None:
        self._clients = clients
        self._follow_ups = follow_ups
        self._now = now

    def answer(self, ticket: Ticket, reply: Reply | ClusterError, *, done: bool = False) -> None:
        """Answer a call; `done`: what it asked for has been committed, whatever happens here."""
        try:
            if isinstance(reply, ClusterError):
                self._clients.refuse(ticket, reply)
            else:
                self._clients.answer(ticket, reply)
        except Exception:
            log.exception("an answer could not be written")
            self._clients.refuse(ticket, InternalError(DONE if done else None))

    def change(self, admin: AdminContext, operation: AdminOperation, call: Call) -> None:
        """Perform an operation that changes the cluster; its answer waits for the commit.

        Raises what is no `ClusterError` and no `StoreError`: then nothing of the turn counts.
        """
        try:
            reply = operation.perform(admin, call)
        except ClusterError as error:
            # A refusal may rest on what this turn did, so it waits for the commit as well.
            admin.answers.append((call.ticket, error))
        except RowDamaged as error:
            if self._follow_ups.quarantine(error, admin):
                self._clients.refuse(call.ticket, ClusterUnavailable(str(error), retry_after=1))
            else:
                self._refuse_failed(operation.name, call.ticket, error)
        except StoreError as error:
            self._refuse_unread(admin, operation.name, call.ticket, error)
        except Exception:
            self._refuse_broken(operation, call)
            raise
        else:
            if reply is not None:
                admin.answers.append((call.ticket, reply))

    def read(self, admin: AdminContext, operation: AdminOperation, call: Call) -> None:
        """Perform an operation that only reads and answer it, now or in the next turn."""
        try:
            reply = operation.perform(admin, call)
        except ClusterError as error:
            self.answer(call.ticket, error)
        except RowDamaged as error:
            if not self._follow_ups.put_off(error, (operation, call), admin):
                self._refuse_failed(operation.name, call.ticket, error)
        except StoreError as error:
            self._refuse_unread(admin, operation.name, call.ticket, error)
        except Exception:
            self._refuse_broken(operation, call)
        else:
            if reply is not None:
                self.answer(call.ticket, reply)

    def wait_over(self, admin: AdminContext, over: WaitOver) -> None:
        """Answer a call whose tasks have ended, or whose time is up."""
        try:
            reply = waited(admin, over)
        except StoreError as error:
            if isinstance(error, RowDamaged) and self._follow_ups.put_off(error, over, admin):
                return
            if over.answer_head:
                # Its tasks have been submitted: the answer says so; how they ended is asked again.
                if isinstance(error, StoreTrouble):
                    self._note_trouble(admin, error)
                self.answer(over.ticket, unread(over), done=True)
            else:
                self._refuse_unread(admin, "task.wait", over.ticket, error)
        else:
            self.answer(over.ticket, reply, done=True)

    def refuse_all(self, tickets: list[Ticket], reason: str) -> None:
        """Tell clients that nothing of the turn counts, or that the main node is stalled."""
        for ticket in tickets:
            self._clients.refuse(ticket, ClusterUnavailable(reason, retry_after=5))

    def _refuse_unread(
        self, admin: AdminContext, name: str, ticket: Ticket, error: StoreError
    ) -> None:
        """Refuse a call that needs what the store did not give: for now, or for good."""
        if isinstance(error, StoreTrouble):
            self._note_trouble(admin, error)
            self._clients.refuse(ticket, ClusterUnavailable(f"{error}; ask again", retry_after=1))
        else:
            self._refuse_failed(name, ticket, error)

    def _refuse_failed(self, name: str, ticket: Ticket, error: StoreError) -> None:
        log.error("%s: %s", name, error)
        self._clients.refuse(ticket, InternalError(str(error)))

    def _refuse_broken(self, operation: AdminOperation, call: Call) -> None:
        log.exception("the operation %s failed", operation.name)
        self._clients.refuse(call.ticket, InternalError())

    def _note_trouble(self, admin: AdminContext, error: StoreTrouble) -> None:
        admin.health.reads.note(str(error), self._now().mono)
