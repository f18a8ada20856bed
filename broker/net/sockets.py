"""The broker's sockets: frames in, events and calls out; answers and messages back.

Malformed input is counted, logged once a peer and dropped (bus) or answered with an error (admin).
A peer that is gone or does not read is never waited for.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import zmq

from retire_cluster.broker.admin.calls import Call, Facts, Reply
from retire_cluster.broker.admin.views import error_header, event
from retire_cluster.broker.core.devices.versions import (
    GREETINGS,
    Misfits,
    admin_refusal,
    fits,
    refusal,
)
from retire_cluster.broker.core.events import FromDevice, Now, ResultsArrived, Ticket
from retire_cluster.broker.core.records.event_log import EventLog
from retire_cluster.broker.net.budgets import Budgets
from retire_cluster.broker.net.intake import FRAME_BYTES, Intake, Meter
from retire_cluster.conf.machine.addresses import plain_address
from retire_cluster.conf.machine.binding import why_not_listening
from retire_cluster.schemas.errors import ClusterError, Forbidden, ValidationError
from retire_cluster.schemas.ids import TaskIds
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import Finished, Reject, read_from_device
from retire_cluster.schemas.protocol.wire import WireError
from retire_cluster.schemas.text.hosts import EVERYWHERE, bracketed
from retire_cluster.schemas.text.jsontext import dumps

log = logging.getLogger("broker")

_PEERS_LOGGED = 1_000
_PEERS_KNOWN = 50_000
#: Characters of a call's id: every answer to it repeats it.
_MAX_CALL_ID = 200
#: Bytes of messages beyond their budgets that one turn reads, and what each counts for beside them.
_WASTE_A_TURN = 2 * 1024 * 1024
_WASTE_A_MESSAGE = 16 * 1024
#: What is malformed counts as one stale item, and one more for each so many bytes.
_MALFORMED_BYTES_AN_ITEM = 16
#: Messages that wait here for each connection: what more comes waits where it was sent.
WAITING = 10_000
#: The same on the worker bus, whose messages may be large.
WAITING_OF_DEVICE = 32
# As plain numbers: combining pyzmq's enums costs more than sending a small frame.
_NOW = int(zmq.NOBLOCK)
_NOW_AND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_POLLIN = int(zmq.POLLIN)
Socket = zmq.Socket[bytes]


class BindError(RuntimeError):
    """A socket cannot listen where it should; the text names the address and the cure."""


def bind(
    socket: Socket,
    host: str,
    port: int,
    waiting: int = WAITING,
    largest_bytes: int = wire.MAX_FRAME_BYTES,
) -> None:
    """Listen on `tcp://host:port` (0: any free port), for frames up to a size.

    Raises `BindError`.
    """
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 10_000)
    socket.setsockopt(zmq.RCVHWM, waiting)
    socket.setsockopt(zmq.MAXMSGSIZE, largest_bytes)
    socket.setsockopt(zmq.BACKLOG, 1_024)
    if socket.type == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    # Half-open connections are noticed by the system; liveness is our own heartbeats' business.
    # ZeroMQ's would do it too, but it looks through the timers of all connections at each pong:
    # with 10,000 devices that alone took half a core.
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 10)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    # With IPV6 set, `*` is every address of both kinds; a system without IPv6 has those of one.
    socket.setsockopt(zmq.IPV6, int(":" in host or host == EVERYWHERE))
    try:
        try:
            socket.bind(f"tcp://{bracketed(host)}:{port or '*'}")
        except zmq.ZMQError as error:
            if host != EVERYWHERE or error.errno == zmq.EADDRINUSE:
                raise
            socket.setsockopt(zmq.IPV6, 0)
            socket.bind(f"tcp://{host}:{port or '*'}")
    except zmq.ZMQError as error:
        raise BindError(why_not_listening(host, port, error.errno or 0)) from None


def _is_readable(socket: Socket) -> bool:
    events = socket.getsockopt(zmq.EVENTS)
    return isinstance(events, int) and bool(events & _POLLIN)


class _Peer(NamedTuple):
    """What the transport says of one connection; it stays the same as long as that lives."""

    #: IP address, empty when unknown.
    address: str
    #: The key that the handshake proved; None on a socket without CURVE.
    key: str | None
    #: Whether it sends small messages in one frame, and so is answered.
    folds: bool = False
    #: Told what was received of it, where what it sends is bounded.
    meter: Meter | None = None


class _Channel:
    def __init__(
        self, socket: Socket, facts: Facts, *, keyed: bool = False, intake: Intake | None = None
    ) -> None:
        self.socket = socket
        self.keyed = keyed
        self._intake = intake
        self.facts = facts
        self._told: set[bytes] = set()
        self._peers: dict[bytes, _Peer] = {}

    def _receive(self) -> tuple[bytes, _Peer, list[bytes]] | None:
        """`(routing id, peer, frames)`, None when there is nothing to read.

        Of a message with far too many frames all are read, but not kept.
        """
        socket = self.socket
        try:
            first = socket.recv(_NOW, copy=False)
        except zmq.Again:
            return None
        routing, more = first.bytes, first.more
        peer = self._peers.get(routing)
        frames: list[bytes] = []
        size = FRAME_BYTES
        while more:
            frame = socket.recv(_NOW, copy=False)
            if peer is None:
                peer = self._meet(routing, frame)
            size += len(frame) + FRAME_BYTES
            if len(frames) <= wire.MAX_FRAMES:
                frames.append(frame.bytes)
            more = frame.more
        if peer is not None and peer.meter is not None:
            peer.meter.delivered += size
        if peer is not None and wire.is_folded(frames) and not peer.folds:
            peer = self._peers[routing] = peer._replace(folds=True)
        return routing, peer or _Peer("", "" if self.keyed else None), frames

    def _meet(self, routing: bytes, frame: zmq.Frame) -> _Peer:
        """A connection's first message: note who it is. Routing ids are never used twice."""
        address, key, meter = "", "" if self.keyed else None, None
        with contextlib.suppress(zmq.ZMQError):
            address = plain_address(str(frame.get("Peer-Address")))
            if self.keyed:
                key = str(frame.get("User-Id"))
            if self._intake is not None:
                meter = self._intake.accepted(int(frame.get(zmq.SRCFD)))
                if meter is not None:
                    self._intake.heard(meter)
        if len(self._peers) >= _PEERS_KNOWN:
            self._peers.clear()
        found = self._peers[routing] = _Peer(address, key, meter=meter)
        return found

    def _drop(self, routing: bytes, address: str, what: str, dropped: Counter[str]) -> None:
        dropped["malformed"] += 1
        if routing not in self._told:
            if len(self._told) >= _PEERS_LOGGED:
                self._told.clear()
            self._told.add(routing)
            log.warning("dropped a malformed message of %s: %s", address or "a peer", what)

    def put(self, routing: bytes, frames: list[bytes]) -> bool:
        """Send without waiting; whether the peer was there and had room."""
        peer = self._peers.get(routing)
        if peer is not None and peer.folds:
            frames = wire.fold(frames)
        send = self.socket.send
        try:
            send(routing, _NOW_AND_MORE)
            for frame in frames[:-1]:
                send(frame, _NOW_AND_MORE)
            send(frames[-1], _NOW)
        except zmq.ZMQError:
            return False
        return True


class Bus(_Channel):
    """The worker bus."""

    def __init__(
        self, socket: Socket, facts: Facts, *, keyed: bool = False, intake: Intake | None = None
    ) -> None:
        super().__init__(socket, facts, keyed=keyed, intake=intake)
        self._misfits = Misfits()
        self.budgets = Budgets()

    def read(
        self, limit: int, mono: float, dropped: Counter[str]
    ) -> Iterator[FromDevice | ResultsArrived]:
        """Events of at most `limit` messages.

        What is malformed, or beyond a budget, is counted and skipped.
        """
        wasted = 0
        for _ in range(limit):
            if wasted > _WASTE_A_TURN:
                return  # others have their turn
            got = self._receive()
            if got is None:
                return
            routing, (address, key, *_), frames = got
            who, size = key or routing, sum(map(len, frames))
            if not self.budgets.allows(who, wire.verb_of(frames), size, mono):
                dropped["over_budget"] += 1
                wasted += size + _WASTE_A_MESSAGE
                continue
            if frames and frames[0].startswith(wire.ADMIN):
                self._wrong_port(routing, frames, dropped)
                continue
            try:
                found = wire.decode(wire.BUS, frames)
                if found.verb in GREETINGS and not fits(found.header):
                    self._turn_away(routing, address, found.header, dropped)
                    continue
                message = read_from_device(found.verb, found.header)
                if isinstance(message, Finished):
                    if len(found.blobs) != 2 * message.count:
                        raise WireError("FINISHED has two blobs an item")
                    yield ResultsArrived(routing, message, found.blobs, key)
                else:
                    yield FromDevice(routing, message, address, key)
                continue
            except WireError as error:
                self._drop(routing, address, str(error), dropped)
            except Exception as error:  # an error of ours, met with a stranger's message
                log.exception("a device's message could not be read")
                self._drop(routing, address, f"{type(error).__name__}: {error}", dropped)
            # Reading it was work for nothing, whatever its verb says.
            self.budgets.blame(who, 1 + size // _MALFORMED_BYTES_AN_ITEM, mono)
            wasted += size + _WASTE_A_MESSAGE

    def _turn_away(
        self, routing: bytes, address: str, header: dict[str, Any], dropped: Counter[str]
    ) -> None:
        dropped["rejected_protocol"] += 1
        reject = refusal(header, self.facts.version)
        self._misfits.tell(header, reject, address)
        verb, answer = reject.write()
        self.put(routing, wire.encode(wire.BUS, verb, answer))

    def discard(self, limit: int) -> None:
        """Read and forget: the devices will say it again."""
        for _ in range(limit):
            if self._receive() is None:
                return

    def send(
        self,
        routing: bytes,
        verb: bytes,
        header: dict[str, Any],
        blobs: Sequence[bytes],
        dropped: Counter[str],
    ) -> None:
        """Send a message; one that cannot be sent is counted (leases make up for it)."""
        if not self.put(routing, wire.encode(wire.BUS, verb, header, blobs)):
            dropped["unsendable"] += 1

    def _wrong_port(self, routing: bytes, frames: list[bytes], dropped: Counter[str]) -> None:
        dropped["wrong_port"] += 1
        header = {
            "id": _call_id(frames),
            "code": "WRONG_PORT",
            "status": 400,
            "message": f"this is the worker bus; the admin socket is port {self.facts.admin_port}",
            "details": {"admin_port": self.facts.admin_port},
            "retry_after": None,
        }
        self.put(routing, wire.encode(wire.ADMIN, b"ERROR", header))


def _call_id(frames: list[bytes]) -> int | str | None:
    with contextlib.suppress(WireError):
        return _said_again(wire.decode(wire.ADMIN, frames).header.get("id"))
    return None


def _said_again(call_id: object) -> int | str | None:
    """A call's id as an answer repeats it; None for one that nobody can be asked to repeat."""
    if isinstance(call_id, str) and len(call_id) <= _MAX_CALL_ID:
        return call_id
    return call_id if type(call_id) is int else None


class Clients(_Channel):
    """The admin socket."""

    def __init__(
        self,
        socket: Socket,
        facts: Facts,
        may_use: Callable[[str], bool] | None = None,
        intake: Intake | None = None,
    ) -> None:
        super().__init__(socket, facts, keyed=may_use is not None, intake=intake)
        #: Asked for each message: a key may have been revoked since its handshake.
        self._may_use = may_use

    def read(self, limit: int, now: Now, dropped: Counter[str]) -> Iterator[Call]:
        """Calls of at most `limit` messages; what cannot be read is answered with an error."""
        for _ in range(limit):
            got = self._receive()
            if got is None:
                return
            routing, (address, key, *_), frames = got
            if self._may_use is not None and not self._may_use(key or ""):
                dropped["revoked_key"] += 1
                self.refuse((routing, _call_id(frames)), Forbidden("This key was revoked."))
                continue
            if frames and frames[0].startswith(wire.BUS):
                dropped["wrong_port"] += 1
                text = f"this is the admin socket; workers join port {self.facts.worker_port}"
                verb, header = Reject("", "wrong_port", text).write()
                self.put(routing, wire.encode(wire.BUS, verb, header))
                continue
            try:
                message = wire.decode(wire.ADMIN, frames)
            except WireError as error:
                self._drop(routing, address, str(error), dropped)
                self.refuse((routing, None), ValidationError("", str(error)))
                continue
            call = self._call(routing, message, now)
            if call is not None:
                yield call

    def _call(self, routing: bytes, message: wire.Message, now: Now) -> Call | None:
        header = message.header
        call_id, op, args = _said_again(header.get("id")), header.get("op"), header.get("args", {})
        ticket = (routing, call_id)
        theirs = header.get("protocol", 1)
        if theirs != wire.ADMIN_PROTOCOL:
            wrong: dict[str, Any] = {
                "id": call_id, "code": "WRONG_PROTOCOL", "status": 503, "details": {},
                "message": admin_refusal(theirs, self.facts.version),
            }  # fmt: skip
            self.put(routing, wire.encode(wire.ADMIN, b"ERROR", wrong))
            return None
        problem = None
        if message.verb != b"CALL":
            problem = ValidationError("", f"unknown verb {message.verb[:32]!r}: say CALL")
        elif call_id is None:
            text = f"must be a whole number or a text of at most {_MAX_CALL_ID} characters"
            problem = ValidationError("id", text)
        elif not isinstance(op, str):
            problem = ValidationError("op", "must be the name of an operation")
        elif not isinstance(args, dict):
            problem = ValidationError("args", "must be an object")
        if problem is not None:
            self.refuse(ticket, problem)
            return None
        assert isinstance(op, str)
        return Call(ticket, op, args, message.blobs, now)

    def answer(self, ticket: Ticket, reply: Reply) -> None:
        """Answer a call; a client that has gone is no matter. Raises `JSONError`."""
        routing, call_id = ticket
        header = {
            "id": call_id,
            "data": reply.data,
            "blobs": [path for path, _ in reply.blobs],
        }
        texts = [text for _, text in reply.blobs]
        self.put(routing, wire.encode(wire.ADMIN, b"REPLY", header, texts))

    def refuse(self, ticket: Ticket, error: ClusterError) -> None:
        """Answer a call with an error."""
        routing, call_id = ticket
        self.put(routing, wire.encode(wire.ADMIN, b"ERROR", error_header(call_id, error)))


class Feed:
    """The event feed: costs nothing while nobody has subscribed."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self._subscriptions = 0
        self._published = 0

    def publish(self, log_: EventLog, ids: TaskIds) -> None:
        """Send what happened since the last call to those who listen."""
        while _is_readable(self.socket):
            told = self.socket.recv(_NOW)
            self._subscriptions += {1: 1, 0: -1}.get(told[0] if told else 2, 0)
        since, self._published = self._published, log_.last
        if self._subscriptions <= 0 or since == log_.last:
            return
        if since == 0:
            since = log_.last - 1  # the first listener came just now
        rows = [event(ids, entry) for entry in log_.after(since)]
        for type_, group in groupby(rows, key=lambda row: row["type"]):
            frames = [wire.FEED, type_.encode(), dumps(list(group))]
            try:
                self.socket.send_multipart(frames, zmq.NOBLOCK)
            except zmq.ZMQError:
                return
