"""`http_request` against real servers on loopback."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from retire_cluster.node.tasks import http_addresses, http_request
from retire_cluster.node.tasks.base import (
    Context,
    Denied,
    Hopeless,
    Limits,
    Success,
    TaskFailed,
    TimedOut,
)
from retire_cluster.node.tasks.json_result import to_json
from retire_cluster.schemas.protocol.wire import MAX_RESULT_BYTES
from retire_cluster.schemas.text.truncation import Cut

LARGE_BYTES = 600 * 1024


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, dict[str, str], bytes]]

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.seen.append(  # type: ignore[attr-defined]
            (self.command, self.path, dict(self.headers.items()), body)
        )
        path, _, query = self.path.partition("?")
        if path == "/redirect":
            status, _, target = query.partition(",")
            self.reply(int(status), b"", ("Location", target))
        elif path == "/status":
            self.reply(int(query), b"sorry")
        elif path == "/slow":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            for _ in range(100):
                time.sleep(0.05)
                self.wfile.write(b"x")
                self.wfile.flush()
        elif path == "/large":
            self.reply(200, b"a" * LARGE_BYTES)
        elif path == "/large-latin":
            body = "aä".encode("latin-1") * (LARGE_BYTES // 2)
            self.reply(200, body, ("Content-Type", "text/plain; charset=latin1"))
        elif path == "/large-escapes":
            self.reply(200, b"\x01" * LARGE_BYTES)
        elif path == "/escapes":
            self.reply(200, b"\x01" * 400_000)
        elif path == "/bomb":
            self.reply(200, gzip.compress(b"a" * (20 << 20)), ("Content-Encoding", "gzip"))
        elif path == "/latin":
            self.reply(
                200, "grün".encode("latin-1"), ("Content-Type", "text/plain; charset=latin1")
            )
        elif path == "/loop":
            self.reply(302, b"", ("Location", "/loop"))
        elif path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.close_connection = True
        else:
            self.reply(200, b'{"ok":true}', ("X-Twice", "1"), ("X-Twice", "2"))

    def reply(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes early is part of the tests."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(url: str, *, private: bool = True, **payload: Any) -> Success:
    context = Context(
        task_id="t",
        attempt=1,
        timeout_seconds=30,
        limits=Limits(private_addresses=private),
        tell=lambda percent, message: None,
        write_log=lambda text: None,
        is_cancelled=lambda: False,
    )
    return http_request.run({"url": url, **payload}, context)


def test_a_get_returns_status_headers_content_and_address(server: Server) -> None:
    result = run(f"{server.url}/x?a=1").result
    assert (result["status_code"], result["content"]) == (200, '{"ok":true}')
    assert result["url"] == f"{server.url}/x?a=1"
    assert result["headers"]["X-Twice"] == "1, 2"
    ((method, path, headers, _),) = server.seen
    assert (method, path) == ("GET", "/x?a=1")
    assert headers["Host"] == f"127.0.0.1:{server.server_port}"


def test_an_object_is_sent_as_json_and_a_text_as_it_is(server: Server) -> None:
    run(server.url, method="POST", data={"ä": 1}, headers={"X-Mine": "1", "user-agent": "me"})
    run(server.url, method="PUT", data="plain")
    (_, _, headers, body), (_, _, plain_headers, plain) = server.seen
    assert json.loads(body) == {"ä": 1}
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Mine"] == "1"
    assert headers["user-agent"] == "me"
    assert plain == b"plain"
    assert "Content-Type" not in plain_headers


@pytest.mark.parametrize("status", [404, 500])
def test_an_error_status_is_an_answer_all_the_same(server: Server, status: int) -> None:
    result = run(f"{server.url}/status?{status}").result
    assert (result["status_code"], result["content"]) == (status, "sorry")


def test_head_has_no_content(server: Server) -> None:
    assert run(server.url, method="HEAD").result["content"] == ""


def test_user_and_password_become_a_header_and_are_not_shown(server: Server) -> None:
    url = server.url.replace("http://", "http://me:s%40cret@")
    result = run(url).result
    assert server.seen[0][2]["Authorization"] == "Basic bWU6c0BjcmV0"
    assert "cret" not in json.dumps(result)


def test_content_is_decoded_as_declared(server: Server) -> None:
    assert run(f"{server.url}/latin").result["content"] == "grün"


@pytest.mark.parametrize("path", ["/large", "/bomb", "/large-latin"])
def test_large_content_is_cut_and_marked(server: Server, path: str) -> None:
    answer = run(server.url + path)
    # Only an answer that says its length is known to its end.
    total = LARGE_BYTES if path == "/large" else None
    kept = 512 * 1024 if path != "/large-latin" else 786_432  # two bytes in UTF-8 for each second
    assert answer.cuts == {"content": Cut(total, kept, "end")}
    content = answer.result["content"]
    missing = "more bytes" if total is None else f"{LARGE_BYTES - kept} of {LARGE_BYTES} bytes"
    assert content.endswith(f"\n[... {missing} are missing here ...]\n")
    assert len(content.rpartition("\n[...")[0].encode()) == kept


def test_whole_content_that_is_too_long_as_json_is_cut_in_the_middle(server: Server) -> None:
    answer = run(f"{server.url}/escapes")
    cut = answer.cuts["content"]
    assert (cut.total_bytes, cut.missing) == (400_000, "middle")
    assert answer.result["content"].startswith("\x01")
    assert answer.result["content"].endswith("\x01")
    assert len(to_json(answer.result)) <= MAX_RESULT_BYTES


def test_the_last_bytes_of_a_content_are_never_taken_from_its_middle(server: Server) -> None:
    answer = run(f"{server.url}/large-escapes")
    assert answer.cuts["content"].missing == "end"
    assert answer.cuts["content"].total_bytes == LARGE_BYTES
    assert answer.result["content"].endswith("bytes are missing here ...]\n")


def test_redirects_are_followed_and_the_last_address_told(server: Server) -> None:
    result = run(f"{server.url}/redirect?302,/there").result
    assert (result["status_code"], result["url"]) == (200, f"{server.url}/there")


def test_a_post_becomes_a_get_where_browsers_do_so(server: Server) -> None:
    run(f"{server.url}/redirect?303,/x", method="POST", data={"a": 1})
    run(f"{server.url}/redirect?307,/y", method="POST", data={"a": 1})
    methods = [(method, path, bool(body)) for method, path, _, body in server.seen]
    assert methods[1] == ("GET", "/x", False)
    assert methods[3] == ("POST", "/y", True)
    assert "Content-Type" not in server.seen[1][2]


def test_credentials_do_not_follow_to_another_origin(server: Server) -> None:
    other = Server()
    thread = threading.Thread(target=other.serve_forever, args=(0.02,))
    thread.start()
    run(
        f"{server.url}/redirect?302,{other.url}/",
        headers={"Authorization": "secret", "Cookie": "secret", "X-Plain": "1"},
    )
    other.shutdown()
    thread.join()
    other.server_close()
    assert "secret" not in json.dumps(other.seen[0][2])
    assert other.seen[0][2]["X-Plain"] == "1"


def test_endless_redirects_end(server: Server) -> None:
    with pytest.raises(TaskFailed, match="more than 5 redirects"):
        run(f"{server.url}/loop")
    assert len(server.seen) == 6


def test_a_redirect_to_another_scheme_is_hopeless(server: Server) -> None:
    with pytest.raises(Hopeless, match="must start with http"):
        run(f"{server.url}/redirect?302,file:///etc/passwd")
    with pytest.raises(Hopeless, match="a redirect leads to"):
        run(f"{server.url}/redirect?302,http://[::1/")


def test_a_redirect_to_a_private_address_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_addresses, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(http_addresses, "is_own", lambda address: False)
    with pytest.raises(Denied, match=r"127\.0\.0\.2"):
        run(f"{server.url}/redirect?302,http://127.0.0.2:{server.server_port}/", private=False)
    assert len(server.seen) == 1


def test_private_addresses_are_refused_before_anything_is_sent(server: Server) -> None:
    with pytest.raises(Denied, match=r"policy\.private_addresses"):
        run(server.url, private=False)
    assert server.seen == []


def test_proxies_of_the_environment_are_ignored(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert run(server.url).result["status_code"] == 200


def test_the_deadline_holds_for_the_whole_answer(server: Server) -> None:
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"within 0\.4 s"):
        run(f"{server.url}/slow", timeout=0.4)
    assert time.monotonic() - began < 2


def test_a_connection_that_fails_may_work_next_time(server: Server) -> None:
    with pytest.raises(TaskFailed, match="cannot connect") as error:
        run("http://me:secret@127.0.0.1:9/x?token=secret#secret")
    assert error.value.cause == "error"
    assert "secret" not in error.value.message
    with pytest.raises(TaskFailed, match="failed") as error:
        run(f"{server.url}/cut")
    assert error.value.cause == "error"
    with pytest.raises(TaskFailed) as error:
        run(server.url.replace("http:", "https:"))
    assert error.value.cause == "error"
