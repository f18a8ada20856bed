"""Operations on tasks (docs/protocol.md, Admin socket)."""

from __future__ import annotations

from typing import Any, Final

from retire_cluster.broker import events as ev
from retire_cluster.broker import views
from retire_cluster.broker.admin import Admin, Call, Reply, operation
from retire_cluster.broker.admin_waits import park, wait_seconds
from retire_cluster.broker.instructions import StoreOutcomes, StoreTasks
from retire_cluster.broker.ledger import Filter
from retire_cluster.broker.store import RowDamaged
from retire_cluster.broker.task import TaskSpec
from retire_cluster.broker.timestamps import stamp
from retire_cluster.schemas import requests
from retire_cluster.schemas.errors import (
    CannotCancelTask,
    CannotRetryTask,
    ClusterUnavailable,
    IdempotencyConflict,
    NoTaskResult,
    PayloadTooLarge,
    QueueFull,
    TaskNotFound,
    ValidationError,
)
from retire_cluster.schemas.jsontext import JSONError, dumps, loads
from retire_cluster.schemas.payload import check_builtin_payload, parse_json_object
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.validation import json_schema, validate
from retire_cluster.schemas.vocabulary import (
    BUILTIN_TASK_TYPES,
    PRIORITY_BY_WORD,
    RETRYABLE,
    TERMINAL,
    TaskStatus,
)
from retire_cluster.schemas.wire import MAX_PAYLOAD_BYTES

TASK: Final = {"task_id": {"type": "string", "required": True, "maxlength": 200}}
#: Submissions' common fields that were validated before, by their JSON text.
_SPECS_KEPT: Final = 4_096

_Read = tuple[TaskSpec, float]


class _Forms:
    """Validated forms of submissions: the same fields need no second validation."""

    def __init__(self) -> None:
        self._known: dict[bytes, _Read] = {}

    def read(self, fields: object, where: str) -> _Read:
        """The spec and delay of one submission's fields. Raises `ValidationError`."""
        try:
            text = dumps(fields)
        except JSONError as error:
            raise ValidationError(where, f"cannot be kept as JSON: {error}") from None
        found = self._known.get(text)
        if found is None:
            found = _spec(validate(requests.TASK_FIELDS, fields, where=where))
            if len(self._known) >= _SPECS_KEPT:
                self._known.clear()
            self._known[text] = found
        return found


def _spec(fields: dict[str, Any]) -> _Read:
    requirements = fields["requirements"]
    document = dumps({"requirements": requirements, "metadata": fields["metadata"]})
    spec = TaskSpec(
        task_type=fields["task_type"],
        priority=int(PRIORITY_BY_WORD[fields["priority"]]),
        timeout_seconds=requirements["timeout_seconds"],
        max_retries=requirements["max_retries"],
        document=document,
    )
    return spec, float(fields["delay_seconds"])


_FORMS = _Forms()

_SUBMIT_EXTRA: Final = frozenset(
    {
        "tasks",
        "task",
        "count",
        "owner",
        "idempotency_key",
        "fingerprint",
        "brief",
        "first_only",
        "wait_seconds",
    }
)


@operation("task.submit", changes=True)
def submit(admin: Admin, call: Call) -> Reply | None:
    """New tasks, all or nothing; with `wait_seconds` it is answered when they have ended."""
    args = call.args
    seconds = wait_seconds(args, "wait_seconds", 0.0)
    unknown = sorted(set(args) - _SUBMIT_EXTRA)
    if unknown:
        raise ValidationError(unknown[0], "unknown field")
    forms = _forms(args)
    if len(forms) != len(call.blobs):
        raise ValidationError(
            "", f"{len(forms)} tasks need as many payloads, not {len(call.blobs)}"
        )
    idempotency = _idempotency(args)
    if idempotency is not None:
        earlier = admin.state.submissions.get(idempotency[:2])
        if earlier is not None:
            if earlier.fingerprint != idempotency[2]:
                raise IdempotencyConflict
            numbers = range(earlier.first, earlier.first + earlier.size)
            reply = _answer(admin, numbers, earlier.at_ms, args, replayed=True)
            if not seconds:
                return reply
            tasks = [(number, earlier.at_ms) for number in numbers]
            park(admin, call, tasks, seconds, brief=True, told=reply.data)
            return None
    many = len(forms) > 1 or "tasks" in args
    for index, ((spec, _), payload) in enumerate(zip(forms, call.blobs, strict=True)):
        where = f"tasks.{index}" if many else ""
        _check(admin, spec.task_type, payload, where)
    if admin.refusing:
        raise QueueFull(admin.refusing, retry_after=30)
    limit = admin.state.settings.scheduler.backlog_limit
    if len(admin.state.tasks) + len(forms) > limit:
        raise QueueFull(
            f"{len(admin.state.tasks)} tasks are waiting or running; the limit is {limit}.",
            retry_after=5,
        )
    delays = [delay for _, delay in forms]
    event = ev.TasksSubmitted(
        [spec for spec, _ in forms], call.blobs, delays if any(delays) else (), idempotency
    )
    stored = next(i for i in admin.apply(event, call.now) if isinstance(i, StoreTasks))
    first = stored.rows[0].number
    numbers = range(first, first + len(stored.rows))
    reply = _answer(admin, numbers, call.now.wall_ms, args, replayed=False)
    if not seconds:
        return reply
    tasks = [(number, call.now.wall_ms) for number in numbers]
    park(admin, call, tasks, seconds, brief=True, told=reply.data)
    return None


def _forms(args: dict[str, Any]) -> list[_Read]:
    if "task" in args:
        count = args.get("count", 1)
        if type(count) is not int or not 1 <= count <= requests.MAX_BATCH:
            raise ValidationError("count", f"must be a whole number from 1 to {requests.MAX_BATCH}")
        return [_FORMS.read(args["task"], "task")] * count
    tasks = args.get("tasks")
    if not isinstance(tasks, list) or not 1 <= len(tasks) <= requests.MAX_BATCH:
        raise ValidationError("tasks", f"must be a list of 1 to {requests.MAX_BATCH} tasks")
    return [_FORMS.read(fields, f"tasks.{index}") for index, fields in enumerate(tasks)]


def _idempotency(args: dict[str, Any]) -> tuple[str, str, str] | None:
    names = ("owner", "idempotency_key", "fingerprint")
    given = tuple(args.get(name) for name in names)
    if given == (None, None, None):
        return None
    for name, value in zip(names, given, strict=True):
        if not isinstance(value, str) or not 1 <= len(value) <= 300:
            raise ValidationError(name, "must be a text of 1 to 300 characters")
    return given  # type: ignore[return-value]


def _check(admin: Admin, task_type: str, payload: bytes, where: str) -> None:
    prefix = f"{where}." if where else ""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(
            f"The payload is {len(payload)} bytes; at most {MAX_PAYLOAD_BYTES} are taken.",
            details={"field": f"{prefix}payload"},
        )
    try:
        document = parse_json_object(payload)
    except ValidationError as error:
        inner = f".{error.field}" if error.field else ""
        raise ValidationError(f"{prefix}payload{inner}", error.reason) from None
    if task_type in BUILTIN:
        check_builtin_payload(task_type, document, where=f"{prefix}payload")
        return
    if task_type not in admin.state.advertised:
        raise ValidationError(
            f"{prefix}task_type", f"no device has ever offered the task type {task_type!r}"
        )
    schema = _advertised_schema(admin, task_type)
    if schema is not None:
        validate(schema, document, where=f"{prefix}payload")


def _advertised_schema(admin: Admin, task_type: str) -> dict[str, Any] | None:
    for device in admin.state.devices.values():
        info = device.types.get(task_type)
        if info is not None:
            return info.payload_schema
    return None


def _answer(
    admin: Admin, numbers: range, created_ms: int, args: dict[str, Any], *, replayed: bool
) -> Reply:
    ids = admin.state.ids
    data: dict[str, Any] = {"submitted_at": stamp(created_ms), "replayed": replayed}
    if args.get("first_only"):
        data["first_id"] = ids.public(numbers[0], created_ms)
        data["count"] = len(numbers)
        return Reply(data)
    data["task_ids"] = [ids.public(number, created_ms) for number in numbers]
    if not args.get("brief"):
        data["tasks"] = [_new_view(admin, number, created_ms) for number in numbers]
    return Reply(data)


def _new_view(admin: Admin, number: int, created_ms: int) -> views.View:
    task = admin.live(number)
    if task is not None:
        kind, priority = task.spec.task_type, task.spec.priority
    else:
        head = admin.store.heads((number,)).get(number)
        if head is None:
            raise TaskNotFound("That submission's tasks are no longer kept.")
        kind, priority = head.task_type, head.priority
    return views.new_task(admin.state.ids, number, created_ms, kind, priority)


# --- reading -------------------------------------------------------------------------------------


@operation("task.list", requests.TASK_LIST_QUERY)
def list_tasks(admin: Admin, call: Call) -> Reply:
    """A page of tasks, newest first."""
    args = call.args
    wanted = Filter(
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
    items = _briefs(admin, numbers)
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


def _briefs(admin: Admin, numbers: list[int]) -> list[views.View]:
    ids = admin.state.ids
    ended = [number for number in numbers if admin.live(number) is None]
    heads = admin.store.heads(ended)
    outcomes = admin.store.outcomes(ended, results=False)
    items = []
    for number in numbers:
        task = admin.live(number)
        if task is not None:
            items.append(views.live_task(ids, task))
        elif number in heads and number in outcomes:
            items.append(views.ended_task(ids, heads[number], outcomes[number]))
    return items


def _brief(admin: Admin, number: int) -> views.View:
    found = _briefs(admin, [number])
    if not found:
        raise TaskNotFound
    return found[0]


@operation("task.get", TASK)
def get(admin: Admin, call: Call) -> Reply:
    """Everything about one task."""
    number = admin.number(call.args["task_id"])
    task, outcome = admin.live(number), admin.ended(number, results=True)
    data = _brief(admin, number)
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
def status(admin: Admin, call: Call) -> Reply:
    """One task's status, and why it waits."""
    number = admin.number(call.args["task_id"])
    brief, task, outcome = _brief(admin, number), admin.live(number), admin.ended(number)
    attempt = task.attempt if task is not None else (outcome.attempt if outcome else 0)
    reason = None
    if task is not None and task.status in (TaskStatus.QUEUED, TaskStatus.PENDING):
        reason = views.queued_reason(admin.state, task)
    at = stamp(call.now.wall_ms)
    return Reply(views.task_status(brief, task, attempt, reason, at))


@operation("task.result", TASK)
def result(admin: Admin, call: Call) -> Reply:
    """How one task ended."""
    number = admin.number(call.args["task_id"])
    outcome = admin.ended(number, results=True)
    if outcome is None:
        current = admin.state.ledger.status(number).value
        raise NoTaskResult(f"The task is {current}; it has no result yet.")
    data, text = views.result(call.args["task_id"].lower(), outcome)
    return Reply(data, [("result_data", text)] if text else [])


@operation("task.explain", TASK)
def explain(admin: Admin, call: Call) -> Reply:
    """Per device: may it run this task, and why not."""
    number = admin.number(call.args["task_id"])
    task = admin.live(number)
    data: dict[str, Any] = {
        "task_id": call.args["task_id"].lower(),
        "status": admin.state.ledger.status(number).value,
        "queued_reason": None,
        "devices": [],
    }
    if task is None:
        return Reply(data)
    data["queued_reason"] = views.queued_reason(admin.state, task)
    key = views.class_key(task)
    for device_id in sorted(admin.state.devices):
        device = admin.state.devices[device_id]
        reasons = views.obstacles(key, device)
        eligible = not reasons
        if eligible and device.free_units < device.units_of(task.spec.task_type):
            reasons = ["all its slots are busy"]
        data["devices"].append({"device_id": device_id, "eligible": eligible, "reasons": reasons})
    return Reply(data)


# --- changing ------------------------------------------------------------------------------------


@operation("task.cancel", TASK, changes=True)
def cancel(admin: Admin, call: Call) -> Reply:
    """Cancel a task that has not ended."""
    number = admin.number(call.args["task_id"])
    if number not in admin.state.tasks:
        current = admin.state.ledger.status(number).value
        raise CannotCancelTask(f"The task has already ended: it is {current}.")
    admin.apply(ev.CancelAsked(number), call.now)
    return Reply(
        {
            "task_id": call.args["task_id"].lower(),
            "status": TaskStatus.CANCELLED.value,
            "cancelled_at": stamp(call.now.wall_ms),
        }
    )


def _ended_just_now(admin: Admin, number: int) -> bool:
    return any(
        row.task == number
        for instruction in admin.turn
        if isinstance(instruction, StoreOutcomes)
        for row in instruction.rows
    )


@operation("task.retry", TASK, changes=True)
def retry(admin: Admin, call: Call) -> Reply:
    """Run an ended task again."""
    number = admin.number(call.args["task_id"])
    current = admin.state.ledger.status(number)
    if current not in RETRYABLE:
        raise CannotRetryTask(
            f"The task is {current.value}; only failed, timeout and cancelled ones can be retried."
        )
    outcome = admin.ended(number, results=True)
    if outcome is None or _ended_just_now(admin, number):
        # It ended in this very turn: its outcome is not in the store yet.
        raise ClusterUnavailable("The task ended just now; try again.", retry_after=1)
    try:
        row = admin.row(number)
    except RowDamaged:
        text = "Its payload is damaged in the main node's store; submit it again."
        raise CannotRetryTask(text) from None
    spec = TaskSpec(row.task_type, row.priority, row.timeout_seconds, row.max_retries, row.document)
    event = ev.RetryAsked(number, spec, row.created_ms, row.payload, outcome)
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
def statistics(admin: Admin, call: Call) -> Reply:
    """Counts and measured performance of all retained tasks."""
    state = admin.state
    by_status = state.ledger.by_status()
    ended = sum(by_status[word.value] for word in TERMINAL)
    used, slots = views.slot_figures(state)
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
                "tasks_per_hour": state.stats.tasks_per_hour(call.now.wall_ms),
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


@operation("task.types", {})
def types(admin: Admin, call: Call) -> Reply:
    """Every type that can be submitted, and who offers it now."""
    online = [device for device in admin.state.devices.values() if device.online]
    builtin = list(BUILTIN_TASK_TYPES)
    custom = sorted(admin.state.advertised - set(builtin))
    by_type = {}
    for name in (*builtin, *custom):
        info = BUILTIN.get(name)
        if info is None:
            offers = (device.types.get(name) for device in admin.state.devices.values())
            info = next((offer for offer in offers if offer is not None), None)
        schema = info.payload_schema if info is not None else None
        by_type[name] = {
            "devices": sum(name in device.types for device in online),
            "payload_schema": {"type": "object"} if schema is None else json_schema(schema),
            "description": info.description if info is not None else "",
            "repeatable": info.repeatable if info is not None else False,
        }
    return Reply(
        {
            "supported_types": [*builtin, *custom],
            "builtin_types": builtin,
            "custom_types": custom,
            "total_count": len(builtin) + len(custom),
            "online_devices": len(online),
            "by_type": by_type,
        }
    )
