"""Polls for events that are parked: when each is looked at, and what it gets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from retire_cluster.broker.admin.calls import Reply
from retire_cluster.broker.admin.cluster import polled
from retire_cluster.broker.admin.context import Admin, Poll
from retire_cluster.broker.core.events import Ticket
from retire_cluster.schemas.errors import ClusterError, InternalError

log = logging.getLogger("broker")

#: What else, beside its cursor, says what a poll gets.
_FILTERS: Final = ("limit", "type", "task_id", "device_id")


def answer_polls(
    admin: Admin, now_mono: float, answer: Callable[[Ticket, Reply | ClusterError], None]
) -> None:
    """Answer those whose time has come; the others stay.

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
                reply = found[asked] = polled(admin, poll)
        except Exception:
            log.exception("a poll for events failed")
            answer(poll.ticket, InternalError())
            continue
        if over or reply.data["events"] or reply.data["gap"]:
            answer(poll.ticket, reply)
        else:
            # Nothing of it was wanted: go on from here.
            kept.append(replace(poll, since=reply.data["next"], look_mono=None))
    admin.polls = kept


def _later(poll: Poll, now_mono: float) -> Poll | None:
    """A poll after which something has happened, to be looked at later; None: now.

    From the first event on it waits for others, so that a busy cluster filters, writes and sends
    one answer for many events and not one for each.
    """
    if poll.look_mono is None and poll.args["gather_seconds"]:
        until = min(now_mono + poll.args["gather_seconds"], poll.deadline_mono)
        return replace(poll, look_mono=until)
    return poll if poll.look_mono is not None and poll.look_mono > now_mono else None
