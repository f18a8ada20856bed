"""Serve with a hardened waitress: slow clients are closed, no address takes all connections.

waitress 3.0 never closes a slow reader and lets a client take for ever over its headers; a dozen of
either took it down in an experiment. The cure: look at every connection each second, mark what is
too slow and shut its socket down, and let waitress's own loop do the closing (closing from
`maintenance` kills the loop with EBADF).

It leans on private parts of waitress, hence the pin `waitress>=3.0.2,<3.1`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from retire_cluster.api.admission.body_budget import (
    BodyBudget,
    OneByOne,
    TellSender,
    nobody_strange,
)
from retire_cluster.api.admission.local_users import ClientConnection
from retire_cluster.api.admission.shutdown import Shutdown
from retire_cluster.api.serving.one_core import OneCore
from retire_cluster.api.serving.parser import (
    MAX_HEADER_BYTES,
    MAX_SWALLOWED_BYTES,
    EnvelopeErrorTask,
    StrictParser,
)
from retire_cluster.conf.machine import openfiles
from retire_cluster.conf.machine.addresses import dial_host
from retire_cluster.schemas.text.hosts import EVERYWHERE, in_url

#: Another thread may be the one that a signal interrupts: the loop sees it no later than this.
_TURN_SECONDS = 0.2
_ACCEPTED_A_TURN = 64


@dataclass(frozen=True)
class SlowClientLimits:
    """How slow, and how many, clients may be."""

    #: Seconds for a request's headers to be complete.
    header_seconds: float = 10.0
    #: Seconds for a body to begin with; it also has to come at `bytes_per_second`.
    body_seconds: float = 20.0
    #: Seconds for an answer to be taken to begin with; also at `bytes_per_second`.
    reader_seconds: float = 20.0
    #: The slowest pace of bodies and answers.
    bytes_per_second: float = 8192.0
    #: Seconds an idle connection is kept.
    idle_seconds: int = 75
    #: Connections of one address; loopback and trusted proxies, which speak for many, have no cap.
    connections_per_address: int = 128
    #: Connections in all.
    connections: int = 2000
    #: Seconds that running requests get after the signal to stop.
    drain_seconds: float = 8.0


class Channel(HTTPChannel):  # type: ignore[misc]
    """One client's connection."""

    request: StrictParser | None
    total_outbufs_len: int
    server: FacadeServer
    error_task_class = EnvelopeErrorTask
    #: Monotonic seconds and bytes pending when the answer under way was first seen unsent.
    sending_since: tuple[float, int] | None = None
    _connection: ClientConnection | None = None

    def __repr__(self) -> str:
        state = "waits" if self.is_waiting() else "is answered"
        return f"<{type(self).__name__} of {self.addr}, {state}, {self.total_outbufs_len} B unsent>"

    @property
    def connection(self) -> ClientConnection:
        """Return the two ends, for looking up which user has the other one."""
        if self._connection is None:
            try:
                own = self.server.fix_addr(self.socket.getsockname())
            except OSError:  # it has ended
                own = ("", self.server.port)
            self._connection = ClientConnection(tuple(self.addr[:2]), tuple(own[:2]))
        return self._connection

    def parser_class(self, adj: Any) -> StrictParser:
        """Make the parser of the next request."""
        server = self.server
        return StrictParser(adj, self.addr[0], server.sender, server.bodies, self.connection)

    def service(self) -> None:
        """Answer the next request, on a thread of the pool."""
        is_large = bool(self.requests) and self.requests[0].is_large
        try:
            super().service()
        finally:
            if is_large:
                self.server.large_answered()

    def handle_close(self) -> None:
        """Close the connection and free what has come of a request."""
        if self.request is not None:
            self.request.close()
        super().handle_close()

    def writable(self) -> bool:
        """Tell whether the loop has something to write or to close here.

        While a thread writes by itself there is nothing to do; waitress would ask again and again,
        and the spinning loop would keep that very thread from its turn.
        """
        if self.will_close or self.close_when_flushed:
            return True
        if not self.total_outbufs_len:
            return False
        if self.requests:
            if not self.outbuf_lock.acquire(blocking=False):
                return False
            self.outbuf_lock.release()
        return True

    def is_waiting(self) -> bool:
        """Tell whether it only waits for its client: idle, or with an incomplete request."""
        return not (self.requests or self.total_outbufs_len)

    def is_too_slow(self, now_mono: float, patience: SlowClientLimits) -> bool:
        """Tell whether the client is slower than `patience` allows."""
        request = self.request
        if request is not None:
            elapsed = now_mono - request.born
            if not request.headers_finished:
                return bool(elapsed > patience.header_seconds)
            earned: float = request.body_bytes_received / patience.bytes_per_second
            return elapsed > patience.body_seconds + earned
        pending = self.total_outbufs_len
        if not pending:
            self.sending_since = None
            return False
        if self.sending_since is None or pending > self.sending_since[1]:
            self.sending_since = (now_mono, pending)
        since, most = self.sending_since
        sent = most - pending
        return now_mono - since > patience.reader_seconds + sent / patience.bytes_per_second

    def shut(self) -> None:
        """Have the loop close the connection; called on the loop's thread only."""
        self.will_close = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class FacadeServer(TcpWSGIServer):  # type: ignore[misc]
    """Serve one WSGI application on one address.

    :param host: address to listen on, or a name that stands for one
    :param port: 0 lets the system pick
    :param shutdown: tells requests that the server is about to stop
    :param sender: tells whose a body is; called for bodies that are not small
    :param speaks_for_many: addresses that have no cap of their own (trusted proxies)
    :param one_core: keeps a process that only serves on one core while it is busy

    Raises `OSError` when the address cannot be bound.
    """

    channel_class: type[Channel] = Channel

    def __init__(
        self,
        application: Callable[..., Any],
        host: str,
        port: int,
        *,
        shutdown: Shutdown,
        threads: int = 16,
        patience: SlowClientLimits | None = None,
        sender: TellSender = nobody_strange,
        speaks_for_many: Iterable[str] = (),
        one_core: OneCore | None = None,
    ) -> None:
        self.patience = patience or SlowClientLimits()
        self.shutdown = shutdown
        self.sender = sender
        self.bodies = BodyBudget()
        self._large: OneByOne[Channel] = OneByOne()
        self._speaks_for_many = [
            ipaddress.ip_network(text, strict=False) for text in speaks_for_many
        ]
        self._one_core = one_core
        self._everywhere = host == EVERYWHERE
        self._requests = 0
        self._stopping = False
        # Reentrant: a signal handler may come while the loop's own thread holds it.
        self._trigger_lock = threading.RLock()
        self._ended = False
        use_poll = hasattr(select, "poll")
        # Windows' select takes 512 sockets.
        limit = self.patience.connections if use_poll else min(400, self.patience.connections)
        self._use_poll = use_poll
        self._connection_limit = _within_file_limit(limit)
        adjustments = Adjustments(
            host="127.0.0.1",
            port=0,
            threads=threads,
            ident="retire-cluster",
            connection_limit=self._connection_limit + 16,
            channel_timeout=self.patience.idle_seconds,
            cleanup_interval=1,
            channel_request_lookahead=0,
            max_request_header_size=MAX_HEADER_BYTES + 1,
            max_request_body_size=MAX_SWALLOWED_BYTES + 1,
            # Forwarded headers decide who counts as loopback; waitress would hide them from us.
            clear_untrusted_proxy_headers=False,
            log_socket_errors=False,
            asyncore_use_poll=use_poll,
            backlog=1024,
        )
        dispatcher = ThreadedTaskDispatcher()
        super().__init__(
            application,
            map={},
            dispatcher=dispatcher,
            adj=adjustments,
            sockinfo=_resolve(host, port),
        )
        dispatcher.set_thread_count(threads)
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)

    @property
    def host(self) -> str:
        """Return the address that is listened on."""
        return EVERYWHERE if self._everywhere else str(self.effective_host)

    @property
    def port(self) -> int:
        """Return the port that is listened on."""
        return int(self.effective_port)

    @property
    def url(self) -> str:
        """Return the URL by which this machine reaches the server."""
        return f"http://{in_url(dial_host(self.host))}:{self.port}"

    # --- connections ---

    def bind_server_socket(self) -> None:
        """Bind the socket; `*` takes IPv4 and IPv6 clients on one."""
        if self._everywhere and self.family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().bind_server_socket()

    def fix_addr(self, addr: Any) -> Any:
        """Return the own address of an IPv4 client on a socket of both kinds."""
        mapped = str(addr[0]).lower().removeprefix("::ffff:")
        return (mapped, *addr[1:]) if "." in mapped else addr

    def set_reuse_addr(self) -> None:
        """Allow a quick restart on the same port."""
        # On Windows SO_REUSEADDR would let a second server take the port without a word.
        if sys.platform == "win32":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            super().set_reuse_addr()

    def handle_accept(self) -> None:
        """Accept the connections that wait; for each too many close one that only waits.

        waitress takes one a turn of its loop; behind a thousand others that is a long queue.
        """
        for _ in range(_ACCEPTED_A_TURN):
            before = len(self.active_channels)
            super().handle_accept()
            if len(self.active_channels) == before:
                return
            self._make_room()

    def _make_room(self) -> None:
        fewest = min(self._connection_limit, self.patience.connections_per_address)
        if len(self.active_channels) <= fewest:
            return
        channels = [each for each in self.active_channels.values() if not each.will_close]
        if len(channels) > self._connection_limit:
            self._give_up_one(channels)
        newest = channels[-1]
        address = newest.addr[0]
        if len(channels) > self.patience.connections_per_address and not self._is_free(address):
            same = [channel for channel in channels if channel.addr[0] == address]
            if len(same) > self.patience.connections_per_address:
                self._give_up_one(same)

    def maintenance(self, now: float) -> None:
        """Close, each second, connections that have been idle for long or are too slow."""
        super().maintenance(now)
        now_mono = time.monotonic()
        for channel in list(self.active_channels.values()):
            if channel.is_too_slow(now_mono, self.patience):
                channel.shut()

    def _give_up_one(self, channels: list[Channel]) -> None:
        """Close the one that has only waited for longest; else the newest."""
        waiting = [channel for channel in channels[:-1] if channel.is_waiting()]
        victim = min(waiting, key=lambda each: each.last_activity, default=channels[-1])
        victim.shut()

    def _is_free(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return found.is_loopback or any(
            found.version == network.version and found in network
            for network in self._speaks_for_many
        )

    # --- running and stopping ---

    def add_task(self, task: Channel) -> None:
        """Have a thread answer the next request of a connection."""
        self._requests += 1
        # Reading a large body takes some times its size: one at a time, and no thread waits for it.
        if not task.requests[0].is_large or self._large.enter(task):
            super().add_task(task)

    def large_answered(self) -> None:
        """Let the next request with a large body in: one has been answered."""
        following = self._large.leave()
        if following is not None:
            super().add_task(following)

    def serve(self) -> None:
        """Serve until `stop`, then let running requests finish."""
        while not self._stopping:
            self._turn(_TURN_SECONDS)
        self.begin_drain()
        deadline = time.monotonic() + self.patience.drain_seconds
        while self._is_busy() and time.monotonic() < deadline:
            self._turn(0.05)
        self.end()

    def begin_drain(self) -> None:
        """Tell all parts to end what waits; running requests go on."""
        self.shutdown.begin()

    def stop(self) -> None:
        """End `serve`; callable from any thread and from a signal handler."""
        self._stopping = True
        self.shutdown.begin()
        with self._trigger_lock:
            if not self._ended:
                self.trigger.pull_trigger()

    def end(self) -> None:
        """Close all connections and end the threads."""
        self.task_dispatcher.shutdown(timeout=1)
        with self._trigger_lock:
            self._ended = True
            if self.task_dispatcher.threads:
                # A request outlived the drain and will wake a loop that is gone: its pipe stays,
                # so that it never writes into a descriptor that is another's by then.
                self._map.pop(self.trigger.fileno(), None)
            wasyncore.close_all(self._map, ignore_all=True)

    def pull_trigger(self, call: Callable[[], None] | None = None) -> None:
        """Wake the loop and have it call `call`; do nothing once the server has ended."""
        if call is None:
            # Each request does so at its end, from threads that `end` waits for. A lock here had
            # them queue behind each other with the interpreter's own, 5 ms apiece.
            if not self._ended:
                self.trigger.pull_trigger()
            return
        with self._trigger_lock:
            if not self._ended:
                self.trigger.pull_trigger(call)

    def _turn(self, timeout_seconds: float) -> None:
        poll = wasyncore.poll2 if self._use_poll else wasyncore.poll
        poll(timeout_seconds, self._map)
        if self._one_core is not None:
            self._one_core.look(time.monotonic(), self._requests)

    def _is_busy(self) -> bool:
        return any(
            channel.requests or channel.total_outbufs_len
            for channel in self.active_channels.values()
        )


def _resolve(host: str, port: int) -> tuple[Any, ...]:
    """Return `(family, type, protocol, address)` to listen on; IPv4 where a name has both."""
    if host == EVERYWHERE:
        if socket.has_dualstack_ipv6():
            return socket.AF_INET6, socket.SOCK_STREAM, 0, ("::", port)
        host = "0.0.0.0"
    found = socket.getaddrinfo(
        host or None, port, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, socket.AI_PASSIVE
    )
    family, kind, protocol, _, address = min(found, key=lambda row: row[0] != socket.AF_INET)
    return family, kind, protocol, address


def _within_file_limit(connections: int) -> int:
    """Return how many of these connections the limit of open files allows, raised if it can be."""
    files = openfiles.allow(connections + 256)
    return connections if files is None else max(16, min(connections, files - 128))
