"""What libzmq holds for each connection, bounded.

libzmq collects a message until its last frame is there, and a handshake's command until its last
byte, before anybody is asked whether the sender may send anything; it bounds a frame and not their
sum. A stranger with forty connections, or the holder of one join token with a message that never
ends, so took gigabytes. There is no option against it, but the system counts the bytes of each
connection (`TCP_INFO`, Linux), and the main node knows how many of them it was given as messages:
the difference is what libzmq holds. A thread looks at it and shuts connections down that hold too
much, or the largest of them when all together do. A device that is cut off comes back and says
again what was not acknowledged, so nothing is lost.

Connections take files too: how many there may be is bounded as well (crowd.py).

Elsewhere than on Linux nothing is watched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from retire_cluster.broker.net.crowd import Crowd, network_of, room_for
from retire_cluster.conf.machine import openfiles
from retire_cluster.conf.machine.addresses import plain_address

log = logging.getLogger("broker")

MIB: Final = 1024 * 1024
#: What one connection may have sent that no message was made of: before its first message, and
#: after. The largest message there is has some 20 MiB (a batch of submissions).
BEFORE_FIRST_BYTES: Final = 24 * MIB
EACH_BYTES: Final = 64 * MIB
#: The same for all connections that have not sent a message yet, and for all together.
STRANGERS_BYTES: Final = 48 * MIB
ALL_BYTES: Final = 256 * MIB
#: What a frame costs beside its content when it is encrypted, generously.
FRAME_BYTES: Final = 64

_QUICK_SECONDS, _SLOW_SECONDS = 0.02, 0.2
#: A new connection is looked at so often in quick succession.
_QUICK_LOOKS: Final = 100
#: A connection that moved more than this since the last look is looked at again soon.
_BUSY_BYTES: Final = 64 * 1024
#: Looking takes at most one part in so many of a core.
_SHARE: Final = 50
_LOG_INTERVAL_SECONDS: Final = 60.0
#: `tcpi_bytes_received` of `struct tcp_info` (Linux 4.1).
_RECEIVED: Final = struct.Struct("=Q")
_RECEIVED_AT, _INFO_BYTES = 128, 136


def available() -> bool:
    """Tell whether this system counts what a connection received."""
    return sys.platform == "linux" and hasattr(socket, "TCP_INFO")


@dataclass(eq=False, repr=False)
class Meter:
    """One connection, as far as its bytes are concerned."""

    #: The descriptor that libzmq has for it, and whose it is.
    number: int
    peer: Any
    #: The same descriptor, to be asked; never closed here.
    handle: socket.socket
    #: Bytes of messages that the main node was given; written by its loop.
    delivered: int = 0
    #: Bytes received at the last look, and how many of them libzmq held.
    received: int = 0
    held: int = 0
    #: Subtracted from the difference: overhead was estimated too high.
    surplus: int = 0
    #: It has been shut down.
    cut: bool = False
    #: How often it has been looked at.
    looks: int = 0
    #: Whose it is, as connections are counted.
    address: str = ""

    def __repr__(self) -> str:
        held = f"{self.delivered} bytes delivered, {self.held} held"
        return f"<Meter {self.address}: {held}{', cut' if self.cut else ''}>"

    @property
    def is_new(self) -> bool:
        """Whether it has sent no message yet and was looked at a few times only."""
        return not self.delivered and self.looks < _QUICK_LOOKS

    def look(self) -> int:
        """Update `held`; return how many bytes came since the last look. Raises `OSError`."""
        delivered = self.delivered  # before the other, so that nothing counts as held in between
        info = self.handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        if len(info) < _INFO_BYTES:
            raise OSError("this system does not count what a connection received")
        (received,) = _RECEIVED.unpack_from(info, _RECEIVED_AT)
        came, self.received = received - self.received, received
        held = received - delivered + self.surplus
        if held < 0:  # nobody saves up by small frames what he may then send in excess
            self.surplus -= held
            held = 0
        self.held = held
        self.looks += 1
        return int(came)


class Intake:
    """Watches the connections of the locked sockets.

    `accepted`, `mark_active` and `closed` are for the main node's loop; a thread of its own looks.

    :param devices: how many devices may be online
    """

    def __init__(self, devices: Callable[[], int]) -> None:
        self._lock = threading.Lock()
        self._meters: dict[int, Meter] = {}
        files = openfiles.allow(0)
        self.crowd: Crowd[Meter] = Crowd(lambda: room_for(devices(), files))
        self._changed = threading.Event()
        self._stopped = False
        self._logged_mono: dict[str, float] = {}
        #: Connections shut down so far.
        self.cut = 0
        self._thread: threading.Thread | None = None
        if available():
            self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
            self._thread.start()

    def accepted(self, number: int) -> Meter | None:
        """Return the meter of the connection with this descriptor; None if it has ended."""
        if self._thread is None:
            return None
        with self._lock:
            try:
                peer = _peer(number)
                meter = self._meters.get(number)
                if meter is not None and meter.peer == peer:
                    return meter
                handle = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, number)
            except OSError:  # libzmq closed it meanwhile
                self._forget(number)
                return None
            self._forget(number)
            meter = Meter(number, peer, handle, address=network_of(_plain(peer)))
            self._meters[number] = meter
            spare = self.crowd.add(meter)
            if spare is not None:
                self._cut(spare, "there are too many, and it never said anything")
        self._changed.set()
        return meter

    def mark_active(self, meter: Meter) -> None:
        """Note that a first message came from a connection."""
        with self._lock:
            self.crowd.mark_active(meter)

    def closed(self, number: int) -> None:
        """Forget the connection with this descriptor, which has ended."""
        with self._lock:
            self._forget(number)

    def _forget(self, number: int) -> None:
        meter = self._meters.pop(number, None)
        if meter is not None:
            meter.handle.detach()
            self.crowd.remove(meter)

    def stop(self) -> None:
        """End the thread and forget all descriptors."""
        self._stopped = True
        self._changed.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for number in list(self._meters):
                self._forget(number)

    def _run(self) -> None:
        while not self._stopped:
            began = time.perf_counter()
            busy = self.look()
            took = time.perf_counter() - began
            pause = max(_QUICK_SECONDS if busy else _SLOW_SECONDS, _SHARE * took)
            if not busy:
                self._changed.clear()
                self._changed.wait(pause)
            else:
                time.sleep(pause)

    def look(self) -> bool:
        """Look at all connections and cut those that hold too much; return whether much came."""
        busy = False
        with self._lock:
            for number, meter in list(self._meters.items()):
                try:
                    busy |= meter.look() > _BUSY_BYTES or meter.is_new
                except OSError:  # it has gone, and nobody said so
                    self._forget(number)
            for meter in too_much(self._meters.values()):
                much = f"it sent {meter.held // 1_000_000} MB that no message was made of"
                self._cut(meter, much)
        return busy

    def _cut(self, meter: Meter, why: str) -> None:
        """Shut a connection down if its descriptor is still that of the same peer."""
        meter.cut = True
        self.crowd.remove(meter)
        with contextlib.suppress(OSError):
            # What is looked at and then shut down is the same, whatever libzmq closes meanwhile.
            with _copy(meter.number) as same:
                if same.getpeername() != meter.peer:
                    return
                same.shutdown(socket.SHUT_RDWR)
            self.cut += 1
            self._log_cut(meter, why)

    def _log_cut(self, meter: Meter, why: str) -> None:
        address = _plain(meter.peer) or "a peer"
        now = time.monotonic()
        if now - self._logged_mono.get(address, -_LOG_INTERVAL_SECONDS) < _LOG_INTERVAL_SECONDS:
            return
        if len(self._logged_mono) > 1_000:
            self._logged_mono.clear()
        self._logged_mono[address] = now
        log.warning("cut a connection of %s: %s", address, why)


def _plain(peer: Any) -> str:
    return plain_address(str(peer[0]).partition("%")[0])


def too_much(meters: Iterable[Meter]) -> list[Meter]:
    """Return those to be cut: each that holds too much, and the largest if the sum does."""
    left = sorted((each for each in meters if not each.cut), key=lambda each: each.held)
    found = []
    strangers = sum(each.held for each in left if not each.delivered)
    total = sum(each.held for each in left)
    for meter in reversed(left):
        limit = EACH_BYTES if meter.delivered else BEFORE_FIRST_BYTES
        over = total > ALL_BYTES or (not meter.delivered and strangers > STRANGERS_BYTES)
        if meter.held > limit or (over and meter.held):
            found.append(meter)
            total -= meter.held
            strangers -= 0 if meter.delivered else meter.held
    return found


@contextlib.contextmanager
def _copy(number: int) -> Iterator[socket.socket]:
    """Duplicate a connection's descriptor for a while. Raises `OSError` where there is none."""
    copied = os.dup(number)
    try:
        found = socket.socket(fileno=copied)
    except OSError:  # the number stands for something else by now
        os.close(copied)
        raise
    with found:
        yield found


def _peer(number: int) -> Any:
    with _copy(number) as same:
        return same.getpeername()
