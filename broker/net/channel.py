"""Frames of a ROUTER in and out, and who sent them.

A peer that is gone or does not read is never waited for.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple

import zmq

from retire_cluster.broker.facts import Facts
from retire_cluster.broker.net.intake import FRAME_BYTES, Intake, Meter
from retire_cluster.conf.machine.addresses import plain_address
from retire_cluster.schemas.keys import fingerprint
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.wire import WireError

log = logging.getLogger("broker")

_PEERS_LOGGED = 1_000
_PEERS_KNOWN = 50_000
#: Characters that a call's id may have: the answer repeats it.
MAX_CALL_ID = 200
# As plain numbers: combining pyzmq's enums costs more than sending a small frame.
_NOW = int(zmq.NOBLOCK)
_NOW_AND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
Socket = zmq.Socket[bytes]
#: Told the kind of each thing that is not taken, or cannot be sent.
CountDropped = Callable[[str], None]


class Peer(NamedTuple):
    """What is known of one connection from its first message on."""

    #: IP address, empty when unknown.
    address: str
    #: The key that the handshake proved; None on a socket without CURVE.
    key: str | None
    #: Whether it sends small messages in one frame; it is answered likewise.
    folds: bool = False
    #: Counts the bytes of its messages; None where that is not bounded (intake.py).
    meter: Meter | None = None

    def __repr__(self) -> str:
        key = "no key" if self.key is None else f"key {fingerprint(self.key)}"
        return f"<Peer {self.address or 'unknown'}, {key}>"


class Channel:
    """A ROUTER socket and the peers that have sent something.

    :param keyed: whether the socket has CURVE, so that each peer has proved a key
    :param intake: bounds what the peers may send; None: nothing does
    """

    def __init__(
        self, socket: Socket, facts: Facts, *, keyed: bool = False, intake: Intake | None = None
    ) -> None:
        self.socket = socket
        self.keyed = keyed
        self._intake = intake
        self.facts = facts
        self._logged: set[bytes] = set()
        self._peers: dict[bytes, Peer] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self._peers)} peers{', keyed' if self.keyed else ''}>"

    def _receive(self) -> tuple[bytes, Peer, list[bytes]] | None:
        """Return `(routing id, peer, frames)`, None when there is nothing to read.

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
        return routing, peer or Peer("", "" if self.keyed else None), frames

    def _meet(self, routing: bytes, frame: zmq.Frame) -> Peer:
        """Note who sent a connection's first message. Routing ids are never used twice."""
        address, key, meter = "", "" if self.keyed else None, None
        with contextlib.suppress(zmq.ZMQError):
            address = plain_address(str(frame.get("Peer-Address")))
            if self.keyed:
                key = str(frame.get("User-Id"))
            if self._intake is not None:
                meter = self._intake.accepted(int(frame.get(zmq.SRCFD)))
                if meter is not None:
                    self._intake.mark_active(meter)
        if len(self._peers) >= _PEERS_KNOWN:
            self._peers.clear()
        found = self._peers[routing] = Peer(address, key, meter=meter)
        return found

    def _drop(self, routing: bytes, address: str, what: str, count_dropped: CountDropped) -> None:
        count_dropped("malformed")
        if routing not in self._logged:
            if len(self._logged) >= _PEERS_LOGGED:
                self._logged.clear()
            self._logged.add(routing)
            log.warning("dropped a malformed message of %s: %s", address or "a peer", what)

    def put(self, routing: bytes, frames: list[bytes]) -> bool:
        """Send without waiting; return whether the peer was there and had room."""
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


def call_id_of(frames: list[bytes]) -> int | str | None:
    """Return the id of the call in these frames; None for what cannot be read as one."""
    with contextlib.suppress(WireError):
        return repeatable(wire.decode(wire.ADMIN, frames).header.get("id"))
    return None


def repeatable(call_id: object) -> int | str | None:
    """Return a call's id as an answer repeats it; None for one that is not allowed."""
    if isinstance(call_id, str) and len(call_id) <= MAX_CALL_ID:
        return call_id
    return call_id if type(call_id) is int else None
