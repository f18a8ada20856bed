"""The cluster: every task that has not ended, every device, and the verbs that change them.

- Only the rules that `cluster.handle` calls change the state. They do no I/O, read no clock and
  draw randomness only from the generator that the state was given.
- Store instructions of a turn are committed before any other instruction of it is performed.
- A task changes its status only through `TRANSITIONS`. One that has ended leaves memory; it comes
  back only by `RetryRequested`.
- A message about an attempt counts only with the attempt's exact key, from the device that has it.

What holds between two events is in invariants.py. This module imports no rule.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.devices.access import Access
from retire_cluster.broker.core.devices.type_registry import TypeRegistry
from retire_cluster.broker.core.evidence import last_events
from retire_cluster.broker.core.instructions import Instruction, PingOver, StoreLive, WaitOver
from retire_cluster.broker.core.model import Device, Task, TaskSpec
from retire_cluster.broker.core.placement.matching import Classes, ClassKey, TaskClass
from retire_cluster.broker.core.placement.notes import NoteIndex, Tally, TaskKind
from retire_cluster.broker.core.placement.starvation import Share
from retire_cluster.broker.core.records.audit import Denials
from retire_cluster.broker.core.records.clock import MARK_SECONDS, ClusterClock
from retire_cluster.broker.core.records.event_log import EventLog
from retire_cluster.broker.core.records.ledger import Ledger
from retire_cluster.broker.core.records.stats import Stats
from retire_cluster.broker.core.rows import LiveRow, Mark, SubmissionRow
from retire_cluster.broker.core.transitions import IllegalTransition, TaskEvent, after
from retire_cluster.broker.core.waits import Waits
from retire_cluster.conf.settings import Settings
from retire_cluster.schemas.ids import TaskIds
from retire_cluster.schemas.protocol.messages import HeartbeatConfig, Hello
from retire_cluster.schemas.vocabulary import TERMINAL, TaskStatus

#: Payloads up to this size stay in memory while their task lives …
INLINE_PAYLOAD_BYTES = 4_096
#: … until all of them together reach this.
INLINE_BUDGET_BYTES = 256 * 1024 * 1024
_WORD = {status: status.value for status in TaskStatus}
_EVENT_TYPE = {status: f"task.{status.value}" for status in TaskStatus}
_NONCE_BITS = 48
#: Devices that said a task cannot run there, as far as the store keeps them.
DEVICES_KEPT = 64


@dataclass
class ParkedPing:
    """A parked `device.ping`."""

    ticket: ev.Ticket
    device_id: str
    sent_mono: float
    #: Epoch milliseconds.
    sent_ms: int
    deadline_mono: float

    def over(self, response_ms: float | None, duration_ms: float) -> PingOver:
        """Make the instruction that ends it; `response_ms` None: the device did not answer."""
        return PingOver(self.ticket, self.device_id, self.sent_ms, response_ms, duration_ms)


@dataclass
class Challenge:
    """A HELLO for a device id that seems to be alive elsewhere: the old one was asked."""

    hello: Hello
    routing: bytes
    address: str
    nonce: int
    deadline_mono: float


class ClusterState:
    """All that the core knows. Attributes are for reading; rules change them through the verbs."""

    def __init__(
        self,
        settings: Settings,
        *,
        epoch: int,
        salt: int,
        rng: random.Random,
        clock: ClusterClock,
        config_version: int = 1,
    ) -> None:
        #: The settings in force; `ConfigChanged` replaces them as a whole.
        self.settings = settings
        #: Rises with each change of the settings; devices acknowledge it.
        self.config_version = config_version
        #: Names this process among its forerunners; part of each attempt's key.
        self.epoch = epoch
        #: Makes public task ids of numbers, and reads them.
        self.ids = TaskIds(salt)
        #: The only source of chance: tokens, nonces, jitter.
        self.rng = rng
        #: The clock by which things get old.
        self.clock = clock

        #: Number of the next task.
        self.next_task = 1
        #: Live tasks by number; a task that ends leaves.
        self.tasks: dict[int, Task] = {}
        #: Number of the task that a rule works on, for an error to name; 0: none in particular.
        self.at_task = 0
        #: Those of them that run, by number.
        self.running: dict[int, Task] = {}
        #: `(not_before_mono, number)` of pending tasks, the next first; entries may be stale.
        self.pending: list[tuple[float, int]] = []
        #: Live tasks that a device gave back (requeues.py), by number.
        self.returned: set[int] = set()
        #: Bytes of the payloads that are kept in memory.
        self.inline_bytes = 0
        #: One line for each task that is retained, live or ended.
        self.ledger = Ledger()
        #: Answered submissions by owner and Idempotency-Key, oldest first.
        self.submissions: dict[tuple[str, str], SubmissionRow] = {}
        #: Whether the last retention left some for the next sweep.
        self.retention_unfinished = False

        #: Number of the next batch of assignments.
        self.next_dispatch = 1
        #: Batches whose attempts have all ended, to be forgotten by the next sweep.
        self.ended_dispatches: list[int] = []

        #: Registered devices by id, online or not.
        self.devices: dict[str, Device] = {}
        #: Removed device ids and when (epoch ms).
        self.tombstones: dict[str, int] = {}
        #: Connection → the device that is registered on it.
        self.connections: dict[bytes, Device] = {}
        #: How many devices are online.
        self.online_count = 0
        #: HELLOs for the id of a device that seems alive, by that id.
        self.challenges: dict[str, Challenge] = {}
        #: Keys and tokens that may speak to this main node.
        self.access = Access()
        #: Own types that devices offer: they may be submitted while these are away.
        self.own_types = TypeRegistry()
        #: When the sweep of device liveness last ran.
        self.last_sweep_mono: float | None = None

        #: Requirement classes by key.
        self.classes = Classes()
        #: Those of them with queued tasks.
        self.waiting: dict[ClassKey, TaskClass] = {}
        #: Devices that may be given work now, by id.
        self.free: dict[str, Device] = {}
        #: How near the next placement is that may go before better-ranked work.
        self.share = Share(rng)
        #: Ids of devices that told which programs their owner allows.
        self.restricting: set[str] = set()
        #: Which devices have notes on which kinds of task (passing_over.py).
        self.note_index = NoteIndex()
        #: Kinds of task that failed somewhere: what the cluster has done of them since.
        self.tallies: dict[TaskKind, Tally] = {}
        #: Where the sweep of unschedulable tasks goes on.
        self.unschedulable_turn = 0

        #: Parked `device.ping` calls by the nonce that was sent.
        self.pings: dict[int, ParkedPing] = {}
        #: Parked `task.wait` calls.
        self.waits = Waits()

        #: What happened, for clients.
        self.log = EventLog(epoch, settings.retention.event_rows, settings.retention.audit_rows)
        #: How often each source was denied something since that was last in the log.
        self.denials = Denials()
        #: Numbers of tasks whose newest progress is not in the log yet (event_throttle.py).
        self.withheld_progress: dict[int, None] = {}
        #: Ids of devices whose newest change is not.
        self.withheld_changes: dict[str, None] = {}
        #: Measured figures of this process.
        self.stats = Stats()
        #: Instructions of the event being handled.
        self._out: list[Instruction] = []

    def next_deadline(self) -> float | None:
        """Return the monotonic time of the next thing that cannot wait for a sweep, or None."""
        times = [ping.deadline_mono for ping in self.pings.values()]
        times += [challenge.deadline_mono for challenge in self.challenges.values()]
        due_mono = self.waits.next_deadline()
        if due_mono is not None:
            times.append(due_mono)
        if self.pending:
            times.append(self.pending[0][0])
        return min(times, default=None)

    # --- what the rules are made of --------------------------------------------------------------

    def nonce(self) -> int:
        """Draw a number that names one PING."""
        return self.rng.getrandbits(_NONCE_BITS)

    def emit(self, instruction: Instruction) -> None:
        """Add to the instructions of the event being handled."""
        self._out.append(instruction)

    def take_instructions(self) -> list[Instruction]:
        """Return what was emitted since the last call, and begin anew."""
        taken, self._out = self._out, []
        return taken

    def count_dropped(self, kind: str) -> None:
        """Count what the shell did not take, or could not send, by kind."""
        self.stats.dropped[kind] += 1

    def record_placements(self, waited_seconds: Iterable[float]) -> None:
        """Record how long tasks that were sent to their devices had waited, in seconds."""
        self.stats.placed(waited_seconds)

    def record_requests(self, now: ev.Now, requests: int, errors: int, total_ms: float) -> None:
        """Record what a facade's process served since its last report."""
        self.stats.http.add(now.mono, requests, errors, total_ms)

    def mark(self, now: ev.Now, after_seconds: float = MARK_SECONDS) -> Mark | None:
        """Return a mark for the store if the last one is `after_seconds` old, else None."""
        return self.clock.mark(now, self.log.last, after_seconds)

    def heartbeat_config(self) -> HeartbeatConfig:
        """Return the liveness settings now in force."""
        heartbeat = self.settings.heartbeat
        return HeartbeatConfig(
            self.config_version, heartbeat.interval, heartbeat.timeout, heartbeat.max_missed
        )

    def move(self, task: Task, event: TaskEvent, now: ev.Now, **data: Any) -> TaskStatus:
        """Change a task's status by the table; the ledger and the event log follow.

        `data` goes into the event. Returns the new status; raises `IllegalTransition`, and then
        nothing has changed.
        """
        return self.move_all((task,), event, now, **data)

    def move_all(
        self, tasks: Sequence[Task], event: TaskEvent, now: ev.Now, **data: Any
    ) -> TaskStatus:
        """As `move`, for different tasks in one state, all on one device or all on none."""
        before, device = tasks[0].status, tasks[0].device
        try:
            status = after(before, event)
        except IllegalTransition:
            raise self._illegal(tasks[0], event) from None
        for task in tasks:
            if task.status is not before:
                raise self._illegal(task, event)
        for task in tasks:
            task.status = status
        if before is TaskStatus.RUNNING:
            for task in tasks:
                self.running.pop(task.number, None)
        numbers = [task.number for task in tasks]
        device_id = device.device_id if device is not None else None
        ended_s = self.clock.age_seconds(now) if status in TERMINAL else 0
        self.ledger.move_all(numbers, status, device_id, ended_s)
        data["from"] = _WORD[before]
        attempts = [task.attempt for task in tasks]
        details: dict[str, Any] | list[dict[str, Any]]
        if attempts.count(attempts[0]) == len(attempts):
            details = {**data, "attempt": attempts[0]}
        else:
            details = [{**data, "attempt": attempt} for attempt in attempts]
        created = [task.created_ms for task in tasks]
        self.log.add_burst(_EVENT_TYPE[status], now.wall_ms, numbers, created, device_id, details)
        return status

    def _illegal(self, task: Task, event: TaskEvent) -> IllegalTransition:
        events = last_events(self.log, task.number)
        return IllegalTransition(task.status, event, task.number, events)

    def enqueue(self, task: Task, now: ev.Now) -> None:
        """Put a task that just became queued into its class's backlog."""
        task.queued_mono = now.mono
        self.enqueue_all((task,), self.class_of(task.spec))

    def enqueue_all(self, tasks: Sequence[Task], cls: TaskClass) -> None:
        """Put tasks of one class and priority, queued since just now, into its backlog."""
        for task in tasks:
            task.backlog = cls
        cls.lanes.push(tasks)
        self.waiting[cls.key] = cls

    def class_of(self, spec: TaskSpec) -> TaskClass:
        """Return the requirement class of a task, made if it is the first of its kind."""
        need = self.classes.requirements_of(spec)
        if need.needs:
            kind = TaskKind(spec.task_type, need.needs)
            # A class for each program there is would make placing slow: only where it matters.
            apart = self.classes.is_apart(kind)
            if not apart and self.restricting:
                apart = self.classes.tell_apart(kind, self.note_index.kinds)
            if not apart:
                need = need._replace(needs="")
        key = ClassKey(spec.task_type, need)
        cls = self.classes.get(key)
        if cls is None:
            cls = self.classes.add(key)
            for device in self.devices.values():
                if device.online:
                    cls.judge(device)
        return cls

    def note_room(self, device: Device) -> None:
        """Bring `free` and the blocked classes up to date after a device got room or lost it."""
        if device.ready and device.free_units > 0:
            self.free[device.device_id] = device
            for cls in self.waiting.values():
                if cls.blocked and device.device_id in cls.eligible:
                    cls.blocked = False
        else:
            self.free.pop(device.device_id, None)

    def leave_device(self, tasks: Sequence[Task]) -> None:
        """Take the current attempts of tasks off their device, all the same one if any."""
        device = tasks[0].device
        if device is not None:
            device.release(tasks)
        for task in tasks:
            dispatch = task.dispatch
            if dispatch is not None:
                dispatch.open -= 1
                if dispatch.open == 0:
                    self.ended_dispatches.append(dispatch.number)
                task.dispatch = None
            task.progress = None

    def end(self, tasks: Sequence[Task]) -> None:
        """Forget tasks that have just ended; end the waits that were for them alone."""
        waited_for = self.waits.by_task
        for task in tasks:
            number = task.number
            del self.tasks[number]
            if task.given_back:
                self.returned.discard(number)
            if task.payload is not None:
                self.inline_bytes -= len(task.payload)
            if number in waited_for:
                for wait in self.waits.finish(number):
                    self.emit(WaitOver.of(wait.request))

    def keep_payloads(self, payloads: Sequence[bytes]) -> Sequence[bytes | None]:
        """Return the payloads that may stay in memory, None in place of the others."""
        total = sum(map(len, payloads))
        if (
            max(map(len, payloads), default=0) <= INLINE_PAYLOAD_BYTES
            and self.inline_bytes + total <= INLINE_BUDGET_BYTES
        ):
            self.inline_bytes += total
            return payloads
        return [self.keep_payload(payload) for payload in payloads]

    def keep_payload(self, payload: bytes) -> bytes | None:
        """Return the payload if it may stay in memory, else None."""
        if (
            len(payload) > INLINE_PAYLOAD_BYTES
            or self.inline_bytes + len(payload) > INLINE_BUDGET_BYTES
        ):
            return None
        self.inline_bytes += len(payload)
        return payload

    def wait_until(self, task: Task, not_before_mono: float) -> None:
        """Note when a pending task is due (monotonic seconds)."""
        task.not_before_mono = not_before_mono
        heapq.heappush(self.pending, (not_before_mono, task.number))

    def store_deviation(self, task: Task, now: ev.Now) -> None:
        """Have the store keep what differs from a fresh task."""
        task.deviates = True
        wait = max(0.0, task.not_before_mono - now.mono)
        due = task.status is TaskStatus.PENDING and wait > 0
        row = LiveRow(
            task.number,
            task.attempt,
            task.retries,
            task.stored_retries,
            now.wall_ms + int(wait * 1000) if due else 0,
            # What is left out after a restart is only asked once more.
            tuple(sorted(task.excluded.items())[:DEVICES_KEPT]),
            tuple(sorted(task.killers)),
            tuple(sorted(task.tried)),
            tuple((name, *times) for name, times in sorted(task.given_back.items())),
        )
        self.emit(StoreLive((row,)))
