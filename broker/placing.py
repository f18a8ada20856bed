"""Placement: queued tasks to devices with room, best priority first, nobody blocked by a head.

Classes compete by their heads (effective priority, then age). A class whose eligible devices are
all busy steps aside until one of them gets room, so a task that nobody can run delays nothing.
"""

from __future__ import annotations

import heapq

from retire_cluster.broker.device import SLOT_UNITS, Device
from retire_cluster.broker.events import Now, Place
from retire_cluster.broker.instructions import SendAssign, StoreDispatch
from retire_cluster.broker.matching import TaskClass
from retire_cluster.broker.rows import DispatchRow
from retire_cluster.broker.state import ClusterState
from retire_cluster.broker.task import Dispatch, Task

_TOKEN_BITS = 53
#: Assignments of one message at most.
_BATCH = 512


def place(state: ClusterState, event: Place, now: Now) -> None:
    """Give out what can be given out."""
    if not state.waiting or not state.free:
        return
    chosen: dict[str, tuple[Device, list[Task]]] = {}
    heads = _heads(state, now)
    aging = state.settings.scheduler.aging_seconds
    aside: dict[str, Device] = {}
    while heads and state.free:
        rank, _, order, lane, cls = heapq.heappop(heads)
        device = cls.pick(state.free)
        if device is None:
            # Better-ranked work waits for a whole slot where small work holds a part of each: the
            # device nearest to it takes nothing lesser meanwhile, or it would never have one free.
            nearest = cls.nearly(state.free)
            if nearest is None:
                cls.blocked = True
            else:
                aside[nearest.device_id] = state.free.pop(nearest.device_id)
            continue
        rival = heads[0] if heads else None
        before = rival[1] if rival is not None and rival[0] == rank else None
        tasks = cls.lanes.take(lane, _share(cls, device), before)
        entry = chosen.setdefault(device.device_id, (device, []))
        for task in tasks:
            task.backlog = None
        device.hold(tasks)
        entry[1].extend(tasks)
        if device.free_units <= 0:
            state.free.pop(device.device_id, None)
        head = cls.lanes.head(now.mono, aging)
        if head is None:
            state.waiting.pop(cls.key, None)
        else:
            heapq.heappush(heads, (head.rank, head.number, order, head.lane, cls))
    state.free.update(aside)
    for device, tasks in chosen.values():
        for start in range(0, len(tasks), _BATCH):
            _dispatch(state, device, tasks[start : start + _BATCH], now)


def _heads(state: ClusterState, now: Now) -> list[tuple[int, int, int, int, TaskClass]]:
    aging = state.settings.scheduler.aging_seconds
    heads = []
    for order, cls in enumerate(list(state.waiting.values())):
        if cls.blocked:
            continue
        head = cls.lanes.head(now.mono, aging)
        if head is None:
            del state.waiting[cls.key]
        else:
            heads.append((head.rank, head.number, order, head.lane, cls))
    heapq.heapify(heads)
    return heads


def _share(cls: TaskClass, device: Device) -> int:
    """How many tasks of the class go to the device in one go.

    One by one for real work; instant ones as many as keep the eligible devices evenly loaded.
    """
    units = device.units_of(cls.key.task_type)
    if units == SLOT_UNITS:
        return 1
    return max(1, min(device.free_units // units, -(-cls.lanes.size // len(cls.ring))))


def _dispatch(state: ClusterState, device: Device, tasks: list[Task], now: Now) -> None:
    token = state.rng.getrandbits(_TOKEN_BITS)
    dispatch = Dispatch(state.next_dispatch, state.epoch, token, device.device_id)
    state.next_dispatch += 1
    dispatch.open = len(tasks)
    for task in tasks:
        task.attempt += 1
        task.dispatch, task.device = dispatch, device
        task.assigned_ms = now.wall_ms
        task.started_ms = task.started_mono = None
        task.confirmed_mono = now.mono
    state.move_all(tasks, "assign", now)
    attempts = tuple((task.number, task.attempt) for task in tasks)
    row = DispatchRow(dispatch.number, state.epoch, token, device.device_id, now.wall_ms, attempts)
    state.emit(StoreDispatch(row))
    state.emit(SendAssign(device.routing, device.session, dispatch, tuple(tasks)))
