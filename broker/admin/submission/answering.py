"""Last step of a submission: the answer to its client."""

from __future__ import annotations

from typing import Any

from retire_cluster.broker.admin import views
from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.timestamps import stamp
from retire_cluster.broker.core import events as ev
from retire_cluster.schemas.errors import TaskNotFound
from retire_cluster.schemas.vocabulary import TaskStatus


def answer(
    admin: AdminContext, call: Call, numbers: range, created_ms: int, *, replayed: bool
) -> Reply:
    """Return the answer of a submission whose tasks these are. Raises `TaskNotFound`."""
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


def _new_view(admin: AdminContext, number: int, created_ms: int, now: ev.Now) -> views.View:
    task = admin.state.tasks.get(number)
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
