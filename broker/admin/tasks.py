"""Operations on tasks (docs/protocol.md, Admin socket)."""

from __future__ import annotations

from typing import Any, Final

from retire_cluster.broker.admin import callers, figures, views
from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.labels import label
from retire_cluster.broker.admin.registry import operation
from retire_cluster.broker.admin.timestamps import stamp
from retire_cluster.broker.admin.waits import TASK_IDS, texts
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.devices.type_registry import DEVICES_TOLD
from retire_cluster.broker.core.instructions import StoreOutcomes
from retire_cluster.broker.core.model import TaskSpec
from retire_cluster.broker.core.placement import why_waiting
from retire_cluster.broker.core.records.ledger import TaskFilter
from retire_cluster.broker.store.base import RowDamaged
from retire_cluster.schemas.errors import (
    CannotCancelTask,
    CannotRetryTask,
    NoTaskResult,
    TaskJustEnded,
    TaskNotFound,
    ValidationError,
)
from retire_cluster.schemas.rest import requests
from retire_cluster.schemas.text.json_text import loads
from retire_cluster.schemas.vocabulary import (
    PRIORITY_BY_WORD,
    RETRYABLE,
    TERMINAL,
    TaskStatus,
)

TASK: Final = {"task_id": {"type": "string", "required": True, "maxlength": 200}}
_CHANGE: Final = {**TASK, **callers.CALLER}

# --- reading -------------------------------------------------------------------------------------


@operation("task.list", requests.TASK_LIST_QUERY)
def list_tasks(admin: AdminContext, call: Call) -> Reply:
    """Answer a page of tasks, newest first."""
    args = call.args
    wanted = TaskFilter(
        status=TaskStatus(args["status"]) if args.get("status") else None,
        task_type=args.get("task_type"),
        priority=int(PRIORITY_BY_WORD[args["priority"]]) if args.get("priority") else None,
        device_id=args.get("device_id"),
    )
    page, size = args["page"], args["page_size"]
    total = admin.state.ledger.count(wanted)
    before = None
    if args.get("after"):
        read = admin.state.ids.read(args["after"])
        if read is None:
            raise ValidationError("after", "is not a cursor that a list gave")
        before = read[0]
    skip = 0 if before is not None else (page - 1) * size
    numbers = admin.state.ledger.page(wanted, skip, size + 1, before) if skip < total else []
    more, numbers = len(numbers) > size, numbers[:size]
    briefs = _briefs(admin, numbers, call.now)
    _label(admin, briefs)
    items = list(briefs.values())
    pages = -(-total // size)
    pagination = {
        "page": page,
        "page_size": size,
        "total_items": total,
        "total_pages": pages,
        "has_next": more,
        "has_previous": before is not None or (page > 1 and total > 0),
        "next_cursor": items[-1]["task_id"] if more and items else None,
    }
    return Reply({"items": items, "pagination": pagination})


def _briefs(admin: AdminContext, numbers: list[int], now: ev.Now) -> dict[int, views.View]:
    """Return the brief views of those of the tasks that are kept, by their numbers."""
    ids, live = admin.state.ids, admin.state.tasks
    ended = [number for number in numbers if number not in live]
    heads = admin.store.heads(ended)
    outcomes = admin.store.outcomes(ended, results=False)
    found = {}
    for number in numbers:
        if number in live:
            found[number] = views.live_task(ids, live[number], now)
        elif number in heads and number in outcomes:
            found[number] = views.ended_task(ids, heads[number], outcomes[number])
    return found


def _label(admin: AdminContext, briefs: dict[int, views.View]) -> None:
    """Add `label` to views, where there is anything to say."""
    for number, opening in admin.store.openings(list(briefs)).items():
        if text := label(*opening):
            briefs[number]["label"] = text


def _brief(admin: AdminContext, number: int, now: ev.Now) -> views.View:
    found = _briefs(admin, [number], now)
    if not found:
        raise TaskNotFound
    return found[number]


@operation("task.get", TASK)
def get(admin: AdminContext, call: Call) -> Reply:
    """Answer everything that is known of one task."""
    number = admin.number(call.args["task_id"])
    task, outcome = admin.state.tasks.get(number), admin.ended(number, results=True)
    data = _brief(admin, number, call.now)
    try:
        row = admin.row(number)
        document, payload = loads(row.document), row.payload
    except RowDamaged:
        # What is left of it is still shown; as a live task it is about to fail.
        document, payload = {"requirements": {}, "metadata": {}}, b"null"
    found = views.attempts(admin.store.attempts(number), task, outcome)
    data.update(
        payload=None,
        requirements=document["requirements"],
        metadata=document["metadata"],
        attempts=found,
        error_history=views.error_history(found),
        result=None,
    )
    blobs = [("payload", payload)]
    if outcome is not None:
        data["result"], text = views.result(data["task_id"], outcome)
        if text:
            blobs.append(("result.result_data", text))
    return Reply(data, blobs)


@operation("task.status", TASK)
def status(admin: AdminContext, call: Call) -> Reply:
    """Answer one task's status, and why it waits."""
    number = admin.number(call.args["task_id"])
    brief = _brief(admin, number, call.now)
    task, outcome = admin.state.tasks.get(number), admin.ended(number)
    attempt = task.attempt if task is not None else (outcome.attempt if outcome else 0)
    reason = None
    if task is not None and task.status in (TaskStatus.QUEUED, TaskStatus.PENDING):
        reason = why_waiting.queued_reason(admin.state, task, call.now)
    at = stamp(call.now.wall_ms)
    return Reply(views.task_status(brief, task, attempt, reason, at))


@operation("task.result", TASK)
def result(admin: AdminContext, call: Call) -> Reply:
    """Answer how one task ended."""
    number = admin.number(call.args["task_id"])
    outcome = admin.ended(number, results=True)
    if outcome is None:
        current = admin.state.ledger.status(number).value
        raise NoTaskResult(f"The task is {current}; it has no result yet.")
    data, text = views.result(call.args["task_id"].lower(), outcome)
    return Reply(data, [("result_data", text)] if text else [])


@operation("task.explain", TASK)
def explain(admin: AdminContext, call: Call) -> Reply:
    """Answer for each device whether it may run this task, and why not."""
    number = admin.number(call.args["task_id"])
    task = admin.state.tasks.get(number)
    data: dict[str, Any] = {
        "task_id": call.args["task_id"].lower(),
        "status": admin.state.ledger.status(number).value,
        "queued_reason": None,
        "devices": [],
    }
    if task is None:
        return Reply(data)
    data.update(views.due(task, call.now))
    data["queued_reason"] = why_waiting.queued_reason(admin.state, task, call.now)
    judged = admin.state.own_types.consensus(task.spec.task_type)
    if judged is not None and judged.otherwise:
        data["described_otherwise_by"] = list(judged.otherwise[:DEVICES_TOLD])
    key = why_waiting.class_key(task)
    for device_id in sorted(admin.state.devices):
        device = admin.state.devices[device_id]
        eligible, reasons = why_waiting.verdict(admin.state, task, key, device, call.now)
        data["devices"].append({"device_id": device_id, "eligible": eligible, "reasons": reasons})
    return Reply(data)


# --- changing ------------------------------------------------------------------------------------


@operation("task.cancel", _CHANGE, changes=True)
def cancel(admin: AdminContext, call: Call) -> Reply:
    """Cancel a task that has not ended."""
    number = admin.number(call.args["task_id"])
    callers.check(admin, call.args, "cancelTask", (number,))
    if number not in admin.state.tasks:
        current = admin.state.ledger.status(number).value
        raise CannotCancelTask(f"The task has already ended: it is {current}.")
    admin.apply(ev.CancelRequested(number), call.now)
    return Reply(
        {
            "task_id": call.args["task_id"].lower(),
            "status": TaskStatus.CANCELLED.value,
            "cancelled_at": stamp(call.now.wall_ms),
        }
    )


@operation(
    "task.cancel_many", {"task_ids": {**TASK_IDS, "required": True}, **callers.CALLER}, changes=True
)
def cancel_many(admin: AdminContext, call: Call) -> Reply:
    """Cancel those of up to 1000 tasks that have not ended."""
    found: dict[int, str] = {}
    not_cancelled: list[str] = []
    for task_id in dict.fromkeys(texts(call.args["task_ids"])):
        number, created_ms = admin.state.ids.read(task_id) or (0, 0)
        task = admin.state.tasks.get(number)
        if task is None or task.created_ms != created_ms:
            not_cancelled.append(task_id.lower())
        else:
            found[number] = task_id.lower()
    # All or none: whoever may not cancel one of them has not cancelled the others.
    callers.check(admin, call.args, "cancelTasks", found)
    for number in found:
        admin.apply(ev.CancelRequested(number), call.now)
    cancelled = list(found.values())
    at = stamp(call.now.wall_ms)
    return Reply({"cancelled": cancelled, "not_cancelled": not_cancelled, "cancelled_at": at})


def _ended_just_now(admin: AdminContext, number: int) -> bool:
    return any(
        row.task == number
        for instruction in admin.turn
        if isinstance(instruction, StoreOutcomes)
        for row in instruction.rows
    )


@operation("task.retry", _CHANGE, changes=True)
def retry(admin: AdminContext, call: Call) -> Reply:
    """Run an ended task again."""
    number = admin.number(call.args["task_id"])
    callers.check(admin, call.args, "retryTask", (number,))
    current = admin.state.ledger.status(number)
    if current not in RETRYABLE:
        raise CannotRetryTask(
            f"The task is {current.value}; only failed, timeout and cancelled ones can be retried."
        )
    outcome = admin.ended(number, results=True)
    if outcome is None or _ended_just_now(admin, number):
        # It ended in this very turn: its outcome is not in the store yet.
        raise TaskJustEnded(retry_after=1)
    try:
        row = admin.row(number)
    except RowDamaged:
        text = "Its payload is damaged in the main node's store; submit it again."
        raise CannotRetryTask(text) from None
    spec = TaskSpec(row.task_type, row.priority, row.timeout_seconds, row.max_retries, row.document)
    event = ev.RetryRequested(number, spec, row.created_ms, row.payload, outcome)
    admin.apply(event, call.now)
    return Reply(
        {
            "task_id": call.args["task_id"].lower(),
            "status": TaskStatus.QUEUED.value,
            "retried_at": stamp(call.now.wall_ms),
        }
    )


# --- figures -------------------------------------------------------------------------------------


@operation("task.statistics", {})
def statistics(admin: AdminContext, call: Call) -> Reply:
    """Answer counts and measured performance of all retained tasks."""
    state = admin.state
    by_status = state.ledger.by_status()
    ended = sum(by_status[word.value] for word in TERMINAL)
    used, slots = figures.slot_figures(state)
    success = by_status[TaskStatus.SUCCESS.value]
    return Reply(
        {
            "queue_stats": {
                "total_tasks": state.ledger.total,
                "by_status": by_status,
                "by_priority": state.ledger.by_priority(),
                "by_device": state.ledger.by_device(),
                "by_type": state.ledger.by_type(),
            },
            "performance_metrics": {
                "success_rate": round(success / ended, 4) if ended else 0.0,
                "average_execution_time": state.stats.average_duration(),
                "p95_execution_time": state.stats.p95_duration(),
                "tasks_per_hour": state.stats.tasks_per_hour(state.clock.age_ms(call.now)),
                "device_utilization": state.stats.slot_utilization(),
            },
            "current_load": {
                "pending_tasks": by_status["pending"] + by_status["queued"],
                "running_tasks": by_status["assigned"] + by_status["running"],
                "capacity_utilization": round(100.0 * used / slots, 2) if slots else 0.0,
            },
            "timestamp": stamp(call.now.wall_ms),
        }
    )
