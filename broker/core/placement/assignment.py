"""Placement: queued tasks to devices with room, best priority first, nobody blocked by a head.

Classes compete by their heads (priority, then age). A class whose eligible devices are all busy
steps aside until one of them gets room, so a task that nobody can run delays nothing. Who has
waited too long overtakes now and then (starvation.py). A task that failed on a device goes to
another one first, for which it waits a little; meanwhile others go before it.
"""

from __future__ import annotations

import heapq
import itertools

from retire_cluster.broker.core.events import Now, Place
from retire_cluster.broker.core.instructions import SendAssign, StoreDispatch
from retire_cluster.broker.core.model import SLOT_UNITS, Device, Dispatch, Task
from retire_cluster.broker.core.placement.matching import ClassKey, TaskClass
from retire_cluster.broker.core.placement.passing_over import may_come
from retire_cluster.broker.core.placement.requeues import last_choices
from retire_cluster.broker.core.placement.starvation import Waiting
from retire_cluster.broker.core.rows import DispatchRow
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.schemas import needs

_TOKEN_BITS = 53
#: Assignments of one message at most.
_BATCH = 512
#: How long a retry waits for another device than those where it failed.
PATIENCE_SECONDS = 30.0
#: Tasks of a class passed by in one pass at most, because they wait for another device: as many of
#: those that were passed by before are looked at again in turn, and as many more …
_PASSED_BY = 16
#: … and those put where they belong, because devices differ in what they need.
_SORTED = 512

#: `(rank, number, order, since_mono, class)`: who is next of a class.
_Entry = tuple[int, int, int, float, TaskClass]


def place(state: ClusterState, event: Place, now: Now) -> None:
    """Give queued tasks to devices with room."""
    if state.waiting and state.free:
        _Pass(state, now).run()


class _Pass:
    """One pass over what waits and who is free."""

    def __init__(self, state: ClusterState, now: Now) -> None:
        self.state = state
        self.now = now
        self.chosen: dict[str, tuple[Device, list[Task]]] = {}
        #: Devices kept for work that needs more of them than is free: they get nothing more.
        self.reserved: dict[str, Device] = {}
        #: How many tasks of a class are back in its queue that earlier passes had set aside.
        self.back: dict[ClassKey, int] = {}
        self.heads = self._heads()
        self.waiting = Waiting(
            [entry[4] for entry in self.heads],
            -self.heads[0][0] if self.heads else 0,
            now.mono - state.settings.scheduler.aging_seconds,
        )
        #: Heads noted for classes may be gone: somebody overtook, or was put into another class.
        self.overtaken = False
        #: Tasks that wait for another device, by class: they are set aside at the end.
        self.passed_by: dict[ClassKey, list[Task]] = {}
        self.sorted = 0
        #: Classes that joined in this pass.
        self.joined: set[ClassKey] = set()
        #: Numbers of classes that joined later.
        self.later = itertools.count(len(self.heads) + len(state.waiting))

    def _heads(self) -> list[_Entry]:
        heads = []
        for order, cls in enumerate(list(self.state.waiting.values())):
            if cls.blocked:
                continue
            if cls.lanes.aside:
                self.back[cls.key] = cls.lanes.bring_back(_PASSED_BY)
            head = cls.lanes.head()
            if head is None:
                self._end_of(cls)
            else:
                heads.append((head.rank, head.number, order, head.since_mono, cls))
        heapq.heapify(heads)
        return heads

    def run(self) -> None:
        """Place until there is nothing to place, or nowhere."""
        state, heads = self.state, self.heads
        while heads and state.free:
            entry = heapq.heappop(heads)
            rank, _, _, since_mono, cls = entry
            if self.overtaken and not self._is_still(entry):
                continue
            device = cls.pick(state.free)
            if device is None:
                self._reserve_nearest(cls)
                continue
            limit = _share(cls, device)
            if self.waiting.before(-rank, since_mono) is not None:
                if state.share.left == 0 and self._overtake(-rank, since_mono):
                    heapq.heappush(heads, entry)
                    continue
                limit = min(limit, state.share.left or limit)
            self._in_order(entry, device, limit)
        state.free.update(self.reserved)
        for tasks in self.passed_by.values():
            for task in tasks:
                own = task.backlog = state.class_of(task.spec)
                own.lanes.set_aside(task)
                state.waiting[own.key] = own
        for device, tasks in self.chosen.values():
            for start in range(0, len(tasks), _BATCH):
                _dispatch(state, device, tasks[start : start + _BATCH], self.now)

    def _is_still(self, entry: _Entry) -> bool:
        """Return whether this is still the head of its class; if not, let the new head compete."""
        _, number, order, _, cls = entry
        head = cls.lanes.head()
        if head is not None and head.number == number:
            return True
        self._go_on(cls, order)
        return False

    def _go_on(self, cls: TaskClass, order: int) -> None:
        """Let the next head of a class compete."""
        head = cls.lanes.head()
        if head is None:
            self._end_of(cls)
        else:
            entry = (head.rank, head.number, order, head.since_mono, cls)
            heapq.heappush(self.heads, entry)

    def _end_of(self, cls: TaskClass) -> None:
        """Drop a class without a head from `waiting`, unless some of it are set aside."""
        if not cls.lanes.size:
            self.state.waiting.pop(cls.key, None)

    def _may_pass_by(self, cls: TaskClass) -> bool:
        """Return whether one more task of a class may be passed by in this pass."""
        most = _PASSED_BY + self.back.get(cls.key, 0)
        return not self.passed_by or len(self.passed_by.get(cls.key, ())) < most

    def _reserve_nearest(self, cls: TaskClass) -> bool:
        """Keep the nearest device for a class without room; False if there is none.

        Better-ranked work waits for a whole slot where small work holds a part of each: the device
        nearest to it takes nothing lesser meanwhile, or it would never have one free.
        """
        nearest = cls.nearly(self.state.free)
        if nearest is None:
            cls.blocked = True
            return False
        self.reserved[nearest.device_id] = self.state.free.pop(nearest.device_id)
        return True

    def _in_order(self, entry: _Entry, device: Device, limit: int) -> None:
        rank, _, order, _, cls = entry
        rival = self.heads[0] if self.heads else None
        before = rival[1] if rival is not None and rival[0] == rank else None
        tasks = cls.lanes.take(-rank, limit, before)
        if device.units_of(cls.key.task_type) == SLOT_UNITS:
            better = self._device_for(cls, tasks[0], device)
            if better is None:
                if self.sorted < _SORTED and self._may_pass_by(cls):
                    self._go_on(cls, order)
                return
            device = better
        elif self.state.returned:
            tasks = self._elsewhere(cls, tasks, device)
        if tasks:
            self._give(device, tasks)
            self.state.share.placed(len(tasks))
        if self._may_pass_by(cls):
            self._go_on(cls, order)

    def _elsewhere(self, cls: TaskClass, tasks: list[Task], device: Device) -> list[Task]:
        """Return the small tasks that nobody gave back; place the others one by one."""
        returned = self.state.returned
        for task in tasks:
            if task.number in returned:
                better = self._device_for(cls, task, device)
                if better is not None:
                    self._give(better, [task])
                    self.state.share.placed(1)
        return [task for task in tasks if task.number not in returned]

    def _device_for(self, cls: TaskClass, task: Task, device: Device) -> Device | None:
        """Return where a task that was taken out goes: this device, a better one, None: later."""
        state = self.state
        state.at_task = task.number
        if cls.key.task_type in needs.TYPES:
            own = state.class_of(task.spec)
            if own is not cls:
                self._sort(task, own)
                return None
        if not task.tried:
            return device
        # More may have said that they cannot run it than are remembered as tried.
        avoid = task.tried.union(task.excluded)
        if device.device_id not in avoid:
            return device
        other = cls.pick(state.free, avoid=avoid)
        if other is not None:
            return other
        waited = self.now.mono - task.queued_mono
        patient = waited < PATIENCE_SECONDS
        last = frozenset(task.excluded)
        if task.given_back:
            last |= last_choices(task)
        if device.device_id in last:
            # It would only say so again: where the task failed otherwise comes before it.
            second = cls.pick(state.free, avoid=last)
            if second is None:
                patient = True
                avoid = last
            else:
                device = second
        wanted = patient and any(one.ready and one.device_id not in avoid for one in cls.ring)
        if not wanted and device.device_id in task.excluded:
            wanted = not may_come(state, cls, self.now) <= task.excluded.keys()
        if wanted:
            self.passed_by.setdefault(cls.key, []).append(task)
            return None
        return device

    def _sort(self, task: Task, own: TaskClass) -> None:
        """Put a task into a class that was not told apart when it was queued."""
        self.sorted += 1
        task.backlog = own
        own.lanes.push((task,))
        self.overtaken = True
        self.state.waiting[own.key] = own
        if not own.blocked and own.eligible and own.key not in self.joined:
            self.joined.add(own.key)
            self._go_on(own, next(self.later))

    def _overtake(self, lane: int, since_mono: float) -> bool:
        """Place who has waited longest before better-ranked work; False when there is no room."""
        state = self.state
        while (found := self.waiting.before(lane, since_mono)) is not None:
            cls, own = found
            device = None if cls.blocked else cls.pick(state.free)
            if device is None:
                if not cls.blocked and self._reserve_nearest(cls):
                    # Its turn is kept: the device empties soon, small work is over in a moment.
                    self.waiting.drop_all()
                    return True
                self.waiting.drop()
                continue
            if not self._may_pass_by(cls) or self.sorted >= _SORTED:
                self.waiting.drop()
                continue
            task = cls.lanes.take_oldest(own)
            assert task is not None
            self.overtaken = True
            device = self._device_for(cls, task, device)
            if device is None:
                continue
            self._give(device, [task])
            state.share.overtook()
            return True
        return False

    def _give(self, device: Device, tasks: list[Task]) -> None:
        for task in tasks:
            task.backlog = None
        device.hold(tasks)
        self.chosen.setdefault(device.device_id, (device, []))[1].extend(tasks)
        if device.free_units <= 0:
            self.state.free.pop(device.device_id, None)


def _share(cls: TaskClass, device: Device) -> int:
    """Return how many tasks of the class go to the device in one go.

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
