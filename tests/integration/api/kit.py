"""A facade's server on loopback over a main node in memory, and a WebSocket client."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    RejectConnection,
    Request,
    TextMessage,
)

from retire_cluster.api.admission.keys import ApiKeyRing, key_of
from retire_cluster.api.app import Facade, create_app
from retire_cluster.api.serving.waitress_server import SlowClientLimits
from retire_cluster.api.serving.websocket import StreamServer
from retire_cluster.broker.client import RawAnswer
from retire_cluster.conf.sections import Api
from retire_cluster.conf.settings import Settings


class EventLog:
    """A main node in memory that has an event log and can be told to be slow."""

    timeout_seconds = 2.0

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.events: list[dict[str, Any]] = []
        #: Ids up to this one are no longer kept.
        self.forgotten = 0
        self.somebody_waits = threading.Event()
        self.status: Callable[[], dict[str, Any]] = dict

    def happen(self, kind: str, **facts: Any) -> None:
        with self._changed:
            self.events.append({"id": len(self.events) + 1, "type": kind, "at": "t", **facts})
            self._changed.notify_all()

    def call_raw(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        timeout_seconds: float | None = None,
    ) -> RawAnswer:
        if op == "events.poll":
            return RawAnswer(self._poll(dict(args or {})), [])
        if op == "cluster.status":
            return RawAnswer(self.status(), [])
        if op == "health":
            words = {"cluster_server": "healthy", "task_scheduler": "healthy"}
            return RawAnswer({"components": words}, [])
        if op == "facade.identity":
            return RawAnswer({"cluster_id": "c1", "session_secret": "00" * 32}, [])
        return RawAnswer({}, [])

    def _poll(self, args: dict[str, Any]) -> dict[str, Any]:
        with self._changed:
            asked = args.get("since")
            after: int = len(self.events) if asked is None else asked
            wait = args.get("wait_seconds", 0)
            if wait:
                self.somebody_waits.set()
            self._changed.wait_for(lambda: len(self.events) > after, timeout=wait)
            since = max(after, self.forgotten)
            found = self.events[since : since + args.get("limit", 1000)]
            return {"events": found, "next": since + len(found), "gap": since > after}

    def close(self) -> None:
        return


class Bench:
    """A server in a thread."""

    def __init__(
        self,
        *keys: str,
        patience: SlowClientLimits | None = None,
        key_file: Path | None = None,
        **options: Any,
    ) -> None:
        self.log = EventLog()
        chosen = {"rate_limit": False, "threads": 4, "allowed_hosts": ("a", "xn--a"), **options}
        settings = Settings(data_dir=Path("data"), api=Api(**chosen))
        self.facade: Facade = create_app(
            self.log,
            settings,
            keys=ApiKeyRing(map(key_of, keys)) if keys else None,
            key_file=key_file,
        )
        self.server = StreamServer(
            self.facade.app,
            "127.0.0.1",
            0,
            shutdown=self.facade.shutdown,
            sender=self.facade.sender,
            threads=settings.api.threads,
            patience=patience,
        )
        self.thread = threading.Thread(target=self.server.serve, daemon=True)
        self.thread.start()
        self.connections: list[socket.socket] = []

    def connect(self) -> socket.socket:
        found = socket.create_connection(("127.0.0.1", self.server.port))
        found.settimeout(10)
        self.connections.append(found)
        return found

    def raw(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes, read until the end."""
        with self.connect() as connection:
            connection.sendall(request)
            return parse(read_all(connection))

    def health(self) -> int:
        return self.raw(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")[0]

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(15)
        assert not self.thread.is_alive()
        self.facade.close()

    def close(self) -> None:
        """Stop, and close what the test left open."""
        self.stop()
        for connection in self.connections:
            connection.close()


def read_all(connection: socket.socket) -> bytes:
    """One answer, to the end that its Content-Length says."""
    found = b""
    while part := connection.recv(65536):
        found += part
        head, end, body = found.partition(b"\r\n\r\n")
        if end and len(body) >= int(parse(head)[1].get("content-length", "0")):
            break
    return found


def parse(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


class Stream:
    """A WebSocket client."""

    def __init__(self, bench: Bench, target: str = "/ws", **headers: str) -> None:
        self.connection = bench.connect()
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.events: list[Any] = []
        extra = [(name.encode(), value.encode()) for name, value in headers.items()]
        host = f"127.0.0.1:{bench.server.port}"
        self._send(Request(host=host, target=target, extra_headers=extra))

    def _send(self, event: Any) -> None:
        self.connection.sendall(self.protocol.send(event))

    def send(self, event: Any) -> None:
        self._send(event)

    def next(self) -> Any:
        while not self.events:
            data = self.connection.recv(65536)
            self.protocol.receive_data(data or None)
            self.events.extend(self.protocol.events())
        return self.events.pop(0)

    def texts(self, count: int) -> list[Any]:
        found: list[Any] = []
        while len(found) < count:
            text, finished = "", False
            while not finished:  # a frame may arrive in many events
                event = self.next()
                assert isinstance(event, TextMessage), event
                text += event.data
                finished = event.message_finished
            found.append(json.loads(text))
        return found

    def opened(self) -> Stream:
        event = self.next()
        assert isinstance(event, AcceptConnection), event
        return self

    def refused(self) -> int:
        event = self.next()
        assert isinstance(event, RejectConnection), event
        return event.status_code

    def close(self) -> None:
        self.connection.close()
