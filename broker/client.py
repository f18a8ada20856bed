"""The admin client: how tooling and the REST facade speak to the main node (docs/protocol.md).

Safe to share between threads and across a fork: each thread gets its own DEALER, made when it first
calls. A call that is not answered in time raises `NoAnswer` and its socket is rebuilt, so a late
answer can never be taken for a later call's.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import zmq

from retire_cluster.conf import curve, ports
from retire_cluster.conf.curve import ClientKeys, KeyFileError
from retire_cluster.schemas.errors import ClusterError, ClusterUnavailable, from_wire
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.text import json_text
from retire_cluster.schemas.text.hosts import bracketed

DEFAULT_TIMEOUT_SECONDS = 2.0
# As plain numbers: combining pyzmq's enums costs more than sending a small frame.
_NOW = int(zmq.NOBLOCK)
_NOW_AND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
#: A connection that ends in the middle of its handshake may be a main node that goes away; the same
#: again says that what listens there speaks otherwise.
_ENDED_AT_MOST = 2
_EVENTS = (
    zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class NoAnswer(ClusterUnavailable):
    """The main node does not answer: nothing came, or nothing that can be understood.

    A main node that *answers* that something is not possible now raises `ClusterUnavailable`
    itself: it is there, and its next answer may be another.

    `sent`: the call went out, so what it asked for may have been done, or will be.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
        sent: bool = False,
    ) -> None:
        super().__init__(message, details=details, retry_after=retry_after)
        self.sent = sent


class RawAnswer(NamedTuple):
    """An answer with its opaque parts unread."""

    data: dict[str, Any]
    #: `(dotted path in data, JSON text)` for each opaque part; `data` holds null there.
    blobs: list[tuple[str, bytes]]


class AdminClient:
    """Calls operations of one main node's admin socket.

    :param host: address or name of the main node
    :param port: its admin port
    :param timeout_seconds: how long a call waits unless it says otherwise
    :param keys: gives the keys to dial with, or None for a main node without CURVE; asked for each
        new connection, so that keys that are made later are found
    :param refused_seconds: a call gives up when nothing listens there for so long, before its time
        is over; None: it waits for a main node that may be starting
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = ports.ADMIN,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        keys: Callable[[], ClientKeys | None] | None = None,
        refused_seconds: float | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.timeout_seconds = timeout_seconds
        self._keys = keys
        self._refused_seconds = refused_seconds
        self._local = threading.local()
        self._lock = threading.Lock()
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._pid = 0
        self._sockets: set[zmq.Socket[bytes]] = set()
        self._monitors: dict[zmq.Socket[bytes], zmq.Socket[bytes]] = {}
        self._ids = itertools.count(1)

    @property
    def endpoint(self) -> str:
        """The ZeroMQ address that sockets connect to."""
        return f"tcp://{bracketed(self.host)}:{self.port}"

    def call(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        timeout_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Call an operation and return its `data`, opaque parts read and in place.

        Raises a `ClusterError` of the answer's kind, `NoAnswer` when none comes in time.
        """
        answer = self.call_raw(op, args, blobs, timeout_seconds=timeout_seconds)
        for path, text in answer.blobs:
            try:
                value = json_text.loads(text)
            except json_text.JSONError:
                value = None  # a device's text that is no JSON: null, as in the REST API
            place(answer.data, path, value)
        return answer.data

    def call_raw(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        timeout_seconds: float | None = None,
    ) -> RawAnswer:
        """Do as `call`, but leave opaque parts as JSON texts, to be passed on unread."""
        wait = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = time.monotonic() + wait
        socket = self._socket()
        call_id = next(self._ids)
        header = {
            "id": call_id, "op": op, "args": dict(args or {}), "protocol": wire.ADMIN_PROTOCOL,
        }  # fmt: skip
        try:
            *most, last = wire.fold(wire.encode(wire.ADMIN, b"CALL", header, blobs))
            for frame in most:
                socket.send(frame, _NOW_AND_MORE)
            socket.send(last, _NOW)
            while True:
                self._await(socket, deadline, wait)
                message = self._receive(socket)
                if message.header.get("id") == call_id:
                    return self._answer(message)
        except zmq.Again:
            sent = bool(self._local.up)
            self._drop()
            raise NoAnswer(self._silence(wait), retry_after=1, sent=sent) from None
        except BaseException as error:
            # An answer that is an error leaves the socket clean.
            if isinstance(error, NoAnswer) or not isinstance(error, ClusterError):
                self._drop()
            raise

    def close(self) -> None:
        """Close every socket. No other thread may be in a call; the next call connects anew."""
        with self._lock:
            if self._pid == os.getpid():
                for socket in self._sockets:
                    _close(socket, self._monitors.get(socket))
                if self._context is not None:
                    self._context.term()
            self._sockets.clear()
            self._monitors.clear()
            self._context = None
            self._pid = 0
        self._local = threading.local()

    def _await(self, socket: zmq.Socket[bytes], deadline: float, wait: float) -> None:
        """Wait for the handshake, or leave the wait to what reads next once that is over.

        Raises `NoAnswer`: at once when the key is refused, or when no handshake ended in time.
        """
        local = self._local
        while not local.up:
            until = min(deadline, local.refused_until)
            left_ms = max(0, int((until - time.monotonic()) * 1000))
            ready = dict(local.poller.poll(left_ms))
            if local.monitor in ready:
                self._watch_handshake()
            if socket in ready:
                return
            if not ready:
                refused = local.refused_until < deadline
                text = self._nobody() if refused else self._silence(wait)
                raise NoAnswer(text, retry_after=1)
        # What reads next waits so long, and raises `zmq.Again` after it.
        socket.setsockopt(zmq.RCVTIMEO, max(0, int((deadline - time.monotonic()) * 1000)))

    def _watch_handshake(self) -> None:
        local = self._local
        while True:
            try:
                event = int.from_bytes(local.monitor.recv_multipart(zmq.NOBLOCK)[0][:2], "little")
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                local.up = True
            elif event == zmq.EVENT_CLOSED:  # nobody took the connection
                if self._refused_seconds is not None:
                    until = time.monotonic() + self._refused_seconds
                    local.refused_until = min(local.refused_until, until)
                local.ended = 0
            elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and local.ended + 1 < _ENDED_AT_MOST:
                local.ended += 1
            else:
                raise NoAnswer(self._refusal(event, local.keyed), retry_after=5)

    def _refusal(self, event: int, keyed: bool) -> str:
        where = f"{self.host}:{self.port}"
        if not keyed:
            return (
                f"the main node at {where} asks for a key and none was found; run this as the user"
                " who started it, name its folder with --data-dir, or a key with --cluster-key"
                " (made there with: retire-cluster admin-key create NAME)"
            )
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return f"the main node at {where} does not know this key: it is another's, or revoked"
        return (
            f"what answers at {where} is not the main node of this key: another one listens there,"
            " or its key is new (then use its new keys/admin.key)"
        )

    def _nobody(self) -> str:
        return (
            f"nothing listens at {self.host}:{self.port}: no main node runs there; start it with:"
            " retire-cluster-main (or everything with: retire-cluster up)"
        )

    def _silence(self, wait: float) -> str:
        return (
            f"the main node at {self.host}:{self.port} did not answer within {wait:g} s; "
            "start it with: retire-cluster-main (or everything with: retire-cluster up)"
        )

    def _receive(self, socket: zmq.Socket[bytes]) -> wire.Message:
        frames = socket.recv_multipart()
        try:
            return wire.decode(wire.ADMIN, frames)
        except wire.WireError as error:
            raise NoAnswer(
                f"{self.host}:{self.port} does not speak the admin protocol: {error}",
                retry_after=1,
                sent=True,
            ) from None

    def _answer(self, message: wire.Message) -> RawAnswer:
        header = message.header
        if message.verb == b"ERROR" and isinstance(header.get("code"), str):
            error = from_wire(header)
            # Somebody answers, but no admin socket, or one of another version.
            if header["code"] in ("WRONG_PORT", "WRONG_PROTOCOL"):
                raise NoAnswer(error.message, retry_after=error.retry_after)
            raise error
        data, paths = header.get("data"), header.get("blobs") or []
        if (
            message.verb != b"REPLY"
            or not isinstance(data, dict)
            or not isinstance(paths, list)
            or len(paths) != len(message.blobs)
        ):
            raise NoAnswer(
                f"the answer of {self.host}:{self.port} cannot be understood",
                retry_after=1,
                sent=True,
            )
        return RawAnswer(data, list(zip(paths, message.blobs, strict=True)))

    def _socket(self) -> zmq.Socket[bytes]:
        pid = os.getpid()
        if getattr(self._local, "pid", None) == pid:
            found: zmq.Socket[bytes] = self._local.socket
            return found
        with self._lock:
            if self._pid != pid:  # first use, or the child of a fork: the parent's is not ours
                self._context = zmq.Context()
                self._sockets = set()
                self._monitors = {}
                self._pid = pid
            context = self._context
            assert context is not None
            socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
            self._sockets.add(socket)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if ":" in self.host:
            socket.setsockopt(zmq.IPV6, 1)
        try:
            keys = self._keys() if self._keys is not None else None
        except KeyFileError as error:
            self._forget(socket)
            raise NoAnswer(str(error)) from None
        if keys is not None:
            curve.lock(socket, keys)
        local = self._local
        local.keyed, local.up = keys is not None, False
        local.refused_until, local.ended = float("inf"), 0
        local.monitor = socket.get_monitor_socket(_EVENTS)
        local.poller = zmq.Poller()
        local.poller.register(socket, zmq.POLLIN)
        local.poller.register(local.monitor, zmq.POLLIN)
        socket.connect(self.endpoint)
        local.socket = socket
        local.pid = pid
        with self._lock:
            self._monitors[socket] = local.monitor
        return socket

    def _forget(self, socket: zmq.Socket[bytes]) -> None:
        with self._lock:
            self._sockets.discard(socket)
            monitor = self._monitors.pop(socket, None)
        _close(socket, monitor)

    def _drop(self) -> None:
        socket = getattr(self._local, "socket", None)
        if socket is not None:
            self._forget(socket)
        self._local.socket = None
        self._local.pid = None


def _close(socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes] | None) -> None:
    if monitor is not None:
        socket.disable_monitor()
        monitor.close(0)
    socket.close(0)


def place(data: Any, path: str, value: Any) -> None:
    """Put `value` at a dotted path of `data`; list positions are written as numbers."""
    *parents, last = path.split(".")
    for step in parents:
        data = data[int(step)] if isinstance(data, list) else data[step]
    if isinstance(data, list):
        data[int(last)] = value
    else:
        data[last] = value
