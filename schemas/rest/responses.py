"""What the REST API answers, as JSON Schema (2020-12): the `data` of each envelope.

`schemas/rest/openapi.py` publishes these, the contract tests hold real answers against them.
Objects are open: a client must not mind a field it does not know.
"""

from __future__ import annotations

from typing import Any, Final

from retire_cluster.schemas.text import truncation
from retire_cluster.schemas.vocabulary import (
    PASSED_OVER_CAUSES,
    PRIORITIES,
    DeviceStatus,
    Platform,
    Role,
    TaskStatus,
)

Json = dict[str, Any]


def _object(required: Json, optional: Json | None = None, description: str = "") -> Json:
    found: Json = {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }
    return {**found, "description": description} if description else found


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _map(values: Json) -> Json:
    return {"type": "object", "additionalProperties": values}


def _maybe(schema: Json) -> Json:
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


TEXT: Final[Json] = {"type": "string"}
BOOL: Final[Json] = {"type": "boolean"}
COUNT: Final[Json] = {"type": "integer", "minimum": 0}
NUMBER: Final[Json] = {"type": "number"}
TIME: Final[Json] = {
    "type": "string",
    "format": "date-time",
    "pattern": "Z$",
    "examples": ["2023-01-01T12:00:00Z"],
}
UPTIME: Final[Json] = {"type": "string", "examples": ["2d 4h 30m"]}
ANY_OBJECT: Final[Json] = {"type": "object"}
COUNTS: Final[Json] = _map(COUNT)
TASK_ID: Final[Json] = {
    "type": "string",
    "format": "uuid",
    "examples": ["550e8400-e29b-41d4-a716-446655440000"],
}
DEVICE_ID: Final[Json] = {"type": "string", "examples": ["laptop-001"]}
STATUS: Final[Json] = {"type": "string", "enum": [str(status) for status in TaskStatus]}
PRIORITY: Final[Json] = {"type": "string", "enum": list(PRIORITIES)}
DEVICE_STATUS: Final[Json] = {"type": "string", "enum": [str(status) for status in DeviceStatus]}
HEALTH_WORD: Final[Json] = {"type": "string", "enum": ["healthy", "degraded", "unhealthy"]}

_RESOURCES: Final = _object({"cpu_cores": COUNT, "memory_gb": NUMBER, "storage_gb": NUMBER})
_COMPONENTS: Final = _object(
    {"api": HEALTH_WORD, "cluster_server": HEALTH_WORD, "task_scheduler": HEALTH_WORD}
)
_SERVER_INFO: Final = _object({"version": TEXT, "uptime": UPTIME, "host": TEXT, "port": COUNT})

_TASK: Final[Json] = {
    "task_id": TASK_ID,
    "task_type": TEXT,
    "status": STATUS,
    "priority": PRIORITY,
    "created_at": TIME,
    "assigned_device_id": _maybe(DEVICE_ID),
    "assigned_at": _maybe(TIME),
    "started_at": _maybe(TIME),
    "completed_at": _maybe(TIME),
    "execution_time_seconds": _maybe(NUMBER),
    "retry_count": COUNT,
}
_DUE: Final[Json] = {
    "due_at": {**TIME, "description": "When a task that waits for its time is queued; else absent"}
}
_QUEUED_REASON: Final = _object(
    {"eligible_devices": COUNT, "busy_devices": COUNT, "rejected": COUNTS},
    {
        "given_back": {
            **COUNTS,
            "description": "How often devices gave it back; absent when none did twice",
        }
    },
    description="Why it waits: how many devices could run it, are busy, or cannot and why",
)
_RESULT: Final[Json] = {
    "task_id": TASK_ID,
    "status": STATUS,
    "result_data": {"description": "What the task type gives; any JSON"},
    "execution_time_seconds": _maybe(NUMBER),
    "worker_device_id": _maybe(DEVICE_ID),
    "started_at": _maybe(TIME),
    "completed_at": _maybe(TIME),
    "error_message": _maybe(TEXT),
    "error_traceback": _maybe(TEXT),
    "logs": {
        "type": "string",
        "description": "What the task printed; empty for `command`, whose `stdout` and `stderr`"
        " are in `result_data`",
    },
    "truncated": _maybe(
        {
            "type": "object",
            "propertyNames": {"enum": list(truncation.PARTS)},
            "additionalProperties": _object(
                {
                    "total_bytes": _maybe(COUNT),
                    "kept_bytes": COUNT,
                    "missing": {"type": "string", "enum": list(truncation.MISSING)},
                }
            ),
            "description": "What is not whole: for each such part how many bytes came (null: not"
            " counted to the end), how many were kept, and which piece is missing",
        }
    ),
}
_DEVICE: Final[Json] = {
    "device_id": DEVICE_ID,
    "role": {"type": "string", "enum": [role.value for role in Role]},
    "platform": {"type": "string", "enum": [platform.value for platform in Platform]},
    "status": DEVICE_STATUS,
    "ip_address": _maybe(TEXT),
    "last_heartbeat": _maybe(TIME),
    "uptime": _maybe(UPTIME),
    "capabilities": _object(
        {},
        {
            "cpu_count": _maybe(COUNT),
            "memory_total_gb": _maybe(NUMBER),
            "storage_total_gb": _maybe(NUMBER),
            "has_gpu": _maybe(BOOL),
        },
    ),
    "tags": _list(TEXT),
    "accepting": {"type": "boolean", "description": "False while offline or drained"},
}
_METRICS: Final = _object(
    {},
    {
        **dict.fromkeys(
            ("cpu_percent", "memory_percent", "disk_percent", "temperature_c", "battery_percent"),
            _maybe(NUMBER),
        ),
        "load_average": {"description": "Load of the last minute, where the system tells"},
        "power_plugged": _maybe(BOOL),
    },
)

_SECTIONS: Final = (
    *("server", "heartbeat", "scheduler", "retention", "database", "logging", "api"),
)

#: Component name → schema.
SCHEMAS: Final[dict[str, Json]] = {
    "Pagination": _object(
        {
            "page": COUNT,
            "page_size": COUNT,
            "total_items": COUNT,
            "total_pages": COUNT,
            "has_next": BOOL,
            "has_previous": BOOL,
        },
        {"next_cursor": _maybe(TEXT)},
    ),
    "Health": _object({"status": HEALTH_WORD, "timestamp": TIME, "components": _COMPONENTS}),
    "ClusterHealth": _object({"status": HEALTH_WORD, "components": _COMPONENTS}),
    "ApiInfo": _object(
        {
            "api_version": TEXT,
            "server_info": _SERVER_INFO,
            "features": _map(BOOL),
            "endpoints": _list(_object({"method": TEXT, "path": TEXT, "description": TEXT})),
        }
    ),
    "ClusterStatus": _object(
        {
            "cluster_stats": _object(
                {
                    "total_devices": COUNT,
                    "online_devices": COUNT,
                    "offline_devices": COUNT,
                    "health_percentage": NUMBER,
                    "total_resources": _RESOURCES,
                    "by_role": COUNTS,
                    "by_platform": COUNTS,
                    "by_status": COUNTS,
                }
            ),
            "server_info": _SERVER_INFO,
            "tasks": _object({"by_status": COUNTS, "queued": COUNT, "running": COUNT}),
        }
    ),
    "ClusterMetrics": _object(
        {
            "devices": _object(
                {"total": COUNT, "online": COUNT, "by_role": COUNTS, "by_platform": COUNTS}
            ),
            "resources": _object(
                {
                    "total_cpu_cores": COUNT,
                    "total_memory_gb": NUMBER,
                    "total_storage_gb": NUMBER,
                    "average_utilization": _maybe(NUMBER),
                }
            ),
            "performance": _object(
                {
                    "average_response_time": _maybe(NUMBER),
                    "request_rate": NUMBER,
                    "error_rate": NUMBER,
                    "dispatch_latency_ms": _object(
                        {"p50": _maybe(NUMBER), "p95": _maybe(NUMBER), "p99": _maybe(NUMBER)}
                    ),
                    "tasks_per_second": NUMBER,
                }
            ),
            "tasks": _object({"by_status": COUNTS, "by_priority": COUNTS, "backlog": COUNT}),
        }
    ),
    "ClusterConfig": _object(
        {
            "server": _object({"host": TEXT, "port": COUNT, "max_connections": COUNT}),
            "heartbeat": _object({"interval": NUMBER, "timeout": NUMBER, "max_missed": COUNT}),
            "features": _object(
                {"task_scheduling": BOOL, "api_enabled": BOOL, "auth_required": BOOL}
            ),
        }
    ),
    "Device": _object(_DEVICE),
    "DeviceDetails": _object(
        {
            **_DEVICE,
            "hostname": _maybe(TEXT),
            "registered_at": _maybe(TIME),
            "total_heartbeats": COUNT,
            "task_types": _list(TEXT),
            "slots": COUNT,
            "running_tasks": _list(TASK_ID),
            "tasks_succeeded": COUNT,
            "tasks_failed": COUNT,
            "task_types_left_out": {
                **_list(TEXT),
                "description": "Own types it has that cannot be offered, each with the reason",
            },
            "task_types_disputed": {
                **_list(TEXT),
                "description": "Own types whose payload_schema it gives otherwise than most do",
            },
            "walls": {
                **_list(TEXT),
                "description": "What it keeps tasks from, and by what: `files: Landlock`",
            },
            "own_task_types": _list(
                _object(
                    {"name": TEXT, "distribution": TEXT, "version": _maybe(TEXT)},
                    description="The package that each own type comes from",
                )
            ),
            "last_error": _maybe(TEXT),
            "messages_dropped": {
                **COUNTS,
                "description": "By kind: what it said beyond its budget, dropped unread",
            },
            "passed_over": _list(
                _object(
                    {
                        "task_type": TEXT,
                        "needs": _maybe(TEXT),
                        "cause": {"type": "string", "enum": list(PASSED_OVER_CAUSES)},
                        "message": TEXT,
                        "since": TIME,
                        "until": TIME,
                    },
                    description="Kinds of task that it gets none of for a while, and why",
                )
            ),
            "metrics": _METRICS,
            "metrics_history": _list(ANY_OBJECT),
        }
    ),
    "DeviceState": _object(
        {
            "device_id": DEVICE_ID,
            "status": DEVICE_STATUS,
            "is_online": BOOL,
            "last_heartbeat": _maybe(TIME),
            "uptime": _maybe(UPTIME),
            "response_time_ms": _maybe(NUMBER),
            "current_load": _object(
                {
                    "running_tasks": COUNT,
                    "slots": COUNT,
                    "cpu_percent": _maybe(NUMBER),
                    "memory_percent": _maybe(NUMBER),
                }
            ),
            "accepting": BOOL,
            "not_accepting_reason": _maybe(TEXT),
            "timestamp": TIME,
        }
    ),
    "Ping": _object(
        {
            "device_id": DEVICE_ID,
            "ping_successful": BOOL,
            "response_time_ms": _maybe(NUMBER),
            "ping_timestamp": TIME,
            "duration_ms": NUMBER,
        }
    ),
    "DeviceRemoval": _object(
        {"device_id": DEVICE_ID, "removed_at": TIME, "was_online": BOOL, "removal_reason": TEXT}
    ),
    "JoinToken": _object(
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
    "DeviceSummary": _object(
        {
            "total_devices": COUNT,
            "online_devices": COUNT,
            "offline_devices": COUNT,
            "by_role": COUNTS,
            "by_platform": COUNTS,
            "by_status": COUNTS,
            "resource_totals": _RESOURCES,
            "capabilities": _object(
                {"gpu_enabled": COUNT, "mobile_devices": COUNT, "server_grade": COUNT}
            ),
        }
    ),
    "Task": _object(
        _TASK,
        {
            **_DUE,
            "label": {
                "type": "string",
                "description": "In lists: `metadata.name`, or the first words of its payload",
            },
        },
    ),
    "TaskSubmitted": _object({"task_id": TASK_ID, "task": _ref("Task"), "submitted_at": TIME}),
    "BatchSubmitted": _object({"task_ids": _list(TASK_ID)}, {"submitted_at": TIME}),
    "TaskDetails": _object(
        {
            **_TASK,
            "payload": ANY_OBJECT,
            "requirements": ANY_OBJECT,
            "metadata": ANY_OBJECT,
            "attempts": _list(ANY_OBJECT),
            "error_history": _list({"description": "One failed attempt: when, where, why"}),
            "result": _maybe(ANY_OBJECT),
        },
        _DUE,
    ),
    "TaskState": _object(
        {
            **{name: _TASK[name] for name in _TASK if name != "task_type"},
            "attempt": COUNT,
            "progress": _maybe(_object({"percent": _maybe(NUMBER), "message": _maybe(TEXT)})),
            "is_terminal": BOOL,
            "can_retry": BOOL,
            "queued_reason": _maybe(_QUEUED_REASON),
            "timestamp": TIME,
        },
        _DUE,
    ),
    "TaskExplanation": _object(
        {
            "task_id": TASK_ID,
            "status": STATUS,
            "queued_reason": _maybe(_QUEUED_REASON),
            "devices": _list(
                _object({"device_id": DEVICE_ID, "eligible": BOOL, "reasons": _list(TEXT)})
            ),
        },
        {
            **_DUE,
            "described_otherwise_by": {
                **_list(DEVICE_ID),
                "description": "Devices that describe the task's type otherwise than most; absent"
                " when there are none",
            },
        },
    ),
    "TaskResult": _object(_RESULT),
    "TaskResults": _object(
        {
            "results": _list(_object(_RESULT)),
            "unfinished": _list(TASK_ID),
            "omitted": _list(TASK_ID),
        }
    ),
    "TaskCancelled": _object({"task_id": TASK_ID, "status": STATUS, "cancelled_at": _maybe(TIME)}),
    "TasksCancelled": _object(
        {"cancelled": _list(TASK_ID), "not_cancelled": _list(TASK_ID), "cancelled_at": TIME}
    ),
    "TaskRetried": _object({"task_id": TASK_ID, "status": STATUS, "retried_at": TIME}),
    "TaskStatistics": _object(
        {
            "queue_stats": _object(
                {
                    "total_tasks": COUNT,
                    "by_status": COUNTS,
                    "by_priority": COUNTS,
                    "by_device": COUNTS,
                    "by_type": COUNTS,
                }
            ),
            "performance_metrics": _object(
                {
                    "success_rate": _maybe(NUMBER),
                    "average_execution_time": _maybe(NUMBER),
                    "p95_execution_time": _maybe(NUMBER),
                    "tasks_per_hour": NUMBER,
                    "device_utilization": {"description": "Share of the slots in use"},
                }
            ),
            "current_load": _object(
                {
                    "pending_tasks": COUNT,
                    "running_tasks": COUNT,
                    "capacity_utilization": _maybe(NUMBER),
                }
            ),
            "timestamp": TIME,
        }
    ),
    "TaskTypes": _object(
        {
            "supported_types": _list(TEXT),
            "builtin_types": _list(TEXT),
            "custom_types": _list(TEXT),
            "total_count": COUNT,
            "online_devices": COUNT,
            "by_type": _map(
                _object(
                    {
                        "devices": {"description": "Devices that advertise it"},
                        "payload_schema": _maybe(ANY_OBJECT),
                        "description": TEXT,
                        "described_otherwise_by": {
                            **_list(DEVICE_ID),
                            "description": "Devices that give another payload_schema than most",
                        },
                    }
                )
            ),
            "not_shown": {**COUNT, "description": "Own types beyond what one answer holds"},
        }
    ),
    "Configuration": _object(dict.fromkeys(_SECTIONS, ANY_OBJECT)),
    "HeartbeatConfig": _object({"interval": NUMBER, "timeout": NUMBER, "max_missed": COUNT}),
    "ServerConfig": _object({"host": TEXT, "port": COUNT, "max_connections": COUNT}),
    "ConfigUpdated": _object(
        {"updated_fields": _list(TEXT), "updated_at": TIME, "current_config": ANY_OBJECT}
    ),
    "ConfigReset": _object({"reset_at": TIME, "current_config": ANY_OBJECT}),
    "Event": _object(
        {"id": COUNT, "type": TEXT, "at": TIME},
        {"task_id": _maybe(TASK_ID), "device_id": _maybe(DEVICE_ID), "data": ANY_OBJECT},
    ),
    "Events": _object({"events": _list(_ref("Event")), "next": COUNT}, {"gap": BOOL}),
    "EventTicket": _object({"ticket": TEXT, "expires_at": TIME}),
}
