"""What the REST API answers about devices: the `data` of each envelope as JSON Schema (2020-12)."""

from __future__ import annotations

from typing import Final

from retire_cluster.schemas.rest.shapes import (
    ANY_OBJECT,
    BOOL,
    COUNT,
    COUNTS,
    DEVICE_ID,
    DEVICE_STATUS,
    NUMBER,
    RESOURCES,
    TASK_ID,
    TEXT,
    TIME,
    UPTIME,
    Json,
    list_of,
    object_of,
    or_null,
)
from retire_cluster.schemas.vocabulary import PASSED_OVER_CAUSES, Platform, Role

_DEVICE: Final[Json] = {
    "device_id": DEVICE_ID,
    "role": {"type": "string", "enum": [role.value for role in Role]},
    "platform": {"type": "string", "enum": [platform.value for platform in Platform]},
    "status": DEVICE_STATUS,
    "ip_address": or_null(TEXT),
    "last_heartbeat": or_null(TIME),
    "uptime": or_null(UPTIME),
    "capabilities": object_of(
        {},
        {
            "cpu_count": or_null(COUNT),
            "memory_total_gb": or_null(NUMBER),
            "storage_total_gb": or_null(NUMBER),
            "has_gpu": or_null(BOOL),
        },
    ),
    "tags": list_of(TEXT),
    "accepting": {"type": "boolean", "description": "False while offline or drained"},
}
_METRICS: Final = object_of(
    {},
    {
        **dict.fromkeys(
            ("cpu_percent", "memory_percent", "disk_percent", "temperature_c", "battery_percent"),
            or_null(NUMBER),
        ),
        "load_average": {"description": "Load of the last minute, where the system tells"},
        "power_plugged": or_null(BOOL),
    },
)

#: Component name → schema.
DEVICE_SCHEMAS: Final[dict[str, Json]] = {
    "Device": object_of(_DEVICE),
    "DeviceDetails": object_of(
        {
            **_DEVICE,
            "hostname": or_null(TEXT),
            "registered_at": or_null(TIME),
            "total_heartbeats": COUNT,
            "task_types": list_of(TEXT),
            "slots": COUNT,
            "running_tasks": list_of(TASK_ID),
            "tasks_succeeded": COUNT,
            "tasks_failed": COUNT,
            "task_types_left_out": {
                **list_of(TEXT),
                "description": "Own types it has that cannot be offered, each with the reason",
            },
            "task_types_disputed": {
                **list_of(TEXT),
                "description": "Own types whose payload_schema it gives otherwise than most do",
            },
            "walls": {
                **list_of(TEXT),
                "description": "What it keeps tasks from, and by what: `files: Landlock`",
            },
            "own_task_types": list_of(
                object_of(
                    {"name": TEXT, "distribution": TEXT, "version": or_null(TEXT)},
                    description="The package that each own type comes from",
                )
            ),
            "last_error": or_null(TEXT),
            "messages_dropped": {
                **COUNTS,
                "description": "By kind: what it said beyond its budget, dropped unread",
            },
            "passed_over": list_of(
                object_of(
                    {
                        "task_type": TEXT,
                        "needs": or_null(TEXT),
                        "cause": {"type": "string", "enum": list(PASSED_OVER_CAUSES)},
                        "message": TEXT,
                        "since": TIME,
                        "until": TIME,
                    },
                    description="Kinds of task that it gets none of for a while, and why",
                )
            ),
            "metrics": _METRICS,
            "metrics_history": list_of(ANY_OBJECT),
        }
    ),
    "DeviceState": object_of(
        {
            "device_id": DEVICE_ID,
            "status": DEVICE_STATUS,
            "is_online": BOOL,
            "last_heartbeat": or_null(TIME),
            "uptime": or_null(UPTIME),
            "response_time_ms": or_null(NUMBER),
            "current_load": object_of(
                {
                    "running_tasks": COUNT,
                    "slots": COUNT,
                    "cpu_percent": or_null(NUMBER),
                    "memory_percent": or_null(NUMBER),
                }
            ),
            "accepting": BOOL,
            "not_accepting_reason": or_null(TEXT),
            "timestamp": TIME,
        }
    ),
    "Ping": object_of(
        {
            "device_id": DEVICE_ID,
            "ping_successful": BOOL,
            "response_time_ms": or_null(NUMBER),
            "ping_timestamp": TIME,
            "duration_ms": NUMBER,
        }
    ),
    "DeviceRemoval": object_of(
        {"device_id": DEVICE_ID, "removed_at": TIME, "was_online": BOOL, "removal_reason": TEXT}
    ),
    "JoinToken": object_of(
        {
            "join": {"type": "string", "description": "The word to paste on a device"},
            "command": {"type": "string", "description": "The line to paste on a device"},
            "one_line": {
                "type": ["string", "null"],
                "description": "For a device with only Python; null where `retire-cluster up`"
                " does not serve the installer.",
            },
            "local_only": {
                "type": "boolean",
                "description": "The address is this machine's own: other devices cannot join",
            },
            "token_id": TEXT,
            "uses": COUNT,
            "expires_at": TIME,
        }
    ),
    "DeviceSummary": object_of(
        {
            "total_devices": COUNT,
            "online_devices": COUNT,
            "offline_devices": COUNT,
            "by_role": COUNTS,
            "by_platform": COUNTS,
            "by_status": COUNTS,
            "resource_totals": RESOURCES,
            "capabilities": object_of(
                {"gpu_enabled": COUNT, "mobile_devices": COUNT, "server_grade": COUNT}
            ),
        }
    ),
}
