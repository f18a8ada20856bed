"""`task.types`: what can be submitted, who offers it, and who describes it otherwise."""

from __future__ import annotations

from typing import Any, Final

from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.registry import operation
from retire_cluster.broker.core.devices.type_registry import DEVICES_TOLD, Consensus
from retire_cluster.schemas.rest.json_schema import json_schema
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text.json_text import dumps

#: Own types in one answer, and bytes of their descriptions.
_MOST_TYPES: Final = 1_000
_MOST_BYTES: Final = 1024 * 1024


@operation("task.types", {})
def types(admin: AdminContext, call: Call) -> Reply:
    """Answer the types that can be submitted, and how many devices offer each now."""
    state = admin.state
    online = [device for device in state.devices.values() if device.online]
    builtin = list(BUILTIN)
    by_type: dict[str, Any] = {
        name: {
            "devices": sum(name in device.types for device in online),
            **_described(Consensus(BUILTIN[name], ())),
        }
        for name in builtin
    }
    custom: list[str] = []
    size = 0
    for name in sorted(
        state.own_types.names, key=lambda name: (-len(state.own_types.of(name)), name)
    ):
        judged = state.own_types.consensus(name)
        assert judged is not None
        described = _described(judged)
        size += len(dumps(described))
        if len(custom) >= _MOST_TYPES or size > _MOST_BYTES:
            break
        custom.append(name)
        here = sum(device.online for device in state.own_types.of(name))
        by_type[name] = {"devices": here, **described}
    custom.sort()
    return Reply(
        {
            "supported_types": [*builtin, *custom],
            "builtin_types": builtin,
            "custom_types": custom,
            "total_count": len(builtin) + len(state.own_types.names),
            "not_shown": len(state.own_types.names) - len(custom),
            "online_devices": len(online),
            "by_type": by_type,
        }
    )


def _described(judged: Consensus) -> dict[str, Any]:
    info = judged.info
    schema = info.payload_schema
    return {
        "payload_schema": {"type": "object"} if schema is None else json_schema(schema),
        "description": info.description,
        "repeatable": info.repeatable,
        "described_otherwise_by": list(judged.otherwise[:DEVICES_TOLD]),
    }
