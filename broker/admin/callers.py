"""What a facade says of the client whose call it passes on, and what follows from it.

A call without it is the admin socket's own: whoever has its key may do everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.schemas.rights import SCOPES, judge

#: The argument `caller` of what changes tasks.
CALLER: Final[dict[str, Any]] = {
    "caller": {
        "type": "dict",
        "schema": {
            "scopes": {
                "type": "list", "required": True, "maxlength": len(SCOPES),
                "schema": {"type": "string", "allowed": list(SCOPES)},
            },
        },
    }
}  # fmt: skip


def check(
    admin: AdminContext, args: Mapping[str, Any], operation_id: str, numbers: Iterable[int]
) -> None:
    """Raise `Forbidden` unless the call's client may do this to all of these present tasks."""
    caller = args.get("caller")
    if caller is None:
        return
    for task_type in {admin.state.ledger.task_type(number) for number in numbers}:
        judge(caller["scopes"], operation_id, task_type)
