"""Unschedulable tasks: those that every device which could run them has said it cannot run.

Whoever waits in a queue has not been told so itself; without this, each would be tried in turn
when the notes about the devices end, and fail one by one for hours.
"""

from __future__ import annotations

from typing import Final

from retire_cluster.broker.core.attempts import MAX_ERROR_CHARACTERS, Ending, conclude
from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.instructions import StoreOutcomes
from retire_cluster.broker.core.placement import passing_over
from retire_cluster.broker.core.placement.matching import TaskClass
from retire_cluster.broker.core.rows import OutcomeRow
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.schemas.vocabulary import Priority

#: Classes looked at, and tasks failed, by one sweep at most, so that a turn stays short.
_CLASSES: Final = 4
_TASKS: Final = 2_000


def sweep(state: ClusterState, now: Now) -> None:
    """End notes whose time is over; fail queued tasks that no device is left for."""
    passing_over.expire(state, now)
    passing_over.store_some(state, now)
    noted = state.note_index.kinds
    if not noted:
        return
    lost = [
        cls
        for cls in state.waiting.values()
        if not cls.eligible and any(kind in noted for kind in cls.key.kinds)
    ]
    if not lost:
        return
    start = state.unschedulable_turn % len(lost)
    state.unschedulable_turn += _CLASSES
    for cls in (lost[start:] + lost[:start])[:_CLASSES]:
        if passing_over.trust_the_last(state, cls, now):
            continue
        message = passing_over.nobody_left(state, cls, now)
        if message is not None:
            _fail(state, cls, message[:MAX_ERROR_CHARACTERS], now)


def _fail(state: ClusterState, cls: TaskClass, message: str, now: Now) -> None:
    cause = passing_over.cause_of(state, cls).value
    rows: list[OutcomeRow] = []
    deviating = []
    cls.lanes.bring_back(_TASKS)
    for lane in reversed(range(len(Priority))):
        for task in cls.lanes.take(lane, _TASKS - len(rows)):
            task.backlog = None
            if task.deviates:
                deviating.append(task.number)
            rows.append(conclude(state, task, "fail", Ending(cause, message), now))
    if not cls.lanes.size:
        state.waiting.pop(cls.key, None)
    if rows:
        state.emit(StoreOutcomes(rows, deviating))
