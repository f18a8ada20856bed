"""What the REST API answers, as JSON Schema (2020-12): the `data` of each envelope.

`schemas/rest/openapi.py` publishes these, the contract tests hold real answers against them.
Objects are open: a client must not mind a field it does not know.
"""

from __future__ import annotations

from typing import Final

from retire_cluster.schemas.rest.device_responses import DEVICE_SCHEMAS
from retire_cluster.schemas.rest.shapes import (
    ANY_OBJECT,
    BOOL,
    COUNT,
    COUNTS,
    DEVICE_ID,
    HEALTH_WORD,
    NUMBER,
    RESOURCES,
    TASK_ID,
    TEXT,
    TIME,
    UPTIME,
    Json,
    list_of,
    map_of,
    object_of,
    or_null,
    ref,
)
from retire_cluster.schemas.rest.task_responses import TASK_SCHEMAS

_COMPONENTS: Final = object_of(
    {"api": HEALTH_WORD, "cluster_server": HEALTH_WORD, "task_scheduler": HEALTH_WORD}
)
_SERVER_INFO: Final = object_of({"version": TEXT, "uptime": UPTIME, "host": TEXT, "port": COUNT})

_SECTIONS: Final = (
    *("server", "heartbeat", "scheduler", "retention", "database", "logging", "api"),
)

#: Component name → schema, of everything that the REST API answers.
SCHEMAS: Final[dict[str, Json]] = {
    "Pagination": object_of(
        {
            "page": COUNT,
            "page_size": COUNT,
            "total_items": COUNT,
            "total_pages": COUNT,
            "has_next": BOOL,
            "has_previous": BOOL,
        },
        {"next_cursor": or_null(TEXT)},
    ),
    "Health": object_of({"status": HEALTH_WORD, "timestamp": TIME, "components": _COMPONENTS}),
    "ClusterHealth": object_of({"status": HEALTH_WORD, "components": _COMPONENTS}),
    "ApiInfo": object_of(
        {
            "api_version": TEXT,
            "server_info": _SERVER_INFO,
            "features": map_of(BOOL),
            "endpoints": list_of(object_of({"method": TEXT, "path": TEXT, "description": TEXT})),
        }
    ),
    "ClusterStatus": object_of(
        {
            "cluster_stats": object_of(
                {
                    "total_devices": COUNT,
                    "online_devices": COUNT,
                    "offline_devices": COUNT,
                    "health_percentage": NUMBER,
                    "total_resources": RESOURCES,
                    "by_role": COUNTS,
                    "by_platform": COUNTS,
                    "by_status": COUNTS,
                }
            ),
            "server_info": _SERVER_INFO,
            "tasks": object_of({"by_status": COUNTS, "queued": COUNT, "running": COUNT}),
        }
    ),
    "ClusterMetrics": object_of(
        {
            "devices": object_of(
                {"total": COUNT, "online": COUNT, "by_role": COUNTS, "by_platform": COUNTS}
            ),
            "resources": object_of(
                {
                    "total_cpu_cores": COUNT,
                    "total_memory_gb": NUMBER,
                    "total_storage_gb": NUMBER,
                    "average_utilization": or_null(NUMBER),
                }
            ),
            "performance": object_of(
                {
                    "average_response_time": or_null(NUMBER),
                    "request_rate": NUMBER,
                    "error_rate": NUMBER,
                    "dispatch_latency_ms": object_of(
                        {"p50": or_null(NUMBER), "p95": or_null(NUMBER), "p99": or_null(NUMBER)}
                    ),
                    "tasks_per_second": NUMBER,
                }
            ),
            "tasks": object_of({"by_status": COUNTS, "by_priority": COUNTS, "backlog": COUNT}),
        }
    ),
    "ClusterConfig": object_of(
        {
            "server": object_of({"host": TEXT, "port": COUNT, "max_connections": COUNT}),
            "heartbeat": object_of({"interval": NUMBER, "timeout": NUMBER, "max_missed": COUNT}),
            "features": object_of(
                {"task_scheduling": BOOL, "api_enabled": BOOL, "auth_required": BOOL}
            ),
        }
    ),
    **DEVICE_SCHEMAS,
    **TASK_SCHEMAS,
    "Configuration": object_of(dict.fromkeys(_SECTIONS, ANY_OBJECT)),
    "HeartbeatConfig": object_of({"interval": NUMBER, "timeout": NUMBER, "max_missed": COUNT}),
    "ServerConfig": object_of({"host": TEXT, "port": COUNT, "max_connections": COUNT}),
    "ConfigUpdated": object_of(
        {"updated_fields": list_of(TEXT), "updated_at": TIME, "current_config": ANY_OBJECT}
    ),
    "ConfigReset": object_of({"reset_at": TIME, "current_config": ANY_OBJECT}),
    "Event": object_of(
        {"id": COUNT, "type": TEXT, "at": TIME},
        {"task_id": or_null(TASK_ID), "device_id": or_null(DEVICE_ID), "data": ANY_OBJECT},
    ),
    "Events": object_of({"events": list_of(ref("Event")), "next": COUNT}, {"gap": BOOL}),
    "EventTicket": object_of({"ticket": TEXT, "expires_at": TIME}),
}
