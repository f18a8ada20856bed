"""The main node's loop: one thread, all sockets, one commit a turn.

A turn: wait → judge handshakes → read devices, ticks, then clients, and change the state → place →
**commit** → send to devices → answer changes, then reads → publish events. Nothing that changes the
state is answered or dispatched before the commit. When the store refuses a commit, the state in
memory is thrown away and loaded anew from the store (stall.py), so memory never runs ahead of what
is durable; devices keep their results and send them again. What is damaged in the store is dealt
with in the turn after it was found (damage.py).
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Container
from importlib.metadata import version
from typing import Final

import zmq

from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.facade import facade_identity
from retire_cluster.broker.admin.health import Health
from retire_cluster.broker.admin.polls import answer_polls
from retire_cluster.broker.admin.registry import AdminOperation
from retire_cluster.broker.admin.submit import make
from retire_cluster.broker.admin.table import find
from retire_cluster.broker.admin.views import ping
from retire_cluster.broker.answering import DONE, Answering
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.records.clock import describe_jump, jump_seconds
from retire_cluster.broker.damage import FollowUps
from retire_cluster.broker.facts import Facts
from retire_cluster.broker.loading import Loader
from retire_cluster.broker.net.bus import Bus
from retire_cluster.broker.net.clients import Clients
from retire_cluster.broker.net.feed import Feed
from retire_cluster.broker.net.handing_out import hand_out
from retire_cluster.broker.net.opening import MainKeys, MainSockets
from retire_cluster.broker.stall import Stall, tickets_of_all
from retire_cluster.broker.store.base import Store, StoreError
from retire_cluster.conf import failpoints
from retire_cluster.conf.machine.boot import boot_id
from retire_cluster.conf.settings import Settings
from retire_cluster.schemas.errors import ClusterError, InternalError

log = logging.getLogger("broker")

#: Longest wait of a turn: Windows sees Ctrl-C only between two polls.
MAX_POLL_SECONDS: Final = 0.5
#: Messages read from one socket in one turn.
MESSAGES_PER_TURN: Final = 500
#: Messages of devices are read for so long in one turn; then clients are read.
DEVICES_SECONDS: Final = 0.02
#: Between two reports of who floods the worker bus.
FLOODS_SECONDS: Final = 1.0
_FREE_SPACE_SECONDS: Final = 5.0


def system_now() -> ev.Now:
    """Return the time of this machine."""
    return ev.Now(time.monotonic(), time.time_ns() // 1_000_000)


class Broker:
    """One main node.

    :param settings: what it was started with
    :param store: opened, not yet loaded; it is closed by `close`
    :param keys: lock the sockets with these; None leaves them open, which is for loopback only
    :raises StoreError: when the store cannot be loaded
    :raises BindError: when a port cannot be bound; its text names the address
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        keys: MainKeys | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        rng: random.Random | None = None,
        now: Callable[[], ev.Now] = system_now,
        boot: str | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._now = now
        self._last_turn = now()
        self.context = context or zmq.Context()
        #: Set by a signal handler or a tick: `run` returns after the turn under way.
        self.stopping = False
        #: Whether the turn under way has been committed.
        self._committed = False
        self._space_mono = self._floods_mono = 0.0
        self._stall = Stall()
        self._follow_ups = FollowUps()
        #: Calls of the turn under way that only read.
        self._reads: list[tuple[AdminOperation, Call]] = []
        self._loader = Loader(
            store, settings, rng or random.SystemRandom(), now, boot_id() if boot is None else boot
        )
        loaded = self._loader.load()
        self._follow_ups.events += [ev.TaskDamaged(number) for number in loaded.damaged]
        self.state = loaded.state
        try:
            self._sockets = MainSockets(
                self.context, settings.server, keys, lambda: self.state.access,
                lambda: self.state.settings.server.max_connections,
            )  # fmt: skip
        except BaseException:
            store.close()
            raise
        sockets, zap = self._sockets, self._sockets.zap
        ports, pair = sockets.ports, None if zap is None else zap.pair
        self.facts = Facts(
            version("retire-cluster"), os.getpid(), settings.server.host, *ports,
            loaded.at, pair.public if pair else "", sockets.worker_host, sockets.bus_locked,
            *facade_identity(pair, self.state.ids.salt, ports[0]),
        )  # fmt: skip
        intake = None if zap is None else zap.intake
        self._bus = Bus(
            sockets.bus, self.facts, keyed=sockets.bus_locked,
            intake=intake if sockets.bus_locked else None,
        )  # fmt: skip
        self._clients = Clients(
            sockets.admin, self.facts, None if zap is None else zap.may_use_admin, intake
        )
        self._feed = Feed(sockets.feed)
        self._answering = Answering(self._clients, self._follow_ups, now)
        self._admin = self._admin_context(loaded.at)
        self._poller = zmq.Poller()
        for socket in sockets.pollable:
            self._poller.register(socket, zmq.POLLIN)

    # --- life ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stopping` is set (by a signal handler or another thread's tick)."""
        while not self.stopping:
            self.turn()
        self._store_devices()

    def close(self) -> None:
        """Close sockets and store; everything committed stays."""
        self._sockets.close()
        self._store.close()

    def turn(self, longest_seconds: float = MAX_POLL_SECONDS) -> None:
        """Wait for at most `longest_seconds` for something to do, then do one turn."""
        ready = dict(self._poller.poll(self._wait_ms(longest_seconds)))
        now = self._now()
        self._watch_clock(now)
        self._judge_handshakes(now)
        if self._stall.reason:
            self._stalled_turn(now)
            return
        try:
            self._work(now, ready)
        except StoreError as error:
            log.error("%s; nothing of this turn counts, the state is read anew", error)
            self._forget_turn(str(error))
        except Exception:
            if self._committed:
                log.exception("a turn failed after its commit; what it committed counts")
                return
            # A rule failed half-way: memory cannot be trusted any more, the store can.
            log.exception("a turn failed; nothing of it counts, the state is read anew")
            self._forget_turn("the main node met an error and reads its state anew")

    def _work(self, now: ev.Now, ready: Container[object]) -> None:
        self._begin()
        # Devices before deadlines: what waited in the socket while this loop was busy counts.
        if self._bus.socket in ready:
            self._read_devices(now)
        self._report_floods(now)
        self._follow_up(now)
        self._tick(self._sockets.ticks in ready, now)
        if self._clients.socket in ready:
            self._read_clients(now)
        self._admin.apply(ev.Place(), now)
        self._commit(now)
        self._committed = True
        # From here on everything counts, whatever goes wrong: each step fails on its own.
        self._perform(now)
        self._send_answers()
        self._perform_reads()
        self._publish(now)

    def _wait_ms(self, longest_seconds: float) -> int:
        if self._stall.reason:
            left = min(self._stall.seconds_left(self._now().mono), longest_seconds)
            return max(0, int(left * 1000) + 1)
        if self._follow_ups.events:
            return 0
        times = [poll.wake_mono for poll in self._admin.polls]
        deadline = self.state.next_deadline()
        if deadline is not None:
            times.append(deadline)
        if not times:
            return int(longest_seconds * 1000)
        left = min(times) - self._now().mono
        # Rounded up: waking a fraction early would spin until the deadline.
        return max(0, int(min(left, longest_seconds) * 1000) + (1 if left > 0 else 0))

    # --- steps of a turn before its commit -------------------------------------------------------

    def _watch_clock(self, now: ev.Now) -> None:
        before, self._last_turn = self._last_turn, now
        if moved_seconds := jump_seconds(before, now):
            log.warning(describe_jump(moved_seconds))

    def _judge_handshakes(self, now: ev.Now) -> None:
        zap = self._sockets.zap
        if zap is not None:
            zap.serve(now.mono, self.state.clock.age_ms(now), self.state.count_dropped)

    def _begin(self) -> None:
        self._committed = False
        self._admin.begin_turn()
        self._reads = []

    def _read_devices(self, now: ev.Now) -> None:
        state, budgets = self.state, self._bus.budgets
        for event in self._bus.read(MESSAGES_PER_TURN, now.mono, state.count_dropped):
            before = state.stats.dropped["stale_attempt"]
            self._admin.apply(event, now)
            if stale := state.stats.dropped["stale_attempt"] - before:
                budgets.blame(event.key or event.routing, stale, now.mono)
            if self._now().mono - now.mono > DEVICES_SECONDS:
                return  # clients have waited long enough

    def _report_floods(self, now: ev.Now) -> None:
        """Report who sent more than it may, also when it is silent by now."""
        if now.mono < self._floods_mono:
            return
        self._floods_mono = now.mono + FLOODS_SECONDS
        for who, counts in self._bus.budgets.take_over().items():
            self._admin.apply(ev.Flooded(who, counts), now)

    def _follow_up(self, now: ev.Now) -> None:
        """Deal with what the last turn left; whoever asked for it is answered in this one."""
        self._follow_ups.apply(self._admin, now)
        for read in self._follow_ups.take_reads():
            if isinstance(read, ins.WaitOver):
                self._admin.turn.append(read)
            else:
                self._reads.append(read)

    def _tick(self, posted: bool, now: ev.Now) -> None:
        names = self._posted_ticks() if posted else []
        for name in dict.fromkeys(names):
            if name == "stop":
                self.stopping = True
                continue
            self._admin.health.ticked(now.mono)
            self._admin.apply(ev.Tick(name), now)
        deadline = self.state.next_deadline()
        if deadline is not None and deadline <= now.mono:
            self._admin.apply(ev.Tick("deadlines"), now)
        if names and now.mono >= self._space_mono:
            self._space_mono = now.mono + _FREE_SPACE_SECONDS
            self._admin.watch_space()

    def _posted_ticks(self) -> list[str]:
        names = []
        while True:
            try:
                names.append(self._sockets.ticks.recv(zmq.NOBLOCK).decode())
            except zmq.Again:
                return names

    def _read_clients(self, now: ev.Now) -> None:
        for call in self._clients.read(MESSAGES_PER_TURN, now, self.state.count_dropped):
            try:
                operation = find(call.op)
            except ClusterError as error:
                self._clients.refuse(call.ticket, error)
                continue
            if not operation.changes:
                self._reads.append((operation, call))
                continue
            if not operation.batched:
                make(self._admin)
            self._answering.change(self._admin, operation, call)
        make(self._admin)

    def _commit(self, now: ev.Now) -> None:
        writes = [i for i in self._admin.turn if isinstance(i, ins.WRITES)]
        if not writes:
            return
        if mark := self.state.mark(now):
            writes.append(ins.StoreMark(mark))
        failpoints.reach("broker-before-commit")
        before = self._store.commits
        try:
            self._store.commit(writes)
        except Exception:
            if self._store.commits == before:
                raise
            log.exception("the store met an error after a commit; what was committed counts")
        failpoints.reach("broker-after-commit")

    # --- steps of a turn after its commit --------------------------------------------------------

    def _perform(self, now: ev.Now) -> None:
        for instruction in self._admin.turn:
            try:
                if isinstance(instruction, ins.Send):
                    verb, header = instruction.message.write()
                    self._bus.send(instruction.routing, verb, header, (), self.state.count_dropped)
                elif isinstance(instruction, ins.SendAssign):
                    self._assign(instruction, now)
                elif isinstance(instruction, ins.PingOver):
                    reply = Reply(ping(instruction))
                    self._answering.answer(instruction.ticket, reply, done=True)
                elif isinstance(instruction, ins.Warn):
                    log.warning(instruction.text)
                elif isinstance(instruction, ins.WaitOver):
                    self._answering.wait_over(self._admin, instruction)
            except Exception:
                log.exception(
                    "%s could not be carried out; what was committed counts",
                    type(instruction).__name__,
                )
                self._make_up_for(instruction)

    def _assign(self, order: ins.SendAssign, now: ev.Now) -> None:
        unsent = hand_out(order, self.state, self._store, self._bus, self._now)
        for event in unsent:
            if isinstance(event, ev.NotSent):
                self._admin.health.reads.note(event.reason, now.mono)
        self._follow_ups.events += unsent
        failpoints.reach("broker-after-assign")

    def _make_up_for(self, instruction: ins.Instruction) -> None:
        """Do what follows from an instruction that failed: nobody waits for it in vain."""
        if isinstance(instruction, ins.SendAssign):
            token, why = instruction.dispatch.token, "the main node met an error, see its log"
            self._follow_ups.events += [
                ev.NotSent(task.number, token, why) for task in instruction.tasks
            ]
        elif isinstance(instruction, ins.WaitOver):
            self._clients.refuse(instruction.ticket, InternalError(DONE))
        # A device that a message did not reach tells what it has, and sends results again.

    def _send_answers(self) -> None:
        for ticket, reply in self._admin.answers:
            self._answering.answer(ticket, reply, done=True)
            failpoints.reach("broker-after-answer")

    def _perform_reads(self) -> None:
        for operation, call in self._reads:
            self._answering.read(self._admin, operation, call)

    def _publish(self, now: ev.Now) -> None:
        if self._admin.polls:
            answer_polls(self._admin, now.mono, self._answering.answer)
        try:
            self._feed.publish(self.state.log, self.state.ids)
        except Exception:
            log.exception("events could not be published; /events still has them")

    # --- the store's trouble ---------------------------------------------------------------------

    def _forget_turn(self, reason: str) -> None:
        """Forget this turn and everything in memory; nobody who waits is left without an answer."""
        self._stall.begin(reason, self._now().mono)
        tickets = tickets_of_all(self._admin, self._reads, self._follow_ups)
        self._answering.refuse_all(tickets, reason)
        self._reads = []
        self._follow_ups.clear()
        self._admin.forget()

    def _stalled_turn(self, now: ev.Now) -> None:
        """Refuse clients and let devices wait until the state could be loaded."""
        self._posted_ticks()
        self._bus.discard(MESSAGES_PER_TURN)
        admin = self._stall.reload(self._reload, now.mono)
        if admin is not None:
            self._admin = admin
            return
        calls = self._clients.read(MESSAGES_PER_TURN, now, self.state.count_dropped)
        self._answering.refuse_all([call.ticket for call in calls], self._stall.reason)

    def _reload(self) -> AdminContext:
        loaded = self._loader.load()
        self._follow_ups.events += [ev.TaskDamaged(number) for number in loaded.damaged]
        self.state = loaded.state
        return self._admin_context(loaded.at)

    def _admin_context(self, at: ev.Now) -> AdminContext:
        return AdminContext(self.state, self._store, self._settings, self.facts, Health(at.mono))

    def _store_devices(self) -> None:
        """Keep the counters of devices at a clean stop."""
        if self._stall.reason:
            return
        self._begin()
        now = self._now()
        self._admin.apply(ev.Tick("devices"), now)
        self._admin.apply(ev.Tick("upkeep"), now)
        if mark := self.state.mark(now, 0.0):
            self._admin.turn.append(ins.StoreMark(mark))
        try:
            self._commit(now)
        except StoreError as error:
            log.error("%s; counters of devices are not kept", error)
