"""A cluster's pure core under a virtual clock: events in, instructions out, no sockets.

`Cluster` commits every turn to a store, as the broker does, and checks the invariants after every
event, so each test of the core also proves that nothing was left out of the store.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.health import Health
from retire_cluster.broker.admin.submit import make
from retire_cluster.broker.admin.table import find
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.cluster import handle
from retire_cluster.broker.core.invariants import check_invariants
from retire_cluster.broker.core.model import Device, Task, TaskSpec
from retire_cluster.broker.core.records.event_log import fresh_epoch
from retire_cluster.broker.core.restore import restore
from retire_cluster.broker.core.rows import OutcomeRow
from retire_cluster.broker.core.state import INLINE_PAYLOAD_BYTES
from retire_cluster.broker.core.sweeps import SWEEPS
from retire_cluster.broker.facts import Facts
from retire_cluster.broker.store.base import Store
from retire_cluster.broker.store.memory import MemoryStore
from retire_cluster.conf.settings import Settings
from retire_cluster.schemas import errors
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.messages import AttemptKey
from retire_cluster.schemas.protocol.wire import PROTOCOL
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text.json_text import dumps
from retire_cluster.schemas.vocabulary import PRIORITY_BY_WORD

WALL_MS = 1_700_000_000_000
#: What every device of these tests can do, unless it says otherwise.
TYPES = (
    *(BUILTIN[name] for name in ("echo", "sleep", "command")),
    msg.TypeInfo("resize", "scales a picture", {"width": {"type": "strict_int"}}, True),
)

M = TypeVar("M", bound=msg.FromBroker)
I = TypeVar("I", bound=ins.Instruction)  # noqa: E741 - it is an instruction


def task_spec(task_type: str = "sleep", priority: str = "normal", **requirements: Any) -> TaskSpec:
    """A submission's common part, as `task.submit` makes it."""
    limits = {"timeout_seconds": 300, "max_retries": 3, **requirements}
    return TaskSpec(
        task_type,
        int(PRIORITY_BY_WORD[priority]),
        limits["timeout_seconds"],
        limits["max_retries"],
        dumps({"requirements": limits, "metadata": {}}),
    )


def settings_with(**sections: Mapping[str, Any]) -> Settings:
    """Default settings with some fields changed: `settings_with(heartbeat={"interval": 1})`."""
    base = Settings(data_dir=Path("unused"))
    changed = {name: replace(getattr(base, name), **fields) for name, fields in sections.items()}
    return base.with_sections(changed)


class Member:
    """A device as the core sees it: what it says, and what it was told."""

    def __init__(self, cluster: Cluster, device_id: str, routing: bytes) -> None:
        self.cluster = cluster
        self.device_id = device_id
        self.routing = routing
        self.hello: msg.Hello
        self.batch = 0

    @property
    def session(self) -> str:
        """The session of its last HELLO."""
        return self.hello.session

    @property
    def record(self) -> Device:
        """The core's record of it."""
        return self.cluster.state.devices[self.device_id]

    @property
    def keys(self) -> list[AttemptKey]:
        """The attempts it has, by the core's account, in order of their tasks."""
        return sorted(task.key for task in self.record.attempts.values())

    def say(self, message: Any) -> list[ins.Instruction]:
        """Any message over its connection."""
        return self.cluster.do(ev.FromDevice(self.routing, message, "192.0.2.7"))

    def join(self, **changes: Any) -> list[ins.Instruction]:
        """HELLO, with a new session and these fields changed."""
        self.cluster.sessions += 1
        fields: dict[str, Any] = {
            "protocol": PROTOCOL,
            "device_id": self.device_id,
            "instance": f"process of {self.device_id}",
            "session": f"s{self.cluster.sessions}",
            "version": "1.0",
            "role": "worker",
            "platform": "linux",
            "hostname": "box",
            "tags": (),
            "slots": 1,
            "capabilities": {"cpu_count": 4, "memory_total_gb": 8.0, "storage_total_gb": 100.0},
            "task_types": TYPES,
        }
        if hasattr(self, "hello"):
            fields.update(vars(self.hello), session=fields["session"], held=(), unsent=())
        self.hello = msg.Hello(**{**fields, **changes})
        return self.say(self.hello)

    def beat(self, held: Sequence[msg.Held] | None = None, **fields: Any) -> list[ins.Instruction]:
        """HEARTBEAT; `held` None: nothing is said about attempts."""
        rows = None if held is None else tuple(held)
        fields.setdefault("config_version", self.cluster.state.config_version)
        return self.say(msg.Heartbeat(self.session, 1, held=rows, **fields))

    def start(self, *keys: AttemptKey) -> list[ins.Instruction]:
        """STARTED, of everything it has when no key is given."""
        return self.say(msg.Started(self.session, keys or tuple(self.keys)))

    def finish(
        self,
        *keys: AttemptKey,
        outcome: str = "success",
        cause: str | None = None,
        error: str | None = None,
        seconds: float = 0.5,
        result: bytes = b'{"ok":true}',
        details: bytes = b"",
    ) -> list[ins.Instruction]:
        """FINISHED, of everything it has when no key is given."""
        self.batch += 1
        named = keys or tuple(self.keys)
        items = tuple(msg.FinishedItem(key, outcome, seconds, cause, error) for key in named)
        message = msg.Finished.of(self.session, self.batch, items)
        blobs = [result, details] * len(items)
        return self.cluster.do(ev.ResultsArrived(self.routing, message, blobs))

    def fail(self, *keys: AttemptKey, cause: str = "error") -> list[ins.Instruction]:
        """FINISHED with outcome `failed`."""
        return self.finish(*keys, outcome="failed", cause=cause, error="it broke", result=b"")

    def told(self, kind: type[M]) -> list[M]:
        """Messages of one kind sent to its connection so far, oldest first."""
        return [
            sent.message
            for sent in self.cluster.past
            if isinstance(sent, ins.Send)
            and sent.routing == self.routing
            and isinstance(sent.message, kind)
        ]


class Cluster:
    """A cluster state, its clock, its store and its admin operations."""

    def __init__(
        self, settings: Settings | None = None, *, store: Store | None = None, seed: int = 1
    ) -> None:
        self.base = settings or settings_with()
        self.store = store or MemoryStore()
        self.rng = random.Random(seed)
        self.mono = 1_000.0
        self.wall_ms = WALL_MS
        #: Names the boot of its machine.
        self.boot = "boot 1"
        self.sessions = 0
        #: Every instruction so far.
        self.past: list[ins.Instruction] = []
        self.warnings: list[str] = []
        self.restart()

    # --- time and turns --------------------------------------------------------------------------

    @property
    def now(self) -> ev.Now:
        """The virtual time."""
        return ev.Now(self.mono, self.wall_ms)

    def pass_time(self, seconds: float) -> None:
        """Let the clock go on; nothing else happens."""
        self.mono += seconds
        self.wall_ms += round(seconds * 1000)

    def restart(self) -> None:
        """Forget the state and read it from the store, as a new broker does."""
        chance = random.Random(self.wall_ms)
        snapshot = self.store.load(
            lambda newest: fresh_epoch(newest, self.now, chance), INLINE_PAYLOAD_BYTES
        )
        self.state, self.warnings = restore(snapshot, self.base, self.rng, self.now, self.boot)
        facts = Facts("1.2.3", 77, "127.0.0.1", 8080, 8082, 8083, self.now)
        self.admin = AdminContext(self.state, self.store, self.base, facts, Health(self.mono))
        #: Whether the invariants are checked after each event; what counts steps does not want it.
        self.is_checked = True
        check_invariants(self.state)

    def reboot(self, seconds: float = 60.0) -> None:
        """The machine starts anew: its monotonic clock begins at zero."""
        self.boot += " and another"
        self.wall_ms += round(seconds * 1000)
        self.mono = 5.0
        self.restart()

    def do(self, event: ev.Event) -> list[ins.Instruction]:
        """One event as a turn of its own: handled, committed, checked."""
        return self._commit(handle(self.state, event, self.now))

    def _commit(self, found: list[ins.Instruction]) -> list[ins.Instruction]:
        writes = [i for i in found if isinstance(i, ins.WRITES)]
        if writes:
            if mark := self.state.mark(self.now):
                writes.append(ins.StoreMark(mark))
            self.store.commit(writes)
        self.past.extend(found)
        if self.is_checked:
            check_invariants(self.state)
        return found

    def place(self) -> list[ins.Instruction]:
        """Give out what can be given out."""
        return self.do(ev.Place())

    def tick(self, *names: str) -> list[ins.Instruction]:
        """Some sweeps now, all of them when none is named."""
        return [i for name in names or SWEEPS for i in self.do(ev.Tick(name))]

    def live_on(self, seconds: float, *beating: Member) -> list[ins.Instruction]:
        """Time passes in steps of a second: these devices beat, sweeps run, work is placed."""
        found: list[ins.Instruction] = []
        until = self.mono + seconds
        while self.mono < until:
            self.pass_time(min(1.0, until - self.mono))
            for member in beating:
                if member.record.routing == member.routing:
                    found += member.beat()
            found += self.tick("deadlines", "liveness", "limits")
            found += self.place()
        return found

    # --- who and what ----------------------------------------------------------------------------

    def device(self, device_id: str = "box", **hello: Any) -> Member:
        """A device that has said HELLO."""
        member = self.stranger(device_id)
        member.join(**hello)
        return member

    def stranger(self, device_id: str = "box") -> Member:
        """A connection that has not said HELLO yet."""
        self.sessions += 1
        return Member(self, device_id, b"route%d" % self.sessions)

    def submit(
        self,
        count: int = 1,
        *,
        task_type: str = "sleep",
        priority: str = "normal",
        delay: float = 0.0,
        payload: bytes = b"{}",
        **requirements: Any,
    ) -> list[int]:
        """Numbers of new tasks that are alike."""
        spec = task_spec(task_type, priority, **requirements)
        first = self.state.next_task
        delays = [delay] * count if delay else ()
        self.do(ev.TasksSubmitted([spec] * count, [payload] * count, delays))
        return list(range(first, first + count))

    def give(
        self, count: int = 1, member: Member | None = None, **task: Any
    ) -> tuple[Member, AttemptKey]:
        """A device and the key of the (last) task that was just placed on it."""
        member = member or self.device(slots=count)
        numbers = self.submit(count, **task)
        self.place()
        return member, self.task(numbers[-1]).key

    def task(self, number: int) -> Task:
        """A task that has not ended."""
        return self.state.tasks[number]

    def status(self, number: int) -> str:
        """A task's status."""
        return self.state.ledger.status(number).value

    def outcome(self, number: int) -> OutcomeRow:
        """How a task ended, as stored."""
        return self.store.outcomes((number,), results=True)[number]

    def public(self, number: int, created_ms: int = WALL_MS) -> str:
        """A task's public id; it was made at the beginning unless said otherwise."""
        return self.state.ids.public(number, created_ms)

    def cancel(self, number: int) -> list[ins.Instruction]:
        """Cancel a task."""
        return self.do(ev.CancelRequested(number))

    def retry(self, number: int) -> list[ins.Instruction]:
        """A manual retry, with what the shell reads from the store."""
        row = self.store.task(number)
        assert row is not None
        spec = TaskSpec(*row[2:7])
        event = ev.RetryRequested(number, spec, row.created_ms, row.payload, self.outcome(number))
        return self.do(event)

    def events(self, prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
        """`(type, data)` of the event log's entries whose type begins with `prefix`."""
        entries = self.state.log.after(0)
        return [(entry.type, entry.data) for entry in entries if entry.type.startswith(prefix)]

    def call(
        self, op: str, args: dict[str, Any] | None = None, blobs: Sequence[bytes] = ()
    ) -> Reply:
        """An admin call that is answered at once. Raises its `ClusterError`."""
        reply = self.park(op, args, blobs)
        assert reply is not None, f"{op} was parked"
        return reply

    def park(
        self, op: str, args: dict[str, Any] | None = None, blobs: Sequence[bytes] = ()
    ) -> Reply | None:
        """An admin call that may be answered later; its ticket is `(b"client", 1)`."""
        self.admin.begin_turn()
        try:
            call = Call((b"client", 1), op, args or {}, blobs, self.now)
            reply = find(op).perform(self.admin, call)
            make(self.admin)
            for _, answer in self.admin.answers:
                assert isinstance(answer, Reply)
                reply = answer
            return reply
        finally:
            self._commit(self.admin.turn)


class MakeCluster(Protocol):
    """Makes a cluster; its invariants are checked once more at the end of the test."""

    def __call__(
        self, settings: Settings | None = None, *, store: Store | None = None, seed: int = 1
    ) -> Cluster: ...


def only(kind: type[I], found: Sequence[ins.Instruction]) -> list[I]:
    """The instructions of one kind."""
    return [i for i in found if isinstance(i, kind)]


def sent(found: Sequence[ins.Instruction]) -> list[Any]:
    """The messages that a turn sends, without where to."""
    return [i.message for i in found if isinstance(i, ins.Send)]


def rejected(found: list[ins.Instruction]) -> msg.Reject:
    """The one answer of a turn, which refuses a HELLO."""
    (message,) = sent(found)
    assert isinstance(message, msg.Reject)
    return message


def challenge(cluster: Cluster) -> tuple[Any, Any, int]:
    """A device that lives, a second process with its id, and the nonce of the question."""
    old = cluster.device()
    new = cluster.stranger()
    found = new.join(instance="a second process")
    (instruction,) = found
    assert isinstance(instruction, ins.Send)
    assert instruction.routing == old.routing
    assert isinstance(instruction.message, msg.Ping)
    return old, new, instruction.message.nonce


def submit(
    cluster: Cluster, *tasks: dict[str, Any], payload: bytes = b"{}", **more: Any
) -> dict[str, Any]:
    """The answer of `task.submit`."""
    args = {"tasks": list(tasks), **more}
    return cluster.call("task.submit", args, [payload] * len(tasks)).data


def wrong(cluster: Cluster, op: str, args: Any, blobs: Any = ()) -> errors.ValidationError:
    """The error of a call that is not valid."""
    with pytest.raises(errors.ValidationError) as caught:
        cluster.call(op, args, blobs)
    return caught.value
