"""The event stream: events, handshakes, rights, clients that talk too much or too little."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from wsproto.events import (
    CloseConnection,
    Message,
    Ping,
    Pong,
    TextMessage,
)

from retire_cluster.api.admission.keys import key_of, write_keys
from retire_cluster.api.serving import websocket
from tests.integration.api.kit import Bench, Stream, parse, read_all


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


def test_streams_are_told_when_the_server_stops() -> None:
    bench = Bench()
    stream = Stream(bench).opened()
    bench.stop()
    closed = stream.next()
    assert isinstance(closed, CloseConnection)
    assert closed.code == 1001
    stream.close()
