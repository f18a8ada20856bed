"""Floods of one main node's bus, from a process of their own: `python -m tests.integration.flood`.

    handshakes PORT CONNECTIONS BYTES       commands of a handshake that is none
    multipart PORT SERVER PUBLIC SECRET BYTES   one message of many frames, by a valid key
    idle PORT CONNECTIONS                   connections that say nothing, until a line is read

Says at the end how many connections were cut.
"""

from __future__ import annotations

import select
import socket
import sys
import time

import zmq

from retire_cluster.conf.machine import openfiles

CHUNK = 256 * 1024
SECONDS = 6.0


def handshakes(port: int, connections: int, size: int) -> int:
    """Greet as a CURVE client, then say a HELLO of `size` bytes, on many connections at once."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
    head = b"\x06" + size.to_bytes(8, "big") + b"\x05HELLO"
    left: dict[socket.socket, int] = {}
    for _ in range(connections):
        made = socket.create_connection(("127.0.0.1", port))
        made.sendall(greeting + head)
        made.setblocking(False)
        left[made] = size - 64  # never the whole of it
    data, cut, until = bytes(CHUNK), 0, time.monotonic() + SECONDS
    while left and time.monotonic() < until:
        for each in select.select([], list(left), [], 0.2)[1]:
            try:
                left[each] -= each.send(data[: left[each]])
            except BlockingIOError:
                continue
            except OSError:
                cut += 1
                del left[each]
                continue
            if not left[each]:
                del left[each]
    return cut


def multipart(port: int, server: str, public: str, secret: str, size: int) -> int:
    """Send one message of `size` bytes in frames of 1 MiB."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.CURVE_SERVERKEY, server.encode())
    dealer.setsockopt(zmq.CURVE_PUBLICKEY, public.encode())
    dealer.setsockopt(zmq.CURVE_SECRETKEY, secret.encode())
    monitor = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    dealer.connect(f"tcp://127.0.0.1:{port}")
    frame = bytes(1024 * 1024)
    for _ in range(size // len(frame)):
        dealer.send(frame, zmq.SNDMORE, copy=False)
    dealer.send(b"")
    cut = monitor.poll(int(SECONDS * 1000))
    dealer.disable_monitor()
    monitor.close(0)
    dealer.close(0)
    context.term()
    return int(bool(cut))


def idle(port: int, connections: int) -> int:
    """Open connections that say nothing; those that have been closed by the other end."""
    openfiles.allow(connections + 64)
    made = []
    for _ in range(connections):
        made.append(socket.create_connection(("127.0.0.1", port)))
        made[-1].setblocking(False)
    print("all are open", flush=True)
    sys.stdin.readline()
    cut = 0
    for each in made:
        try:
            while each.recv(4096):
                continue
            cut += 1
        except BlockingIOError:
            continue
        except OSError:
            cut += 1
    return cut


if __name__ == "__main__":
    kind, *words = sys.argv[1:]
    if kind == "handshakes":
        print(handshakes(*map(int, words)))
    elif kind == "idle":
        print(idle(*map(int, words)))
    else:
        bus, server, public, secret, size = words
        print(multipart(int(bus), server, public, secret, int(size)))
