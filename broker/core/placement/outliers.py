"""Outlier detection: a device that fails what others do is passed over for that kind of task.

Compared is what happened since the device began to fail: how many *different* tasks of a kind it
failed in a row, and how the kind went elsewhere meanwhile. With the share p of failures elsewhere,
so many in a row by chance have the probability pⁿ; a device is found out when that is below one in
a thousand. Where a kind fails everywhere (poison tasks, a program's bug, a server that is down) p
is near one and nobody is blamed.

A device that fails at once would have eaten a queue before the first slow success elsewhere. So
while nothing is known of others, three in a row are enough for a short pause, as long as another
device could run the kind. The last device that can is never passed over.

What a device says of itself ("not here", "not allowed") needs no comparison where it is about
all tasks of a kind (`record_refusal`). Otherwise it may be one task's own want, an import of a
name that is nowhere. Only another device can tell: each task that did well elsewhere after a device
had refused it counts, and three different ones say that the device lacks what the kind needs
(`confirm_refusals`). Until then a refusal is a short pause, so that no queue is asked task by
task.

Nothing is counted of a kind before it fails somewhere: while all is well this costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.model import Device, Task
from retire_cluster.broker.core.placement.notes import LONGEST_SECONDS, Record, Tally, TaskKind
from retire_cluster.broker.core.placement.passing_over import lift, note
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.schemas import needs
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.vocabulary import FAILING, Cause

#: Fewer tasks in a row say nothing.
IN_A_ROW: Final = 3
#: So improbable must a row of failures be, going by how others do.
CHANCE: Final = 0.001
#: The pause while nothing is known of others: the first, and the longest.
PAUSE_SECONDS: Final = 5.0
LONGEST_PAUSE_SECONDS: Final = 40.0
#: Tasks remembered of a row, so that one that is tried again counts once.
_TASKS_KEPT: Final = 16
#: What a device failed longer ago says nothing of it.
RECORD_SECONDS: Final = 2 * LONGEST_SECONDS
#: Kinds counted at a time, and records of one device.
MAX_KINDS: Final = 1_000
MAX_RECORDS: Final = 64


def is_evidence(task: Task, cause: str) -> bool:
    """Return whether a failure may be the device's; a built-in type judges the payload itself."""
    if cause == Cause.DETERMINISTIC:
        return task.spec.task_type not in BUILTIN
    return cause in (Cause.ERROR, Cause.TIMEOUT)


def record_failure(state: ClusterState, device: Device, task: Task, now: Now) -> None:
    """Record an attempt on a device that failed for a cause that `is_evidence`."""
    kind = state.classes.kind_of(task.spec)
    row = _row(state, device, kind, task, now)
    if row < IN_A_ROW or not _others_can(state, device, task):
        return
    tally, record = state.tallies[kind], device.records[kind]
    ok = tally.ok - record.others_ok
    bad = tally.bad - record.others_bad - record.bad
    if not ok and not bad:
        note(
            state, device, kind, FAILING,
            f"it failed {row} tasks in a row, and nothing is known of other devices yet",
            now, first_seconds=PAUSE_SECONDS, longest_seconds=LONGEST_PAUSE_SECONDS,
        )  # fmt: skip
    elif ok and ((bad + 1) / (ok + bad + 2)) ** row <= CHANCE:
        message = f"it failed {row} tasks in a row; others did {ok} of {ok + bad} well meanwhile"
        note(state, device, kind, FAILING, message, now)


def record_refusal(
    state: ClusterState, device: Device, task: Task, cause: Cause, message: str, now: Now
) -> None:
    """Record that a device says it cannot run a task, which may hold for all of the kind."""
    kind = state.classes.kind_of(task.spec)
    info = device.types.get(kind.task_type)
    if kind.needs and not (
        cause == Cause.POLICY_DENIED and info is not None and needs.permits(kind.needs, info.allows)
    ):
        note(state, device, kind, cause, message, now)
        return
    _row(state, device, kind, task, now)
    record = device.records[kind]
    # With a need this is about words that follow the program: no word on all of its tasks.
    record.said = (FAILING if kind.needs else cause, message)
    if not _others_can(state, device, task):
        return
    # What an owner refuses of an own type is the worker's word, and about all of its tasks.
    if len(record.firm) >= IN_A_ROW or (cause == Cause.POLICY_DENIED and not kind.needs):
        note(state, device, kind, *record.said, now)
    else:
        note(
            state, device, kind, FAILING, message, now,
            first_seconds=PAUSE_SECONDS, longest_seconds=PAUSE_SECONDS,
        )  # fmt: skip


def confirm_refusals(state: ClusterState, device: Device, tasks: Sequence[Task], now: Now) -> None:
    """Hold tasks that did well here against devices that had refused them."""
    for task in tasks:
        if not task.excluded:
            continue
        kind = state.classes.kind_of(task.spec)
        for device_id in task.excluded:
            other = state.devices.get(device_id)
            record = None if other is None or other is device else other.records.get(kind)
            if other is None or record is None or task.number in record.firm:
                continue
            # One that was refused before the device did another well is not in its row any more.
            if task.number not in record.tasks:
                continue
            record.firm = [*record.firm[1 - _TASKS_KEPT :], task.number]
            if len(record.firm) >= IN_A_ROW and _others_can(state, other, task):
                note(state, other, kind, *record.said, now)


def record_successes(state: ClusterState, device: Device, tasks: Sequence[Task], now: Now) -> None:
    """Record attempts that ended well on a device; called only where something is noted."""
    before = tally = None
    for task in tasks:
        if task.spec is not before:
            before = task.spec
            kind = state.classes.kind_of(before)
            tally = state.tallies.get(kind)
            device.records.pop(kind, None)
            lift(state, device, kind, now)
        if tally is not None:
            tally.ok += 1


def expire(state: ClusterState, now: Now) -> None:
    """Forget old records; of kinds that fail nowhere any more nothing is counted."""
    if not state.tallies:
        return
    counted: set[TaskKind] = set()
    for device in state.devices.values():
        records = device.records
        for kind in [
            kind
            for kind, record in records.items()
            if now.mono - record.at_mono > RECORD_SECONDS and kind not in device.notes
        ]:
            del records[kind]
        counted.update(records)
    for kind in state.tallies.keys() - counted:
        del state.tallies[kind]


def _row(state: ClusterState, device: Device, kind: TaskKind, task: Task, now: Now) -> int:
    """Count a failed attempt; returns how many tasks in a row failed, 0 for one counted before."""
    tally = _tally(state, kind)
    record = device.records.get(kind)
    if record is None:
        if len(device.records) >= MAX_RECORDS:
            del device.records[next(iter(device.records))]
        record = device.records[kind] = Record(tally.ok, tally.bad)
    tally.bad += 1
    record.bad += 1
    record.at_mono = now.mono
    if task.number in record.tasks:
        return 0
    record.tasks = [*record.tasks[1 - _TASKS_KEPT :], task.number]
    return len(record.tasks)


def _tally(state: ClusterState, kind: TaskKind) -> Tally:
    found = state.tallies.get(kind)
    if found is None:
        if len(state.tallies) >= MAX_KINDS:
            gone = next(iter(state.tallies))
            del state.tallies[gone]
            for device in state.devices.values():
                device.records.pop(gone, None)
        found = state.tallies[kind] = Tally()
    return found


def _others_can(state: ClusterState, device: Device, task: Task) -> bool:
    """Return whether another device takes such tasks now."""
    some = state.class_of(task.spec).eligible.values()
    return any(other.ready for other in some if other is not device)
