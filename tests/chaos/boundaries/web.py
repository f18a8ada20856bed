"""What comes over HTTP: REST bodies and queries, WebSocket frames, requests to the installer."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

from retire_cluster.schemas.rest.endpoints import ENDPOINTS, Endpoint
from tests.chaos.boundaries import twist
from tests.chaos.boundaries.hammer import Boundary
from tests.chaos.red.target import Target

#: 503 for one that means to come back later is an answer, 500 never is.
_LATER: Final = ("QUEUE_FULL", "CLUSTER_UNAVAILABLE")
_TEXTS: Final = (
    "", "0", "1", "-1", "1e9", "9" * 40, "NaN", "true", "\u0000", "é\u202e", "x" * 3_000, "a,b",
    "../..", "%", "'\"<script>", "\x1b[2J\r\n", "null", "[]",
)  # fmt: skip
#: Waiting is what these are for; a case may not.
_WAITS: Final = ("", "0", "-1", "x", "NaN", "0.05", "1e-9")
_BODIES: Final[tuple[Any, ...]] = (
    {"task_type": "echo", "payload": {"a": [1, {"b": "c"}]}, "priority": "low",
     "requirements": {"min_cpu_cores": 1, "required_tags": ["x"], "timeout_seconds": 5},
     "metadata": {"a": "b"}},
    {"task_type": "sleep", "payload": {"duration": 0.0}, "delay_seconds": 0.1},
    {"task_type": "python_eval", "payload": {"expression": "1 + x", "variables": {"x": 2}}},
    {"task_type": "http_request", "payload": {"url": "http://203.0.113.9/", "headers": {"a": "b"}}},
)  # fmt: skip


class Request(NamedTuple):
    """One request, as text or as the bytes that are sent."""

    method: str = ""
    path: str = ""
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes = b""


class Rest(Boundary):
    """Anybody sends requests to the facade."""

    name = "rest"
    growth_mb = 40.0

    def __init__(self, target: Target) -> None:
        self.target = target
        self._task_id = target.submit("echo", {"n": 0})
        self._rows = [row for row in ENDPOINTS.values() if row.path != "/ws"]
        self._connection = http.client.HTTPConnection("127.0.0.1", target.api_port, timeout=20)
        self._logged = 0

    def pids(self) -> Sequence[int]:
        return [self.target.api_pid, self.target.main_pid]

    def case(self, rng: random.Random) -> Request:
        row = rng.choice(self._rows)
        if rng.random() < 0.5:
            row = rng.choice([row for row in self._rows if row.body is not None])
        path = self._path(row, rng)
        body = self._body(row, rng)
        headers = [("Content-Type", "application/json")] if body is not None else []
        if rng.random() < 0.1:
            headers.append(_odd_header(rng))
        request = Request(row.method, path, body, tuple(headers))
        return Request(raw=_bent(request, rng)) if rng.random() < 0.15 else request

    def _path(self, row: Endpoint, rng: random.Random) -> str:
        known = {"task_id": self._task_id}
        words = []
        for word in row.path.split("/"):
            if word.startswith("{"):
                good = known.get(word.strip("{}"), "ghost")
                word = good if rng.random() < 0.6 else quote(rng.choice(_TEXTS), safe="")
            words.append(word)
        query = [
            (name, rng.choice(_WAITS if name in ("wait", "timeout") else _TEXTS))
            for name in row.query
            if rng.random() < 0.3
        ]
        if "wait" in row.query and "wait" not in dict(query):
            query.append(("wait", "0"))
        return "/".join(words) + (f"?{urlencode(query)}" if query else "")

    def _body(self, row: Endpoint, rng: random.Random) -> bytes | None:
        if row.body is None:
            return twist.cut(b"{}", rng) if rng.random() < 0.05 else None
        base: Any = row.body_example if row.body_example is not None else {}
        if row.path.endswith("/tasks"):
            base = rng.choice(_BODIES)
        elif row.path.endswith("/tasks/batch"):
            base = {"tasks": [rng.choice(_BODIES) for _ in range(rng.choice((1, 3, 20)))]}
        elif "tasks" in row.path and not base:
            base = {"task_ids": [self._task_id]}
        base = base if rng.random() > 0.05 else {"": base}
        return json.dumps(base).encode() if rng.random() < 0.05 else twist.document(base, rng)

    def send(self, case: Request) -> None:
        if case.raw:
            _say(self.target.api_port, case.raw)
            return
        status, body = self._ask(case)
        if status >= 400:
            document = json.loads(body)
            assert document["status"] == "error", document
            later = status == 503 and document["error_code"] in _LATER
            assert status < 500 or later, f"{status} {document} to {case}"[:2_000]

    def _ask(self, case: Request) -> tuple[int, bytes]:
        """Status and body; on a connection that goes on where the server lets it."""
        try:
            return self._once(case)
        except (http.client.HTTPException, OSError):
            self._connection.close()  # it was closed after the case before this one
            return self._once(case)

    def _once(self, case: Request) -> tuple[int, bytes]:
        connection = self._connection
        connection.putrequest(case.method, case.path)
        for name, value in case.headers:
            connection.putheader(name, value.encode("latin-1", "replace"))
        if case.body is not None and "Content-Length" not in dict(case.headers):
            connection.putheader("Content-Length", str(len(case.body)))
        connection.endheaders(case.body)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        self._connection.close()

    def witness(self) -> None:
        self.target.call("config.reset")
        self.target.witness()

    def complaints(self) -> list[str]:
        text = self.target.log()
        new, self._logged = text[self._logged :], len(text)
        marks = ("Traceback", '"level": "ERROR"', "a turn failed", "died (")
        return [line for line in new.splitlines() if any(mark in line for mark in marks)][:3]


class Stream(Rest):
    """A client of /ws sends frames of all kinds."""

    name = "ws"

    def case(self, rng: random.Random) -> Request:
        key = base64.b64encode(rng.randbytes(16)).decode()
        lines = [
            f"GET /ws{rng.choice(('', '?since=0', '?since=x', '?type=task'))} HTTP/1.1",
            "Host: localhost", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13",
        ]  # fmt: skip
        if rng.random() < 0.15:
            lines[rng.randrange(1, len(lines))] = ": ".join(_odd_header(rng))
        if rng.random() < 0.15:
            lines.append("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=99")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        if rng.random() < 0.05:
            head = twist.cut(head, rng)
        frames = b"".join(_ws_frame(rng) for _ in range(rng.choice((0, 1, 1, 2, 6))))
        return Request(raw=head + b"\x00SPLIT\x00" + frames)

    def send(self, case: Request) -> None:
        head, _, frames = case.raw.partition(b"\x00SPLIT\x00")
        with self.target.tcp(self.target.api_port) as one:
            one.sendall(head)
            one.settimeout(0.3)
            with contextlib.suppress(OSError):
                answer = one.recv(65_536)
                if answer.startswith(b"HTTP/1.1 101"):
                    one.sendall(frames + _masked(0x89, b"still there?"))
                    _read_until(one, b"still there?")
                else:
                    assert not answer.startswith((b"HTTP/1.1 500", b"HTTP/1.0 500")), answer


class Installer(Boundary):
    """A stranger sends requests to the server of `/join.py`."""

    name = "installer"

    def __init__(self, place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        (place / "secret.whl").write_bytes(b"not to be served: it is beside the wheels")
        (place / "wheels").mkdir()
        code = (
            "import sys, time; from pathlib import Path\n"
            "from retire_cluster.cli.joining.server import JoinServer\n"
            "made = JoinServer('127.0.0.1', 0, '127.0.0.1', Path(sys.argv[1]))\n"
            "print(made.port, made.sha256, flush=True)\n"
            "sys.stdin.read()"
        )
        self._log = (place / "installer.log").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(place / "wheels")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        assert self._process.stdout is not None
        port, self._sha256 = self._process.stdout.readline().decode().split()
        self._port = int(port)

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=20)
        self._log.close()

    def pids(self) -> Sequence[int]:
        return [self._process.pid]

    def case(self, rng: random.Random) -> Request:
        path = rng.choice((
            "/join.py", "/wheels/", "/wheels/../secret.whl", "/wheels/%2e%2e/secret.whl",
            "/wheels//etc/passwd", f"/{quote(rng.choice(_TEXTS), safe='')}", "*", "//", "/wheels/x",
        ))  # fmt: skip
        body = rng.choice((None, None, b"x" * 100_000, b""))
        method = rng.choice(("GET", "GET", "HEAD", "POST", "PUT", "TRACE", "CONNECT"))
        headers = (_odd_header(rng),) if rng.random() < 0.3 else ()
        request = Request(method, path, body, headers)
        return Request(raw=_bent(request, rng) if rng.random() < 0.5 else _bytes_of(request))

    def send(self, case: Request) -> None:
        answer = _say(self._port, case.raw)
        assert b"HTTP/1.1 500" not in answer[:20], answer[:200]
        assert b"not to be served" not in answer, case

    def witness(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("GET", "/join.py")
            digest = hashlib.sha256(connection.getresponse().read()).hexdigest()
        finally:
            connection.close()
        assert digest == self._sha256

    def complaints(self) -> list[str]:
        text = self._log.read().decode("utf-8", "replace")
        return ["a traceback in its log"] if "Traceback" in text else []


def _odd_header(rng: random.Random) -> tuple[str, str]:
    name = rng.choice((
        "Content-Length", "Transfer-Encoding", "Content-Type", "Host", "Connection", "Expect",
        "Origin", "X-Request-ID", "X-API-Key", "Authorization", "Cookie", "Range",
        "Idempotency-Key",
        "X-Forwarded-For", "Sec-WebSocket-Key", "Accept", "Accept-Encoding",
    ))  # fmt: skip
    value = rng.choice((
        "", "-1", "5", "99999999999", "chunked", "gzip, chunked", "text/plain", "a" * 9_000,
        "application/json; charset=utf-16", "keep-alive, close", "100-continue", "é", "bytes=0-",
        "null", "Bearer ", "Basic Og==", "session=a.b.c; " * 30, "evil.example:99999", "[::1",
    ))  # fmt: skip
    return name, value


def _bytes_of(request: Request) -> bytes:
    head = [f"{request.method} {request.path} HTTP/1.1", "Host: localhost", "Connection: close"]
    head += [f"{name}: {value}" for name, value in request.headers]
    names = {name for name, _ in request.headers}
    if request.body is not None and "Content-Length" not in names:
        head.append(f"Content-Length: {len(request.body)}")
    text = "\r\n".join(head).encode("utf-8", "replace") + b"\r\n\r\n"
    return text + (request.body or b"")


def _bent(request: Request, rng: random.Random) -> bytes:
    """The request with something wrong in its head, or in how its body comes."""
    data = _bytes_of(request)
    draw = rng.randrange(5)
    if draw == 0:
        head, _, body = data.partition(b"\r\n\r\n")
        chunk = rng.choice(
            (b"5\r\nabc", b"zz\r\n", b"ffffffffffffffff\r\nx", b"-1\r\n\r\n", b"0\r\n")
        )
        return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + body
    if draw == 1:
        return data.replace(b"HTTP/1.1", rng.choice((b"HTTP/9.9", b"", b"HTTP/1.0", b"\x00")), 1)
    if draw == 2:
        return data.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\r\n ", b"\x00")), 2)
    if draw == 3:
        more = b"".join(b"X-%d: y\r\n" % n for n in range(rng.choice((3, 300, 5_000))))
        return data.replace(b"\r\n", b"\r\n" + more, 1)
    return twist.cut(data, rng)


def _say(port: int, data: bytes) -> bytes:
    """Send it all and half-close; the answer, empty when there is none."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), 10) as one:
        with contextlib.suppress(OSError):
            one.sendall(data)
            one.shutdown(socket.SHUT_WR)
        one.settimeout(1.0)
        with contextlib.suppress(OSError):
            while (part := one.recv(65_536)) and len(answer) < 2_000_000:
                answer += part
    return answer


def _masked(first: int, data: bytes, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    """A client's frame."""
    size = len(data)
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65_536:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + mask + bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))


def _ws_frame(rng: random.Random) -> bytes:
    first = rng.choice((0x81, 0x82, 0x01, 0x00, 0x80, 0x88, 0x89, 0x8A, 0x83, 0x8F, 0xC1, 0xF9))
    data = rng.choice((
        b"", b"hello", "é".encode(), b"\xff\xfe", b"\x03\xe8", b"\x00", b"\x03\xedbye\xff",
        b"x" * 200, b"x" * 3_000, struct.pack("!H", rng.randrange(65_536)), rng.randbytes(30),
    ))  # fmt: skip
    frame = _masked(first, data)
    draw = rng.random()
    if draw < 0.1:  # not masked, as a client's must be
        return struct.pack("!BB", first, len(data) & 0x7D) + data
    if draw < 0.25:  # a length that never comes
        return struct.pack("!BBQ", first, 0xFF, rng.choice((2**63, 2**62, 2**32, 0))) + data
    return twist.cut(frame, rng) if draw < 0.4 else frame


def _read_until(one: socket.socket, mark: bytes) -> None:
    """Read to the answer of a ping, the end of the stream, or in vain for a moment."""
    seen = b""
    until = time.monotonic() + 0.3
    while mark not in seen and time.monotonic() < until:
        part = one.recv(65_536)
        if not part:
            return
        seen = (seen + part)[-200:]
