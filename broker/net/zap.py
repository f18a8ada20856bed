"""CURVE on the sockets, and the handler that libzmq asks about each key (ZAP, RFC 27).

It is served by the main node's own loop, so the access list needs no lock. A refused handshake is
counted, and logged once a minute for each socket and address; one that fails before a key is known
(a client without encryption, or one that expects another main node) is seen by the monitors.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable

import zmq
from zmq.utils import z85

from retire_cluster.broker.core.devices.access import ADMIN, BUS, Access
from retire_cluster.broker.net.channel import CountDropped
from retire_cluster.broker.net.intake import Intake
from retire_cluster.conf.curve import Pair
from retire_cluster.conf.machine.addresses import plain_address
from retire_cluster.schemas.keys import fingerprint

log = logging.getLogger("broker")

_ENDPOINT = "inproc://zeromq.zap.01"
_FAILURES = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_GONE = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_MONITORED = _FAILURES | _GONE | zmq.EVENT_ACCEPTED
_EVENT = struct.Struct("=HI")
_LOG_INTERVAL_SECONDS = 60.0
_ADDRESSES_KEPT = 1_000
Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]


class ZapHandler:
    """Locks sockets and answers who may open them.

    :param context: of the sockets to lock; it has one handler at most
    :param pair: the main node's
    :param tooling: public key of this machine's own tooling
    :param access: the keys that are known; asked at each handshake
    :param devices: how many devices may be online
    """

    def __init__(
        self,
        context: Context,
        pair: Pair,
        tooling: str,
        access: Callable[[], Access],
        devices: Callable[[], int],
    ) -> None:
        self.pair = pair
        self._tooling = tooling
        self._access = access
        self._logged_mono: dict[tuple[str, str], float] = {}
        self._cuts_counted = 0
        #: Bounds what libzmq holds for each connection.
        self.intake = Intake(devices)
        self.handler: Socket = context.socket(zmq.ROUTER)
        self.handler.setsockopt(zmq.LINGER, 0)
        self.handler.bind(_ENDPOINT)
        self._locked: dict[Socket, tuple[str, Socket]] = {}

    def lock(self, socket: Socket, name: str) -> None:
        """Have `socket` (not bound yet) speak only to keys that `name` is open to."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.pair.secret.encode("ascii"))
        socket.setsockopt(zmq.ZAP_DOMAIN, name.encode("ascii"))
        socket.setsockopt(zmq.HANDSHAKE_IVL, 10_000)
        self._locked[socket] = (name, socket.get_monitor_socket(_MONITORED))

    @property
    def pollable(self) -> list[Socket]:
        """The sockets whose messages wake the loop for `serve`."""
        return [self.handler, *(monitor for _, monitor in self._locked.values())]

    def close(self) -> None:
        """Stop watching the locked sockets, which are still open, and answering handshakes."""
        for socket, (_, monitor) in self._locked.items():
            if not socket.closed:
                socket.disable_monitor()
            monitor.close(0)
        self._locked.clear()
        self.handler.close(0)
        self.intake.stop()

    def may_use_admin(self, key: str) -> bool:
        """Tell whether a key that passed the handshake may still use the admin socket."""
        return key == self._tooling or self._access().may_connect(ADMIN, key, 0)

    def serve(self, now_mono: float, age_ms: int, count_dropped: CountDropped) -> None:
        """Answer all handshakes that wait; count and log what the monitors saw."""
        while True:
            try:
                frames = self.handler.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            reply = self._judge(frames, now_mono, age_ms, count_dropped)
            if reply is not None:
                self.handler.send_multipart(reply, zmq.NOBLOCK)
        while self._cuts_counted < self.intake.cut:
            self._cuts_counted += 1
            count_dropped("connection_cut")
        for name, monitor in self._locked.values():
            while True:
                try:
                    kind, value = _EVENT.unpack(monitor.recv_multipart(zmq.NOBLOCK)[0])
                except zmq.Again:
                    break
                if kind == zmq.EVENT_ACCEPTED:
                    self.intake.accepted(value)
                    continue
                if kind & _GONE:
                    self.intake.closed(value)
                    continue
                count_dropped(f"handshake_failed_{name}")
                why = "it does not encrypt, or expects another main node"
                self._log_refusal(name, "a client", now_mono, why)

    def _judge(
        self, frames: list[bytes], now_mono: float, age_ms: int, count_dropped: CountDropped
    ) -> list[bytes] | None:
        if len(frames) < 8:
            return None
        routing, empty, version, request, domain, address, _, mechanism, *credentials = frames
        key = ""
        if mechanism == b"CURVE" and credentials and len(credentials[0]) == 32:
            key = z85.encode(credentials[0]).decode("ascii")
        name = domain.decode("ascii", "replace")
        # Tooling may knock at the worker bus too: it is then told which port is the right one.
        good = bool(key) and (key == self._tooling or self._access().may_connect(name, key, age_ms))
        if not good:
            count_dropped(f"handshake_refused_{name}")
            peer = plain_address(address.decode("utf-8", "replace"))
            what = "unknown device, or a join token that is over" if name == BUS else "unknown key"
            self._log_refusal(name, peer, now_mono, f"{what} (key {fingerprint(key)})")
        status = (b"200", b"OK", key.encode("ascii")) if good else (b"400", b"unknown key", b"")
        return [routing, empty, version, request, *status, b""]

    def _log_refusal(self, name: str, peer: str, now_mono: float, why: str) -> None:
        last = self._logged_mono.get((name, peer))
        if last is not None and now_mono - last < _LOG_INTERVAL_SECONDS:
            return
        if len(self._logged_mono) >= _ADDRESSES_KEPT:
            self._logged_mono.clear()
        self._logged_mono[name, peer] = now_mono
        log.warning("refused a handshake on the %s socket from %s: %s", name, peer, why)
