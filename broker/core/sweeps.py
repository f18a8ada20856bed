"""Sweeps: passes over the state that only time asks for. `SWEEPS` is the table of them.

Deadlines are judged here on the monotonic time of the tick, never by the clock that made the tick.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import takewhile
from typing import Final, NamedTuple

from retire_cluster.broker.core import attempts
from retire_cluster.broker.core.devices import event_throttle, membership
from retire_cluster.broker.core.devices.type_registry import GONE_SECONDS
from retire_cluster.broker.core.events import Now, Tick
from retire_cluster.broker.core.instructions import (
    ForgetDispatches,
    ForgetSubmissions,
    ForgetTasks,
    StoreDevices,
    StoreMark,
    WaitOver,
)
from retire_cluster.broker.core.model import SLOT_UNITS
from retire_cluster.broker.core.placement import outliers, unschedulable
from retire_cluster.broker.core.records import audit_rows
from retire_cluster.broker.core.records.clock import LONE_MARK_SECONDS
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.schemas.vocabulary import TaskStatus

#: Seconds a device gets beyond a task's limit to end it itself.
TIMEOUT_GRACE_SECONDS = 5.0
#: A gap between two sweeps that means: this process slept, the devices did not. It is this long at
#: most, and half of the silence that makes a device offline where that is shorter.
SLEPT_SECONDS = 10.0
#: But never less than this many sweep intervals.
SLEPT_INTERVALS = 3
#: Ended tasks deleted by one retention sweep at most, so that a turn stays short.
RETENTION_BATCH = 2_000


def tick(state: ClusterState, event: Tick, now: Now) -> None:
    """Run the sweep that a tick names."""
    SWEEPS[event.sweep].run(state, now)


def deadlines(state: ClusterState, now: Now) -> None:
    """Queue pending tasks that are due; end calls and challenges whose time is over."""
    while state.pending and state.pending[0][0] <= now.mono:
        due_mono, number = heapq.heappop(state.pending)
        task = state.tasks.get(number)
        if task is None or task.status is not TaskStatus.PENDING:
            continue
        if task.not_before_mono == due_mono:
            attempts.become_due(state, task, now)
    for nonce, ping in list(state.pings.items()):
        if ping.deadline_mono <= now.mono:
            del state.pings[nonce]
            elapsed = 1000 * (now.mono - ping.sent_mono)
            state.emit(ping.over(None, elapsed))
    for device_id, challenge in list(state.challenges.items()):
        if challenge.deadline_mono <= now.mono:
            del state.challenges[device_id]
            membership.register(state, challenge.hello, challenge.routing, challenge.address, now)
    for wait in state.waits.expire(now.mono):
        state.emit(WaitOver.of(wait.request))


def liveness(state: ClusterState, now: Now) -> None:
    """Take silent devices offline; after their lease, give their attempts to others."""
    last, state.last_sweep_mono = state.last_sweep_mono, now.mono
    heartbeat = state.settings.heartbeat
    longest = max(
        min(SLEPT_SECONDS, heartbeat.interval * heartbeat.max_missed / 2),
        SLEPT_INTERVALS * state.settings.scheduler.sweep_interval_seconds,
    )
    if last is not None and now.mono - last > longest:
        for device in state.devices.values():
            device.last_seen_mono = now.mono
        for task in state.tasks.values():
            task.confirmed_mono = now.mono
        return
    for device in state.devices.values():
        silent = device.silent_for(now.mono)
        config = device.config
        if device.online and silent > config.interval * config.max_missed:
            membership.take_offline(state, device, now)
        if device.attempts and silent > config.timeout:
            for task in list(device.attempts.values()):
                attempts.lose(state, task, f"its device was silent for {silent:.1f} s", now)


def limits(state: ClusterState, now: Now) -> None:
    """End running attempts far past their limit, which their device should have ended."""
    late = [
        task
        for task in state.running.values()
        if task.started_mono is not None
        and now.mono - task.started_mono > task.spec.timeout_seconds + TIMEOUT_GRACE_SECONDS
    ]
    for task in late:
        attempts.time_out(state, task, now)


def upkeep(state: ClusterState, now: Now) -> None:
    """Forget ended dispatch batches, measure slot use, go on with a retention that had more."""
    if state.retention_unfinished:
        retention(state, now)
    event_throttle.log_withheld(state, now)
    if state.ended_dispatches:
        state.emit(ForgetDispatches(tuple(state.ended_dispatches)))
        state.ended_dispatches.clear()
    used = total = 0
    for device in state.devices.values():
        if device.online:
            used += device.used_units
            total += device.slots * SLOT_UNITS
    state.stats.sample_slots(now.mono, used, total)


def devices(state: ClusterState, now: Now) -> None:
    """Store what changed about devices (counters, last metrics) and what they were denied; count
    no more what is old.
    """
    outliers.expire(state, now)
    changed = tuple(device.row() for device in state.devices.values() if device.dirty)
    if changed:
        state.emit(StoreDevices(changed))
    for write in audit_rows.writes(state.log):
        state.emit(write)


def retention(state: ClusterState, now: Now) -> None:
    """Delete ended tasks that are too old or too many, and old idempotency records."""
    settings, age_s = state.settings.retention, state.clock.age_seconds(now)
    for device_id in list(state.own_types.devices):
        gone_s = state.devices[device_id].gone_s
        if gone_s is not None and age_s - gone_s > GONE_SECONDS:
            state.own_types.drop(device_id)
    ended = state.ledger.total - len(state.tasks)
    surplus = ended - settings.finished_rows
    before_s = age_s - int(settings.finished_days * 86_400)
    gone = state.ledger.over_longest(before_s, surplus, RETENTION_BATCH)
    # More may end in a minute than one sweep deletes: the rest goes a batch a second.
    state.retention_unfinished = len(gone) == RETENTION_BATCH
    for number in gone:
        state.ledger.drop(number)
    if gone:
        state.ledger.compact()
        state.emit(ForgetTasks(tuple(gone)))
    limit_s = age_s - int(settings.idempotency_hours * 3_600)
    # The oldest are first: they came in the order of their age.
    old = list(takewhile(lambda each: each[1].at_s < limit_s, state.submissions.items()))
    for name, _ in old:
        del state.submissions[name]
    if old:
        state.emit(ForgetSubmissions(limit_s))
    mark = state.mark(now, LONE_MARK_SECONDS)
    if mark is not None:
        state.emit(StoreMark(mark))


class Sweep(NamedTuple):
    """A pass over the state and how often it runs."""

    run: Callable[[ClusterState, Now], None]
    #: In sweep intervals (`scheduler.sweep_interval_seconds`, default 1 s).
    every: int


SWEEPS: Final[dict[str, Sweep]] = {
    "deadlines": Sweep(deadlines, 1),
    "liveness": Sweep(liveness, 1),
    "limits": Sweep(limits, 1),
    "upkeep": Sweep(upkeep, 1),
    "unschedulable": Sweep(unschedulable.sweep, 1),
    "devices": Sweep(devices, 30),
    "retention": Sweep(retention, 60),
}
