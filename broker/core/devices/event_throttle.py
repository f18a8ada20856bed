"""Events that devices cause are logged at a bounded rate, the newest of each always.

Progress and changes of a device's mind are states, not steps: of many in a moment the last one is
enough. A device brings about so many events at once and so many a second (`_AT_ONCE`, `_A_SECOND`),
what is more waits for the sweep, by which time only the newest is told. Results are not counted
here: each belongs to an attempt that was given out.
"""

from __future__ import annotations

from typing import Final

from retire_cluster.broker.core.events import Flooded, Now
from retire_cluster.broker.core.instructions import Warn
from retire_cluster.broker.core.model import Device, Task
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.schemas.keys import fingerprint

_AT_ONCE: Final = 100.0
_A_SECOND: Final = 20.0
#: Characters of a progress message in an event; its task's status has all of them.
MAX_MESSAGE: Final = 200


def log_progress(state: ClusterState, device: Device, task: Task, now: Now) -> None:
    """Log a task's progress, at once or with the next sweep."""
    if _may_tell(device, now):
        _add_progress(state, task, now)
        state.withheld_progress.pop(task.number, None)
    else:
        state.withheld_progress[task.number] = None


def log_change(state: ClusterState, device: Device, now: Now) -> None:
    """Log that a device takes work or no longer does, at once or with the next sweep."""
    if _may_tell(device, now):
        _add_change(state, device, now)
        state.withheld_changes.pop(device.device_id, None)
    else:
        state.withheld_changes[device.device_id] = None


def log_withheld(state: ClusterState, now: Now) -> None:
    """Log what was withheld, as far as the rate allows by now."""
    for number in list(state.withheld_progress):
        task = state.tasks.get(number)
        device = None if task is None else task.device
        if task is None or device is None or task.progress is None:
            del state.withheld_progress[number]
        elif _may_tell(device, now):
            del state.withheld_progress[number]
            _add_progress(state, task, now)
    for device_id in list(state.withheld_changes):
        device = state.devices.get(device_id)
        if device is None:
            del state.withheld_changes[device_id]
        elif _may_tell(device, now):
            del state.withheld_changes[device_id]
            _add_change(state, device, now)


def record_flood(state: ClusterState, event: Flooded, now: Now) -> None:
    """Count messages beyond a connection's budget, and log and warn of them once a minute."""
    who = event.who
    if isinstance(who, str):
        device = state.devices.get(state.access.device_of(who) or "")
        source = fingerprint(who)
    else:
        device, source = state.connections.get(who), who.hex()
    if device is not None:
        device.dropped.update(event.dropped)
    times = state.denials.times("device.flooding", source, now.mono, sum(event.dropped.values()))
    if not times:
        return
    name = None if device is None else device.device_id
    kinds = sorted(event.dropped)
    data = {"times": times, "kinds": kinds}
    state.log.add("device.flooding", now.wall_ms, device_id=name, data=data)
    who_says = name or f"a connection ({source})"
    text = f"{who_says} says more than it may: {times} messages were dropped ({', '.join(kinds)})"
    state.emit(Warn(text))


def _may_tell(device: Device, now: Now) -> bool:
    waited = max(0.0, now.mono - device.events_left_mono)
    device.events_left = min(_AT_ONCE, device.events_left + _A_SECOND * waited)
    device.events_left_mono = now.mono
    if device.events_left < 1.0:
        return False
    device.events_left -= 1.0
    return True


def _add_progress(state: ClusterState, task: Task, now: Now) -> None:
    assert task.progress is not None
    assert task.device is not None
    percent, message = task.progress
    data = {"percent": percent, "message": message[:MAX_MESSAGE], "attempt": task.attempt}
    state.log.add(
        "task.progress", now.wall_ms, task.number, task.created_ms, task.device.device_id, data
    )


def _add_change(state: ClusterState, device: Device, now: Now) -> None:
    data = {"accepting": device.ready, "reason": device.not_accepting_reason}
    state.log.add("device.changed", now.wall_ms, device_id=device.device_id, data=data)
