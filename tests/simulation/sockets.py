"""Stand-ins for the main node's ZeroMQ sockets: the same calls, virtual messages."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from tests.simulation.network import Frames, Pipe

#: One for all: making it costs more than all else here.
_AGAIN = zmq.Again()


class WouldBlock(BaseException):
    """The loop has nothing to do; it would sleep for so long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Part:
    """One received frame."""

    __slots__ = ("bytes", "more")

    def __init__(self, content: bytes, more: bool) -> None:
        self.bytes = content
        self.more = more

    def __len__(self) -> int:
        """Its bytes."""
        return len(self.bytes)

    def get(self, name: str) -> str:
        """A property of the message's connection."""
        return "192.0.2.1"


class Socket:
    """One bound socket of a main node's process."""

    def __init__(self, kind: int, owner: SocketOwner) -> None:
        self.type = kind
        self.closed = False
        self.inbox: deque[tuple[bytes, Frames]] = deque()
        self._owner = owner
        self._parts: deque[Part] = deque()
        self._sending: list[bytes] = []

    # --- what the broker calls -------------------------------------------------------------------

    def setsockopt(self, option: int, value: object) -> None:
        """Options are the real socket's business."""

    def getsockopt(self, option: int) -> bytes | int:
        """Where it is bound, or whether there is something to read."""
        if option == zmq.EVENTS:
            return int(zmq.POLLIN) if self._parts or self.inbox else 0
        return b"tcp://127.0.0.1:8080\0"

    def bind(self, address: str) -> None:
        """Take what comes from now on."""

    def close(self, linger: int = 0) -> None:
        """Nothing is taken or sent any more."""
        self.closed = True

    def recv(self, flags: int = 0, copy: bool = True) -> Any:
        """The next frame; raises `zmq.Again` without one."""
        if not self._parts:
            if not self.inbox:
                raise _AGAIN.with_traceback(None)
            routing, frames = self._owner.pick(self.inbox)
            if self.type != zmq.ROUTER:
                return frames[0]
            last = len(frames) - 1
            self._parts.append(Part(routing, True))
            self._parts.extend(Part(frame, at < last) for at, frame in enumerate(frames))
        return self._parts.popleft()

    def send(self, frame: bytes, flags: int = 0) -> None:
        """Send a frame to a connection; raises `zmq.ZMQError` as `ROUTER_MANDATORY` does."""
        self._sending.append(frame)
        if not flags & zmq.SNDMORE:
            frames, self._sending = self._sending, []
            self._owner.send(self, frames)

    def send_multipart(self, frames: Sequence[bytes], flags: int = 0) -> None:
        """Send a message."""
        self._owner.send(self, frames)

    # --- what the network calls ------------------------------------------------------------------

    def can_accept(self) -> bool:
        """Whether a handshake would be answered now."""
        return not self.closed and self._owner.awake()

    def arrive(self, pipe: Pipe, frames: Frames) -> None:
        """A message has come."""
        if not self.closed:
            self.inbox.append((pipe.routing, frames))
            self._owner.wake()


class SocketOwner:
    """The process that has the sockets."""

    #: Let connections be read in any order, as a ROUTER's fair queue may.
    shuffles = False
    rng: random.Random

    def awake(self) -> bool:
        """Whether the process runs (it may be stopped)."""
        raise NotImplementedError

    def wake(self) -> None:
        """There is something to read."""
        raise NotImplementedError

    def send(self, socket: Socket, frames: Sequence[bytes]) -> None:
        """A message is to leave."""
        raise NotImplementedError

    def pick(self, inbox: deque[tuple[bytes, Frames]]) -> tuple[bytes, Frames]:
        """The message that is read next: in order within one connection."""
        if not self.shuffles or len(inbox) < 2:
            return inbox.popleft()
        wanted = self.rng.choice(inbox)[0]
        for at, entry in enumerate(inbox):
            if entry[0] == wanted:
                del inbox[at]
                return entry
        raise AssertionError("a message that was just seen is gone")


class Context:
    """Makes sockets, in the order in which the broker asks for them."""

    def __init__(self, owner: SocketOwner) -> None:
        self.sockets: list[Socket] = []
        self._owner = owner

    def socket(self, kind: int) -> Socket:
        """A new one."""
        made = Socket(kind, self._owner)
        self.sockets.append(made)
        return made

    def term(self) -> None:
        """Nothing is left to end."""


class Poller:
    """Says what is readable; instead of sleeping it raises `WouldBlock`."""

    def __init__(self, sockets: Sequence[Socket], due: Callable[[], bool]) -> None:
        self._sockets = sockets
        self._due = due

    def poll(self, wait_ms: int) -> list[tuple[Socket, int]]:
        """Readable sockets."""
        ready = [(socket, int(zmq.POLLIN)) for socket in self._sockets if socket.inbox]
        if not ready and wait_ms > 0 and not self._due():
            raise WouldBlock(wait_ms / 1000)
        return ready
