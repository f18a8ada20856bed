"""The main node's sockets, locked and listening."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import zmq

from retire_cluster.broker.core.devices.access import ADMIN, BUS, FEED, Access
from retire_cluster.broker.net.binding import WAITING, WAITING_OF_DEVICE, bind
from retire_cluster.broker.net.zap import ZapHandler
from retire_cluster.conf.curve import Pair
from retire_cluster.conf.sections import Server
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.text.hosts import EVERYWHERE

#: Where the scheduler posts its ticks.
TICKS_ENDPOINT: Final = "inproc://ticks"
#: The largest frame (bytes) of a locked socket; the bus, which may be open, has its own.
_LARGEST: Final = {ADMIN: wire.MAX_FRAME_BYTES, FEED: wire.MAX_FEED_FRAME_BYTES}
Socket = zmq.Socket[bytes]


class MainKeys(NamedTuple):
    """Keys that the sockets are locked with."""

    pair: Pair
    #: Public key of this machine's own tooling.
    tooling: str


class MainSockets:
    """All sockets of one main node.

    :param keys: lock the sockets with these; None leaves them open, which is for loopback only
    :param access: gives the keys that are known
    :param devices: gives how many devices may be online
    :raises BindError: when a port cannot be bound; its text names the address
    """

    def __init__(
        self,
        context: zmq.Context[Socket],
        server: Server,
        keys: MainKeys | None,
        access: Callable[[], Access],
        devices: Callable[[], int],
    ) -> None:
        self._context = context
        self._all: list[Socket] = []
        self.zap: ZapHandler | None = None
        #: Whether the worker bus is locked too.
        self.bus_locked = keys is not None and not server.insecure
        self.worker_host = server.worker_host or (EVERYWHERE if keys else "127.0.0.1")
        lock = BUS if self.bus_locked else ""
        try:
            if keys is not None:
                self.zap = ZapHandler(context, keys.pair, keys.tooling, access, devices)
            self.admin = self._bind(zmq.ROUTER, server.host, server.port, ADMIN)
            self.bus = self._bind(
                zmq.ROUTER, self.worker_host, server.worker_port, lock, WAITING_OF_DEVICE
            )
            self.feed = self._bind(zmq.XPUB, server.event_host, server.event_port, FEED)
            self.ticks = self._new(zmq.PULL)
            self.ticks.bind(TICKS_ENDPOINT)
        except BaseException:
            self.close()
            raise

    @property
    def ports(self) -> tuple[int, int, int]:
        """Ports of the admin socket, the worker bus and the event feed."""
        return _port(self.admin), _port(self.bus), _port(self.feed)

    @property
    def pollable(self) -> list[Socket]:
        """The sockets whose messages wake the loop."""
        locked = self.zap.pollable if self.zap is not None else []
        return [self.ticks, self.bus, self.admin, self.feed, *locked]

    def close(self) -> None:
        """Close all sockets. May be called again."""
        if self.zap is not None:
            self.zap.close()
            self.zap = None
        for socket in self._all:
            socket.close(0)
        self._all.clear()

    def _new(self, kind: int) -> Socket:
        socket: Socket = self._context.socket(kind)
        self._all.append(socket)
        return socket

    def _bind(self, kind: int, host: str, port: int, lock: str, waiting: int = WAITING) -> Socket:
        socket = self._new(kind)
        if self.zap is not None and lock:
            self.zap.lock(socket, lock)
        bind(socket, host, port, waiting, _LARGEST.get(lock, wire.MAX_BUS_FRAME_BYTES))
        return socket


def _port(socket: Socket) -> int:
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.rstrip(b"\0").rpartition(b":")[2])
