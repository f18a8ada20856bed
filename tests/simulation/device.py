"""Devices: the real `Session` and `Runner` of the node, on machines that crash and sleep.

A `Machine` outlives its worker processes: it has the device's identity and its disk. A `Worker` is
one process; its loop is the agent's (transport, messages, runner, stops, tick, send), its slots run
tasks in virtual time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from retire_cluster.node.core import events, exit_codes, instructions, records
from retire_cluster.node.core.encoding import encode
from retire_cluster.node.core.pace import Pace
from retire_cluster.node.core.records import Introduction, Result
from retire_cluster.node.core.session import Randomness, Session
from retire_cluster.node.device.policy import Policy
from retire_cluster.node.running.catalog import Catalog
from retire_cluster.node.running.runner import Runner
from retire_cluster.node.tasks.base import Limits
from retire_cluster.node.tasks.own_type import OwnType
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import (
    Assign,
    AttemptKey,
    Heartbeat,
    TypeInfo,
    read_from_broker,
)
from tests.simulation.engine import Violation
from tests.simulation.network import Dial, Frames
from tests.simulation.slots import SimulatedSlot

if TYPE_CHECKING:
    from tests.simulation.world import World

#: Turns of one worker in a seed; more means that it spins.
MAX_TURNS = 20_000
_LIMITS = Limits()
#: The session's waits, shortened so that a seed stays small.
PACE = Pace(
    welcome_seconds=3.0, backoff_seconds=1.0, backoff_cap_seconds=4.0, grace_seconds=2.0,
    refused_seconds=2.0, kill_seconds=1.0, last_ack_seconds=1.5,
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """What a device says of itself."""

    device_id: str
    role: str
    platform: str
    tags: tuple[str, ...]
    slots: int
    capabilities: dict[str, Any]
    #: Own task types beside the built-in ones.
    own_types: tuple[TypeInfo, ...]
    #: Types that its owner forbade after the worker had joined.
    denies: frozenset[str] = frozenset()
    kill_on_lease_loss: bool = True
    #: Whatever it runs fails at once.
    is_black_hole: bool = False
    #: It gives back whatever it is given.
    is_boomerang: bool = False


class Disk:
    """The durable spool. Forgetting is not synced: after a crash it may not have happened."""

    def __init__(self) -> None:
        self._kept: dict[AttemptKey, Result] = {}
        self._unsynced_forgets: dict[AttemptKey, Result] = {}
        #: Whether it survives a crash at all.
        self.durable = True

    def results(self) -> list[Result]:
        """What a new process finds."""
        return list(self._kept.values())

    def store(self, results: Iterable[Result]) -> None:
        """Write and sync."""
        self._unsynced_forgets.clear()
        self._kept.update((result.key, result) for result in results)

    def forget(self, keys: Iterable[AttemptKey]) -> None:
        """Write, without syncing."""
        for key in keys:
            result = self._kept.pop(key, None)
            if result is not None:
                self._unsynced_forgets[key] = result

    def crash(self, *, resurrect: bool) -> None:
        """The machine lost power."""
        if resurrect:
            self._kept.update(self._unsynced_forgets)
        self._unsynced_forgets.clear()
        if not self.durable:
            self._kept.clear()


class Machine:
    """One device; at most one worker process runs on it (a clone is another machine)."""

    def __init__(self, world: World, name: str, profile: Profile) -> None:
        self.world = world
        #: The network's name for it; a clone has another one than its device id.
        self.name = name
        self.profile = profile
        self.disk = Disk()
        self.worker: Worker | None = None
        #: Set: never started again.
        self.retired = False
        self.starts = 0
        self.clock_offset = world.engine.rng.uniform(0.0, 1e5)

    def start(self) -> None:
        """Start a worker, unless one runs."""
        if self.worker is None and not self.retired:
            self.starts += 1
            self.worker = Worker(self)
            self.worker.begin()

    def crash(self, why: str, *, power_cut: bool = False, back_after: float | None = 1.0) -> None:
        """The worker dies with all it runs."""
        worker, self.worker = self.worker, None
        if worker is None:
            return
        engine = self.world.engine
        engine.tell("fate", f"{self.name} dies {why}")
        self.disk.crash(resurrect=power_cut and engine.chance(0.5))
        worker.end(vanish=power_cut)
        if back_after is not None:
            engine.after(back_after, self.start)

    def exited(self, code: int) -> None:
        """The worker left by itself."""
        self.world.engine.tell(self.name, f"its worker exits with code {code}")
        self.worker = None
        # Nobody but its owner starts a removed device again; he tries now and then.
        wait = 3.0 if code == exit_codes.REMOVED else self.world.engine.rng.uniform(0.5, 3.0)
        self.world.engine.after(wait, self.start)


class Worker:
    """One worker process."""

    def __init__(self, machine: Machine) -> None:
        world, profile = machine.world, machine.profile
        self.machine = machine
        self.world = world
        self.name = machine.name
        self.device_id = profile.device_id
        self.alive = True
        #: Stopped; `deep`: what it runs is stopped too (the whole machine sleeps).
        self.frozen = False
        self.deep = False
        #: Ever stopped: then its promise to stop in time does not hold.
        self.was_frozen = False
        self.kills_on_lease_loss = profile.kill_on_lease_loss
        self.slots: list[SimulatedSlot] = []
        self._rng = world.engine.rng
        self._sessions = 0
        own = [OwnType(info, f"simulated:{info.name}") for info in profile.own_types]
        denying = Catalog(Policy(deny=frozenset(profile.denies), allow=frozenset({"command"})), own)
        self.runner = Runner(
            slots=profile.slots,
            catalog=denying,
            limits=_LIMITS,
            start_process=cast("Callable[[], Any]", lambda: self),
            facts=lambda: ({}, {}),
            clock=self.clock,
            wake=self.wake,
        )
        introduction = Introduction(
            device_id=profile.device_id,
            instance=f"{machine.name}.{machine.starts}",
            version="1",
            role=profile.role,
            platform=profile.platform,
            hostname=machine.name,
            tags=profile.tags,
            slots=profile.slots,
            task_types=(_ECHO, *profile.own_types),
        )
        self.session = Session(
            introduction,
            now=self.clock(),
            randomness=Randomness(self._rng.random, self._new_session),
            repeatable=denying.repeatable,
            stored=machine.disk.results(),
            kill_on_lease_loss=profile.kill_on_lease_loss,
            pace=PACE,
        )
        self._dial: Dial | None = None
        self._news: deque[str] = deque()
        self._inbox: deque[Frames] = deque()
        self._outgoing: deque[Frames] = deque()
        self._stops: deque[str] = deque()
        self._exit_code: int | None = None
        self._alarm: float | None = None
        self._turns = 0

    def _new_session(self) -> str:
        self._sessions += 1
        return f"{self.name}.{self.machine.starts}.{self._sessions}"

    def clock(self) -> float:
        """Its own monotonic clock."""
        return self.world.engine.now + self.machine.clock_offset

    # --- life ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The process starts."""
        self.world.engine.tell(self.name, f"its worker starts ({self.machine.starts})")
        self._feed(events.CapabilitiesChanged(self.machine.profile.capabilities))
        self._feed(events.Opened())
        self.turn()

    def end(self, *, vanish: bool) -> None:
        """The process is gone, and what it ran with it."""
        self.alive = False
        for slot in self.slots:
            slot.end()
        if self._dial is not None:
            self._dial.close(vanish=vanish)

    def stop(self) -> None:
        """SIGTERM."""
        self.world.engine.tell("fate", f"{self.name} is asked to stop")
        self._stops.append("SIGTERM")
        self.wake()

    def freeze(self, seconds: float, *, deep: bool) -> None:
        """SIGSTOP, or the whole machine sleeps."""
        if self.frozen or not self.alive:
            return
        how = "sleeps" if deep else "is stopped"
        self.world.engine.tell("fate", f"{self.name} {how} for {seconds:.1f} s")
        self.frozen = self.was_frozen = True
        self.deep = deep
        if deep:
            for slot in self.slots:
                slot.pause()
        self.world.engine.after(seconds, self.thaw)

    def thaw(self) -> None:
        """SIGCONT: it delivers everything it had."""
        if not self.frozen or not self.alive:
            return
        self.world.engine.tell("fate", f"{self.name} goes on")
        self.frozen = False
        if self.deep:
            for slot in self.slots:
                slot.resume()
        self.wake()

    # --- transport -------------------------------------------------------------------------------

    def link_news(self, dial: Dial, news: str) -> None:
        """See `Peer`."""
        if dial is self._dial:
            self._news.append(news)
            self.wake()

    def receive(self, dial: Dial, frames: Frames) -> None:
        """See `Peer`."""
        if dial is self._dial:
            self._inbox.append(frames)
            self.wake()

    # --- the loop --------------------------------------------------------------------------------

    def wake(self) -> None:
        """There is something to do."""
        self._set_alarm(self.world.engine.now)

    def _set_alarm(self, when: float) -> None:
        if self._alarm is None or when < self._alarm:
            self._alarm = when
            self.world.engine.at(when, self._ring, when)

    def _ring(self, when: float) -> None:
        if self._alarm == when and self.alive:
            self._alarm = None
            if not self.frozen:
                self.turn()

    def turn(self) -> None:
        """One pass of the agent's loop."""
        self._turns += 1
        if self._turns > MAX_TURNS:
            raise Violation(f"{self.name} spins")
        while self._news:
            news = self._news.popleft()
            self._feed(events.LinkUp() if news == "up" else events.LinkDown(news))
        while self._inbox and self._exit_code is None:
            self._read(self._inbox.popleft())
        for event in self.runner.collect(self.clock()):
            self._feed(event)
        while self._stops:
            self._feed(events.StopAsked(self._stops.popleft()))
        self._feed(events.Tick())
        self._flush()
        if self._exit_code is not None:
            self.end(vanish=False)
            self.machine.exited(self._exit_code)
            return
        due = [at for at in (self.session.next_due(), self.runner.next_due()) if at is not None]
        if due:
            # A millisecond more, as the agent sleeps.
            self._set_alarm(max(min(due) - self.machine.clock_offset, self.world.engine.now) + 1e-3)

    def _read(self, frames: Frames) -> None:
        message = wire.decode(wire.BUS, frames)
        record = read_from_broker(message.verb, message.header)
        if isinstance(record, Assign) and len(record.items) != len(message.blobs):
            raise Violation(f"ASSIGN to {self.name} without a payload an item")
        self._feed(events.Received(record, message.blobs))

    def _feed(self, event: events.Event) -> None:
        for instruction in self.session.handle(event, self.clock()):
            self._perform(instruction)

    def _perform(self, instruction: instructions.Instruction) -> None:
        if isinstance(instruction, instructions.Send):
            message = instruction.message
            if isinstance(message, Heartbeat):
                message = replace(message, metrics={"cpu_percent": 5.0})
            frames = encode(message, instruction.blobs).frames
            if frames:
                self._outgoing.append(frames)
        elif isinstance(instruction, instructions.Run):
            self.world.judge.running.received(self, instruction.attempts)
            self.runner.run(instruction.attempts, self.clock())
            if self.machine.profile.is_boomerang:
                keys = [attempt.key for attempt in instruction.attempts]
                self.runner.kill(keys, records.RELEASED, self.clock())
        elif isinstance(instruction, instructions.Kill):
            self.runner.kill(instruction.keys, instruction.reason, self.clock())
        elif isinstance(instruction, instructions.StoreResults):
            self.machine.disk.store(instruction.results)
        elif isinstance(instruction, instructions.ForgetResults):
            self.machine.disk.forget(instruction.keys)
        elif isinstance(instruction, instructions.Connect):
            self._connect()
        elif isinstance(instruction, instructions.Exit):
            self._exit_code = instruction.code
        elif self.world.engine.story is not None:
            self.world.engine.tell(self.name, f"says: {instruction.text}")

    def _connect(self) -> None:
        if self._dial is not None:
            self._dial.close()
        self._news.clear()
        self._inbox.clear()
        self._outgoing.clear()
        self._dial = Dial(self.world.network, self, lambda: self.world.main.bus)

    def _flush(self) -> None:
        while self._outgoing and self._dial is not None:
            frames = self._outgoing[0]
            if not self._dial.send(frames):
                return
            self._outgoing.popleft()
            if self.world.engine.story is not None:
                self.world.tell_message(self.name, "->", frames)


_ECHO = TypeInfo("echo", repeatable=True, instant=True)
