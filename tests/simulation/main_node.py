"""The main node's process: the real `Broker`, driven by virtual time and virtual sockets."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import zmq

from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.sweeps import SWEEPS
from retire_cluster.broker.server import Broker
from retire_cluster.broker.store.base import StoreError
from retire_cluster.conf.settings import Settings
from tests.simulation.engine import Violation
from tests.simulation.network import TO_PEER
from tests.simulation.sockets import Context, Poller, Socket, SocketOwner, WouldBlock
from tests.simulation.storage import Crash, Disk, Faulty

if TYPE_CHECKING:
    from tests.simulation.world import World

#: Epoch milliseconds of the virtual zero hour.
WALL_START_MS = 1_760_000_000_000
#: Passes of the loop at one moment; more means that it spins.
MAX_TURNS_AT_ONCE = 200
#: The loop's own longest sleep only matters to Windows' Ctrl-C.
_LONGEST_SLEEP_SECONDS = 3_600.0


class MainNode(SocketOwner):
    """The machine of the main node; at most one process runs on it."""

    def __init__(self, world: World, settings: Settings, disk: Disk) -> None:
        self.world = world
        self.rng = world.engine.rng
        self.settings = settings
        self.disk = disk
        self.broker: Broker | None = None
        self.store: Faulty | None = None
        self.bus: Socket | None = None
        self.admin: Socket | None = None
        #: Stopped (SIGSTOP, or the machine sleeps).
        self.frozen = False
        #: Its wall clock is off by this.
        self.wall_offset_ms = 0
        #: Seconds a commit takes.
        self.commit_seconds = 0.0
        #: Stop accepting this soon: messages sent until the process dies, or None.
        self.sends_left: int | None = None
        #: A share of messages to devices finds a full queue.
        self.full_share = 0.0
        self.starts = 0
        self._busy_until = 0.0
        self._mono_offset = 0.0
        self._boot = ""
        #: The machine, not only the process, starts next.
        self._rebooted = True
        self._ticks: Socket | None = None
        self._ticks_posted = 0
        self._alarm: float | None = None
        self._broken_disk = False

    # --- the process's life ----------------------------------------------------------------------

    def start(self) -> None:
        """Start a process; a store that cannot be read ends it, and it is started again."""
        if self.broker is not None:
            return
        engine, judge = self.world.engine, self.world.judge
        self.starts += 1
        if self._rebooted:
            # Another boot: the monotonic clock begins anew, and nothing is known of the gap.
            self._rebooted = False
            self._mono_offset = self.rng.uniform(0.0, 1e6)
            self._boot = f"boot {self.starts}"
        store = Faulty(self.disk.open(), judge.committed, judge.rolled_back)
        store.broken = self._broken_disk
        context = Context(self)
        try:
            broker = Broker(
                self.settings,
                store,
                context=cast("Any", context),
                rng=random.Random(self.rng.getrandbits(64)),
                now=self.clock,
                boot=self._boot,
            )
        except StoreError as error:
            engine.tell("main", f"cannot start: {error}")
            engine.after(1.0, self.start)
            return
        self.broker, self.store = broker, store
        self.admin, self.bus, feed, self._ticks = context.sockets
        cast("Any", broker)._poller = Poller(
            (self._ticks, self.bus, self.admin), lambda: self._expired
        )
        if self.world.plan.subscribed:
            feed.inbox.append((b"", [b"\1RCE1"]))
        engine.tell("main", f"started, epoch {broker.state.epoch}")
        engine.after(self._interval(), self._tick, broker)
        self.wake()

    def _interval(self) -> float:
        return self.settings.scheduler.sweep_interval_seconds

    def clock(self) -> Now:
        """What the process reads from its clocks."""
        now = self.world.engine.now
        wall_ms = WALL_START_MS + self.wall_offset_ms + int(now * 1000)
        return Now(now + self._mono_offset, wall_ms)

    def die(self, why: str, *, power_cut: bool = False) -> None:
        """The process ends at once, as by `kill -9`."""
        broker = self.broker
        if broker is None:
            return
        self.world.engine.tell("fate", f"the main node dies {why}")
        self.broker = self.store = None
        self._rebooted = power_cut
        self._end(silently=power_cut)
        broker.close()
        self.disk.lose()
        self.world.judge.main_died()

    def stop(self) -> None:
        """The process ends cleanly, as by SIGTERM."""
        broker = self.broker
        if broker is None or self.frozen:
            return
        self.world.engine.tell("fate", "the main node is stopped cleanly")
        broker.stopping = True
        try:
            broker.run()
        except Crash as crash:
            self.die(f"while it stops, {crash}")
            return
        self.broker = self.store = None
        self._end(silently=False)
        broker.close()
        self.disk.lose()
        self.world.judge.main_died()

    def _end(self, *, silently: bool) -> None:
        self.frozen = False
        self.sends_left = None
        self._alarm = None
        for socket in (self.bus, self.admin):
            if socket is not None:
                self.world.network.tear_all(socket, silently=silently)
                socket.close()
        self.bus = self.admin = self._ticks = None

    def freeze(self, seconds: float) -> None:
        """Stop the process for a while; its sockets go on filling."""
        if self.broker is None or self.frozen:
            return
        self.world.engine.tell("fate", f"the main node is stopped for {seconds:.1f} s")
        self.frozen = True
        self.world.engine.after(seconds, self.thaw, self.broker)

    def thaw(self, broker: Broker | None) -> None:
        """Let a stopped process go on."""
        if self.frozen and self.broker is broker:
            self.world.engine.tell("fate", "the main node goes on")
            self.frozen = False
            self.wake()

    def retain(self) -> None:
        """The sweep that deletes what is old comes now."""
        if self.awake() and self._ticks is not None:
            self._ticks.inbox.append((b"", [b"retention"]))
            self.wake()

    def break_disk(self, broken: bool) -> None:
        """The disk refuses everything, or works again."""
        self.world.engine.tell("fate", "the disk fails" if broken else "the disk works again")
        self._broken_disk = broken
        if self.store is not None:
            self.store.broken = broken

    # --- the loop --------------------------------------------------------------------------------

    def awake(self) -> bool:
        """See `SocketOwner.awake`."""
        return self.broker is not None and not self.frozen

    def wake(self) -> None:
        """Something can be read: the loop turns soon, so that a few messages gather."""
        if self.awake():
            engine = self.world.engine
            self._set_alarm(max(engine.now + self.rng.uniform(0.0, 0.004), self._busy_until))

    def _set_alarm(self, when: float) -> None:
        if self._alarm is None or when < self._alarm:
            self._alarm = when
            self.world.engine.at(when, self._ring, self.broker, when)

    def _ring(self, broker: Broker, when: float) -> None:
        if self.broker is not broker or self._alarm != when:
            return
        self._alarm = None
        if self.frozen:
            return
        self._expired = True
        try:
            for _ in range(MAX_TURNS_AT_ONCE):
                self._begin()
                broker.turn(_LONGEST_SLEEP_SECONDS)
                self._expired = False
            raise Violation("the main node's loop does not come to rest")
        except WouldBlock as wait:
            self._set_alarm(max(self.world.engine.now + wait.seconds, self._busy_until))
        except Crash as crash:
            self.die(str(crash))

    _expired = False

    def _begin(self) -> None:
        if self.commit_seconds:
            self._busy_until = self.world.engine.now + self.commit_seconds

    def _tick(self, broker: Broker) -> None:
        """The scheduler's thread posts what is due; a stopped process posts nothing."""
        if self.broker is not broker:
            return
        self.world.engine.after(self._interval(), self._tick, broker)
        if self.frozen or self._ticks is None:
            return
        self._ticks_posted += 1
        for name, sweep in SWEEPS.items():
            if self._ticks_posted % sweep.every == 0:
                self._ticks.inbox.append((b"", [name.encode()]))
        self.wake()

    # --- sending ---------------------------------------------------------------------------------

    def send(self, socket: Socket, frames: Sequence[bytes]) -> None:
        """See `SocketOwner.send`."""
        if self.sends_left is not None:
            if self.sends_left <= 0:
                raise Crash("in the middle of sending")
            self.sends_left -= 1
        if socket is not self.bus and socket is not self.admin:
            self.world.judge.answers.publishes()
            return
        pipe = self.world.network.pipes.get(frames[0])
        if pipe is None or pipe.listener is not socket:
            raise zmq.ZMQError(zmq.EHOSTUNREACH)
        if socket is self.bus and self.full_share and self.rng.random() < self.full_share:
            raise zmq.Again
        content = list(frames[1:])
        self.world.judge.answers.sends(pipe, content, bus=socket is self.bus)
        self.world.network.carry(pipe, TO_PEER, content, self._busy_until)


class LogWatch(logging.Handler):
    """An error with a trace in the main node's log is a rule that failed."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        """Fail the seed."""
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            self._world.judge.inner_error(f"{record.getMessage()}: {error!r}", error)
