"""What the loop does about tasks and results that are damaged in the store."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from retire_cluster.broker.admin.context import Admin
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.store.base import RowDamaged, StoreError

log = logging.getLogger("broker")


def face(events: Sequence[ev.Event], admin: Admin, now: ev.Now) -> None:
    """Let happen what was found in the last turn."""
    public, tasks = admin.state.ids.public, admin.state.tasks
    for event in events:
        if isinstance(event, ev.ResultDamaged):
            task_id = public(event.task, event.created_ms)
            log.error("the result of task %s is damaged in the store: it fails", task_id)
        elif isinstance(event, ev.TaskDamaged) and event.task in tasks:
            task_id = public(event.task, tasks[event.task].created_ms)
            log.error("task %s is damaged in the store: it is not run", task_id)
        admin.apply(event, now)


def quarantine(damage: RowDamaged, admin: Admin) -> ev.ResultDamaged | None:
    """A damaged outcome, to be dealt with in the next turn; None when that was done before."""
    number = damage.task
    if number in admin.quarantined or number in admin.state.tasks:
        return None
    try:
        heads = admin.store.heads((number,))
        outcomes = admin.store.outcomes((number,), results=False)
    except StoreError as error:
        log.error("task %d: %s", number, error)
        return None
    if number not in heads or number not in outcomes:
        return None
    admin.quarantined.add(number)
    return ev.ResultDamaged(number, heads[number].created_ms, outcomes[number])
