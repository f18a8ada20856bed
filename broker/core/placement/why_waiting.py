"""Why a task waits, for people: what each device lacks, and whom the task waits for."""

from __future__ import annotations

from collections import Counter
from typing import Any

from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.model import Device, Task
from retire_cluster.broker.core.placement import requeues
from retire_cluster.broker.core.placement.assignment import PATIENCE_SECONDS
from retire_cluster.broker.core.placement.matching import (
    ClassKey,
    Requirements,
    notes_on,
    unfit,
    why_not,
)
from retire_cluster.broker.core.placement.passing_over import describe
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.schemas.vocabulary import TaskStatus


def class_key(task: Task) -> ClassKey:
    """Return the requirement class of a live task."""
    return ClassKey(task.spec.task_type, Requirements.of(task.spec.document))


def obstacles(key: ClassKey, device: Device, now: Now | None = None) -> list[str]:
    """Return why a device does not take tasks of a class now; empty if it only lacks room.

    With `now`, what is noted of the device is told with its age.
    """
    found = why_not(key, device)
    if found and now is not None:
        found = unfit(key, device) + [describe(one, now) for one in notes_on(key, device)]
    if found:
        return found
    if not device.online:
        return ["offline"]
    if not device.ready:
        return ["draining"]
    return []


def others_first(state: ClusterState, task: Task, device: Device, now: Now) -> list[str]:
    """Return why a device that could run a task does not get it: another one goes first."""
    word = task.excluded.get(device.device_id)
    if word is not None:
        return [f"it said that it cannot run this task: {word}"]
    waited = now.mono - task.queued_mono
    if (
        task.status is not TaskStatus.QUEUED
        or device.device_id not in task.tried
        or waited >= PATIENCE_SECONDS
        or not any(
            one.ready and one.device_id not in task.tried
            for one in state.class_of(task.spec).eligible.values()
        )
    ):
        return []
    left = PATIENCE_SECONDS - waited
    return [f"it failed there: another device is waited for, for up to {left:.0f} s"]


def verdict(
    state: ClusterState, task: Task, key: ClassKey, device: Device, now: Now
) -> tuple[bool, list[str]]:
    """Return whether a device may run a task of class `key`, and why it does not get it now."""
    found = obstacles(key, device, now) or others_first(state, task, device, now)
    if found:
        return False, found
    if device.free_units < device.units_of(task.spec.task_type):
        return True, ["all its slots are busy"]
    return True, []


def queued_reason(state: ClusterState, task: Task, now: Now) -> dict[str, Any]:
    """Return why a task waits: who could run it, who is busy, why the others cannot."""
    key = class_key(task)
    eligible = busy = 0
    rejected: Counter[str] = Counter()
    for device in state.devices.values():
        found = obstacles(key, device) or others_first(state, task, device, now)
        rejected.update(found)
        if not found:
            eligible += 1
            busy += device.free_units < device.units_of(task.spec.task_type)
    if task.unsent and task.status is TaskStatus.PENDING:
        rejected["the main node could not read or send its payload: tried again"] = eligible
    view = {"eligible_devices": eligible, "busy_devices": busy, "rejected": dict(rejected)}
    if returned := requeues.repeated_returns(task):
        view["given_back"] = returned
    return view
