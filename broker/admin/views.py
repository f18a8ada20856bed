"""Tasks and devices as the REST document shows them. Pure: rows and state in, JSON values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retire_cluster.broker.admin.timestamps import duration, optional_stamp, stamp
from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.instructions import PingOver
from retire_cluster.broker.core.model import METRICS, Device, Task
from retire_cluster.broker.core.records.event_log import Entry
from retire_cluster.broker.core.rows import AttemptRow, OutcomeRow, TaskRow
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.schemas import needs
from retire_cluster.schemas.ids import TaskIds
from retire_cluster.schemas.protocol.messages import DRAINED_BY_ADMINISTRATOR
from retire_cluster.schemas.text import truncation
from retire_cluster.schemas.text.json_text import JSONError, loads
from retire_cluster.schemas.vocabulary import PRIORITIES, RETRYABLE, TERMINAL, TaskStatus

View = dict[str, Any]


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


# --- tasks ---------------------------------------------------------------------------------------


def new_task(ids: TaskIds, number: int, created_ms: int, task_type: str, priority: int) -> View:
    """Show a fresh task as its submission is answered: queued, whatever came of it this turn."""
    return {
        "task_id": ids.public(number, created_ms),
        "task_type": task_type,
        "status": TaskStatus.QUEUED.value,
        "priority": PRIORITIES[priority],
        "created_at": stamp(created_ms),
        "assigned_device_id": None,
        "assigned_at": None,
        "started_at": None,
        "completed_at": None,
        "execution_time_seconds": None,
        "retry_count": 0,
    }


def due(task: Task, now: Now) -> View:
    """Return `due_at` of a task that waits for its time; nothing for others.

    Its delay runs by time that passes, so this follows a wall clock that is set.
    """
    left = task.not_before_mono - now.mono
    if task.status is not TaskStatus.PENDING or left <= 0:
        return {}
    return {"due_at": stamp(now.wall_ms + round(left * 1000))}


def live_task(ids: TaskIds, task: Task, now: Now) -> View:
    """Show a task that has not ended."""
    view = new_task(ids, task.number, task.created_ms, task.spec.task_type, task.spec.priority)
    view.update(
        status=task.status.value,
        assigned_device_id=None if task.device is None else task.device.device_id,
        assigned_at=optional_stamp(task.assigned_ms),
        started_at=optional_stamp(task.started_ms),
        retry_count=task.retry_count,
        **due(task, now),
    )
    return view


def ended_task(ids: TaskIds, row: TaskRow, outcome: OutcomeRow) -> View:
    """Show a task that has ended."""
    view = new_task(ids, row.number, row.created_ms, row.task_type, row.priority)
    view.update(
        status=outcome.status,
        assigned_device_id=outcome.device_id,
        assigned_at=optional_stamp(outcome.assigned_ms),
        started_at=optional_stamp(outcome.started_ms),
        completed_at=stamp(outcome.completed_ms),
        execution_time_seconds=_seconds(outcome.execution_seconds),
        retry_count=outcome.retry_count,
    )
    return view


def result(task_id: str, outcome: OutcomeRow) -> tuple[View, bytes]:
    """Return how a task ended, and the JSON text of its `result_data` (empty: null)."""
    try:
        details = loads(outcome.details) if outcome.details else {}
    except JSONError:
        details = {}
    if not isinstance(details, dict):
        details = {}
    view: View = {
        "task_id": task_id,
        "status": outcome.status,
        "result_data": None,
        "execution_time_seconds": _seconds(outcome.execution_seconds),
        "worker_device_id": outcome.device_id,
        "started_at": optional_stamp(outcome.started_ms),
        "completed_at": stamp(outcome.completed_ms),
        "error_message": outcome.error_message,
        "error_traceback": _text(details.get("error_traceback")),
        "logs": _text(details.get("logs")) or "",
        "truncated": None,
        "cause": outcome.cause,
    }
    if "truncated" in details:
        view["truncated"] = truncation.write(truncation.read(details["truncated"]))
    return view, outcome.result


def _text(value: object) -> str | None:
    """Return a text that a device sent, None for anything else."""
    return value if isinstance(value, str) else None


def _attempt(row: AttemptRow) -> View:
    return {
        "attempt": row.number,
        "device_id": row.device_id,
        "status": row.outcome,
        "cause": row.cause,
        "error_message": row.error_message,
        "assigned_at": optional_stamp(row.assigned_ms),
        "started_at": optional_stamp(row.started_ms),
        "ended_at": stamp(row.ended_ms),
        "execution_time_seconds": _seconds(row.execution_seconds),
        "times": row.times,
    }


def attempts(
    history: Sequence[AttemptRow], task: Task | None, outcome: OutcomeRow | None
) -> list[View]:
    """Return every attempt of a task, oldest first, the current or final one last."""
    found = [_attempt(row) for row in history]
    if outcome is not None and outcome.attempt:
        if not (history and history[-1].number == outcome.attempt):
            last = AttemptRow(
                outcome.task, outcome.attempt, outcome.device_id, outcome.status, outcome.cause,
                outcome.error_message, outcome.assigned_ms, outcome.started_ms,
                outcome.completed_ms, outcome.execution_seconds,
            )  # fmt: skip
            found.append(_attempt(last))
    elif task is not None and task.dispatch is not None and task.device is not None:
        now = AttemptRow(
            task.number, task.attempt, task.device.device_id, task.status.value, None, None,
            task.assigned_ms, task.started_ms, 0, None,
        )  # fmt: skip
        found.append({**_attempt(now), "ended_at": None})
    return found


def error_history(found: Sequence[Mapping[str, Any]]) -> list[View]:
    """Return what went wrong in a task's attempts, oldest first."""
    return [
        {
            "attempt": entry["attempt"],
            "device_id": entry["device_id"],
            "cause": entry["cause"],
            "error_message": entry["error_message"],
            "timestamp": entry["ended_at"],
        }
        for entry in found
        if entry["cause"] is not None
    ]


def task_status(brief: View, task: Task | None, attempt: int, reason: View | None, at: str) -> View:
    """Return the short status of a task."""
    status = TaskStatus(brief["status"])
    progress = None
    if task is not None and task.progress is not None:
        progress = {"percent": task.progress[0], "message": task.progress[1]}
    names = (
        "task_id", "status", "priority", "created_at", "assigned_device_id", "assigned_at",
        "started_at", "completed_at", "execution_time_seconds", "retry_count",
    )  # fmt: skip
    return {
        **{name: brief[name] for name in (*names, "due_at") if name in brief},
        "attempt": attempt,
        "progress": progress,
        "is_terminal": status in TERMINAL,
        "can_retry": status in RETRYABLE,
        "queued_reason": reason,
        "timestamp": at,
    }


# --- devices -------------------------------------------------------------------------------------


def device_brief(device: Device, now: Now) -> View:
    """Show a device as in lists."""
    return {
        "device_id": device.device_id,
        "role": device.role,
        "platform": device.platform,
        "status": device.status.value,
        "ip_address": device.ip_address,
        "last_heartbeat": optional_stamp(device.last_heartbeat_ms),
        "uptime": duration(device.uptime_seconds(now.mono)),
        "capabilities": device.capabilities,
        "tags": sorted(device.tags),
        "accepting": device.ready,
    }


def metrics(values: Mapping[str, Any]) -> View:
    """Return a device's metrics by every documented name, None where it gave no value."""
    return {name: values.get(name) for name in METRICS}


def passed_over(device: Device, now: Now) -> list[View]:
    """Return the kinds of task that a device does not get for a while, and why."""

    def at(mono: float) -> str:
        return stamp(now.wall_ms + round(1000 * (mono - now.mono)))

    return [
        {
            "task_type": kind.task_type,
            "needs": needs.in_words(kind.needs) or None,
            "cause": note.cause,
            "message": note.message,
            "since": at(note.since_mono),
            "until": at(note.until_mono),
        }
        for kind, note in device.notes.items()
        if note.active
    ]


def device_detail(state: ClusterState, device: Device, now: Now) -> View:
    """Show everything that is known of a device."""
    return {
        **device_brief(device, now),
        "hostname": device.hostname,
        "version": device.version,
        "registered_at": stamp(device.registered_ms),
        "total_heartbeats": device.total_heartbeats,
        "task_types": sorted(device.types),
        "task_types_left_out": list(device.left_out),
        "task_types_disputed": state.own_types.disputed(device),
        "walls": list(device.walls),
        "own_task_types": [
            {
                "name": name,
                "distribution": info.distribution,
                "version": info.distribution_version or None,
            }
            for name, info in sorted(device.types.items())
            if info.distribution
        ],
        "slots": device.slots,
        "running_tasks": [
            state.ids.public(task.number, task.created_ms) for task in device.attempts.values()
        ],
        "tasks_succeeded": device.succeeded,
        "tasks_failed": device.failed,
        "last_error": device.last_error or None,
        "messages_dropped": dict(device.dropped),
        "passed_over": passed_over(device, now),
        "metrics": metrics(device.metrics),
        "metrics_history": [
            {"timestamp": stamp(entry["at_ms"]), **metrics(entry)}
            for entry in device.metrics_history
        ],
    }


def ping(over: PingOver) -> View:
    """Show the outcome of a ping."""
    return {
        "device_id": over.device_id,
        "ping_successful": over.response_ms is not None,
        "response_time_ms": round(over.response_ms, 3) if over.response_ms is not None else None,
        "ping_timestamp": stamp(over.sent_ms),
        "duration_ms": round(over.duration_ms, 3),
    }


def not_accepting_reason(device: Device) -> str | None:
    """Return why a device takes no work, None when it does."""
    if not device.online:
        return "offline"
    if device.drained:
        return DRAINED_BY_ADMINISTRATOR
    if not device.accepting:
        return device.not_accepting_reason or "draining"
    return None


def device_status(device: Device, now: Now) -> View:
    """Show a device's state and load."""
    return {
        "device_id": device.device_id,
        "status": device.status.value,
        "is_online": device.online,
        "last_heartbeat": optional_stamp(device.last_heartbeat_ms),
        "uptime": duration(device.uptime_seconds(now.mono)),
        "response_time_ms": None if device.rtt_ms is None else round(device.rtt_ms, 3),
        "current_load": {
            "running_tasks": len(device.attempts),
            "slots": device.slots,
            "cpu_percent": device.metrics.get("cpu_percent"),
            "memory_percent": device.metrics.get("memory_percent"),
        },
        "accepting": device.ready,
        "not_accepting_reason": not_accepting_reason(device),
        "timestamp": stamp(now.wall_ms),
    }


# --- events --------------------------------------------------------------------------------------


def event(ids: TaskIds, entry: Entry) -> View:
    """Show an event as the feed sends it."""
    view: View = {"id": entry.id, "type": entry.type, "at": stamp(entry.at_ms)}
    if entry.task:
        view["task_id"] = ids.public(entry.task, entry.created_ms)
    if entry.device_id is not None:
        view["device_id"] = entry.device_id
    view["data"] = entry.data
    return view
