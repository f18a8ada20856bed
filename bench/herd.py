"""Many simulated devices in one process: each says HELLO, then beats. Run by `bench.footprint`."""

from __future__ import annotations

import sys
import time

import zmq

from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import Heartbeat, Hello, TypeInfo

_TYPES = (TypeInfo("echo", repeatable=True, instant=True),)


def main(port: int, first: int, count: int, interval: float) -> None:
    """Beat until this process is ended; says `joined` once all devices are welcome."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, count + 100)
    sockets: list[zmq.Socket[bytes]] = []
    for number in range(first, first + count):
        socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"tcp://127.0.0.1:{port}")
        hello = Hello(
            1, f"d{number}", "i", "s", "1", "worker", "linux", "h", (f"t{number % 100}",), 1,
            {"cpu_count": 4, "memory_total_gb": 4.0}, _TYPES,
        )  # fmt: skip
        verb, header = hello.write()
        socket.send_multipart(wire.encode(wire.BUS, verb, header))
        sockets.append(socket)
        if number % 50 == 0:
            time.sleep(0.05)
    for socket in sockets:
        if not socket.poll(60_000):
            raise RuntimeError("a device was not welcomed")
        while socket.poll(0):
            socket.recv_multipart()
    print("joined", flush=True)
    beat = 0
    while True:
        beat += 1
        for index, socket in enumerate(sockets):
            if index % 10 == 0:
                time.sleep(interval * 10 / count)
            while socket.poll(0):
                socket.recv_multipart()
            message = Heartbeat("s", beat, {"cpu_percent": 3.0}, (), config_version=1)
            verb, header = message.write()
            socket.send_multipart(wire.encode(wire.BUS, verb, header))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
