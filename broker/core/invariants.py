"""The rules that hold between any two events; tests check them after every one."""

from __future__ import annotations

from retire_cluster.broker.core.model import Device
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.schemas.vocabulary import TERMINAL, TaskStatus


def check_invariants(state: ClusterState) -> None:
    """Raise `AssertionError` naming the first rule that does not hold."""
    # Messages are made only when they are needed: tests call this after every event.
    queued = 0
    for number, task in state.tasks.items():
        status = task.status
        assert task.number == number, f"{task} is filed under {number}"
        assert status not in TERMINAL, f"{task} has ended and is still in memory"
        assert state.ledger.status(number) is status, f"{task} differs in the ledger"
        running = status is TaskStatus.RUNNING
        held = running or status is TaskStatus.ASSIGNED
        assert held == (task.dispatch is not None), f"{task} and its lease disagree"
        if held:
            device = task.device
            assert device is not None, f"{task} has no device"
            assert device.attempts.get(number) is task, f"{task} is not on its device"
            assert state.devices.get(device.device_id) is device, f"{task} is on a stranger"
        assert running == (number in state.running), f"{task} and `running` disagree"
        assert bool(task.given_back) == (number in state.returned), f"{task} came back"
        queued += status is TaskStatus.QUEUED
    for number in state.waits.by_task:
        assert number in state.tasks, f"task {number} has ended and is waited for"
    sizes = 0
    for cls in state.classes.values():
        size = cls.lanes.size
        sizes += size
        assert not size or cls.key in state.waiting, f"{cls.key} is not looked at"
    assert sizes == queued, f"{queued} tasks are queued, the backlogs count {sizes}"
    online = 0
    for device in state.devices.values():
        _check_device(state, device)
        online += device.online
    for name in state.own_types.devices:
        assert name in state.devices, f"{name} offers types and is no member"
    noted = sum(len(device.notes) for device in state.devices.values())
    assert noted == state.note_index.size, f"{noted} notes, counted {state.note_index.size}"
    assert online == state.online_count, f"{online} are online, counted {state.online_count}"
    lives = state.ledger.total - state.ledger.ended()
    assert lives == len(state.tasks), f"the ledger has {lives} live tasks, not all are here"
    state.ledger.check_endings()


def _check_device(state: ClusterState, device: Device) -> None:
    name = device.device_id
    used = 0
    for number, task in device.attempts.items():
        used += device.units_of(task.spec.task_type)
        assert state.tasks.get(number) is task, f"{name} holds ended task {number}"
        assert task.device is device, f"{name} holds task {number}, which is elsewhere"
        assert task.dispatch is not None, f"{name} holds task {number}, which was let go"
    assert used == device.used_units, f"{name} counts {device.used_units}, holds {used}"
    if device.online:
        assert state.connections.get(device.routing) is device, f"{name} has no connection"
        if device.ready and device.free_units > 0:
            assert name in state.free, f"{name} has room and is not free"
