"""`task.submit`: new tasks (docs/protocol.md, Admin socket).

The submissions of one turn are checked one by one and then made together: for a thousand clients
with a task each that costs little more than for one with a thousand.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Final

from retire_cluster.broker.admin import strangers, views
from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import Admin
from retire_cluster.broker.admin.registry import operation
from retire_cluster.broker.admin.submit_batch import Gathered
from retire_cluster.broker.admin.timestamps import stamp
from retire_cluster.broker.admin.waits import park, wait_seconds
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.events import Ticket
from retire_cluster.broker.core.instructions import StoreTasks
from retire_cluster.broker.core.model import TaskSpec
from retire_cluster.schemas import needs
from retire_cluster.schemas.errors import (
    IdempotencyConflict,
    PayloadTooLarge,
    QueueFull,
    TaskNotFound,
    ValidationError,
)
from retire_cluster.schemas.protocol.wire import MAX_PAYLOAD_BYTES
from retire_cluster.schemas.rest import requests
from retire_cluster.schemas.rest.payload import check_builtin_payload, parse_json_object
from retire_cluster.schemas.rest.validation import validate
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text.jsontext import JSONError, dumps
from retire_cluster.schemas.vocabulary import PRIORITY_BY_WORD, TaskStatus

#: Submissions' common fields that were validated before, by their JSON text.
_SPECS_KEPT: Final = 4_096

#: Built-in types whose payload may set a limit of its own, within the task's.
_LIMITED: Final = frozenset({"command", "http_request"})

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
        "stranger",
        "wait_seconds",
    }
)


@operation("task.submit", changes=True)
def submit(admin: Admin, call: Call) -> Reply | None:
    """New tasks, all or nothing; with `wait_seconds` it is answered when they have ended."""
    answered = gather(admin, call)
    for _, reply in make(admin):
        return reply
    return answered


def gather(admin: Admin, call: Call) -> Reply | None:
    """Check a submission, for `make` to make it; the repetition of an earlier one is answered.

    Raises a `ClusterError` for one that cannot be taken.
    """
    args = call.args
    seconds = wait_seconds(args, "wait_seconds", 0.0)
    if not args.keys() <= _SUBMIT_EXTRA:
        raise ValidationError(min(args.keys() - _SUBMIT_EXTRA), "unknown field")
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
            return _told(admin, call, numbers, earlier.at_ms, seconds, replayed=True)
    many = len(forms) > 1 or "tasks" in args
    for index, ((spec, delay), payload) in enumerate(zip(forms, call.blobs, strict=True)):
        where = f"tasks.{index}" if many else ""
        document = _check(admin, spec, payload, where)
        if spec.task_type in needs.TYPES:
            forms[index] = (_needing(spec, needs.of(spec.task_type, document)), delay)
    if admin.refusing:
        raise QueueFull(admin.refusing, retry_after=30)
    limit = admin.state.settings.scheduler.backlog_limit
    present = len(admin.state.tasks) + admin.gathering.size
    if present + len(forms) > limit:
        raise QueueFull(
            f"{present} tasks are waiting or running; the limit is {limit}.", retry_after=5
        )
    stranger = strangers.read(args)
    if stranger is not None:
        admin.strangers.make_room(admin.state.tasks, stranger, len(forms))
        forms = strangers.all_marked(forms, stranger)
    specs, delays = zip(*forms, strict=True)
    admin.gathering.add(Gathered(call, specs, delays, idempotency, seconds))
    return None


def must_be_made_first(admin: Admin, call: Call) -> bool:
    """Whether what is gathered has to be made before this can be judged: it may be part of it, or
    count against it.
    """
    if "stranger" in call.args:
        return admin.gathering.size > 0
    owner, key = call.args.get("owner"), call.args.get("idempotency_key")
    if not isinstance(owner, str) or not isinstance(key, str):
        return False
    return admin.gathering.holds(owner, key)


def make(admin: Admin) -> list[tuple[Ticket, Reply]]:
    """Make what was gathered; the answers of those that do not wait for their tasks to end."""
    submissions = admin.gathering.submissions
    if not submissions:
        return []
    specs: list[TaskSpec] = []
    payloads: list[bytes] = []
    delays: list[float] = []
    keyed: list[ev.Keyed] = []
    for one in submissions:
        if one.idempotency is not None:
            keyed.append(ev.Keyed(len(specs), len(one.specs), *one.idempotency))
        specs += one.specs
        payloads += one.call.blobs
        delays += one.delays_seconds
    now = submissions[-1].call.now
    event = ev.TasksSubmitted(specs, payloads, delays if any(delays) else (), keyed)
    stored = next(i for i in admin.apply(event, now) if isinstance(i, StoreTasks))
    first = stored.rows[0].number
    answers: list[tuple[Ticket, Reply]] = []
    for one in submissions:
        numbers = range(first, first + len(one.specs))
        first = numbers.stop
        if "stranger" in one.call.args:
            admin.strangers.add(numbers, one.call.args["stranger"]["address"])
        reply = _told(admin, one.call, numbers, now.wall_ms, one.wait_seconds, replayed=False)
        if reply is not None:
            answers.append((one.call.ticket, reply))
    admin.gathering.clear()
    return answers


def _told(
    admin: Admin, call: Call, numbers: range, created_ms: int, seconds: float, *, replayed: bool
) -> Reply | None:
    """The answer, or None where its client waits for the tasks to end."""
    reply = _answer(admin, numbers, created_ms, call, replayed=replayed)
    if not seconds:
        return reply
    tasks = [(number, created_ms) for number in numbers]
    park(admin, call, tasks, seconds, brief=True, answer_head=reply.data)
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


@functools.lru_cache(maxsize=_SPECS_KEPT)
def _needing(spec: TaskSpec, need: str) -> TaskSpec:
    """The spec of a task whose payload needs something of its device (`schemas.needs`)."""
    if not need:
        return spec
    # One object with one more field: it stays with the task, in memory and in the store.
    document = spec.document[:-1] + b',"needs":' + dumps(need) + b"}"
    return dataclasses.replace(spec, document=document)


def _check(admin: Admin, spec: TaskSpec, payload: bytes, where: str) -> dict[str, Any]:
    """The payload's content. Raises a `ClusterError` for one that cannot be taken."""
    task_type = spec.task_type
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
        if task_type in _LIMITED and document.get("timeout", 0) > spec.timeout_seconds:
            raise ValidationError(
                f"{prefix}payload.timeout",
                f"is more than the {spec.timeout_seconds} s that the whole task may take; raise"
                " requirements.timeout_seconds instead (retire-cluster: --timeout-seconds)",
            )
        return document
    judged = admin.state.own_types.consensus(task_type)
    if judged is None:
        raise ValidationError(
            f"{prefix}task_type", f"no device of this cluster offers the task type {task_type!r}"
        )
    schema = judged.info.payload_schema
    if schema is not None:
        validate(schema, document, where=f"{prefix}payload")
    return document


def _answer(admin: Admin, numbers: range, created_ms: int, call: Call, *, replayed: bool) -> Reply:
    ids, args = admin.state.ids, call.args
    data: dict[str, Any] = {"submitted_at": stamp(created_ms), "replayed": replayed}
    if args.get("first_only"):
        data["first_id"] = ids.public(numbers[0], created_ms)
        data["count"] = len(numbers)
        return Reply(data)
    data["task_ids"] = [ids.public(number, created_ms) for number in numbers]
    if not args.get("brief"):
        data["tasks"] = [_new_view(admin, number, created_ms, call.now) for number in numbers]
    return Reply(data)


def _new_view(admin: Admin, number: int, created_ms: int, now: ev.Now) -> views.View:
    task = admin.live(number)
    due = {}
    if task is not None:
        kind, priority = task.spec.task_type, task.spec.priority
        if not task.attempt:  # delayed, not between two attempts
            due = views.due(task, now)
    else:
        head = admin.store.heads((number,)).get(number)
        if head is None:
            raise TaskNotFound("That submission's tasks are no longer kept.")
        kind, priority = head.task_type, head.priority
    view = views.new_task(admin.state.ids, number, created_ms, kind, priority)
    if due:
        view.update(due, status=TaskStatus.PENDING.value)
    return view
