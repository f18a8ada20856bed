"""Decide who may do what: the one table of scopes and operations.

The facade's checks, the OpenAPI document and the table in docs/security.md are made from it. A task
type has a scope of its own: submitting, cancelling and retrying need that too. When tasks get
owners, an owner's right to a task of its own becomes one more line of `judge`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum
from typing import Final, NamedTuple

from retire_cluster.schemas.errors import Forbidden
from retire_cluster.schemas.vocabulary import HARMLESS_TASK_TYPES

READ: Final = "read"
SUBMIT: Final = "submit"
DANGEROUS: Final = "submit:dangerous"
ADMIN: Final = "admin"
#: What a key may be given.
SCOPES: Final = (READ, SUBMIT, DANGEROUS, ADMIN)
#: What each of them holds: whoever may submit what runs code may submit what is harmless.
HOLDS: Final = {
    READ: frozenset({READ}),
    SUBMIT: frozenset({SUBMIT}),
    DANGEROUS: frozenset({SUBMIT, DANGEROUS}),
    ADMIN: frozenset(SCOPES),
}
#: The cure for who has no right to submit: with authentication on, and off.
SEND_A_KEY: Final = "send an API key with the scope submit"
START_WITH_KEYS: Final = (
    "start the API with --auth and send an API key, or submit on the main node's machine,"
    " as the user that runs the cluster"
)


class Door(Enum):
    """Who may use an operation without a key."""

    #: Anybody, always.
    OPEN = "open"
    #: Anybody, unless `auth_reads` closes it.
    READS = "reads"
    #: Nobody (without authentication: this machine).
    CLOSED = "closed"


class Right(NamedTuple):
    """What a client needs to use one operation."""

    door: Door
    #: Scope of the key, where one is asked for.
    scope: str = ""
    #: The scope that each task's type needs is needed too (`of_type`).
    by_type: bool = False
    #: The responder checks, because more than a key may open it (a ticket, a page for a browser).
    late: bool = False


_EVERYBODY: Final = Right(Door.OPEN)
_LOOK: Final = Right(Door.READS, READ)
_LOOK_LATE: Final = Right(Door.READS, READ, late=True)
_SUBMIT: Final = Right(Door.READS, SUBMIT, by_type=True)
_MANAGE: Final = Right(Door.CLOSED, SUBMIT, by_type=True)
_PRIVATE: Final = Right(Door.CLOSED, READ)
_ADMINISTER: Final = Right(Door.CLOSED, ADMIN)

#: Operation id → what it needs.
RIGHTS: Final[dict[str, Right]] = {
    "getHealth": _EVERYBODY,
    "getHealthAlias": _EVERYBODY,
    "getPrometheusMetrics": _LOOK,
    "getRoot": _LOOK_LATE,
    "getApi": _LOOK,
    "getOpenApi": _LOOK,
    "getDocs": _LOOK,
    "getClusterStatus": _LOOK,
    "getClusterHealth": _LOOK,
    "getClusterMetrics": _LOOK,
    "getClusterConfig": _PRIVATE,
    "listDevices": _LOOK,
    "getDeviceSummary": _LOOK,
    "getDevice": _LOOK,
    "getDeviceStatus": _LOOK,
    "pingDevice": _PRIVATE,
    "drainDevice": _ADMINISTER,
    "resumeDevice": _ADMINISTER,
    "removeDevice": _ADMINISTER,
    "makeJoinToken": _ADMINISTER,
    "submitTask": _SUBMIT,
    "submitTasks": _SUBMIT,
    "getTaskResults": _LOOK,
    "cancelTasks": _MANAGE,
    "listTasks": _LOOK,
    "getTaskStatistics": _LOOK,
    "getTaskTypes": _LOOK,
    "getTask": _LOOK,
    "getTaskStatus": _LOOK,
    "getTaskResult": _LOOK,
    "explainTask": _LOOK,
    "cancelTask": _MANAGE,
    "retryTask": _MANAGE,
    "pollEvents": _LOOK,
    "makeEventTicket": _PRIVATE,
    "streamEvents": _LOOK_LATE,
    "getConfig": _PRIVATE,
    "getServerConfig": _PRIVATE,
    "updateServerConfig": _ADMINISTER,
    "getHeartbeatConfig": _PRIVATE,
    "updateHeartbeatConfig": _ADMINISTER,
    "resetConfig": _ADMINISTER,
}


def may(scopes: Iterable[str], needed: str) -> bool:
    """Tell whether a key with these scopes may do what needs the scope `needed`."""
    return not needed or any(needed in HOLDS.get(scope, ()) for scope in scopes)


def of_type(task_type: str) -> str:
    """Return the scope that a task type needs.

    All but the harmless ones run code or reach out. Types of a device's own are among these: what
    they do is known to their device only, and what it says of them is no proof.
    """
    return SUBMIT if task_type in HARMLESS_TASK_TYPES else DANGEROUS


def judge(scopes: Collection[str], operation_id: str, task_type: str) -> None:
    """Raise `Forbidden` unless a key with these scopes may do this to tasks of that type."""
    for needed in (RIGHTS[operation_id].scope, of_type(task_type)):
        if not may(scopes, needed):
            raise Forbidden(
                f"{_VERBS[operation_id]} a task of the type {task_type} needs a key with the scope"
                f" {needed}",
                details={"scope": needed, "scopes": list(scopes), "task_type": task_type},
            )


_VERBS: Final = {
    "cancelTask": "Cancelling", "cancelTasks": "Cancelling", "retryTask": "Retrying",
}  # fmt: skip


class Cell(Enum):
    """Whether a caller may use an operation, as the table for people says it."""

    YES = "yes"
    NO = "no"
    HARMLESS = "harmless"

    def __str__(self) -> str:
        return self.value


def cell(operation_id: str, scope: str, *, reads_closed: bool) -> Cell:
    """Return what a key with this scope alone (empty: no key) may do with authentication on."""
    right = RIGHTS[operation_id]
    closed = right.door is Door.CLOSED or (right.door is Door.READS and reads_closed)
    scopes = (scope,) if scope else ()
    if closed and not may(scopes, right.scope):
        return Cell.NO
    if right.by_type and not may(scopes, DANGEROUS):
        return Cell.HARMLESS
    return Cell.YES


def table(operations: Iterable[tuple[str, str, str]]) -> str:
    """Return the table of docs/security.md, of `(method, path, operation id)`.

    Operations with the same rights share a row.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    for method, path, operation_id in operations:
        cells = []
        for scope in ("", *SCOPES):
            usual, closed = (str(cell(operation_id, scope, reads_closed=c)) for c in (False, True))
            cells.append(usual if usual == closed else f"{usual}, {closed}")
        rows.setdefault(tuple(cells), []).append(f"`{method} {path}`")
    head = ["operations", "no key", *(f"`{scope}`" for scope in SCOPES)]
    lines = [_row(head), _row(["---"] * len(head))]
    return "\n".join([*lines, *(_row([", ".join(what), *cells]) for cells, what in rows.items())])


def _row(words: Iterable[str]) -> str:
    return f"| {' | '.join(words)} |"
