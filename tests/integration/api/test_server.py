"""The facade's server on loopback: malformed HTTP, slow clients, limits, draining, streams."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Message,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)

from retire_cluster.api.admission.keys import KeyRing, key_of, write_keys
from retire_cluster.api.app import Facade, create_app
from retire_cluster.api.mainnode import parking
from retire_cluster.api.mainnode.parking import AT_ONCE, GATHER_SECONDS
from retire_cluster.api.serving import websocket
from retire_cluster.api.serving.drain import Drain
from retire_cluster.api.serving.waitress_server import Patience
from retire_cluster.api.serving.websocket import StreamServer
from retire_cluster.broker.client import Answer
from retire_cluster.conf.settings import Api, Settings


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
    ) -> Answer:
        if op == "events.poll":
            return Answer(self._poll(dict(args or {})), [])
        if op == "cluster.status":
            return Answer(self.status(), [])
        if op == "health":
            words = {"cluster_server": "healthy", "task_scheduler": "healthy"}
            return Answer({"components": words}, [])
        if op == "facade.identity":
            return Answer({"cluster_id": "c1", "session_secret": "00" * 32}, [])
        return Answer({}, [])

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
        patience: Patience | None = None,
        key_file: Path | None = None,
        **options: Any,
    ) -> None:
        self.log = EventLog()
        chosen = {"rate_limit": False, "threads": 4, "allowed_hosts": ("a", "xn--a"), **options}
        settings = Settings(data_dir=Path("data"), api=Api(**chosen))
        self.facade: Facade = create_app(
            self.log,
            settings,
            keys=KeyRing(map(key_of, keys)) if keys else None,
            key_file=key_file,
        )
        self.server = StreamServer(
            self.facade.app,
            "127.0.0.1",
            0,
            drain=self.facade.drain,
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


@pytest.fixture
def bench() -> Iterator[Bench]:
    found = Bench()
    yield found
    found.close()


# --- malformed HTTP ------------------------------------------------------------------------------

POST = b"POST /api/v1/tasks HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"garbage\r\n\r\n", 400),
        (b"get /health HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\nb\r\n\r\n", 400),
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: 1, 1\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 17_000 + b"\r\n\r\n", 431),
        (POST + b"Content-Length: 99999999999\r\n\r\n", 413),
        (b"BREW /api/v1/tasks HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405),
        (b"GET /nope HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 404),
    ],
)
def test_what_is_no_request_is_refused_in_the_envelope(
    bench: Bench, request_bytes: bytes, status: int
) -> None:
    found, headers, body = bench.raw(request_bytes)
    assert found == status
    document = json.loads(body)
    assert document["status"] == "error"
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"] == document["request_id"]
    assert bench.health() == 200


def test_a_method_nobody_knows_is_told_which_there_are(bench: Bench) -> None:
    status, headers, body = bench.raw(
        b"BREW /api/v1/tasks HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    assert (status, json.loads(body)["error_code"]) == (405, "METHOD_NOT_ALLOWED")
    assert {"GET", "POST"} <= {word.strip() for word in headers["allow"].split(",")}


@pytest.mark.parametrize("size", [1024 * 1024 + 1, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_too_large_gets_its_413_and_no_reset(bench: Bench, size: int, chunked: bool) -> None:
    if chunked:
        head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (size, b"x" * size)
    else:
        head, body = POST + b"Content-Length: %d\r\n\r\n" % size, b"x" * size
    status, _, text = bench.raw(head + body)
    assert (status, json.loads(text)["error_code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_a_client_that_asks_first_is_refused_before_it_sends(bench: Bench) -> None:
    started = time.monotonic()
    status, _, _ = bench.raw(POST + b"Content-Length: 2000000\r\nExpect: 100-continue\r\n\r\n")
    assert status == 413
    assert time.monotonic() - started < 0.8


@pytest.mark.parametrize("more", [b"", b"Content-Length: 0\r\n"])
def test_a_client_that_asks_first_and_has_no_body_is_answered(bench: Bench, more: bytes) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n" + more + b"\r\n"
    status, _, text = bench.raw(request)
    assert (status, json.loads(text)["status"]) == (200, "healthy")


def test_a_batch_may_be_larger(bench: Bench) -> None:
    size = 2 * 1024 * 1024
    head = POST.replace(b"/tasks", b"/tasks/batch") + b"Connection: close\r\nContent-Length: %d\r\n"
    status, _, text = bench.raw(head % size + b"\r\n" + b" " * size)
    assert (status, json.loads(text)["error_code"]) == (400, "VALIDATION_ERROR")
    size = 16 * 1024 * 1024 + 1
    status, _, _ = bench.raw(head % size + b"\r\n" + b" " * size)
    assert status == 413


def test_a_connection_serves_many_requests(bench: Bench) -> None:
    with bench.connect() as connection:
        for _ in range(5):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = b""
            while b'"components"' not in answer:
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")


# --- slow clients --------------------------------------------------------------------------------


def is_closed_within(connection: socket.socket, seconds: float, drip: bytes = b"") -> bool:
    until = time.monotonic() + seconds
    connection.settimeout(0.1)
    while time.monotonic() < until:
        try:
            if drip:
                connection.sendall(drip)
            if not connection.recv(65536):
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def test_clients_that_drip_their_headers_or_body_are_closed() -> None:
    bench = Bench(patience=Patience(header_seconds=0.5, body_seconds=0.5))
    try:
        headers, body = bench.connect(), bench.connect()
        headers.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n")
        body.sendall(POST + b"Content-Length: 1000\r\n\r\n")
        assert is_closed_within(headers, 6, b"X: y\r\n")
        assert is_closed_within(body, 6, b"x")
        assert bench.health() == 200
        headers.close()
        body.close()
    finally:
        bench.stop()


def test_clients_that_do_not_take_their_answer_are_closed() -> None:
    bench = Bench(patience=Patience(reader_seconds=0.5, bytes_per_second=1e6))
    bench.log.status = lambda: {"text": "x" * 8_000_000}
    try:
        slow = []
        for _ in range(6):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", bench.server.port))
            connection.sendall(b"GET /api/v1/cluster/status HTTP/1.1\r\nHost: a\r\n\r\n")
            slow.append(connection)
        until = time.monotonic() + 8
        while bench.server.active_channels and time.monotonic() < until:
            assert bench.health() == 200
            time.sleep(0.05)
        assert not bench.server.active_channels
        for connection in slow:
            connection.close()
    finally:
        bench.stop()


def test_no_address_takes_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamServer, "_is_free", lambda *_: False)
    bench = Bench(patience=Patience(connections_per_address=5))
    try:
        idle = [bench.connect() for _ in range(20)]
        assert bench.health() == 200
        assert len(bench.server.active_channels) <= 6
        for connection in idle:
            connection.close()
    finally:
        bench.stop()


def test_when_there_are_too_many_the_longest_idle_makes_room() -> None:
    bench = Bench(patience=Patience(connections=20))
    try:
        idle = [bench.connect() for _ in range(60)]
        for _ in range(5):
            assert bench.health() == 200
        for connection in idle:
            connection.close()
    finally:
        bench.stop()


# --- draining ------------------------------------------------------------------------------------


def test_stopping_lets_running_requests_finish_and_turns_health_off() -> None:
    bench = Bench()
    began, release = threading.Event(), threading.Event()

    def slow() -> dict[str, Any]:
        began.set()
        release.wait(10)
        return {"done": True}

    bench.log.status = slow
    with bench.connect() as running:
        running.sendall(
            b"GET /api/v1/cluster/status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        assert began.wait(5)
        bench.server.stop()
        assert bench.health() == 503
        release.set()
        status, _, body = parse(read_all(running))
        assert status == 200
        assert json.loads(body)["data"] == {"done": True}
    bench.stop()


def test_stopping_ends_long_polls_early() -> None:
    bench = Bench()
    with bench.connect() as polling:
        polling.sendall(
            b"GET /api/v1/events?wait=60 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        while not bench.facade.drain.begun and not any(
            channel.requests for channel in list(bench.server.active_channels.values())
        ):
            time.sleep(0.01)
        started = time.monotonic()
        bench.stop()
        assert time.monotonic() - started < 6
        assert parse(read_all(polling))[0] == 200


# --- streams -------------------------------------------------------------------------------------


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


def test_a_stream_sends_each_event_as_one_json_text(bench: Bench) -> None:
    bench.log.happen("task.queued", task_id="a")
    stream = Stream(bench, "/ws?since=0").opened()
    assert [event["id"] for event in stream.texts(1)] == [1]
    for number in range(3):
        bench.log.happen("task.success", task_id=str(number))
    assert [event["id"] for event in stream.texts(3)] == [2, 3, 4]
    stream.close()


def test_a_stream_resumes_without_loss_or_doubles_while_events_go_on(bench: Bench) -> None:
    for number in range(1500):
        bench.log.happen("task.queued", task_id=str(number))
    first = Stream(bench, "/ws?since=1490").opened()
    assert [event["id"] for event in first.texts(10)] == list(range(1491, 1501))

    def go_on() -> None:
        for number in range(300):
            bench.log.happen("task.running", task_id=str(number))

    writer = threading.Thread(target=go_on)
    writer.start()
    second = Stream(bench, "/ws?since=0").opened()
    assert [event["id"] for event in second.texts(1800)] == list(range(1, 1801))
    assert [event["id"] for event in first.texts(300)] == list(range(1501, 1801))
    writer.join()
    first.close()
    second.close()


def test_a_stream_is_filtered(bench: Bench) -> None:
    bench.log.happen("task.queued", task_id="550e8400-e29b-41d4-a716-446655440000")
    bench.log.happen("device.online", device_id="phone-1")
    bench.log.happen("task.success", task_id="550e8400-e29b-41d4-a716-446655440000")
    for query, expected in (
        ("type=task", [1, 3]),
        ("type=device.online", [2]),
        ("device_id=phone-1", [2]),
        ("task_id=550e8400-e29b-41d4-a716-446655440000", [1, 3]),
        ("task_id=550E8400-E29B-41D4-A716-446655440000", [1, 3]),
    ):
        stream = Stream(bench, f"/ws?since=0&{query}").opened()
        assert [event["id"] for event in stream.texts(len(expected))] == expected
        stream.close()


def test_many_streams_get_the_same_events(bench: Bench) -> None:
    streams = [Stream(bench, "/ws?since=0").opened() for _ in range(30)]
    bench.log.happen("task.queued", task_id="a")
    for stream in streams:
        assert stream.texts(1)[0]["id"] == 1
    for stream in streams:
        stream.close()
    until = time.monotonic() + 5
    while bench.server.streams and time.monotonic() < until:
        time.sleep(0.01)
    assert not bench.server.streams
    assert bench.health() == 200


def test_foreign_pages_bad_queries_and_plain_requests_get_no_stream(bench: Bench) -> None:
    assert Stream(bench, Origin="http://evil.example").refused() == 403
    assert Stream(bench, "/ws?nope=1").refused() == 400
    assert Stream(bench, Origin=f"http://127.0.0.1:{bench.server.port}").opened()
    status, _, body = bench.raw(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert status == 426
    assert "/api/v1/events" in json.loads(body)["message"]


def test_a_bad_handshake_is_refused_in_the_envelope(bench: Bench) -> None:
    status, _, body = bench.raw(
        b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n"
        b"Sec-WebSocket-Version: 13\r\n\r\n"
    )
    assert status == 400
    assert json.loads(body)["error_code"] == "VALIDATION_ERROR"


KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


@pytest.mark.parametrize(
    ("version", "key", "host", "status"),
    [
        (b"8", KEY, b"a", 426),
        (b"013", KEY, b"a", 426),
        (b"13, 8", KEY, b"a", 426),
        (None, KEY, b"a", 400),
        (b"13", None, b"a", 400),
        (b"13", b"short", b"a", 400),
        (b"13", b"dGhlIHNhbXBsZSBub25jZQ", b"a", 400),
        (b"13", b"dGhlIHNhbXBsZSBub25jZSE=", b"a", 400),
        (b"13", b"*GhlIHNhbXBsZSBub25jZQ==", b"a", 400),
        (b"13", b"\xff" * 24, b"a", 400),
        (b"13", KEY + b"\r\nSec-WebSocket-Key: " + KEY, b"a", 400),
        (b"13", KEY, b"xn--a", 400),
    ],
)
def test_a_handshake_of_another_version_is_told_ours_and_a_malformed_one_is_400(
    bench: Bench, version: bytes | None, key: bytes | None, host: bytes, status: int
) -> None:
    lines = [b"GET /ws HTTP/1.1", b"Host: " + host, b"Upgrade: websocket", b"Connection: Upgrade"]
    lines += [b"Sec-WebSocket-Version: " + version] if version is not None else []
    lines += [b"Sec-WebSocket-Key: " + key] if key is not None else []
    found, headers, body = bench.raw(b"\r\n".join(lines) + b"\r\n\r\n")
    assert (found, json.loads(body)["error_code"]) == (status, "VALIDATION_ERROR")
    assert headers["sec-websocket-version"] == "13"
    if status == 426:
        assert headers["upgrade"] == "websocket"
    assert not bench.server.streams


@pytest.mark.parametrize(
    ("version", "connection", "closes"),
    [
        (b"1.1", b"TE, close", True),
        (b"1.1", b"close , TE", True),
        (b"1.1", b"Upgrade, Close", True),
        (b"1.1", b"TE\r\nConnection: close", True),
        (b"1.1", b"TE, keep-alive", False),
        (b"1.1", b"closed", False),
        (b"1.0", b"TE, Keep-Alive", False),
        (b"1.0", b"TE", True),
    ],
)
def test_connection_is_a_list_and_close_in_it_closes(
    bench: Bench, version: bytes, connection: bytes, closes: bool
) -> None:
    with bench.connect() as client:
        asked = b"GET /health HTTP/%b\r\nHost: a\r\nConnection: %b\r\n\r\n"
        client.sendall(asked % (version, connection))
        status, headers, _ = parse(read_all(client))
        assert status == 200
        assert (headers.get("connection", "").lower() == "close") is closes
        if closes:
            assert client.recv(1) == b""
        else:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert parse(read_all(client))[0] == 200


def test_with_auth_reads_a_key_or_a_ticket_opens_the_stream() -> None:
    bench = Bench("secret", auth_reads=True)
    try:
        assert Stream(bench).refused() == 401
        assert Stream(bench, "/ws?ticket=1.2.3").refused() == 401
        Stream(bench, **{"X-API-Key": "secret"}).opened().close()
        status, _, body = bench.raw(
            b"POST /api/v1/events/ticket HTTP/1.1\r\nHost: a\r\nX-API-Key: secret\r\n"
            b"Connection: close\r\nContent-Length: 0\r\n\r\n"
        )
        assert status == 200
        ticket = json.loads(body)["data"]["ticket"]
        Stream(bench, f"/ws?ticket={ticket}").opened().close()
    finally:
        bench.close()


@pytest.mark.parametrize("auth_reads", [True, False])
def test_a_revoked_key_ends_its_open_stream_its_ticket_and_its_wait_at_once(
    tmp_path: Path, auth_reads: bool
) -> None:
    path = tmp_path / "api-keys.json"
    kept = key_of("kept", scopes=["read"])
    write_keys(path, [kept, key_of("gone", scopes=["read"])])
    bench = Bench("first", key_file=path, auth_reads=auth_reads)
    try:
        status, _, body = bench.raw(
            b"POST /api/v1/events/ticket HTTP/1.1\r\nHost: a\r\nX-API-Key: gone\r\n"
            b"Connection: close\r\nContent-Length: 0\r\n\r\n"
        )
        assert status == 200
        ticket = json.loads(body)["data"]["ticket"]
        streams = [
            Stream(bench, **{"X-API-Key": "gone"}).opened(),
            Stream(bench, f"/ws?ticket={ticket}").opened(),
        ]
        stays = Stream(bench, **{"X-API-Key": "kept"}).opened()
        parked = bench.connect()
        parked.sendall(
            b"GET /api/v1/events?wait=60&since=0 HTTP/1.1\r\nHost: a\r\nX-API-Key: gone\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert bench.log.somebody_waits.wait(5)
        write_keys(path, [kept])
        began = time.monotonic()
        bench.log.happen("task.queued", task_id="secret")
        for stream in streams:
            closed = stream.next()
            assert isinstance(closed, CloseConnection), "it heard an event more"
            assert closed.code == 1008
            stream.close()
        assert parse(read_all(parked))[0] == 401
        assert time.monotonic() - began < 3
        assert stays.texts(1)[0]["task_id"] == "secret"
        if auth_reads:
            assert Stream(bench, f"/ws?ticket={ticket}").refused() == 401
    finally:
        bench.close()


def test_a_stream_answers_pings_and_closes_politely(bench: Bench) -> None:
    stream = Stream(bench).opened()
    stream.send(Ping(payload=b"hello"))
    event = stream.next()
    assert isinstance(event, Pong)
    assert event.payload == b"hello"
    stream.send(TextMessage(data="ignored"))
    stream.send(CloseConnection(code=1000))
    closed = stream.next()
    assert isinstance(closed, CloseConnection)
    stream.close()


def test_a_client_that_talks_too_much_is_closed(bench: Bench) -> None:
    stream = Stream(bench).opened()
    stream.send(Message(data="x" * 100_000))
    closed = stream.next()
    assert isinstance(closed, CloseConnection)
    assert closed.code == 1009
    stream.close()


def test_a_client_that_does_not_keep_up_is_dropped_and_others_are_not(bench: Bench) -> None:
    slow = Stream(bench).opened()
    quick = Stream(bench).opened()
    text = "x" * 50_000
    for number in range(200):
        bench.log.happen("task.progress", data={"text": text})
        assert quick.texts(1)[0]["id"] == number + 1
    until = time.monotonic() + 10
    while len(bench.server.streams) > 1 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(bench.server.streams) == 1
    slow.close()
    quick.close()


def test_a_stream_that_resumes_too_late_is_told_of_the_gap_first(bench: Bench) -> None:
    for number in range(20):
        bench.log.happen("task.queued", task_id=str(number))
    bench.log.forgotten = 15
    late = Stream(bench, "/ws?since=4").opened()
    gap, *rest = late.texts(6)
    assert gap["type"] == "gap"
    assert gap["next"] >= 15
    assert [event["id"] for event in rest] == [16, 17, 18, 19, 20]
    in_time = Stream(bench, "/ws?since=15").opened()
    assert in_time.texts(1)[0]["id"] == 16
    late.close()
    in_time.close()


def test_one_stream_too_many_is_told_to_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "MAX_STREAMS", 2)
    bench = Bench()
    try:
        first, second = Stream(bench).opened(), Stream(bench).opened()
        assert Stream(bench).refused() == 503
        first.close()
        until = time.monotonic() + 10
        while len(bench.server.streams) > 1 and time.monotonic() < until:
            time.sleep(0.01)
        third = Stream(bench).opened()
        bench.log.happen("task.queued", task_id="a")
        assert second.texts(1) == third.texts(1)
    finally:
        bench.close()


def test_a_peer_that_is_gone_is_closed_and_one_that_answers_pings_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.2)
    monkeypatch.setattr(websocket, "DEAD_SECONDS", 2.5)
    bench = Bench()
    try:
        dead, alive = Stream(bench).opened(), Stream(bench).opened()
        until = time.monotonic() + 20
        while len(bench.server.streams) > 1 and time.monotonic() < until:
            event = alive.next()
            assert isinstance(event, Ping)
            alive.send(event.response())
        assert len(bench.server.streams) == 1
        bench.log.happen("task.queued", task_id="a")
        while isinstance(event := alive.next(), Ping):
            alive.send(event.response())
        assert json.loads(event.data)["id"] == 1
        while dead.connection.recv(65536):  # what was sent before it was given up
            continue
    finally:
        bench.close()


def test_the_dashboards_cookie_opens_the_stream_for_its_own_pages_only() -> None:
    bench = Bench("secret", auth_reads=True)
    try:
        own = f"http://127.0.0.1:{bench.server.port}"
        body = b'{"key": "secret"}'
        _, headers, _ = bench.raw(
            b"POST /ui/login HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        cookie = headers["set-cookie"].partition(";")[0]
        Stream(bench, Cookie=cookie, Origin=own).opened().close()
        assert Stream(bench, Cookie=cookie, Origin="http://evil.example").refused() == 403
        assert Stream(bench, Cookie=cookie, Origin="null").refused() == 403
        assert Stream(bench, Cookie=cookie[:-1], Origin=own).refused() == 401
    finally:
        bench.close()


def test_parked_polls_leave_three_quarters_of_the_threads_to_others(bench: Bench) -> None:
    ask = b"GET /api/v1/events?wait=%d&since=0 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with bench.connect() as parked:
        parked.sendall(ask % 60)
        assert bench.log.somebody_waits.wait(5)
        # The one place of four threads is taken: further polls come back with nothing.
        for _ in range(6):
            status, _, body = bench.raw(ask % 50)
            assert (status, json.loads(body)["data"]["events"]) == (200, [])
        bench.log.happen("task.queued", task_id="a")
        status, _, body = parse(read_all(parked))
        assert [event["id"] for event in json.loads(body)["data"]["events"]] == [1]


def test_whoever_asks_to_wait_without_end_and_never_waits_is_told_to_slow_down(
    bench: Bench,
) -> None:
    for number in range(5):
        bench.log.happen("task.queued", task_id=str(number))
    ask = b"GET /api/v1/events?wait=60&since=0 HTTP/1.1\r\nHost: a\r\n\r\n"
    statuses = []
    with bench.connect() as client:
        for _ in range(2 * AT_ONCE):
            client.sendall(ask)
            status, headers, _ = parse(read_all(client))
            statuses.append(status)
            if status == 429:
                break
        assert statuses[:AT_ONCE] == [200] * AT_ONCE
        assert (status, headers["retry-after"]) == (429, "1")
        began = time.monotonic()
        client.sendall(ask)
        assert parse(read_all(client))[0] == 200
        assert time.monotonic() - began > 0.9 * websocket.REST_SECONDS, "its next one waits"
    assert bench.health() == 200


def test_whoever_waits_for_one_task_after_the_other_is_answered_as_fast_as_they_end(
    bench: Bench,
) -> None:
    with bench.connect() as client:
        for number in range(3 * AT_ONCE):
            bench.log.happen("task.queued", task_id=str(number))
            ask = b"GET /api/v1/events?wait=60&since=%d HTTP/1.1\r\nHost: a\r\n\r\n" % number
            client.sendall(ask)
            status, _, body = parse(read_all(client))
            assert (status, len(json.loads(body)["data"]["events"])) == (200, 1)


@pytest.mark.parametrize(("known", "seconds"), [(True, 0.0), (False, GATHER_SECONDS)])
def test_only_polls_of_strangers_are_held_for_what_comes_next(known: bool, seconds: float) -> None:
    patience = parking.Patience(Drain(), time.monotonic, 60.0, lambda: True, known=known)
    assert patience.gather_seconds == seconds


def test_clients_without_a_key_leave_places_to_wait_to_those_with_one() -> None:
    bench = Bench("secret", threads=16)
    ask = b"GET /api/v1/events?wait=60&since=0 HTTP/1.1\r\nHost: a\r\n%sConnection: close\r\n\r\n"
    try:
        parked = [bench.connect() for _ in range(2)]
        for connection in parked:
            bench.log.somebody_waits.clear()
            connection.sendall(ask % b"")
            assert bench.log.somebody_waits.wait(5)
        status, _, body = bench.raw(ask % b"")
        assert (status, json.loads(body)["data"]["events"]) == (200, []), "no third place"
        bench.log.somebody_waits.clear()
        keyed = bench.connect()
        keyed.sendall(ask % b"X-API-Key: secret\r\n")
        assert bench.log.somebody_waits.wait(5)
        bench.log.happen("task.queued", task_id="a")
        for connection in (*parked, keyed):
            assert json.loads(parse(read_all(connection))[2])["data"]["events"]
    finally:
        bench.close()


def test_streams_are_told_when_the_server_stops() -> None:
    bench = Bench()
    stream = Stream(bench).opened()
    bench.stop()
    closed = stream.next()
    assert isinstance(closed, CloseConnection)
    assert closed.code == 1001
    stream.close()
