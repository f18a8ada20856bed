"""Every operation of the admin socket (docs/protocol.md, Admin socket)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from retire_cluster.broker.admin import (
    access,
    cluster,
    devices,
    facade,
    polls,
    submit,
    tasks,
    types,
    waits,
)
from retire_cluster.broker.admin.registry import AdminOperation
from retire_cluster.schemas.errors import NotFound

_ALL: Final = (
    access.create_token,
    access.list_tokens,
    access.revoke_token,
    access.add_admin_key,
    access.list_admin_keys,
    access.revoke_admin_key,
    access.authorise,
    access.api_keys_used,
    access.api_keys_changed,
    access.api_key_uses,
    cluster.info,
    cluster.health,
    cluster.status,
    cluster.metrics,
    cluster.prometheus,
    cluster.cluster_config,
    cluster.get_config,
    cluster.update_config,
    cluster.reset_config,
    devices.list_devices,
    devices.get,
    devices.status,
    devices.ping,
    devices.remove,
    devices.readmit,
    devices.drain,
    devices.resume,
    devices.summary,
    facade.identity,
    facade.hit,
    facade.report,
    polls.poll,
    submit.submit,
    tasks.list_tasks,
    tasks.get,
    tasks.status,
    tasks.result,
    tasks.explain,
    tasks.cancel,
    tasks.cancel_many,
    tasks.retry,
    tasks.statistics,
    types.types,
    waits.wait,
)

#: By name, as calls name them.
OPERATIONS: Final[Mapping[str, AdminOperation]] = {each.name: each for each in _ALL}


def find(name: str) -> AdminOperation:
    """Return an operation by name. Raises `NotFound` naming those that exist."""
    try:
        return OPERATIONS[name]
    except KeyError:
        known = ", ".join(sorted(OPERATIONS))
        raise NotFound(f"There is no operation {name[:64]!r}; there are {known}.") from None
