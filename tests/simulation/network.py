"""The network between the main node's sockets and everybody who dials them.

As ZeroMQ over TCP does: inside one connection messages stay in order and are not doubled; when a
connection breaks, what was on its way is lost; every connection has a routing id of its own; a
partition holds messages back, and a long one breaks the connection. In harsh weather single
messages are also dropped, doubled and reordered: the protocol must survive that too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tests.simulation.engine import Engine

Frames = list[bytes]
TO_MAIN, TO_PEER = 0, 1


@dataclass(frozen=True)
class Weather:
    """How the network behaves all the time."""

    #: Seconds a message takes, at least and at most.
    low: float = 0.001
    high: float = 0.02
    #: Shares of single messages; all 0: as TCP.
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0

    @property
    def harsh(self) -> bool:
        """Whether it does what TCP never does."""
        return self.drop + self.duplicate + self.reorder > 0


class Peer(Protocol):
    """Who dials."""

    name: str

    def link_news(self, dial: Dial, news: str) -> None:
        """The transport is `up`, or why it is not."""

    def receive(self, dial: Dial, frames: Frames) -> None:
        """A message has come."""


class Listener(Protocol):
    """A socket that is dialled."""

    def can_accept(self) -> bool:
        """Whether a handshake would be answered now."""

    def arrive(self, pipe: Pipe, frames: Frames) -> None:
        """A message has come."""


class Pipe:
    """One connection."""

    __slots__ = (
        "bind_open",
        "clear",
        "dial",
        "dial_open",
        "held",
        "listener",
        "lost",
        "routing",
    )

    def __init__(self, routing: bytes, dial: Dial, listener: Listener) -> None:
        self.routing = routing
        self.dial = dial
        self.listener = listener
        #: Whether the two ends believe in it.
        self.dial_open = self.bind_open = True
        #: Nothing is on its way any more: it was torn.
        self.lost = False
        #: When the last message of each direction arrives: the next one comes after it.
        self.clear = [0.0, 0.0]
        #: Messages that a partition holds back.
        self.held: list[tuple[int, Frames]] = []


class Dial:
    """A peer's socket: connects, and connects again when the connection breaks."""

    def __init__(self, network: Network, peer: Peer, find: Callable[[], Listener | None]) -> None:
        self.network = network
        self.peer = peer
        self.pipe: Pipe | None = None
        self.closed = False
        self._find = find
        network.engine.after(0.0, self._try)

    def send(self, frames: Frames) -> bool:
        """Send a message; False while there is no connection (`ZMQ_IMMEDIATE`)."""
        pipe = self.pipe
        if pipe is None or not pipe.dial_open:
            return False
        self.network.carry(pipe, TO_MAIN, frames)
        return True

    def close(self, *, vanish: bool = False) -> None:
        """Give the socket up. `vanish`: as a power cut does, nobody is told."""
        self.closed = True
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            self.network.leave(pipe, vanish=vanish)

    def broken(self, pipe: Pipe, why: str) -> None:
        """The connection is over as this end sees it."""
        if self.pipe is not pipe or self.closed:
            return
        pipe.dial_open = False
        self.pipe = None
        self.peer.link_news(self, why)
        self.network.engine.after(self.network.engine.rng.uniform(0.2, 1.0), self._try)

    def _try(self) -> None:
        if self.closed or self.pipe is not None:
            return
        engine, listener = self.network.engine, self._find()
        if listener is None or not listener.can_accept() or self.network.is_blocked(self.peer.name):
            self.peer.link_news(self, "nothing answers there")
            engine.after(engine.rng.uniform(0.4, 1.0), self._try)
            return
        engine.after(3 * self.network.latency(), self._up, listener)

    def _up(self, listener: Listener) -> None:
        if self.closed or self.pipe is not None:
            return
        if not listener.can_accept() or self.network.is_blocked(self.peer.name):
            self._try()
            return
        self.pipe = self.network.connect(self, listener)
        self.peer.link_news(self, "up")


class Network:
    """All connections."""

    def __init__(self, engine: Engine, weather: Weather) -> None:
        self.engine = engine
        self.weather = weather
        self.pipes: dict[bytes, Pipe] = {}
        #: Peer → directions that are blocked, and which partition did it.
        self._blocked: dict[str, tuple[frozenset[int], int]] = {}
        self._partitions = 0
        self._connections = 0

    def latency(self) -> float:
        """Seconds one message takes."""
        return self.engine.rng.uniform(self.weather.low, self.weather.high)

    def is_blocked(self, name: str) -> bool:
        """Whether a partition cuts this peer off, in whatever direction."""
        return name in self._blocked

    # --- connections -----------------------------------------------------------------------------

    def connect(self, dial: Dial, listener: Listener) -> Pipe:
        """A new connection with a routing id never used before."""
        self._connections += 1
        routing = b"\0" + self._connections.to_bytes(4, "big")
        pipe = self.pipes[routing] = Pipe(routing, dial, listener)
        self.engine.tell(dial.peer.name, f"is connected ({self._connections})")
        return pipe

    def leave(self, pipe: Pipe, *, vanish: bool) -> None:
        """The dialling end goes."""
        pipe.dial_open = False
        rng = self.engine.rng
        if rng.random() < 0.5:
            pipe.lost = True  # closed with linger 0: what had not left is gone
        # The other end is told by TCP, or after a while finds out.
        wait = rng.uniform(2.0, 30.0) if vanish else rng.uniform(0.0, 0.1)
        self.engine.at(max(self.engine.now, pipe.clear[TO_MAIN]) + wait, self._forget, pipe)

    def tear(self, pipe: Pipe, why: str) -> None:
        """Break a connection: both ends learn of it, what was on its way is lost."""
        pipe.lost = True
        pipe.held.clear()
        self._forget(pipe)
        self.engine.after(self.latency(), pipe.dial.broken, pipe, why)

    def tear_all(self, listener: Listener, *, silently: bool) -> None:
        """The listening process died."""
        for pipe in [pipe for pipe in self.pipes.values() if pipe.listener is listener]:
            if silently:
                self._forget(pipe)  # a power cut: peers find out when they say something
            else:
                self.tear(pipe, "the connection broke")

    def _forget(self, pipe: Pipe) -> None:
        pipe.bind_open = False
        self.pipes.pop(pipe.routing, None)

    def pipes_of(self, name: str) -> list[Pipe]:
        """Connections of one peer."""
        return [pipe for pipe in self.pipes.values() if pipe.dial.peer.name == name]

    # --- messages --------------------------------------------------------------------------------

    def carry(self, pipe: Pipe, direction: int, frames: Frames, since: float = 0.0) -> None:
        """Take a message to the other end; it leaves at `since` if that is later than now."""
        weather, rng = self.weather, self.engine.rng
        start = max(self.engine.now, since)
        arrival = start + self.latency()
        if weather.harsh:
            if rng.random() < weather.drop:
                return
            if rng.random() < weather.duplicate:
                late = arrival + rng.uniform(0.0, 2.0)
                self.engine.at(late, self._arrive, pipe, direction, frames)
            if rng.random() < weather.reorder:
                arrival += rng.uniform(0.0, 1.0)
                self.engine.at(arrival, self._arrive, pipe, direction, frames)
                return
        arrival = pipe.clear[direction] = max(arrival, pipe.clear[direction])
        self.engine.at(arrival, self._arrive, pipe, direction, frames)

    def _arrive(self, pipe: Pipe, direction: int, frames: Frames) -> None:
        if pipe.lost:
            return
        blocked = self._blocked.get(pipe.dial.peer.name)
        if blocked is not None and direction in blocked[0]:
            pipe.held.append((direction, frames))
            return
        if direction == TO_MAIN:
            if pipe.bind_open:
                pipe.listener.arrive(pipe, frames)
            elif pipe.dial_open:
                # Nobody knows this connection there any more: reset.
                self.engine.after(self.latency(), pipe.dial.broken, pipe, "the connection broke")
        elif pipe.dial_open:
            pipe.dial.peer.receive(pipe.dial, frames)

    # --- partitions ------------------------------------------------------------------------------

    def block(self, name: str, directions: frozenset[int], seconds: float) -> None:
        """Cut a peer off for a while."""
        self._partitions += 1
        number = self._partitions
        self._blocked[name] = (directions, number)
        for pipe in self.pipes_of(name):
            self.engine.after(self.engine.rng.uniform(6.0, 20.0), self._starve, pipe, number)
        self.engine.after(seconds, self._unblock, name, number)

    def _starve(self, pipe: Pipe, number: int) -> None:
        blocked = self._blocked.get(pipe.dial.peer.name)
        if blocked is not None and blocked[1] == number and pipe.dial_open:
            self.tear(pipe, "the connection broke")

    def _unblock(self, name: str, number: int) -> None:
        blocked = self._blocked.get(name)
        if blocked is not None and blocked[1] == number:
            self.heal(name)

    def heal(self, name: str) -> None:
        """End a partition; what it held back arrives."""
        if self._blocked.pop(name, None) is None:
            return
        self.engine.tell("fate", f"{name} is reachable again")
        for pipe in self.pipes_of(name):
            held, pipe.held = pipe.held, []
            for direction, frames in held:
                arrival = max(self.engine.now + self.latency(), pipe.clear[direction])
                pipe.clear[direction] = arrival
                self.engine.at(arrival, self._arrive, pipe, direction, frames)

    def heal_all(self) -> None:
        """Good weather from now on."""
        for name in list(self._blocked):
            self.heal(name)
        self.weather = Weather()
