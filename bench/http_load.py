"""A load generator for HTTP: some connections, one request under way on each, one thread."""

from __future__ import annotations

import http.client
import selectors
import socket
import time
from dataclasses import dataclass, field


@dataclass
class Load:
    """What came back within the time."""

    requests: int = 0
    seconds: float = 0.0
    #: Answers by status code.
    statuses: dict[int, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


class _Connection:
    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._got = b""
        self.sent_at = 0.0

    def ask(self) -> None:
        self._got = b""
        self.sent_at = time.perf_counter()
        self.socket.sendall(self._request)

    def answered(self) -> int:
        """The status once the whole answer is here, else 0. Raises `ConnectionError`."""
        part = self.socket.recv(1 << 20)
        if not part:
            raise ConnectionError("the server closed the connection")
        self._got += part
        head, gap, body = self._got.partition(b"\r\n\r\n")
        if not gap:
            return 0
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        length = int(lower[at:].split(b"\r\n", 1)[0])
        return int(head[9:12]) if len(body) >= length else 0


def post(path: str, body: bytes) -> bytes:
    """A request with a JSON body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def get(path: str) -> bytes:
    """A request without one."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode("ascii")


def run(port: int, request: bytes, connections: int, seconds: float) -> Load:
    """Ask again and again for some time on each connection."""
    found = Load()
    with selectors.DefaultSelector() as selector:
        clients = [_Connection(port, request) for _ in range(connections)]
        began = time.perf_counter()
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.ask()
        end = began + seconds
        busy = len(clients)
        while busy:
            for key, _ in selector.select(5):
                client = key.data
                status = client.answered()
                if not status:
                    continue
                now = time.perf_counter()
                found.requests += 1
                found.statuses[status] = found.statuses.get(status, 0) + 1
                found.latencies_ms.append(1000 * (now - client.sent_at))
                if now < end:
                    client.ask()
                else:
                    busy -= 1
        found.seconds = time.perf_counter() - began
        for client in clients:
            client.socket.close()
    return found


def fetch(port: int, path: str) -> bytes:
    """The body of one GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()
