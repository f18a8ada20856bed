"""`task.wait`: park a client until its tasks have ended, then tell it how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from retire_cluster.broker.admin import views
from retire_cluster.broker.admin.calls import MAX_WAIT_SECONDS, Call, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.registry import operation
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.instructions import WaitOver
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.rest.requests import MAX_BATCH

#: Of a result in the header, without its message, logs and trace; generously.
_VIEW_BYTES: Final = 600
#: A list of task ids; `texts` checks them.
TASK_IDS: Final[dict[str, Any]] = {"type": "list", "minlength": 1, "maxlength": MAX_BATCH}
_ARGUMENTS: Final[dict[str, Any]] = {
    "task_ids": TASK_IDS,
    "first_id": {"type": "string"},
    "count": {"type": "strict_int", "min": 1, "max": MAX_BATCH, "default": 1},
    "timeout_seconds": {"type": "finite", "min": 0, "max": MAX_WAIT_SECONDS, "default": 30.0},
    "brief": {"type": "boolean", "default": False},
}


@operation("task.wait", _ARGUMENTS, changes=True)
def wait(admin: AdminContext, call: Call) -> None:
    """Park until tasks have ended: listed by id, or those of one submission by its first id."""
    args = call.args
    if "first_id" in args:
        if "task_ids" in args:
            raise ValidationError("task_ids", "is given by first_id and count already")
        tasks = admin.submission(args["first_id"], args["count"])
    elif "task_ids" in args:
        tasks = admin.references(texts(args["task_ids"]))
    else:
        raise ValidationError("task_ids", "is required")
    park(admin, call, tasks, args["timeout_seconds"], brief=args["brief"])


def texts(task_ids: list[Any]) -> list[str]:
    """Return task ids as they were sent, whether these tasks exist or not.

    Raises `ValidationError` naming the first that is no text.
    """
    # By hand: with a thousand wrong ones Cerberus would hold up the loop for 20 ms.
    for index, task_id in enumerate(task_ids):
        if not isinstance(task_id, str):
            raise ValidationError(f"task_ids.{index}", "must be a text")
    return task_ids


def park(
    admin: AdminContext,
    call: Call,
    tasks: Sequence[tuple[int, int]],
    seconds: float,
    *,
    brief: bool,
    answer_head: Mapping[str, Any] | None = None,
) -> None:
    """Have a call answered when tasks (numbers and creation times) have ended.

    `answer_head`: what a brief answer begins with.
    """
    numbers = [number for number, _ in tasks]
    unfinished = frozenset(filter(admin.state.tasks.__contains__, numbers))
    created = [created_ms for _, created_ms in tasks]
    event = ev.WaitRequested(
        call.ticket, numbers, unfinished, seconds, created, brief, answer_head or {}
    )
    admin.apply(event, call.now)


def unread(over: WaitOver) -> Reply:
    """Return a brief answer without what is in the store: no status, as when time is up."""
    none: list[None] = [None] * len(over.tasks)
    return Reply({**over.answer_head, "statuses": none, "result_data": list(none), "omitted": []})


def waited(admin: AdminContext, over: WaitOver) -> Reply:
    """Return the answer of a wait that is over: as many results as fit into one message."""
    live = admin.state.tasks
    outcomes = admin.store.outcomes([n for n in over.tasks if n not in live], results=True)
    public = admin.state.ids.public
    blobs: list[tuple[str, bytes]] = []
    room = wire.BATCH_BYTES
    if over.brief:
        statuses: list[str | None] = []
        omitted: list[int] = []
        for index, number in enumerate(over.tasks):
            outcome = outcomes.get(number)
            statuses.append(None if outcome is None else outcome.status)
            if outcome is not None and outcome.result:
                room -= len(outcome.result)
                if room < 0 and blobs:
                    omitted.append(index)
                else:
                    blobs.append((f"result_data.{index}", outcome.result))
        data = {"statuses": statuses, "result_data": [None] * len(statuses), "omitted": omitted}
        return Reply({**over.answer_head, **data}, blobs)
    results: list[views.View] = []
    unfinished: list[str] = []
    omitted_ids: list[str] = []
    # Logs, traces and messages go into the header, which may be far smaller than the rest.
    head_room = wire.MAX_HEADER_BYTES // 2
    for number, created_ms in zip(over.tasks, over.created_ms, strict=True):
        outcome = outcomes.get(number)
        if number in live:
            unfinished.append(public(number, created_ms))
        elif outcome is not None:
            room -= len(outcome.result)
            head_room -= len(outcome.details) + 4 * len(outcome.error_message or "") + _VIEW_BYTES
            if min(room, head_room) < 0 and results:
                omitted_ids.append(public(number, created_ms))
                continue
            view, text = views.result(public(number, created_ms), outcome)
            if text:
                blobs.append((f"results.{len(results)}.result_data", text))
            results.append(view)
    return Reply({"results": results, "unfinished": unfinished, "omitted": omitted_ids}, blobs)
