"""What an operation of the admin socket is.

Changing operations run before a turn's commit and are answered after it; reading ones run after the
commit, so what they see in memory and in the store is the same. An operation answers with a
`Reply`, raises a `ClusterError`, or returns None when it parked the call to be answered later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.schemas.rest.validation import validate

Run = Callable[[AdminContext, Call], Reply | None]


@dataclass(frozen=True)
class AdminOperation:
    """One entry of the table (table.py)."""

    name: str
    #: Cerberus schema of the arguments; None: the function checks them itself.
    schema: Mapping[str, Any] | None
    run: Run
    #: Whether it changes the cluster (and so runs before the commit).
    changes: bool
    #: Whether what it changes is put into the turn's batch (`submit.make`); every other changing
    #: operation sees the batch made.
    batched: bool = False

    def perform(self, admin: AdminContext, call: Call) -> Reply | None:
        """Check the arguments and run. Raises a `ClusterError` for what cannot be done."""
        if self.schema is None:
            return self.run(admin, call)
        args = validate(self.schema, call.args)
        return self.run(admin, Call(call.ticket, call.op, args, call.blobs, call.now))


def operation(
    name: str,
    schema: Mapping[str, Any] | None = None,
    *,
    changes: bool = False,
    batched: bool = False,
) -> Callable[[Run], AdminOperation]:
    """Make an operation of a function; `table.OPERATIONS` names it."""
    return lambda run: AdminOperation(name, schema, run, changes, batched)
