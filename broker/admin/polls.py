"""`events.poll`: events after a cursor, now or as soon as there are some."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from retire_cluster.broker.admin import views
from retire_cluster.broker.admin.calls import Call, ParkedPoll, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.registry import operation
from retire_cluster.broker.core.events import Ticket
from retire_cluster.broker.core.records.event_log import Entry
from retire_cluster.schemas.errors import ClusterError, InternalError
from retire_cluster.schemas.rest import requests

log = logging.getLogger("broker")

#: Events of one answer.
EVENTS_AT_MOST: Final = 1_000
#: What else, beside its cursor, says what a poll gets.
_FILTERS: Final = ("limit", "type", "task_id", "device_id")


@operation(
    "events.poll",
    {
        "since": {**requests.EVENTS_QUERY["since"], "nullable": True, "default": None},
        "wait_seconds": {"type": "finite", "min": 0, "max": 60, "default": 0},
        "gather_seconds": {"type": "finite", "min": 0, "max": 1, "default": 0},
        "limit": {"type": "strict_int", "min": 1, "max": EVENTS_AT_MOST, "default": EVENTS_AT_MOST},
        "type": {**requests.EVENTS_QUERY["type"], "nullable": True},
        "task_id": {**requests.EVENTS_QUERY["task_id"], "nullable": True},
        "device_id": {**requests.EVENTS_QUERY["device_id"], "nullable": True},
    },
)
def poll(admin: AdminContext, call: Call) -> Reply | None:
    """Answer events after a cursor; park the call while there is none and time is left."""
    since = call.args["since"]
    parked = ParkedPoll(
        call.ticket,
        call.args,
        admin.state.log.last if since is None else since,
        call.now.mono + call.args["wait_seconds"],
    )
    answer = poll_now(admin, parked)
    if answer.data["events"] or answer.data["gap"] or call.args["wait_seconds"] <= 0:
        return answer
    admin.polls.append(parked)
    return None


def poll_now(admin: AdminContext, parked: ParkedPoll) -> Reply:
    """Return what a poll gets now."""
    log = admin.state.log
    wanted = _wanted(admin, parked.args)
    found, cursor = log.select(parked.since, parked.args["limit"], wanted)
    ids = admin.state.ids
    return Reply(
        {
            "events": [views.event(ids, entry) for entry in found],
            "next": cursor,
            "gap": log.gap(parked.since),
        }
    )


def _wanted(admin: AdminContext, args: dict[str, Any]) -> Any:
    type_, device_id, task = args.get("type"), args.get("device_id"), None
    if args.get("task_id"):
        read = admin.state.ids.read(args["task_id"])
        task = read[0] if read is not None else -1

    def test(entry: Entry) -> bool:
        return (
            (type_ is None or entry.type == type_ or entry.type.startswith(type_ + "."))
            and (task is None or entry.task == task)
            and (device_id is None or entry.device_id == device_id)
        )

    return test


def answer_polls(
    admin: AdminContext, now_mono: float, answer: Callable[[Ticket, Reply | ClusterError], None]
) -> None:
    """Answer the polls whose time has come; the others stay.

    What is asked for by many is looked up once.
    """
    kept = []
    found: dict[tuple[Any, ...], Reply] = {}
    for poll in admin.polls:
        over = poll.deadline_mono <= now_mono
        if not over and admin.state.log.last <= poll.since:
            kept.append(poll)
            continue
        later = None if over else _later(poll, now_mono)
        if later is not None:
            kept.append(later)
            continue
        try:
            asked = (poll.since, *(poll.args.get(name) for name in _FILTERS))
            reply = found.get(asked)
            if reply is None:
                reply = found[asked] = poll_now(admin, poll)
        except Exception:
            log.exception("a poll for events failed")
            answer(poll.ticket, InternalError())
            continue
        if over or reply.data["events"] or reply.data["gap"]:
            answer(poll.ticket, reply)
        else:
            # Nothing of it was wanted: go on from here.
            kept.append(replace(poll, since=reply.data["next"], look_mono=None))
    admin.polls[:] = kept


def _later(poll: ParkedPoll, now_mono: float) -> ParkedPoll | None:
    """Return a poll that has news as it is looked at later; None: it is looked at now.

    From the first event on it waits for others, so that a busy cluster filters, writes and sends
    one answer for many events and not one for each.
    """
    if poll.look_mono is None and poll.args["gather_seconds"]:
        until = min(now_mono + poll.args["gather_seconds"], poll.deadline_mono)
        return replace(poll, look_mono=until)
    return poll if poll.look_mono is not None and poll.look_mono > now_mono else None
