"""The main node's loop: one thread, all sockets, one commit a turn.

A turn: wait → read what is readable (ticks, devices, then clients) → change the state → place →
**commit** → send → answer reads → publish events. Nothing is answered or dispatched before the
commit. When the store refuses a commit the state in memory is thrown away and read anew from
the store, so memory never runs ahead of what is durable; devices keep their results and send them
again.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import time
from collections.abc import Callable, Container, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import zmq

from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import Admin
from retire_cluster.broker.admin.facade import facade_identity
from retire_cluster.broker.admin.polls import answer_polls
from retire_cluster.broker.admin.registry import AdminOperation, Run
from retire_cluster.broker.admin.submit import gather, make, must_be_made_first, submit
from retire_cluster.broker.admin.table import find
from retire_cluster.broker.admin.views import ping
from retire_cluster.broker.admin.waits import unread, waited
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.devices.access import ADMIN, BUS, FEED
from retire_cluster.broker.core.records.clock import describe_jump, jump_seconds
from retire_cluster.broker.core.records.event_log import fresh_epoch
from retire_cluster.broker.core.restore import restore
from retire_cluster.broker.core.state import INLINE_PAYLOAD_BYTES, ClusterState
from retire_cluster.broker.damage import face, quarantine
from retire_cluster.broker.facts import Facts
from retire_cluster.broker.net.binding import WAITING, WAITING_OF_DEVICE, bind
from retire_cluster.broker.net.bus import Bus
from retire_cluster.broker.net.clients import Clients
from retire_cluster.broker.net.feed import Feed
from retire_cluster.broker.net.handing_out import hand_out
from retire_cluster.broker.net.zap import Gate
from retire_cluster.broker.store.base import RowDamaged, Store, StoreError, StoreTrouble
from retire_cluster.conf import failpoints
from retire_cluster.conf.curve import Pair
from retire_cluster.conf.machine.boot import boot_id
from retire_cluster.conf.settings import Settings
from retire_cluster.schemas.errors import ClusterError, ClusterUnavailable, InternalError
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.text.hosts import EVERYWHERE

log = logging.getLogger("broker")

#: Ctrl-C on Windows is seen only between polls, so none is longer.
MAX_POLL_SECONDS = 0.5
#: Messages read from one socket in one turn.
MESSAGES_PER_TURN = 500
#: What devices say is read for no longer before clients have their turn.
DEVICES_SECONDS = 0.02
#: Who floods the worker bus is told of so often.
FLOODS_SECONDS = 1.0
_FREE_SPACE_SECONDS = 5.0
_RELOAD_SECONDS = 1.0
#: Tries of reading the whole store before it counts as unreadable, and the seconds between them.
_LOADS, _LOAD_PAUSE_SECONDS = 3, 0.1
#: What a client is told whose operation was committed and whose answer then failed.
_DONE = (
    "What was asked for has been done and is kept, but the answer failed in the main node; its log"
    " has the details. Look before asking for it again."
)
#: The largest frame that is heard, by the name of the lock; the bus may have none.
_LARGEST = {ADMIN: wire.MAX_FRAME_BYTES, FEED: wire.MAX_FEED_FRAME_BYTES}
#: Where the scheduler posts its ticks.
TICKS_ENDPOINT = "inproc://ticks"


def system_now() -> ev.Now:
    """The time of this machine."""
    return ev.Now(time.monotonic(), time.time_ns() // 1_000_000)


class MainKeys(NamedTuple):
    """What locks the sockets."""

    pair: Pair
    #: Public key of this machine's own tooling.
    tooling: str


class Broker:
    """One main node.

    :param settings: what it was started with
    :param store: opened, not yet loaded; it is closed by `close`
    :param keys: lock the sockets with these; None leaves them open, which is for loopback only
    :raises StoreError: when the store cannot be loaded
    :raises zmq.ZMQError: when a port cannot be bound; its text names the address
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
        self._rng = rng or random.SystemRandom()
        self._now = now
        self._boot = boot_id() if boot is None else boot
        self._looked = now()
        self.context = context or zmq.Context()
        server = settings.server
        self._sockets: list[zmq.Socket[bytes]] = []
        self.stopping = False
        self._stalled = ""
        #: Whether the turn under way has been committed.
        self._counts = False
        self._reload_mono = 0.0
        self._space_mono = self._floods_mono = 0.0
        self._later: list[ev.Event] = []
        #: Reads that met a damaged row: asked again when it has been dealt with.
        self._put_off: list[tuple[AdminOperation, Call] | ins.WaitOver] = []
        #: Calls of the turn under way that are still to be answered.
        self._answers: list[tuple[ev.Ticket, Reply | ClusterError]] = []
        self._reads: list[tuple[AdminOperation, Call]] = []
        self.state, self._started = self._restore()
        self._gate: Gate | None = None
        bus_locked = keys is not None and not server.insecure
        try:
            if keys is not None:
                self._gate = Gate(
                    self.context, keys.pair, keys.tooling, lambda: self.state.access,
                    lambda: self.state.settings.server.max_connections,
                )  # fmt: skip
            admin = self._bind(zmq.ROUTER, server.host, server.port, ADMIN)
            worker_host = server.worker_host or (EVERYWHERE if keys else "127.0.0.1")
            bus = self._bind(
                zmq.ROUTER, worker_host, server.worker_port, BUS if bus_locked else "",
                WAITING_OF_DEVICE,
            )  # fmt: skip
            feed = self._bind(zmq.XPUB, server.event_host, server.event_port, FEED)
            self._ticks = self.context.socket(zmq.PULL)
            self._sockets.append(self._ticks)
            self._ticks.bind(TICKS_ENDPOINT)
        except BaseException:
            self.close()
            raise
        ports, pair = _ports(admin, bus, feed), self._gate.pair if self._gate else None
        self.facts = Facts(
            version("retire-cluster"), os.getpid(), server.host, *ports,
            self._started, pair.public if pair else "", worker_host, bus_locked,
            *facade_identity(pair, self.state.ids.salt, ports[0]),
        )  # fmt: skip
        gate = self._gate
        intake = None if gate is None else gate.intake
        self._bus = Bus(bus, self.facts, keyed=bus_locked, intake=intake if bus_locked else None)
        self._clients = Clients(
            admin, self.facts, None if gate is None else gate.may_use_admin, intake
        )
        self._feed = Feed(feed)
        self._admin = Admin(self.state, store, settings, self.facts)
        self._admin.ticked_mono = self._started.mono
        self._poller = zmq.Poller()
        gated = self._gate.pollable if self._gate is not None else []
        for socket in (self._ticks, bus, admin, feed, *gated):
            self._poller.register(socket, zmq.POLLIN)

    # --- life ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stopping` is set (by a signal handler or another thread's tick)."""
        while not self.stopping:
            self.turn()
        self._store_devices()

    def close(self) -> None:
        """Close sockets and store; everything committed stays."""
        if self._gate is not None:
            self._gate.close()
            self._gate = None
        for socket in self._sockets:
            socket.close(0)
        self._sockets.clear()
        self._store.close()

    def turn(self, longest_seconds: float = MAX_POLL_SECONDS) -> None:
        """One pass of the loop; waits for something to do at most so long."""
        ready = dict(self._poller.poll(self._wait_ms(longest_seconds)))
        now = self._now()
        self._watch_clock(now)
        if self._gate is not None:
            self._gate.serve(now.mono, self.state.clock.age_ms(now), self.state.stats.dropped)
        if self._stalled:
            self._stalled_turn(now)
            return
        try:
            self._work(now, ready)
        except StoreError as error:
            log.error("%s; nothing of this turn counts, the state is read anew", error)
            self._stall(str(error))
        except Exception:
            if self._counts:
                log.exception("a turn failed after its commit; what it committed counts")
                return
            # A rule failed half-way: memory cannot be trusted any more, the store can.
            log.exception("a turn failed; nothing of it counts, the state is read anew")
            self._stall("the main node met an error and reads its state anew")

    def _work(self, now: ev.Now, ready: Container[object]) -> None:
        admin, self._counts = self._admin, False
        admin.turn, self._answers, self._reads = [], [], []
        # Devices before deadlines: what waited in the socket while this loop was busy counts.
        if self._bus.socket in ready:
            self._hear_devices(now)
        if now.mono >= self._floods_mono:
            # At a tick at the latest: who has flooded may be silent from then on.
            self._tell_floods(now)
        self._tick(self._ticks in ready, now)
        if self._clients.socket in ready:
            self._hear_clients(now)
        admin.apply(ev.Place(), now)
        self._commit(now)
        self._counts = True
        # From here on everything counts, whatever goes wrong: each step fails on its own.
        self._perform(admin.turn, now)
        for ticket, reply in self._answers:
            self._answer(ticket, reply, done=True)
            failpoints.reach("broker-after-answer")
        for operation, call in self._reads:
            self._attempt(operation, call, self._answer)
        self._publish(now)

    def _wait_ms(self, longest_seconds: float) -> int:
        if self._stalled:
            left = min(self._reload_mono - self._now().mono, longest_seconds)
            return max(0, int(left * 1000) + 1)
        if self._later:
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

    # --- steps of a turn -------------------------------------------------------------------------

    def _tick(self, posted: bool, now: ev.Now) -> None:
        self._face_damage(now)
        names = []
        while posted:
            try:
                names.append(self._ticks.recv(zmq.NOBLOCK).decode())
            except zmq.Again:
                break
        for name in dict.fromkeys(names):
            if name == "stop":
                self.stopping = True
                continue
            self._admin.ticked_mono = now.mono
            self._admin.apply(ev.Tick(name), now)
        deadline = self.state.next_deadline()
        if deadline is not None and deadline <= now.mono:
            self._admin.apply(ev.Tick("deadlines"), now)
        if names and now.mono >= self._space_mono:
            self._space_mono = now.mono + _FREE_SPACE_SECONDS
            self._watch_space()

    def _face_damage(self, now: ev.Now) -> None:
        """End what was found damaged in the last turn; whoever asked for it is answered now."""
        face(self._later, self._admin, now)
        self._later.clear()
        put_off, self._put_off = self._put_off, []
        for asked in put_off:
            if isinstance(asked, ins.WaitOver):
                self._admin.turn.append(asked)
            else:
                self._reads.append(asked)

    def _quarantine(self, damage: RowDamaged) -> bool:
        """Have a damaged outcome dealt with in the next turn; False when that was done before."""
        event = quarantine(damage, self._admin)
        if event is not None:
            self._later.append(event)
        return event is not None

    def _watch_clock(self, now: ev.Now) -> None:
        before, self._looked = self._looked, now
        if moved_seconds := jump_seconds(before, now):
            log.warning(describe_jump(moved_seconds))

    def _watch_space(self) -> None:
        least = self.state.settings.database.min_free_percent
        reason = ""
        try:
            free = self._store.free_percent()
        except StoreError as error:
            free, reason = least, str(error)
        if free < least:
            reason = (
                f"{free:.1f} % of the main node's disk is free, less than the {least:g} % of "
                "database.min_free_percent: no new tasks until there is room"
            )
        if reason and not self._admin.refusing:
            log.warning(reason)
        elif self._admin.refusing and not reason:
            log.info("disk space is back: new tasks are taken again")
        self._admin.refusing = reason

    def _hear_devices(self, now: ev.Now) -> None:
        dropped, budgets = self.state.stats.dropped, self._bus.budgets
        for event in self._bus.read(MESSAGES_PER_TURN, now.mono, dropped):
            stale = dropped["stale_attempt"]
            self._admin.apply(event, now)
            if dropped["stale_attempt"] != stale:
                items = dropped["stale_attempt"] - stale
                budgets.blame(event.key or event.routing, items, now.mono)
            if self._now().mono - now.mono > DEVICES_SECONDS:
                return  # clients have waited long enough

    def _tell_floods(self, now: ev.Now) -> None:
        """Who said more than it may, once a second."""
        self._floods_mono = now.mono + FLOODS_SECONDS
        for who, counts in self._bus.budgets.take_over().items():
            self._admin.apply(ev.Flooded(who, counts), now)

    def _hear_clients(self, now: ev.Now) -> None:
        def later(ticket: ev.Ticket, reply: Reply | ClusterError) -> None:
            self._answers.append((ticket, reply))

        for call in self._clients.read(MESSAGES_PER_TURN, now, self.state.stats.dropped):
            try:
                operation = find(call.op)
            except ClusterError as error:
                self._clients.refuse(call.ticket, error)
                continue
            if operation is submit:
                if must_be_made_first(self._admin, call):
                    self._make_gathered()
                self._attempt(operation, call, later, gather)
            elif operation.changes:
                self._make_gathered()
                self._attempt(operation, call, later)
            else:
                self._reads.append((operation, call))
        self._make_gathered()

    def _make_gathered(self) -> None:
        self._answers += make(self._admin)

    def _answer(
        self, ticket: ev.Ticket, reply: Reply | ClusterError, *, done: bool = False
    ) -> None:
        """Answer a call; `done`: what it asked for has been committed, whatever happens here."""
        try:
            if isinstance(reply, ClusterError):
                self._clients.refuse(ticket, reply)
            else:
                self._clients.answer(ticket, reply)
        except Exception:
            log.exception("an answer could not be written")
            self._clients.refuse(ticket, InternalError(_DONE if done else None))

    def _attempt(
        self,
        operation: AdminOperation,
        call: Call,
        answer: Callable[[ev.Ticket, Reply | ClusterError], None],
        run: Run | None = None,
    ) -> None:
        try:
            reply = operation.perform(self._admin, call) if run is None else run(self._admin, call)
        except ClusterError as error:
            # A refusal may rest on what this turn did, so it waits for the commit as well.
            answer(call.ticket, error)
        except RowDamaged as error:
            if operation.changes:
                if self._quarantine(error):
                    self._clients.refuse(call.ticket, ClusterUnavailable(str(error), retry_after=1))
                    return
            elif self._is_put_off(error, (operation, call)):
                return
            log.error("%s: %s", operation.name, error)
            self._clients.refuse(call.ticket, InternalError(str(error)))
        except StoreTrouble as error:
            self._clients.refuse(call.ticket, self._not_now(error))
        except StoreError as error:
            log.error("%s: %s", operation.name, error)
            self._clients.refuse(call.ticket, InternalError(str(error)))
        except Exception:
            log.exception("the operation %s failed", operation.name)
            self._clients.refuse(call.ticket, InternalError())
            if operation.changes:
                raise
        else:
            if reply is not None:
                answer(call.ticket, reply)

    def _not_now(self, error: StoreTrouble) -> ClusterUnavailable:
        """What a client is told whose question needs what cannot be read now."""
        self._admin.trouble.note(str(error), self._now().mono)
        return ClusterUnavailable(f"{error}; ask again", retry_after=1)

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

    def _perform(self, turn: Sequence[ins.Instruction], now: ev.Now) -> None:
        for instruction in turn:
            try:
                if isinstance(instruction, ins.Send):
                    verb, header = instruction.message.write()
                    self._bus.send(instruction.routing, verb, header, (), self.state.stats.dropped)
                elif isinstance(instruction, ins.SendAssign):
                    self._assign(instruction, now)
                elif isinstance(instruction, ins.PingOver):
                    self._answer(instruction.ticket, Reply(ping(instruction)), done=True)
                elif isinstance(instruction, ins.Warn):
                    log.warning(instruction.text)
                elif isinstance(instruction, ins.WaitOver):
                    self._answer_wait(instruction)
            except Exception:
                log.exception(
                    "%s could not be carried out; what was committed counts",
                    type(instruction).__name__,
                )
                self._make_up_for(instruction)

    def _make_up_for(self, instruction: ins.Instruction) -> None:
        """What follows from an instruction that failed: nobody waits for it in vain."""
        if isinstance(instruction, ins.SendAssign):
            token, why = instruction.dispatch.token, "the main node met an error, see its log"
            self._later += [ev.NotSent(task.number, token, why) for task in instruction.tasks]
        elif isinstance(instruction, ins.WaitOver):
            self._clients.refuse(instruction.ticket, InternalError(_DONE))
        # A device that a message did not reach tells what it has, and sends results again.

    def _answer_wait(self, over: ins.WaitOver) -> None:
        try:
            reply = waited(self._admin, over)
        except StoreError as error:
            if isinstance(error, RowDamaged) and self._is_put_off(error, over):
                return
            trouble = self._not_now(error) if isinstance(error, StoreTrouble) else None
            if over.answer_head:
                # Its tasks have been submitted: that is told; how they end, at the next question.
                self._answer(over.ticket, unread(over), done=True)
            elif trouble is not None:
                self._clients.refuse(over.ticket, trouble)
            else:
                log.error("task.wait: %s", error)
                self._clients.refuse(over.ticket, InternalError(str(error)))
        else:
            self._answer(over.ticket, reply, done=True)

    def _is_put_off(
        self, damage: RowDamaged, asked: tuple[AdminOperation, Call] | ins.WaitOver
    ) -> bool:
        """Whether a read waits for the next turn, because that deals with what it met."""
        waits = any(
            isinstance(event, ev.ResultDamaged) and event.task == damage.task
            for event in self._later
        )
        if not waits and not self._quarantine(damage):
            return False
        self._put_off.append(asked)
        return True

    def _assign(self, order: ins.SendAssign, now: ev.Now) -> None:
        later = hand_out(order, self.state, self._store, self._bus, self._now)
        for event in later:
            if isinstance(event, ev.NotSent):
                self._admin.trouble.note(event.reason, now.mono)
        self._later += later
        failpoints.reach("broker-after-assign")

    def _publish(self, now: ev.Now) -> None:
        if self._admin.polls:
            answer_polls(self._admin, now.mono, self._answer)
        try:
            self._feed.publish(self.state.log, self.state.ids)
        except Exception:
            log.exception("events could not be published; /events still has them")

    # --- the store's trouble ---------------------------------------------------------------------

    def _restore(self) -> tuple[ClusterState, ev.Now]:
        for _ in range(_LOADS - 1):
            try:
                return self._restore_now()
            except StoreTrouble as error:
                log.warning("%s; trying again", error)
            time.sleep(_LOAD_PAUSE_SECONDS)
        return self._restore_now()

    def _restore_now(self) -> tuple[ClusterState, ev.Now]:
        now = self._now()
        # A million tasks are made in one go and none of them is garbage: looking for cycles among
        # them would take longer than everything else here, now and at every later collection.
        gc.disable()
        try:
            snapshot = self._store.load(
                lambda newest: fresh_epoch(newest, now, self._rng), INLINE_PAYLOAD_BYTES
            )
            state, warnings = restore(snapshot, self._settings, self._rng, now, self._boot)
        finally:
            gc.enable()
        gc.freeze()
        self._later += [ev.TaskDamaged(number) for number in snapshot.damaged]
        for warning in warnings:
            log.warning(warning)
        return state, now

    def _stall(self, reason: str) -> None:
        """Forget this turn and everything in memory; nobody who waits is left without an answer."""
        self._stalled = reason
        self._reload_mono = max(self._now().mono, self._reload_mono)
        tickets = [ticket for ticket, _ in self._answers]
        tickets += [call.ticket for _, call in self._reads]
        tickets += [
            instruction.ticket
            for instruction in self._admin.turn
            if isinstance(instruction, (ins.PingOver, ins.WaitOver))
        ]
        tickets += [
            asked.ticket if isinstance(asked, ins.WaitOver) else asked[1].ticket
            for asked in self._put_off
        ]
        tickets += [poll.ticket for poll in self._admin.polls]
        tickets += [wait.request.ticket for wait in self.state.waits.all]
        tickets += [ping.ticket for ping in self.state.pings.values()]
        tickets += [one.call.ticket for one in self._admin.gathering.submissions]
        for ticket in tickets:
            self._clients.refuse(ticket, ClusterUnavailable(reason, retry_after=5))
        self._answers, self._reads, self._later, self._put_off = [], [], [], []
        self._admin.polls = []
        self._admin.gathering.clear()

    def _stalled_turn(self, now: ev.Now) -> None:
        """Refuse clients and let devices wait until the store can be read and written again."""
        while True:
            try:
                self._ticks.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
        self._bus.discard(MESSAGES_PER_TURN)
        if now.mono >= self._reload_mono:
            self._reload_mono = now.mono + _RELOAD_SECONDS
            try:
                self.state, _ = self._restore()
            except StoreError as error:
                self._stalled = str(error)
            else:
                log.info("the store works again")
                self._stalled = ""
                self._admin = Admin(self.state, self._store, self._settings, self.facts)
                self._admin.ticked_mono = now.mono
                return
        for call in self._clients.read(MESSAGES_PER_TURN, now, self.state.stats.dropped):
            self._clients.refuse(call.ticket, ClusterUnavailable(self._stalled, retry_after=5))

    def _store_devices(self) -> None:
        """Keep the counters of devices at a clean stop."""
        if not self._stalled:
            self._admin.turn = []
            now = self._now()
            self._admin.apply(ev.Tick("devices"), now)
            self._admin.apply(ev.Tick("upkeep"), now)
            if mark := self.state.mark(now, 0.0):
                self._admin.turn.append(ins.StoreMark(mark))
            try:
                self._commit(now)
            except StoreError as error:
                log.error("%s; counters of devices are not kept", error)

    def _bind(
        self, kind: int, host: str, port: int, lock: str, waiting: int = WAITING
    ) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self.context.socket(kind)
        self._sockets.append(socket)
        if self._gate is not None and lock:
            self._gate.lock(socket, lock)
        bind(socket, host, port, waiting, _LARGEST.get(lock, wire.MAX_BUS_FRAME_BYTES))
        return socket


def _ports(*sockets: zmq.Socket[bytes]) -> tuple[int, int, int]:
    found: list[Any] = []
    for socket in sockets:
        endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        found.append(int(endpoint.rstrip(b"\0").rpartition(b":")[2]))
    return found[0], found[1], found[2]
