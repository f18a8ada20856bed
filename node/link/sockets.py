"""The device's socket and the news of its transport. TCP only.

Everything about how a connection is made is in `Dialer`, encryption too.
Defaults of libzmq that would hurt are changed here (endless linger, no reconnect cap, unlimited
frames); see the options' names in zmq_setsockopt(3).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from retire_cluster.conf import curve, ports
from retire_cluster.conf.curve import ClientKeys
from retire_cluster.conf.machine.addresses import zoned
from retire_cluster.conf.usage import Unusable
from retire_cluster.schemas.protocol.wire import MAX_FRAME_BYTES
from retire_cluster.schemas.text.hosts import HostError, bracketed, read_address

_MONITORED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_EVENT = struct.Struct("=HI")
UP = "up"
REFUSED = "refused"
NEEDS_JOIN_STRING = (
    "it is encrypted and asks for a join string: run `retire-cluster token create` on the main"
    " node and paste the line it prints"
)
NOT_OURS = (
    "what answers there is not the main node that this device joined: another one, one whose key is"
    " new, or one without encryption; join again with the line of `retire-cluster token create`"
)


@dataclass(frozen=True)
class Address:
    """Where the main node's worker bus is."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def url(self) -> str:
        """As libzmq wants it. Raises `Unusable` when it is not clear by which interface."""
        return f"tcp://{bracketed(zoned(self.host))}:{self.port}"


def parse_join(text: str) -> Address:
    """`HOST[:PORT]` as an address; raises `Unusable` with the cure."""
    try:
        return Address(*read_address(text, ports.WORKER_BUS))
    except HostError as error:
        raise Unusable(
            f"--join: {error}; say HOST or HOST:PORT, for example 192.168.1.10:{ports.WORKER_BUS},"
            " or the line of `retire-cluster token create`"
        ) from None


class Dialer:
    """Makes sockets that dial one address.

    :param keys: gives the keys of the next connection; None dials without encryption
    """

    def __init__(self, address: Address, keys: Callable[[], ClientKeys] | None = None) -> None:
        self.address = address
        self._keys = keys

    @property
    def encrypted(self) -> bool:
        """Whether it dials with keys."""
        return self._keys is not None

    def dial(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        """A new DEALER that is connecting.

        Raises `zmq.ZMQError` for an impossible address, `ValueError` for one that needs a zone.
        """
        socket = context.socket(zmq.DEALER)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            # Nothing queues up for a main node that is not there.
            socket.setsockopt(zmq.IMMEDIATE, 1)
            socket.setsockopt(zmq.SNDHWM, 1_000)
            socket.setsockopt(zmq.RCVHWM, 1_000)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
            socket.setsockopt(zmq.RECONNECT_IVL, 200)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
            socket.setsockopt(zmq.CONNECT_TIMEOUT, 5_000)
            socket.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
            # A link that only looks alive is noticed by the session, which misses its heartbeats'
            # answers. ZeroMQ's own would cost the main node a timer a device and more.
            socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
            socket.setsockopt(zmq.IPV6, 1)
            if self._keys is not None:
                curve.lock(socket, self._keys())
            socket.connect(self.address.url)
        except (zmq.ZMQError, ValueError):
            socket.close(linger=0)
            raise
        return socket


class Link:
    """One socket and the monitor that tells how its transport fares."""

    def __init__(self, dialer: Dialer, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._encrypted = dialer.encrypted
        self.socket = dialer.dial(context)
        self.monitor = self.socket.get_monitor_socket(_MONITORED)

    def news(self) -> list[str]:
        """`UP`, `REFUSED` (our key is not known), or why it is not up, for each change."""
        found: list[str] = []
        while True:
            try:
                event, _ = _EVENT.unpack(self.monitor.recv_multipart(zmq.DONTWAIT)[0])
            except zmq.Again:
                return found
            except (zmq.ZMQError, struct.error):
                return found
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                found.append(UP)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                found.append(REFUSED)
            elif event == zmq.EVENT_DISCONNECTED:
                found.append("the connection broke")
            elif event == zmq.EVENT_CONNECT_RETRIED:
                found.append("nothing answers there")
            else:
                found.append(NOT_OURS if self._encrypted else NEEDS_JOIN_STRING)

    def close(self, linger_ms: int = 0) -> None:
        """Give both sockets back; unsent messages get up to `linger_ms`."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=linger_ms)
