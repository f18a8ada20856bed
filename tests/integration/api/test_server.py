"""The facade's server on loopback: malformed HTTP, slow clients, draining."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest

from retire_cluster.api.serving.waitress_server import SlowClientLimits
from retire_cluster.api.serving.websocket import StreamServer
from tests.integration.api.kit import Bench, parse, read_all

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
    bench = Bench(patience=SlowClientLimits(header_seconds=0.5, body_seconds=0.5))
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
    bench = Bench(patience=SlowClientLimits(reader_seconds=0.5, bytes_per_second=1e6))
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
    bench = Bench(patience=SlowClientLimits(connections_per_address=5))
    try:
        idle = [bench.connect() for _ in range(20)]
        assert bench.health() == 200
        assert len(bench.server.active_channels) <= 6
        for connection in idle:
            connection.close()
    finally:
        bench.stop()


def test_when_there_are_too_many_the_longest_idle_makes_room() -> None:
    bench = Bench(patience=SlowClientLimits(connections=20))
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
        while not bench.facade.shutdown.begun and not any(
            channel.requests for channel in list(bench.server.active_channels.values())
        ):
            time.sleep(0.01)
        started = time.monotonic()
        bench.stop()
        assert time.monotonic() - started < 6
        assert parse(read_all(polling))[0] == 200
