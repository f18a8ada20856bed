"""`task.wait`: park a client until its tasks have ended, then tell it how."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from retire_cluster.broker.admin import views
from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import Admin
from retire_cluster.broker.admin.registry import operation
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.instructions import WaitOver
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.rest.requests import MAX_BATCH

MAX_WAITED: Final = MAX_BATCH
MAX_WAIT_SECONDS: Final = 60
_DEFAULT_SECONDS: Final = 30.0
#: Of a result in the header, without its message, logs and trace; generously.
_VIEW_BYTES: Final = 600
_ARGS: Final = frozenset({"task_ids", "first_id", "count", "timeout_seconds", "brief"})


@operation("task.wait", changes=True)
def wait(admin: Admin, call: Call) -> None:
    """Park until tasks have ended: listed by id, or those of one submission by its first id."""
    # Checked here: Cerberus takes longer over one id than everything else of this call.
    args = call.args
    unknown = sorted(set(args) - _ARGS)
    if unknown:
        raise ValidationError(unknown[0], "unknown field")
    seconds = wait_seconds(args, "timeout_seconds", _DEFAULT_SECONDS)
    by_first = "first_id" in args
    found = _submission(admin, args) if by_first else _listed(admin, args.get("task_ids"))
    park(admin, call, found, seconds, brief=bool(args.get("brief")))


def wait_seconds(args: Mapping[str, Any], name: str, default: float) -> float:
    """How long a call may be parked. Raises `ValidationError`."""
    seconds = args.get(name, default)
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, (int, float))
        or not (0 <= seconds <= MAX_WAIT_SECONDS and math.isfinite(seconds))
    ):
        raise ValidationError(name, f"must be a number from 0 to {MAX_WAIT_SECONDS}")
    return float(seconds)


def park(
    admin: Admin,
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


def task_ids(ids: object) -> list[str]:
    """Ids as they were sent, whether these tasks exist or not. Raises `ValidationError`."""
    if not isinstance(ids, list) or not 1 <= len(ids) <= MAX_WAITED:
        raise ValidationError("task_ids", f"must be a list of 1 to {MAX_WAITED} task ids")
    for index, task_id in enumerate(ids):
        if not isinstance(task_id, str):
            raise ValidationError(f"task_ids.{index}", "must be a task id")
    return ids


def _listed(admin: Admin, ids: object) -> list[tuple[int, int]]:
    return admin.references(task_ids(ids))


def _submission(admin: Admin, args: dict[str, Any]) -> list[tuple[int, int]]:
    if "task_ids" in args:
        raise ValidationError("task_ids", "is given by first_id and count already")
    first, count = args["first_id"], args.get("count", 1)
    if not isinstance(first, str):
        raise ValidationError("first_id", "must be a task id")
    if type(count) is not int or not 1 <= count <= MAX_WAITED:
        raise ValidationError("count", f"must be a whole number from 1 to {MAX_WAITED}")
    return admin.submission(first, count)


def unread(over: WaitOver) -> Reply:
    """A brief answer without what is in the store: no status is known, as when time was up."""
    none: list[None] = [None] * len(over.tasks)
    return Reply({**over.answer_head, "statuses": none, "result_data": list(none), "omitted": []})


def waited(admin: Admin, over: WaitOver) -> Reply:
    """The answer of a `task.wait` that is over: as many results as fit into one message."""
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
