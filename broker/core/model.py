"""What the core knows of each task that has not ended, and of each device.

Ended tasks are in the store, with one line each in the ledger.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from retire_cluster.broker.core.placement import notes
from retire_cluster.broker.core.placement.notes import Note, Record, TaskKind
from retire_cluster.broker.core.rows import DeviceRow
from retire_cluster.schemas.protocol.messages import (
    AttemptKey,
    Heartbeat,
    HeartbeatConfig,
    Hello,
    TypeInfo,
)
from retire_cluster.schemas.text.clean_text import plain, plain_lines
from retire_cluster.schemas.text.json_text import dumps, loads
from retire_cluster.schemas.vocabulary import INSTANT_PER_SLOT, DeviceStatus, TaskStatus

#: Attributes that the store keeps beside tags and types.
_KEPT = (
    "capabilities",
    "drained",
    "gone_s",
    "hostname",
    "instance",
    "ip_address",
    "last_error",
    "last_heartbeat_ms",
    "metrics",
    "platform",
    "role",
    "slots",
    "total_heartbeats",
    "version",
)
#: A slot is this many units; an instant attempt takes one, any other a whole slot.
SLOT_UNITS = INSTANT_PER_SLOT
METRICS_KEPT = 60
#: What a device may tell of its condition (docs/protocol.md); anything else is left out.
METRICS = (
    "cpu_percent",
    "memory_percent",
    "disk_percent",
    "load_average",
    "temperature_c",
    "battery_percent",
    "power_plugged",
)


@dataclass(frozen=True)
class TaskSpec:
    """What tasks of one request have in common; shared by all tasks of the same form."""

    task_type: str
    #: 0 (low) to 3 (urgent).
    priority: int
    timeout_seconds: int
    max_retries: int
    #: JSON object `{"requirements", "metadata"}` as the client gave them, defaults filled in.
    document: bytes


class Backlog(Protocol):
    """What a queued task waits in."""

    def leave(self) -> None:
        """Note that a task left it otherwise than by being placed."""


class Times(NamedTuple):
    """How often a device gave a task back."""

    times: int
    #: The attempt of the newest row that is kept of it.
    attempt: int


class Dispatch:
    """A batch of assignments to one device; its attempts share the token."""

    __slots__ = ("device_id", "epoch", "number", "open", "token")

    def __init__(self, number: int, epoch: int, token: int, device_id: str) -> None:
        #: The store's key of this batch.
        self.number = number
        #: Of the broker process that made it; part of each attempt's key.
        self.epoch = epoch
        #: A random number; part of each attempt's key.
        self.token = token
        self.device_id = device_id
        #: Attempts of it that have not ended.
        self.open = 0

    def __repr__(self) -> str:
        return f"<Dispatch {self.number} to {self.device_id}, {self.open} open>"


class Task:
    """A task that has not ended. Monotonic times end in `_mono`, wall-clock ones in `_ms`.

    What a fresh task does not have yet are class attributes: hundreds of tasks are made at once,
    and setting each of these on each of them would cost as much as all the rest.
    """

    #: When it may run, while it is pending; 0: at once.
    not_before_mono = 0.0
    #: How many attempts were made, the current one included.
    attempt = 0
    #: Retries used in this generation.
    retries = 0
    #: The batch of the current attempt; None without one.
    dispatch: Dispatch | None = None
    #: The device of the current attempt.
    device: Device | None = None
    #: Where it waits while it is queued.
    backlog: Backlog | None = None
    #: Of the current attempt.
    assigned_ms: int | None = None
    #: Of the current attempt, on both clocks.
    started_ms: int | None = None
    started_mono: float | None = None
    #: When its device was last known to have it.
    confirmed_mono = 0.0
    #: `(percent or None, message)` as the device last told.
    progress: tuple[float | None, str] | None = None
    #: Devices that said it cannot run there, free of charge once each, and what they said.
    excluded: Mapping[str, str] = MappingProxyType({})
    #: Devices where an attempt did not end well, the first few: others are tried before them.
    tried: frozenset[str] = frozenset()
    #: Devices that were lost while running it (poison guard).
    killers: frozenset[str] = frozenset()
    #: Device → how often it gave the task back, free of charge (requeues.py).
    given_back: Mapping[str, Times] = MappingProxyType({})
    #: Whether the store has a `live` row for it.
    deviates = False
    #: How often it was placed and could not be sent.
    unsent = 0
    #: Retries used before the last manual retry (`retries` counts one generation).
    stored_retries = 0

    def __init__(
        self,
        number: int,
        spec: TaskSpec,
        created_ms: int,
        payload: bytes | None,
        status: TaskStatus,
        queued_mono: float,
    ) -> None:
        #: Rises with each submission; part of the public id.
        self.number = number
        #: What it has in common with others of its request.
        self.spec = spec
        #: When it was submitted; part of the public id.
        self.created_ms = created_ms
        #: The payload's JSON text while it is kept in memory; None: read it from the store.
        self.payload = payload
        #: Changed by `ClusterState.move` only, which follows the table.
        self.status = status
        #: When it began to wait in its backlog; its turn by waiting counts from here.
        self.queued_mono = queued_mono

    def __repr__(self) -> str:
        where = f" on {self.device.device_id}" if self.device is not None else ""
        return f"<Task {self.number} {self.status.value}, attempt {self.attempt}{where}>"

    @property
    def key(self) -> AttemptKey:
        """The current attempt's key on the wire; there must be one."""
        assert self.dispatch is not None
        return (self.number, self.attempt, self.dispatch.token, self.dispatch.epoch)

    @property
    def retry_count(self) -> int:
        """Retries over all generations."""
        return self.stored_retries + self.retries


class Device:
    """A registered device, online or not; `attempts` is what it may be running."""

    __slots__ = (
        "accepting",
        "attempts",
        "capabilities",
        "config",
        "device_id",
        "dirty",
        "drained",
        "dropped",
        "events_left",
        "events_left_mono",
        "failed",
        "given_back",
        "gone_s",
        "hostname",
        "instance",
        "ip_address",
        "last_error",
        "last_heartbeat_ms",
        "last_seen_mono",
        "left_out",
        "metrics",
        "metrics_history",
        "not_accepting_reason",
        "noted_mono",
        "notes",
        "online",
        "platform",
        "records",
        "refused",
        "registered_ms",
        "role",
        "routing",
        "rtt_ms",
        "session",
        "session_base_seconds",
        "session_mono",
        "slots",
        "succeeded",
        "tags",
        "total_heartbeats",
        "types",
        "used_units",
        "version",
        "walls",
    )

    def __init__(self, device_id: str, registered_ms: int, config: HeartbeatConfig) -> None:
        self.device_id = device_id
        #: When its id was first registered.
        self.registered_ms = registered_ms
        #: The liveness settings it has acknowledged; its deadlines follow these.
        self.config = config
        #: As its HELLO says, each of these.
        self.role = ""
        self.platform = ""
        self.hostname = ""
        self.version = ""
        self.tags: frozenset[str] = frozenset()
        #: How many whole-slot attempts it runs at a time.
        self.slots = 1
        self.capabilities: dict[str, Any] = {}
        #: Task types that it runs, by name.
        self.types: dict[str, TypeInfo] = {}
        #: Own types that it has and does not offer, each with the reason.
        self.left_out: tuple[str, ...] = ()
        #: What it keeps tasks from, and by what, as it says.
        self.walls: tuple[str, ...] = ()
        #: Where its connection comes from, as the transport says.
        self.ip_address = ""
        #: Names its process.
        self.instance = ""
        #: Names its registration; messages of another one do not count.
        self.session = ""
        #: The connection it speaks from; empty while offline after a restart.
        self.routing = b""
        #: Whether it is heard from.
        self.online = False
        #: When it went away, on the cluster's age in seconds; None while it is here.
        self.gone_s: int | None = None
        #: Whether the device itself takes work (it may be draining).
        self.accepting = True
        #: Why it does not, in its own words.
        self.not_accepting_reason = ""
        #: Whether an administrator drained it.
        self.drained = False
        #: When it last sent a message.
        self.last_seen_mono = 0.0
        self.last_heartbeat_ms: int | None = None
        #: When its session began.
        self.session_mono = 0.0
        #: The node's age in seconds when it said HELLO.
        self.session_base_seconds = 0.0
        self.total_heartbeats = 0
        #: The round trip that it measured last.
        self.rtt_ms: float | None = None
        #: What it last told of its condition (`METRICS`).
        self.metrics: dict[str, Any] = {}
        #: The same of its newest heartbeats, each with `at_ms`.
        self.metrics_history: deque[dict[str, Any]] = deque(maxlen=METRICS_KEPT)
        #: What went wrong there last.
        self.last_error = ""
        #: Attempts that ended well here, of retained tasks and since the start.
        self.succeeded = 0
        #: Attempts that failed here or ran too long.
        self.failed = 0
        #: Messages of it that were dropped because it says too much, by verb.
        self.dropped: Counter[str] = Counter()
        #: How many events it may still bring about at once , and when
        #: that was so (event_throttle.py).
        self.events_left, self.events_left_mono = float("inf"), 0.0
        #: Attempts in a row that it gave back while it takes work.
        self.given_back = 0
        #: Room that its attempts take, in slot units.
        self.used_units = 0
        #: Tasks placed here that have not ended, by number.
        self.attempts: dict[int, Task] = {}
        #: What it is passed over for, or lately was.
        self.notes: dict[TaskKind, Note] = {}
        #: When they were last stored because of a new one.
        self.noted_mono = float("-inf")
        #: Kinds of task that it failed and did not do well since.
        self.records: dict[TaskKind, Record] = {}
        #: Tasks that it said it cannot run (`Task.excluded`); some may have ended.
        self.refused: set[int] = set()
        #: Changed since it was last stored.
        self.dirty = False

    def __repr__(self) -> str:
        held = len(self.attempts)
        return f"<Device {self.device_id} {self.status.value}, {held} attempts>"

    @property
    def status(self) -> DeviceStatus:
        """Online or offline."""
        return DeviceStatus.ONLINE if self.online else DeviceStatus.OFFLINE

    @property
    def ready(self) -> bool:
        """Whether work may be sent to it now."""
        return self.online and self.accepting and not self.drained

    @property
    def free_units(self) -> int:
        """Room for work, in slot units."""
        return self.slots * SLOT_UNITS - self.used_units

    @property
    def load(self) -> float:
        """Used share of its slots, 0 to 1."""
        return self.used_units / (self.slots * SLOT_UNITS)

    def units_of(self, task_type: str) -> int:
        """Return the room that an attempt of this type takes here, in slot units."""
        info = self.types.get(task_type)
        return 1 if info is not None and info.instant else SLOT_UNITS

    def uptime_seconds(self, now_mono: float) -> float:
        """Return for how long its node has been up; 0 while offline."""
        if not self.online:
            return 0.0
        return self.session_base_seconds + max(0.0, now_mono - self.session_mono)

    def hold(self, tasks: Sequence[Task]) -> None:
        """Add attempts that were placed here."""
        for task in tasks:
            self.attempts[task.number] = task
            self.used_units += self.units_of(task.spec.task_type)

    def release(self, tasks: Sequence[Task]) -> None:
        """Remove attempts that ended, were lost or taken back."""
        for task in tasks:
            if self.attempts.pop(task.number, None) is not None:
                self.used_units -= self.units_of(task.spec.task_type)

    def register(self, hello: Hello, routing: bytes, now_mono: float) -> None:
        """Take over what a HELLO says."""
        self.routing, self.instance, self.session = routing, hello.instance, hello.session
        self.role, self.platform, self.hostname = hello.role, hello.platform, hello.hostname
        self.version, self.tags, self.slots = hello.version, frozenset(hello.tags), hello.slots
        self.capabilities = dict(hello.capabilities)
        self.types = {info.name: info for info in hello.task_types}
        self.accepting, self.not_accepting_reason = hello.accepting, ""
        self.session_mono, self.session_base_seconds = now_mono, hello.uptime_seconds
        self.last_seen_mono = now_mono
        self.online = True
        self.gone_s = None
        self.dirty = True
        # The types may have changed what an attempt weighs.
        self.used_units = sum(self.units_of(t.spec.task_type) for t in self.attempts.values())

    def beat(self, heartbeat: Heartbeat, now_mono: float, wall_ms: int) -> None:
        """Take over what a heartbeat says."""
        self.last_seen_mono, self.last_heartbeat_ms = now_mono, wall_ms
        self.total_heartbeats += 1
        self.accepting = heartbeat.accepting
        self.not_accepting_reason = plain(heartbeat.not_accepting_reason)
        self.rtt_ms = heartbeat.rtt_ms if heartbeat.rtt_ms is not None else self.rtt_ms
        self.last_error = plain_lines(heartbeat.last_error) or self.last_error
        metrics = {
            name: heartbeat.metrics[name]
            for name in METRICS
            if isinstance(heartbeat.metrics.get(name), (int, float))
        }
        if metrics:
            self.metrics = metrics
            self.metrics_history.append({"at_ms": wall_ms, **metrics})
        self.dirty = True

    def row(self, removed_ms: int | None = None) -> DeviceRow:
        """Return what the store keeps of it; it counts as stored from now on."""
        self.dirty = False
        document = {name: getattr(self, name) for name in _KEPT}
        config = self.config
        document["config"] = [config.version, config.interval, config.timeout, config.max_missed]
        document["tags"] = sorted(self.tags)
        document["types"] = [dict(vars(info)) for info in self.types.values()]
        if self.notes:
            document["notes"] = notes.rows(self.notes)
        return DeviceRow(self.device_id, self.registered_ms, removed_ms, dumps(document))

    @classmethod
    def from_row(
        cls, row: DeviceRow, config: HeartbeatConfig, now_mono: float, age_s: int = 0
    ) -> Device:
        """Make a device of its stored row: offline, its lease counted from now.

        `config`: the settings in force; the device may still go by those it acknowledged last, and
        the longer lease of the two is safe. `age_s`: the cluster's age.
        """
        device = cls(row.device_id, row.registered_ms, config)
        document = loads(row.document)
        if "config" in document:
            known = HeartbeatConfig(*document["config"])
            if known.timeout > config.timeout:
                device.config = known
        for name in _KEPT:
            if name in document:
                setattr(device, name, document[name])
        device.tags = frozenset(document["tags"])
        device.types = {info["name"]: TypeInfo(**info) for info in document["types"]}
        device.notes = notes.from_document(document.get("notes"), age_s, now_mono)
        device.last_seen_mono = now_mono
        return device

    def silent_for(self, now_mono: float) -> float:
        """Return the seconds since it last sent a message."""
        return now_mono - self.last_seen_mono
