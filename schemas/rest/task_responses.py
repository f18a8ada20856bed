"""What the REST API answers about tasks: the `data` of each envelope as JSON Schema (2020-12)."""

from __future__ import annotations

from typing import Final

from retire_cluster.schemas.rest.shapes import (
    ANY_OBJECT,
    BOOL,
    COUNT,
    COUNTS,
    DEVICE_ID,
    NUMBER,
    PRIORITY,
    STATUS,
    TASK_ID,
    TEXT,
    TIME,
    Json,
    list_of,
    map_of,
    object_of,
    or_null,
    ref,
)
from retire_cluster.schemas.text import truncation

_TASK: Final[Json] = {
    "task_id": TASK_ID,
    "task_type": TEXT,
    "status": STATUS,
    "priority": PRIORITY,
    "created_at": TIME,
    "assigned_device_id": or_null(DEVICE_ID),
    "assigned_at": or_null(TIME),
    "started_at": or_null(TIME),
    "completed_at": or_null(TIME),
    "execution_time_seconds": or_null(NUMBER),
    "retry_count": COUNT,
}
_DUE: Final[Json] = {
    "due_at": {**TIME, "description": "When a task that waits for its time is queued; else absent"}
}
_QUEUED_REASON: Final = object_of(
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
    "execution_time_seconds": or_null(NUMBER),
    "worker_device_id": or_null(DEVICE_ID),
    "started_at": or_null(TIME),
    "completed_at": or_null(TIME),
    "error_message": or_null(TEXT),
    "error_traceback": or_null(TEXT),
    "logs": {
        "type": "string",
        "description": "What the task printed; empty for `command`, whose `stdout` and `stderr`"
        " are in `result_data`",
    },
    "truncated": or_null(
        {
            "type": "object",
            "propertyNames": {"enum": list(truncation.PARTS)},
            "additionalProperties": object_of(
                {
                    "total_bytes": or_null(COUNT),
                    "kept_bytes": COUNT,
                    "missing": {"type": "string", "enum": list(truncation.MISSING)},
                }
            ),
            "description": "What is not whole: for each such part how many bytes came (null: not"
            " counted to the end), how many were kept, and which piece is missing",
        }
    ),
}
#: Component name → schema.
TASK_SCHEMAS: Final[dict[str, Json]] = {
    "Task": object_of(
        _TASK,
        {
            **_DUE,
            "label": {
                "type": "string",
                "description": "In lists: `metadata.name`, or the first words of its payload",
            },
        },
    ),
    "TaskSubmitted": object_of({"task_id": TASK_ID, "task": ref("Task"), "submitted_at": TIME}),
    "BatchSubmitted": object_of({"task_ids": list_of(TASK_ID)}, {"submitted_at": TIME}),
    "TaskDetails": object_of(
        {
            **_TASK,
            "payload": ANY_OBJECT,
            "requirements": ANY_OBJECT,
            "metadata": ANY_OBJECT,
            "attempts": list_of(ANY_OBJECT),
            "error_history": list_of({"description": "One failed attempt: when, where, why"}),
            "result": or_null(ANY_OBJECT),
        },
        _DUE,
    ),
    "TaskState": object_of(
        {
            **{name: _TASK[name] for name in _TASK if name != "task_type"},
            "attempt": COUNT,
            "progress": or_null(object_of({"percent": or_null(NUMBER), "message": or_null(TEXT)})),
            "is_terminal": BOOL,
            "can_retry": BOOL,
            "queued_reason": or_null(_QUEUED_REASON),
            "timestamp": TIME,
        },
        _DUE,
    ),
    "TaskExplanation": object_of(
        {
            "task_id": TASK_ID,
            "status": STATUS,
            "queued_reason": or_null(_QUEUED_REASON),
            "devices": list_of(
                object_of({"device_id": DEVICE_ID, "eligible": BOOL, "reasons": list_of(TEXT)})
            ),
        },
        {
            **_DUE,
            "described_otherwise_by": {
                **list_of(DEVICE_ID),
                "description": "Devices that describe the task's type otherwise than most; absent"
                " when there are none",
            },
        },
    ),
    "TaskResult": object_of(_RESULT),
    "TaskResults": object_of(
        {
            "results": list_of(object_of(_RESULT)),
            "unfinished": list_of(TASK_ID),
            "omitted": list_of(TASK_ID),
        }
    ),
    "TaskCancelled": object_of(
        {"task_id": TASK_ID, "status": STATUS, "cancelled_at": or_null(TIME)}
    ),
    "TasksCancelled": object_of(
        {"cancelled": list_of(TASK_ID), "not_cancelled": list_of(TASK_ID), "cancelled_at": TIME}
    ),
    "TaskRetried": object_of({"task_id": TASK_ID, "status": STATUS, "retried_at": TIME}),
    "TaskStatistics": object_of(
        {
            "queue_stats": object_of(
                {
                    "total_tasks": COUNT,
                    "by_status": COUNTS,
                    "by_priority": COUNTS,
                    "by_device": COUNTS,
                    "by_type": COUNTS,
                }
            ),
            "performance_metrics": object_of(
                {
                    "success_rate": or_null(NUMBER),
                    "average_execution_time": or_null(NUMBER),
                    "p95_execution_time": or_null(NUMBER),
                    "tasks_per_hour": NUMBER,
                    "device_utilization": {"description": "Share of the slots in use"},
                }
            ),
            "current_load": object_of(
                {
                    "pending_tasks": COUNT,
                    "running_tasks": COUNT,
                    "capacity_utilization": or_null(NUMBER),
                }
            ),
            "timestamp": TIME,
        }
    ),
    "TaskTypes": object_of(
        {
            "supported_types": list_of(TEXT),
            "builtin_types": list_of(TEXT),
            "custom_types": list_of(TEXT),
            "total_count": COUNT,
            "online_devices": COUNT,
            "by_type": map_of(
                object_of(
                    {
                        "devices": {"description": "Devices that advertise it"},
                        "payload_schema": or_null(ANY_OBJECT),
                        "description": TEXT,
                        "described_otherwise_by": {
                            **list_of(DEVICE_ID),
                            "description": "Devices that give another payload_schema than most",
                        },
                    }
                )
            ),
            "not_shown": {**COUNT, "description": "Own types beyond what one answer holds"},
        }
    ),
}
