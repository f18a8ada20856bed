"""Bind the sockets of the main node, with the options that all of them have."""

from __future__ import annotations

import zmq

from retire_cluster.conf.machine.binding import why_not_listening
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.text.hosts import EVERYWHERE, bracketed

#: Messages received from one connection that wait to be read; more wait where they were sent.
WAITING = 10_000
#: The same on the worker bus, whose messages may be large.
WAITING_OF_DEVICE = 32
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
    """Listen on `tcp://host:port`.

    :param port: 0: any free port
    :param waiting: messages from one connection that may wait here to be read
    :param largest_bytes: a peer that sends a larger frame is disconnected
    :raises BindError: when the address cannot be used
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
