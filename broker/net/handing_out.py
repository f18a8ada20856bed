"""Batches of assignments as messages: payloads not kept in memory are read, what is large is split.

By now the dispatch is committed. What cannot be sent becomes an event of the next turn, so that its
task goes on: one with a damaged payload fails, one whose payload cannot be read now waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.instructions import SendAssign
from retire_cluster.broker.core.model import Task
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.broker.net.bus import Bus
from retire_cluster.broker.store.base import Store
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.batches import Assign, AssignGroup


def hand_out(
    order: SendAssign,
    state: ClusterState,
    store: Store,
    bus: Bus,
    now: Callable[[], ev.Now],
) -> list[ev.TaskDamaged | ev.NotSent]:
    """Send a batch of assignments; return the events of those that could not be sent."""
    missing = [task.number for task in order.tasks if task.payload is None]
    found = store.payloads(missing) if missing else None
    later: list[ev.TaskDamaged | ev.NotSent] = []
    tasks: list[Task] = []
    payloads: list[bytes] = []
    for task in order.tasks:
        if task.dispatch is not order.dispatch:
            continue  # cancelled in the same turn
        payload = task.payload
        if payload is None and found is not None:
            payload = found.read.get(task.number)
            if payload is None:
                why = found.unread.get(task.number)
                later.append(
                    ev.TaskDamaged(task.number)
                    if why is None
                    else ev.NotSent(task.number, order.dispatch.token, why)
                )
                continue
        assert payload is not None
        tasks.append(task)
        payloads.append(payload)
    start = 0
    for count in wire.split_batch(map(len, payloads)):
        end = start + count
        verb, header = _assignment(order, tasks[start:end], state.ids.salt).write()
        bus.send(order.routing, verb, header, payloads[start:end], state.count_dropped)
        start = end
    # Measured here, where the message leaves: a turn has one time, taken at its beginning.
    sent_mono = now().mono
    state.record_placements([sent_mono - task.queued_mono for task in tasks])
    return later


def _assignment(order: SendAssign, tasks: Sequence[Task], salt: int) -> Assign:
    groups = []
    for (kind, limit), some in groupby(
        tasks, lambda task: (task.spec.task_type, task.spec.timeout_seconds)
    ):
        found = list(some)
        groups.append(
            AssignGroup(
                kind, limit, [task.number for task in found],
                [task.attempt for task in found], [task.created_ms for task in found],
            )
        )  # fmt: skip
    lease = order.dispatch
    return Assign(order.session, lease.token, lease.epoch, salt, tuple(groups))
