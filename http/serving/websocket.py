"""Carry WebSockets on the REST port, inside waitress's own loop.

The connection swaps its HTTP parser for wsproto: no thread a client, and the connection limits
count it like any other. It leans on private parts of waitress (pinned, `waitress>=3.0.2,<3.1`);
when they change, the event log with its cursor (`GET /api/v1/events`) still stands.

The life of a stream: a request thread runs the application, which calls `environ[UPGRADE]`; the
answer 101 is then not written by waitress; the loop thread activates the stream and from there on
owns it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from waitress.buffers import OverflowableBuffer
from waitress.task import WSGITask
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from retire_cluster.api.admission.local_users import CONNECTION
from retire_cluster.api.main_node.feed import UPGRADE, OnOpen
from retire_cluster.api.serving.handshake import is_asked_for, tokens
from retire_cluster.api.serving.waitress_server import Channel, FacadeServer, SlowClientLimits
from retire_cluster.schemas.errors import ClusterUnavailable, ValidationError

MAX_STREAMS = 500
#: Longest message of a client: nothing that it says is read.
MAX_INCOMING_BYTES = 64 * 1024
#: A client with more than this unsent is too slow and closed; it can resume by its cursor.
MAX_PENDING_BYTES = 1024 * 1024
#: Seconds that a connection is not read from after a 429.
REST_SECONDS = 0.5
PING_SECONDS = 15.0
DEAD_SECONDS = 40.0
_NORMAL, _GOING_AWAY, _PROTOCOL, _NOT_ALLOWED, _TOO_BIG = 1000, 1001, 1002, 1008, 1009


class UpgradeTask(WSGITask):  # type: ignore[misc]
    """The answering of a request that may become a stream."""

    wrote_header: bool
    content_bytes_written: int

    def get_environment(self) -> dict[str, Any]:
        """Return the WSGI environment, with `UPGRADE` in it where the client asks for a stream."""
        environ: dict[str, Any] = super().get_environment()
        environ[CONNECTION] = self.channel.connection
        if "UPGRADE" in self.request.headers and is_asked_for(environ):
            environ[UPGRADE] = lambda on_open: self.channel.upgrade(on_open, environ)
        return environ

    def build_response_header(self) -> bytes:
        """Return status line and headers, with those that no application may send."""
        # waitress takes `Connection` for one word; it is a list.
        words = tokens(self.request.headers.get("CONNECTION", ""))
        self.request.headers["CONNECTION"] = next(
            (word for word in ("close", "keep-alive") if word in words), ""
        )
        if self.status.startswith("429"):
            self.channel.rest()
        if self.status.startswith("426"):
            self.response_headers.append(("Upgrade", "websocket"))
            self.response_headers.append(("Connection", "Upgrade"))
        head: bytes = super().build_response_header()
        return head

    def write(self, data: bytes) -> None:
        """Write the answer, unless it is 101: headers and a short body in one piece."""
        if self._is_upgraded():
            return
        if not self.wrote_header and data and self.has_body and self.content_length == len(data):
            head = self.build_response_header()
            self.wrote_header = True
            self.content_bytes_written += len(data)
            self.channel.write_soon(head + data)
        else:
            super().write(data)

    def finish(self) -> None:
        """End the answer, unless it was 101."""
        if not self._is_upgraded():
            super().finish()

    def _is_upgraded(self) -> bool:
        if self.channel.upgrading is None:
            return False
        if self.status.startswith("101"):
            return True
        self.channel.upgrading = None  # something failed after the door was opened
        return False


class StreamChannel(Channel):
    """A connection that may become a WebSocket."""

    close_when_flushed: bool
    current_outbuf_count: int
    task_class = UpgradeTask
    #: Accepted by the application, not yet taken over by the loop.
    upgrading: tuple[WSConnection, OnOpen] | None = None
    #: The protocol, once it is a stream.
    stream: WSConnection | None = None
    _on_close: Callable[[], None] | None = None
    _heard_at = 0.0
    _pinged_at = 0.0
    _incoming_bytes = 0
    _rests_until = 0.0

    # --- request thread ---

    def rest(self) -> None:
        """Read nothing for `REST_SECONDS`: a client that was told to slow down has to."""
        self._rests_until = time.monotonic() + REST_SECONDS

    def upgrade(self, on_open: OnOpen, environ: dict[str, Any]) -> None:
        """Make this a stream once the request is answered with 101.

        Raises `ValidationError` for a bad handshake, `ClusterUnavailable` when there are too many.
        """
        with self.requests_lock:
            if len(self.requests) != 1 or self.request is not None:
                raise ValidationError("", "nothing may be sent before the handshake is answered")
        if len(self.server.streams) >= MAX_STREAMS:
            raise ClusterUnavailable(
                "Too many WebSocket clients; poll /api/v1/events instead", retry_after=5
            )
        headers = [
            (name[5:].replace("_", "-").lower().encode(), value.encode("latin-1"))
            for name, value in environ.items()
            if name.startswith("HTTP_")
        ]
        stream = WSConnection(ConnectionType.SERVER)
        try:
            stream.initiate_upgrade_connection(headers, environ["PATH_INFO"])
        # ValueError: a Host or a list that is no text of that kind, UnicodeError for short.
        except (RemoteProtocolError, LocalProtocolError, ValueError) as error:
            raise ValidationError("", f"this is not a WebSocket handshake: {error}") from None
        self.upgrading = (stream, on_open)

    def service(self) -> None:
        """Answer the request, then hand the connection to the loop if it became a stream."""
        super().service()
        if self.upgrading is not None and not self.close_when_flushed:
            self.server.pull_trigger(self._activate)

    # --- any thread ---

    @property
    def pending_bytes(self) -> int:
        """Return how many bytes the client has not taken yet."""
        return self.total_outbufs_len

    def send_texts(self, texts: Sequence[str]) -> None:
        """Send text messages."""
        self.server.pull_trigger(lambda: self._send_texts(texts))

    def revoke(self) -> None:
        """End the stream: its client may not listen any more."""
        self.server.pull_trigger(lambda: self.end_stream(_NOT_ALLOWED))

    # --- loop thread ---

    def readable(self) -> bool:
        """Tell whether to read: always from a stream, never between request and stream."""
        if self.stream is not None:
            return not (self.will_close or self.close_when_flushed)
        if self._rests_until and time.monotonic() < self._rests_until:
            return False
        return self.upgrading is None and bool(super().readable())

    def handle_write(self) -> None:
        """Send what waits; nothing on a stream whose end was read in the same turn."""
        if self.socket is not None:
            super().handle_write()

    def received(self, data: bytes) -> bool:
        """Take bytes of the client, HTTP or WebSocket."""
        if self.stream is None:
            return bool(super().received(data))
        self._heard_at = time.monotonic()
        try:
            self.stream.receive_data(data)
            for event in self.stream.events():
                self._take(event)
        except (RemoteProtocolError, LocalProtocolError):
            self.end_stream(_PROTOCOL)
        return True

    def tick(self, now_mono: float) -> None:
        """Ping the client now and then, each second; close the connection when it is silent."""
        if self.stream is None:
            return
        self.last_activity = time.time()  # waitress must not take it for an idle connection
        if now_mono - self._heard_at > DEAD_SECONDS:
            self.shut()
        elif now_mono - self._pinged_at > PING_SECONDS:
            self._pinged_at = now_mono
            self._send(Ping())

    def is_waiting(self) -> bool:
        """Tell, as of any connection; a stream never counts as waiting."""
        return self.stream is None and super().is_waiting()

    def is_too_slow(self, now_mono: float, patience: SlowClientLimits) -> bool:
        """Tell, as of any connection; a stream has limits of its own."""
        return self.stream is None and super().is_too_slow(now_mono, patience)

    def end_stream(self, code: int = _GOING_AWAY) -> None:
        """Send a close frame with `code`, and close once it is sent."""
        if self.stream is not None and not self.close_when_flushed:
            self._send(CloseConnection(code=code))
            self.close_when_flushed = True

    def del_channel(self, map: Any = None) -> None:  # noqa: A002 - waitress's name
        """Forget the connection, which has closed, and tell the application."""
        self.server.streams.discard(self)
        super().del_channel(map)
        if self._on_close is not None:
            self._on_close()
            self._on_close = None

    def _activate(self) -> None:
        if not self.connected or self.upgrading is None:
            return
        (self.stream, on_open), self.upgrading = self.upgrading, None
        self._heard_at = self._pinged_at = time.monotonic()
        for event in self.stream.events():
            if isinstance(event, Request):
                self._send(AcceptConnection())
        self.server.streams.add(self)
        self._on_close = on_open(_ChannelSink(self))
        if self.server.shutdown.begun:
            self.end_stream()

    def _take(self, event: Event) -> None:
        if isinstance(event, (TextMessage, BytesMessage)):
            self._incoming_bytes += len(event.data)
            if self._incoming_bytes > MAX_INCOMING_BYTES:
                self.end_stream(_TOO_BIG)
            elif event.message_finished:
                self._incoming_bytes = 0
        elif isinstance(event, Ping):
            self._send(event.response())
        elif isinstance(event, CloseConnection) and not self.close_when_flushed:
            self._send(event.response())
            self.close_when_flushed = True

    def _send_texts(self, texts: Sequence[str]) -> None:
        for text in texts:
            if self.stream is None or self.will_close or self.close_when_flushed:
                return
            self._send(TextMessage(data=text))

    def _send(self, event: Event) -> None:
        assert self.stream is not None
        try:
            data = self.stream.send(event)
        except LocalProtocolError:  # it is closing already
            return
        with self.outbuf_lock:
            if self.total_outbufs_len + len(data) > MAX_PENDING_BYTES:
                self.shut()
                return
            if not self.total_outbufs_len and self.current_outbuf_count > 65536:
                # A drained buffer never shrinks; a stream would keep its peak for ever.
                self.outbufs[-1].close()
                self.outbufs[-1] = OverflowableBuffer(self.adj.outbuf_overflow)
                self.current_outbuf_count = 0
            self.outbufs[-1].append(data)
            self.current_outbuf_count += len(data)
            self.total_outbufs_len += len(data)


class _ChannelSink:
    """The feed's view of a stream (`main_node.feed.Sink`)."""

    def __init__(self, channel: StreamChannel) -> None:
        self._channel = channel

    @property
    def pending_bytes(self) -> int:
        return self._channel.pending_bytes

    def send(self, texts: Sequence[str]) -> None:
        self._channel.send_texts(texts)

    def end(self) -> None:
        self._channel.revoke()


class StreamServer(FacadeServer):
    """A `FacadeServer` whose connections may become streams."""

    channel_class = StreamChannel

    def __init__(self, *args: Any, **options: Any) -> None:
        self.streams: set[StreamChannel] = set()
        super().__init__(*args, **options)

    def maintenance(self, now: float) -> None:
        """Tend the streams, each second, before idle connections are closed."""
        now_mono = time.monotonic()
        for channel in list(self.streams):
            channel.tick(now_mono)
        super().maintenance(now)

    def begin_drain(self) -> None:
        """Close every stream, too: its client can resume elsewhere by its cursor."""
        for channel in list(self.streams):
            channel.end_stream()
        super().begin_drain()
