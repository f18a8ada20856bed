"""The worker's loop: one thread that owns the socket and moves events to and from the session.

    poll -> transport news -> messages -> runner's news -> stop wishes -> tick -> send

Slots and signal handlers reach it only by queues and one byte on a socket pair. Everything that
decides is in core/session.py; everything that runs tasks is in running/runner.py.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import zmq

from retire_cluster.conf import failpoints
from retire_cluster.node.core import exit_codes
from retire_cluster.node.core.encoding import encode
from retire_cluster.node.core.events import (
    CapabilitiesChanged,
    Ended,
    Event,
    LinkDown,
    LinkUp,
    OffersChanged,
    Opened,
    Received,
    StopAsked,
    Tick,
)
from retire_cluster.node.core.instructions import (
    Connect,
    Exit,
    ForgetResults,
    Instruction,
    Kill,
    Log,
    Run,
    Send,
    StoreResults,
)
from retire_cluster.node.core.session import Session
from retire_cluster.node.device.facts import Facts
from retire_cluster.node.link.enrolment import Enrolment, Next
from retire_cluster.node.link.sockets import (
    NEEDS_JOIN_STRING,
    NOT_OURS,
    REFUSED,
    UP,
    Dialer,
    Link,
)
from retire_cluster.node.link.waker import Waker
from retire_cluster.node.running.description import OwnTypes
from retire_cluster.node.running.runner import Runner
from retire_cluster.node.running.spool import Spool, SpoolError
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import (
    Assign,
    Enrolled,
    Heartbeat,
    Welcome,
    first_left_out,
    read_from_broker,
)

log = logging.getLogger("retire_cluster.node")

#: Windows sees Ctrl-C only between two polls; elsewhere a byte wakes the loop.
MAX_POLL_MS = 500 if sys.platform == "win32" else 5_000
MAX_MESSAGES_A_TURN = 200
GOODBYE_LINGER_MS = 1_000
UNKNOWN_KEY = (
    "it does not know this device's key: the device was forgotten there, or this port is not its"
    " worker bus; join again with the line of `retire-cluster token create`"
)
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class Agent:
    """Connects a session, a runner and a spool to a socket.

    :param clock: gives monotonic seconds that go on while the device sleeps
    """

    def __init__(
        self,
        *,
        session: Session,
        runner: Runner,
        spool: Spool,
        dialer: Dialer,
        enrolment: Enrolment,
        facts: Facts,
        waker: Waker,
        clock: Callable[[], float],
    ) -> None:
        self._session = session
        self._runner = runner
        self._spool = spool
        self._dialer = dialer
        self._enrolment = enrolment
        self._facts = facts
        self._waker = waker
        self._clock = clock
        self._stops: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._own_types: queue.SimpleQueue[tuple[OwnTypes, str]] = queue.SimpleQueue()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._link: Link | None = None
        #: Verb and frames of what is still to be sent.
        self._outgoing: deque[tuple[bytes, list[bytes]]] = deque()
        self._exit_code: int | None = None
        #: Messages that were not of the protocol.
        self._malformed = 0

    def stop(self, reason: str) -> None:
        """Ask the worker to go; a second time, at once. From any thread or signal handler."""
        self._stops.put(reason)
        self._waker()

    def replace_own_types(self, own: OwnTypes, change: str) -> None:
        """Run these in tasks that start later. From any thread.

        :param change: what differs, in words for the log
        """
        self._own_types.put((own, change))
        self._waker()

    def run(self) -> int:
        """Work until told to go; the exit code."""
        self._poller.register(self._waker.reader, zmq.POLLIN)
        try:
            self._feed(CapabilitiesChanged(self._facts.capabilities))
            self._feed(Opened())
            while self._exit_code is None:
                ready = self._wait()
                self._read_transport(ready)
                self._read_messages()
                self._read_runner()
                self._read_stops()
                self._read_own_types()
                if self._facts.look_again(self._clock()):
                    self._feed(CapabilitiesChanged(self._facts.capabilities))
                self._feed(Tick())
                self._flush()
            self._leave()
        finally:
            self._runner.close()
            self._drop_link(0)
            self._context.term()
            self._spool.close()
        return self._exit_code

    # --- one turn -----------------------------------------------------------------------------

    def _wait(self) -> set[Any]:
        """Sleep until there is something to do; the sockets that woke it."""
        now = self._clock()
        due = [at for at in (self._session.next_due(), self._runner.next_due()) if at is not None]
        # A millisecond more, so that the clock has passed the moment when we look at it.
        wait_ms = min(max(0.0, (min(due) - now) * 1000 + 1), MAX_POLL_MS) if due else MAX_POLL_MS
        if self._link is not None:
            flags = zmq.POLLIN | (zmq.POLLOUT if self._outgoing else 0)
            self._poller.register(self._link.socket, flags)
        ready = {who for who, _ in self._poller.poll(int(wait_ms))}
        if self._waker.reader.fileno() in ready:
            self._waker.drain()
        return ready

    def _read_transport(self, ready: set[Any]) -> None:
        link = self._link
        if link is None or link.monitor not in ready:
            return
        for news in link.news():
            if self._link is not link:
                return
            if news == REFUSED:
                self._on_refused()
            elif news != UP:
                self._feed(LinkDown(news, news in (NEEDS_JOIN_STRING, NOT_OURS)))
            elif self._enrolment.is_due:
                verb, header = self._enrolment.request(self._session.device_id).write()
                self._outgoing.append((verb, wire.fold(wire.encode(wire.BUS, verb, header))))
            else:
                self._feed(LinkUp())

    def _on_refused(self) -> None:
        """Drop the socket, which must not go on dialling with a key that is not known."""
        self._drop_link(0)
        self._go_on(self._enrolment.refuse())

    def _go_on(self, step: Next) -> None:
        if step is Next.DIAL:
            self._connect()
        elif step is Next.GIVE_UP:
            self._exit_code = exit_codes.REFUSED
        elif step is Next.WAIT:
            self._feed(LinkDown(UNKNOWN_KEY, cured=True))

    def _read_messages(self) -> None:
        for _ in range(MAX_MESSAGES_A_TURN):
            link = self._link
            if link is None or self._exit_code is not None:
                return
            try:
                frames = link.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                message = wire.decode(wire.BUS, frames)
                record = read_from_broker(message.verb, message.header)
                if isinstance(record, Assign) and record.count != len(message.blobs):
                    raise wire.WireError("ASSIGN: one payload an item is required")
            except wire.WireError as error:
                self._count_malformed(error)
                continue
            if self._enrolment.is_due:
                self._go_on(self._enrolment.read(record))
            elif self._enrolment.lifts(record):
                self._connect()  # with the token that lifts the removal
            elif not isinstance(record, Enrolled):
                if isinstance(record, Welcome):
                    self._enrolment.note_welcome()
                self._feed(Received(record, message.blobs))

    def _count_malformed(self, error: wire.WireError) -> None:
        self._malformed += 1
        if self._malformed == 1:
            log.warning(
                "%s sent something that is not of the protocol and is ignored: %s",
                self._dialer.address,
                error,
            )

    def _read_runner(self) -> None:
        for event in self._runner.collect(self._clock()):
            if isinstance(event, Ended):
                failpoints.reach("device-after-run")
            self._feed(event)
        if self._runner.last_error:
            self._session.last_error = self._runner.last_error

    def _read_stops(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._feed(StopAsked(self._stops.get_nowait()))

    def _read_own_types(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                own, change = self._own_types.get_nowait()
                offered = self._runner.replace_own_types(own, self._clock())
                if change:
                    log.info(
                        "own task types: %s; every task from here on runs what is there", change
                    )
                self._feed(OffersChanged(offered, first_left_out(own.left_out)))

    # --- instructions -------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        for instruction in self._session.handle(event, self._clock()):
            self._perform(instruction)

    def _perform(self, instruction: Instruction) -> None:
        if isinstance(instruction, Send):
            self._send(instruction)
        elif isinstance(instruction, Run):
            failpoints.reach("device-before-run")
            self._runner.run(instruction.attempts, self._clock())
        elif isinstance(instruction, Kill):
            self._runner.kill(instruction.keys, instruction.reason, self._clock())
        elif isinstance(instruction, StoreResults):
            failpoints.reach("device-before-spool")
            self._store(lambda: self._spool.store(instruction.results))
            failpoints.reach("device-after-spool")
        elif isinstance(instruction, ForgetResults):
            failpoints.reach("device-after-ack")
            self._store(lambda: self._spool.forget(instruction.keys))
        elif isinstance(instruction, Connect):
            self._connect()
        elif isinstance(instruction, Log):
            log.log(_LEVELS[instruction.level], "%s", instruction.text)
        elif isinstance(instruction, Exit):
            self._exit_code = instruction.code

    def _store(self, action: Callable[[], None]) -> None:
        try:
            action()
        except SpoolError as error:
            # The result still goes to the main node; only a power cut now could lose it.
            if self._session.last_error != str(error):
                log.error("%s", error)
            self._session.last_error = str(error)

    def _connect(self) -> None:
        self._drop_link(0)
        try:
            self._link = Link(self._dialer, self._context)
        except (zmq.ZMQError, ValueError) as error:
            log.warning("cannot dial %s: %s", self._dialer.address, error)
            return
        self._poller.register(self._link.monitor, zmq.POLLIN)

    def _drop_link(self, linger_ms: int) -> None:
        self._outgoing.clear()
        if self._link is None:
            return
        for each in (self._link.monitor, self._link.socket):
            with contextlib.suppress(KeyError):
                self._poller.unregister(each)
        self._link.close(linger_ms)
        self._link = None

    def _send(self, instruction: Send) -> None:
        message = instruction.message
        if isinstance(message, Heartbeat):
            message = replace(message, metrics=dict(self._facts.sample()))
        encoded = encode(message, instruction.blobs)
        if encoded.error:
            verb = message.verb.decode()
            log.error("a message (%s) cannot be sent as it is: %s", verb, encoded.error)
        for result, reason in encoded.unsendable:
            self._store(partial(self._spool.set_aside, result, reason))
        if encoded.frames:
            self._outgoing.append((message.verb, wire.fold(encoded.frames)))

    def _flush(self) -> None:
        link = self._link
        while self._outgoing and link is not None:
            try:
                link.socket.send_multipart(self._outgoing[0][1], zmq.DONTWAIT)
            except zmq.Again:
                return
            verb, _ = self._outgoing.popleft()
            if verb == b"FINISHED":
                failpoints.reach("device-after-send")

    def _leave(self) -> None:
        """Give the last messages a moment to go out."""
        link = self._link
        if link is not None and self._outgoing and link.socket.poll(GOODBYE_LINGER_MS, zmq.POLLOUT):
            self._flush()
        self._drop_link(GOODBYE_LINGER_MS)
