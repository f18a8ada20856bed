"""The REST API as a table: one row an endpoint, with its query, body, answer and errors.

The facade enforces these very rows (queries, bodies, limits) and those of `schemas/rights.py`
(who may), and `schemas/rest/openapi.py` prints them, so they cannot differ. The steps to add an
endpoint are in CONTRIBUTING.md; they begin with a row here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from retire_cluster.schemas.rest import requests
from retire_cluster.schemas.rest.dialect import Schema
from retire_cluster.schemas.rights import RIGHTS, Door, Right, table
from retire_cluster.schemas.vocabulary import API as API


@dataclass(frozen=True)
class Endpoint:
    """One method of one path."""

    method: str
    path: str
    #: Name in clients generated from the OpenAPI document.
    operation_id: str
    tag: str
    summary: str
    #: Name of the schema of `data` in `schemas/rest/responses.py`; empty: not JSON.
    answer: str
    #: Cerberus schema of the query.
    query: Schema = field(default_factory=lambda: requests.NO_QUERY)
    #: Cerberus schema of the body, or None where the method takes none.
    body: Schema | None = None
    #: A body of nothing at all stands for `{}`.
    body_optional: bool = False
    #: `data` is a list of the answer, with `pagination` beside it.
    paged: bool = False
    status: int = 200
    #: Error codes beside those that any request may meet.
    errors: tuple[str, ...] = ()
    #: Costs no rate limit.
    unlimited: bool = False
    #: Needs the main node to be answered.
    needs_cluster: bool = True
    #: The answer is in no envelope.
    bare: bool = False
    #: Content type of the answer.
    media_type: str = "application/json"
    description: str = ""
    #: Ids of endpoints that go on from this answer.
    leads_to: tuple[str, ...] = ()
    #: An example of `data` (or of the bare answer), and of the body.
    example: Any = None
    body_example: Any = None

    @property
    def right(self) -> Right:
        """Return what a client needs to use this endpoint."""
        return RIGHTS[self.operation_id]

    @property
    def scope(self) -> str:
        """Return the scope of the key that is always needed; empty when none is."""
        return self.right.scope if self.right.door is Door.CLOSED else ""

    @property
    def always_open(self) -> bool:
        """Tell whether no key is checked before the responder, even with `auth_reads`."""
        return self.right.door is Door.OPEN or self.right.late


_DEVICE: Final = ("DEVICE_NOT_FOUND",)
_TASK: Final = ("TASK_NOT_FOUND",)
_SUBMIT: Final = ("IDEMPOTENCY_CONFLICT", "QUEUE_FULL", "FORBIDDEN")

_TASK_UUID: Final = "550e8400-e29b-41d4-a716-446655440000"
_TIME: Final = "2023-01-01T12:00:00Z"
_HEALTH_EXAMPLE: Final = {
    "status": "healthy",
    "timestamp": _TIME,
    "components": {"api": "healthy", "cluster_server": "healthy", "task_scheduler": "healthy"},
}
_SUBMISSION_EXAMPLE: Final = {
    "task_type": "echo",
    "payload": {"message": "Hello World"},
    "priority": "normal",
    "requirements": {
        "min_cpu_cores": 2,
        "min_memory_gb": 4,
        "required_platform": "linux",
        "timeout_seconds": 300,
    },
    "metadata": {"created_by": "api_user"},
}

_ROWS: Final = (
    # --- the API itself ---
    Endpoint(
        "GET", "/health", "getHealth", "Cluster", "Simple health check for monitoring",
        "Health", unlimited=True, bare=True, example=_HEALTH_EXAMPLE,
    ),
    Endpoint(
        "GET", "/api/health", "getHealthAlias", "Cluster", "The same as /health",
        "Health", unlimited=True, bare=True, example=_HEALTH_EXAMPLE,
    ),
    Endpoint(
        "GET", "/metrics", "getPrometheusMetrics", "Cluster", "Metrics for Prometheus",
        "", unlimited=True, needs_cluster=False, bare=True, media_type="text/plain",
    ),
    Endpoint(
        "GET", "/", "getRoot", "API",
        "The API's index for a program; a browser is sent to the dashboard",
        "ApiInfo",
    ),
    Endpoint("GET", API, "getApi", "API", "What this API offers", "ApiInfo"),
    Endpoint(
        "GET", f"{API}/openapi.json", "getOpenApi", "API", "This API as an OpenAPI 3.1 document",
        "", needs_cluster=False, bare=True,
    ),
    Endpoint(
        "GET", f"{API}/docs", "getDocs", "API", "This API as a page to read",
        "", needs_cluster=False, bare=True, media_type="text/html",
    ),
    # --- cluster ---
    Endpoint(
        "GET", f"{API}/cluster/status", "getClusterStatus", "Cluster",
        "Devices, health percentage, resource totals and task counts", "ClusterStatus",
        example={
            "cluster_stats": {
                "total_devices": 5, "online_devices": 4, "offline_devices": 1,
                "health_percentage": 80.0,
                "total_resources": {"cpu_cores": 32, "memory_gb": 128, "storage_gb": 2000},
                "by_role": {"compute": 2, "mobile": 2, "storage": 1},
                "by_platform": {"linux": 2, "android": 2, "windows": 1},
                "by_status": {"online": 4, "offline": 1},
            },
            "server_info": {
                "version": "1.0.0", "uptime": "2d 4h 30m", "host": "0.0.0.0", "port": 8080,
            },
            "tasks": {"by_status": {"queued": 3, "running": 2}, "queued": 3, "running": 2},
        },
    ),
    Endpoint(
        "GET", f"{API}/cluster/health", "getClusterHealth", "Cluster",
        "Health in the envelope; 503 when not healthy", "ClusterHealth",
    ),
    Endpoint(
        "GET", f"{API}/cluster/metrics", "getClusterMetrics", "Cluster",
        "Performance and utilization, measured", "ClusterMetrics",
    ),
    Endpoint(
        "GET", f"{API}/cluster/config", "getClusterConfig", "Cluster",
        "Cluster configuration settings", "ClusterConfig",
    ),
    # --- devices ---
    Endpoint(
        "GET", f"{API}/devices", "listDevices", "Devices", "Devices, by device id", "Device",
        query=requests.DEVICE_LIST_QUERY, paged=True,
        example=[
            {
                "device_id": "laptop-001", "role": "compute", "platform": "linux",
                "status": "online", "ip_address": "192.168.1.101", "last_heartbeat": _TIME,
                "uptime": "2h 30m",
                "capabilities": {
                    "cpu_count": 8, "memory_total_gb": 16, "storage_total_gb": 500,
                    "has_gpu": True,
                },
                "tags": ["development", "gpu-capable"], "accepting": True,
            }
        ],
    ),
    Endpoint(
        "GET", f"{API}/devices/summary", "getDeviceSummary", "Devices",
        "Summary statistics of all devices", "DeviceSummary",
    ),
    Endpoint(
        "GET", f"{API}/devices/{{device_id}}", "getDevice", "Devices",
        "Everything about one device", "DeviceDetails", errors=_DEVICE,
        leads_to=("getDeviceStatus", "pingDevice", "drainDevice", "removeDevice"),
    ),
    Endpoint(
        "GET", f"{API}/devices/{{device_id}}/status", "getDeviceStatus", "Devices",
        "Current status and load of a device", "DeviceState", errors=_DEVICE,
    ),
    Endpoint(
        "POST", f"{API}/devices/{{device_id}}/ping", "pingDevice", "Devices",
        "A real round trip to the device; 200 even when it does not answer", "Ping",
        body=requests.NO_BODY, body_optional=True, errors=_DEVICE,
    ),
    Endpoint(
        "POST", f"{API}/devices/{{device_id}}/drain", "drainDevice", "Devices",
        "Give a device nothing new; what it has it finishes", "DeviceState",
        body=requests.NO_BODY, body_optional=True, errors=_DEVICE,
    ),
    Endpoint(
        "POST", f"{API}/devices/{{device_id}}/resume", "resumeDevice", "Devices",
        "End a drain", "DeviceState",
        body=requests.NO_BODY, body_optional=True, errors=_DEVICE,
    ),
    Endpoint(
        "DELETE", f"{API}/devices/{{device_id}}", "removeDevice", "Devices",
        "Remove a device; its running tasks go back to the queue", "DeviceRemoval",
        body=requests.NO_BODY, body_optional=True, errors=_DEVICE,
    ),
    Endpoint(
        "POST", f"{API}/join-tokens", "makeJoinToken", "Devices",
        "The line that lets a new device join, with a token made for it", "JoinToken",
        body=requests.JOIN_TOKEN, body_optional=True, status=201,
        description="It is told this once. 403 when the worker bus is not encrypted: devices then"
        " join with `HOST:PORT`. Tokens are listed and revoked by `retire-cluster token`.",
    ),
    # --- tasks ---
    Endpoint(
        "POST", f"{API}/tasks", "submitTask", "Tasks", "Submit a task", "TaskSubmitted",
        body=requests.TASK_SUBMISSION, status=201, errors=_SUBMIT,
        leads_to=("getTaskStatus", "getTaskResult", "getTask", "explainTask", "cancelTask"),
        description="Types other than `echo`, `sleep` and `system_info` need a key (or, while"
        " authentication is off, a client on this machine). Whoever submits others without one has"
        " tasks of priority `normal` at most, short ones (403), and few at a time (429). With an"
        " `Idempotency-Key` header the same body gives the first answer again for 24 hours; another"
        " body is 409.",
        body_example=_SUBMISSION_EXAMPLE,
        example={
            "task_id": _TASK_UUID,
            "task": {
                "task_id": _TASK_UUID, "task_type": "echo", "status": "queued",
                "priority": "normal", "created_at": _TIME, "assigned_device_id": None,
                "assigned_at": None, "started_at": None, "completed_at": None,
                "execution_time_seconds": None, "retry_count": 0,
            },
            "submitted_at": _TIME,
        },
    ),
    Endpoint(
        "POST", f"{API}/tasks/batch", "submitTasks", "Tasks",
        "Submit up to 1000 tasks: all or none", "BatchSubmitted",
        body=requests.TASK_BATCH, status=201, errors=_SUBMIT,
        body_example={"tasks": [{"task_type": "echo", "payload": {"n": 1}}]},
        example={"task_ids": [_TASK_UUID], "submitted_at": _TIME},
    ),
    Endpoint(
        "POST", f"{API}/tasks/results", "getTaskResults", "Tasks",
        "The results of up to 1000 tasks in one answer", "TaskResults", errors=_TASK,
        query=requests.RESULT_QUERY,
        body=requests.TASK_RESULTS, body_example={"task_ids": [_TASK_UUID]},
        description="Tasks that have not ended are listed under `unfinished`, those whose results"
        " did not fit into one answer (8 MiB) under `omitted`: ask for these again.",
        example={"results": [], "unfinished": [_TASK_UUID], "omitted": []},
    ),
    Endpoint(
        "POST", f"{API}/tasks/cancel", "cancelTasks", "Tasks",
        "Cancel up to 1000 tasks; running ones are killed", "TasksCancelled",
        body=requests.TASKS_CANCEL, body_example={"task_ids": [_TASK_UUID]},
        description="Tasks that have ended, or are not known, are listed under `not_cancelled`.",
        example={"cancelled": [_TASK_UUID], "not_cancelled": [], "cancelled_at": _TIME},
    ),
    Endpoint(
        "GET", f"{API}/tasks", "listTasks", "Tasks", "Tasks, newest first", "Task",
        query=requests.TASK_LIST_QUERY, paged=True,
    ),
    Endpoint(
        "GET", f"{API}/tasks/statistics", "getTaskStatistics", "Tasks",
        "Execution statistics and performance, measured", "TaskStatistics",
    ),
    Endpoint(
        "GET", f"{API}/tasks/types", "getTaskTypes", "Tasks",
        "Task types, built in and of all devices", "TaskTypes",
    ),
    Endpoint(
        "GET", f"{API}/tasks/{{task_id}}", "getTask", "Tasks",
        "A task with payload, requirements, attempts and result", "TaskDetails", errors=_TASK,
        leads_to=("getTaskResult", "cancelTask", "retryTask", "getDevice"),
    ),
    Endpoint(
        "GET", f"{API}/tasks/{{task_id}}/status", "getTaskStatus", "Tasks",
        "Current status, progress and, while it waits, why", "TaskState", errors=_TASK,
        leads_to=("getTaskResult", "explainTask", "cancelTask", "retryTask", "getDevice"),
    ),
    Endpoint(
        "GET", f"{API}/tasks/{{task_id}}/result", "getTaskResult", "Tasks",
        "The result of a finished task", "TaskResult", errors=(*_TASK, "NO_TASK_RESULT"),
        query=requests.RESULT_QUERY,
        leads_to=("retryTask", "getDevice"),
        example={
            "task_id": _TASK_UUID, "status": "success",
            "result_data": {"echo": {"message": "Hello World"}},
            "execution_time_seconds": 0.05, "worker_device_id": "laptop-001",
            "started_at": _TIME, "completed_at": _TIME, "error_message": None,
            "error_traceback": None, "logs": "", "truncated": None,
        },
    ),
    Endpoint(
        "GET", f"{API}/tasks/{{task_id}}/explanation", "explainTask", "Tasks",
        "Per device, whether it may run the task now and why not", "TaskExplanation",
        errors=_TASK,
        example={
            "task_id": _TASK_UUID, "status": "queued",
            "queued_reason": {
                "eligible_devices": 0, "busy_devices": 0, "rejected": {"missing tag gpu": 1},
            },
            "devices": [
                {"device_id": "laptop-001", "eligible": False, "reasons": ["missing tag gpu"]},
            ],
        },
    ),
    Endpoint(
        "POST", f"{API}/tasks/{{task_id}}/cancel", "cancelTask", "Tasks",
        "Cancel a waiting or running task; a running one is killed", "TaskCancelled",
        body=requests.NO_BODY, body_optional=True,
        errors=(*_TASK, "CANNOT_CANCEL_TASK"),
    ),
    Endpoint(
        "POST", f"{API}/tasks/{{task_id}}/retry", "retryTask", "Tasks",
        "Run a failed, timed-out or cancelled task again", "TaskRetried",
        body=requests.NO_BODY, body_optional=True,
        errors=(*_TASK, "CANNOT_RETRY_TASK", "TASK_JUST_ENDED"),
        leads_to=("getTaskStatus", "getTaskResult"),
    ),
    # --- events ---
    Endpoint(
        "GET", f"{API}/events", "pollEvents", "Events", "Events after a cursor, as a long poll",
        "Events", query=requests.EVENTS_QUERY, unlimited=True, leads_to=("pollEvents",),
        description="Pass the `next` of one answer as `since` of the next request. `gap: true`"
        " says that some events between are no longer kept. `/ws` streams the same events.",
    ),
    Endpoint(
        "POST", f"{API}/events/ticket", "makeEventTicket", "Events",
        "A short-lived ticket for /ws?ticket=, for pages that cannot send headers",
        "EventTicket", body=requests.NO_BODY, body_optional=True,
        needs_cluster=False, leads_to=("streamEvents",),
    ),
    Endpoint(
        "GET", "/ws", "streamEvents", "Events", "Events as a WebSocket, one JSON event a message",
        "", query=requests.STREAM_QUERY, status=101, unlimited=True, bare=True,
        needs_cluster=False,
        description="Begins after `since`, else with the next event. With `auth_reads` a key or"
        " a `ticket` is needed. A client that falls behind is disconnected and resumes with the"
        " `id` of the last event it got. Without `Upgrade: websocket` the answer is 426.",
    ),
    # --- configuration ---
    Endpoint(
        "GET", f"{API}/config", "getConfig", "Configuration", "The complete configuration",
        "Configuration",
    ),
    Endpoint(
        "GET", f"{API}/config/server", "getServerConfig", "Configuration",
        "Server configuration", "ServerConfig",
    ),
    Endpoint(
        "PUT", f"{API}/config/server", "updateServerConfig", "Configuration",
        "Change some of it; applied at once", "ConfigUpdated",
        body=requests.SERVER_CONFIG, body_example={"max_connections": 100},
    ),
    Endpoint(
        "GET", f"{API}/config/heartbeat", "getHeartbeatConfig", "Configuration",
        "Heartbeat configuration", "HeartbeatConfig",
    ),
    Endpoint(
        "PUT", f"{API}/config/heartbeat", "updateHeartbeatConfig", "Configuration",
        "Change some of it; pushed to the devices at once", "ConfigUpdated",
        body=requests.HEARTBEAT_CONFIG,
        body_example={"interval": 60, "timeout": 300, "max_missed": 3},
    ),
    Endpoint(
        "POST", f"{API}/config/reset", "resetConfig", "Configuration",
        "Reset all configuration to defaults", "ConfigReset",
        body=requests.NO_BODY, body_optional=True,
    ),
)  # fmt: skip

#: `(method, path template)` → its row; HEAD is not listed, it works wherever GET does.
ENDPOINTS: Final[dict[tuple[str, str], Endpoint]] = {(row.method, row.path): row for row in _ROWS}


def rights_table() -> str:
    """Who may do what, as docs/security.md shows it."""
    return table((row.method, row.path.removeprefix(API) or API, row.operation_id) for row in _ROWS)
