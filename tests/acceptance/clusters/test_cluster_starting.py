"""What cannot start says why in one line and ends with 2; a cluster beside it is not disturbed."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.acceptance.kit import Cluster, Process, Rest, naming, one_line, run
from tests.command_kit import ANY_PORTS, Answer, until
from tests.ports import free_port

pytestmark = pytest.mark.slow
MAIN_PORTS = ["--port", "0", "--worker-port", "0", "--event-port", "0"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster as it starts by default, limits included."""
    found = Cluster(tmp_path_factory.mktemp("starting"))
    try:
        yield found
    finally:
        assert found.close() == 0


# --- what cannot start ---------------------------------------------------------------------------


def test_a_second_main_node_on_the_same_folder_is_refused(cluster: Cluster) -> None:
    said = one_line(run("main", *MAIN_PORTS, "--data-dir", str(cluster.data_dir)))
    assert "already runs" in said
    assert cluster.rest.healthy()


def test_a_second_up_on_the_same_folder_is_refused(cluster: Cluster) -> None:
    said = one_line(run("up", *ANY_PORTS, "--data-dir", str(cluster.data_dir)))
    assert "already runs" in said
    assert cluster.rest.healthy()


def test_a_second_worker_on_the_same_folder_is_refused(cluster: Cluster) -> None:
    worker = cluster.endpoints()["workers"][0]
    said = one_line(run("worker", "--join", "127.0.0.1", "--data-dir", worker["data_dir"]))
    assert worker["data_dir"] in said


@pytest.mark.parametrize(
    ("command", "flag"), [("main", "--port"), ("main", "--worker-port"), ("api", "--port")]
)
def test_a_port_that_is_taken_is_named(command: str, flag: str, tmp_path: Path) -> None:
    ports = {"main": MAIN_PORTS, "api": []}[command]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = one_line(run(command, *ports, flag, port, "--data-dir", str(tmp_path / "data")))
    assert f"cannot listen on 127.0.0.1:{port}" in said


def test_up_on_a_port_that_is_taken_ends_with_2_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("up", *ANY_PORTS, "--port", port, "--data-dir", str(tmp_path / "data"))
    assert (done.returncode, done.stdout) == (2, "")
    about = [line for line in done.stderr.splitlines() if port in line]
    assert len(about) == 1
    assert "api could not start: " in about[0]
    assert "cannot listen" in about[0]
    assert done.stderr.splitlines()[-1] == about[0], "what the others logged is above it"
    assert naming(tmp_path) == []


@pytest.mark.parametrize(
    ("command", "text", "names"),
    [
        ("up", "[server\nport = 1", "line 1"),
        ("main", "[server]\nprot = 8080", "port"),
        ("up", "[heartbeat]\ninterval = 0", "heartbeat.interval"),
        ("main", "[heartbeat]\ninterval = 10\nmax_missed = 10\ntimeout = 5", "timeout"),
        ("api", "[api]\nthreads = 'many'", "api.threads"),
        ("worker", "[wroker]\nslots = 1", "worker"),
    ],
    ids=["bad TOML", "unknown name", "out of bounds", "at odds", "wrong kind", "unknown section"],
)
def test_a_settings_file_that_is_wrong_is_named_with_the_place(
    command: str, text: str, names: str, tmp_path: Path
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    join = ["--join", "127.0.0.1"] if command == "worker" else []
    data = ["--data-dir", str(tmp_path / "data")]
    said = one_line(run(command, *join, *data, "--config", str(path)))
    assert names in said
    assert str(path) in said


def test_an_unknown_variable_is_an_error_that_names_the_nearest(tmp_path: Path) -> None:
    data = ["--data-dir", str(tmp_path / "data")]
    said = one_line(run("main", *data, RETIRE_CLUSTER_HEARTBEAT_INTERVALL="5"))
    assert "RETIRE_CLUSTER_HEARTBEAT_INTERVAL" in said.replace("INTERVALL", "")


@pytest.mark.parametrize("command", ["up", "main", "api", "worker"])
def test_a_file_in_place_of_the_data_folder_is_named(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    join = ["--join", "127.0.0.1"] if command == "worker" else []
    auth = ["--auth"] if command == "api" else []
    words = [command, *join, *auth, "--data-dir", str(tmp_path / "file" / "data")]
    assert str(tmp_path / "file") in one_line(run(*words))


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "none.toml")
    assert path in one_line(run("main", *MAIN_PORTS, "--config", path))


def test_a_worker_that_dials_the_admin_port_is_told_the_right_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    main = cluster.endpoints()["main"]
    data = ["--data-dir", str(tmp_path / "data")]
    done = run("worker", "--join", f"127.0.0.1:{main['admin_port']}", *data)
    assert done.returncode == 2
    assert str(main["worker_port"]) in done.stderr


def test_a_tool_that_dials_the_worker_bus_is_told_the_right_port(cluster: Cluster) -> None:
    main = cluster.endpoints()["main"]
    done = run("status", "--cluster-port", str(main["worker_port"]))
    assert done.returncode == 3
    assert str(main["admin_port"]) in done.stderr


# --- limits --------------------------------------------------------------------------------------


def test_limits_count_down_from_60_and_end_after_the_burst(cluster: Cluster) -> None:
    began = time.time()
    answers = [cluster.rest.ask("GET", "/api/v1/devices") for _ in range(72)]
    assert [answer.status for answer in answers] == [200] * 70 + [429] * 2
    assert {answer.headers["x-ratelimit-limit"] for answer in answers} == {"60"}
    remaining = [int(answer.headers["x-ratelimit-remaining"]) for answer in answers]
    assert remaining == [*range(59, -1, -1), *([0] * 12)]
    for answer in answers:
        assert 0 < int(answer.headers["x-ratelimit-reset"]) - began < 62
    assert answers[-1].code == "RATE_LIMIT_EXCEEDED"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 61
    for path in ("/health", "/metrics", "/api/v1/events?wait=0"):
        assert cluster.rest.ask("GET", path).status == 200, path


@pytest.mark.skipif(os.name == "nt", reason="gunicorn needs fork")
def test_four_processes_of_gunicorn_count_as_one(cluster: Cluster) -> None:
    pytest.importorskip("gunicorn")
    port = free_port()
    gunicorn = Process(
        cluster.folder / "gunicorn.log",
        *("-w", "4", "-b", f"127.0.0.1:{port}", "--access-logfile", "-"),
        *("--access-logformat", "%(p)s", "retire_cluster.api.wsgi:app"),
        command=[sys.executable, "-m", "gunicorn"],
        environ={
            "RETIRE_CLUSTER_CLUSTER_PORT": str(cluster.admin_port),
            "RETIRE_CLUSTER_API_KEY": "key-of-gunicorn\nanother-key",
            "RETIRE_CLUSTER_DATA_DIR": str(cluster.folder / "gunicorn"),
        },
    )
    rest = Rest(f"http://127.0.0.1:{port}")
    try:
        until(rest.healthy, "gunicorn")

        def ask(key: str) -> Answer:
            return rest.ask("GET", "/api/v1/devices", headers={"X-API-Key": key})

        answers = [ask("key-of-gunicorn") for _ in range(74)]
        assert Counter(a.status for a in answers) == {200: 70, 429: 4}
        remaining = [int(a.headers["x-ratelimit-remaining"]) for a in answers[:60]]
        assert remaining == [*range(59, -1, -1)]
        assert ask("another-key").status == 200
        # One after the other, all may go to one process; many at a time need them all.
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda _: rest.healthy(), range(64)))
    finally:
        os.kill(gunicorn.pid, signal.SIGTERM)
        assert gunicorn.popen.stdout is not None
        served_by = set(gunicorn.popen.stdout.read().split())
        code = gunicorn.stop()
    assert code == 0
    assert len(served_by) > 1


# --- errors keep the envelope --------------------------------------------------------------------


def raw(port: int, request: bytes) -> Answer:
    """Send bytes as they are; the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            part = connection.recv(65536)
            assert part, received
            received += part
        head, _, body = received.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines[1:])
        }
        while len(body) < int(headers["content-length"]):
            part = connection.recv(65536)
            assert part
            body += part
    return Answer(int(lines[0].split()[1]), headers, body)


def post(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str, *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


TASK = b'{"task_type": "echo", "payload": {"text": "%s"}}'
REFUSED: dict[str, tuple[bytes, int, str]] = {
    "nothing there": (get("/nowhere"), 404, "NOT_FOUND"),
    "no such task": (get("/api/v1/tasks/abc"), 404, "TASK_NOT_FOUND"),
    "no such device": (get("/api/v1/devices/%ff%00"), 404, "DEVICE_NOT_FOUND"),
    "wrong method": (get("/api/v1/tasks/batch"), 405, "METHOD_NOT_ALLOWED"),
    "body too large": (post("/api/v1/tasks", TASK % (b"x" * 2**20)), 413, "PAYLOAD_TOO_LARGE"),
    "payload too large": (
        post("/api/v1/tasks", TASK % (b"x" * 270_000)), 413, "PAYLOAD_TOO_LARGE"
    ),
    "not JSON": (post("/api/v1/tasks", b"a=1", "text/plain"), 415, "UNSUPPORTED_MEDIA_TYPE"),
    "broken JSON": (post("/api/v1/tasks", b"{"), 400, "VALIDATION_ERROR"),
    "an unknown field": (
        post("/api/v1/tasks", b'{"task_type":"echo","payload":{},"x":1}'), 400, "VALIDATION_ERROR"
    ),
    "an unknown parameter": (get("/api/v1/tasks?stauts=queued"), 400, "VALIDATION_ERROR"),
    "huge headers": (get("/health", "X-Big: " + "x" * 20_000), 431, ""),
    "no HTTP": (b"GIBBERISH\r\n\r\n", 400, ""),
    "two lengths": (
        b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def unlimited(cluster: Cluster) -> Iterator[Rest]:
    """A facade beside the cluster's own, without limits."""
    flags = ("--port", "0", "--cluster-port", str(cluster.admin_port), "--no-rate-limit")
    data = ("--data-dir", str(cluster.folder / "unlimited"))
    facade = Process(cluster.folder / "unlimited.log", "api", *flags, *data)
    try:
        yield Rest(facade.line(r"retire-cluster-api on (http://\S+)")[1])
    finally:
        assert facade.stop() == 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_the_envelope(unlimited: Rest, name: str) -> None:
    request, status, code = REFUSED[name]
    answer = raw(unlimited.port, request)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.code == (code or answer.code)
    assert re.fullmatch(r"[A-Z_]+", answer.code)
    assert unlimited.healthy()


def test_a_key_is_asked_for_where_the_document_says_so(cluster: Cluster) -> None:
    flags = ("--port", "0", "--cluster-port", str(cluster.admin_port), "--no-rate-limit")
    data = ("--data-dir", str(cluster.folder / "auth"))
    facade = Process(cluster.folder / "auth.log", "api", *flags, *data, "--auth")
    try:
        key = facade.line(r"API key \(shown this once\): (\S+)")[1]
        rest = Rest(facade.line(r"retire-cluster-api on (http://\S+)")[1])
        evaluate = {"task_type": "python_eval", "payload": {"expression": "1"}}
        for method, path, body in (
            ("GET", "/config", None),
            ("GET", "/cluster/config", None),
            ("PUT", "/config/heartbeat", {"interval": 5}),
            ("POST", f"/devices/{cluster.local}/ping", {}),
            ("POST", "/tasks", evaluate),
        ):
            refused = rest.ask(method, f"/api/v1{path}", body)
            assert (refused.status, refused.code) == (401, "UNAUTHORIZED"), path
            assert "www-authenticate" in refused.headers
            wrong = rest.ask(method, f"/api/v1{path}", body, {"X-API-Key": "wrong"})
            assert wrong.status == 401
            for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
                assert rest.ask(method, f"/api/v1{path}", body, headers).status in (200, 201)
        assert rest.ask("GET", "/api/v1/devices").status == 200
        echo = {"task_type": "echo", "payload": {}}
        assert rest.ask("POST", "/api/v1/tasks", echo).status == 201
        foreign = {"X-API-Key": key, "Origin": "http://evil.example"}
        assert rest.ask("POST", "/api/v1/tasks", echo, foreign).code == "FORBIDDEN"
        assert key not in facade.log.read_text()
        shown = rest.ask("GET", "/api/v1/config", None, {"X-API-Key": key})
        assert key.encode() not in shown.body
    finally:
        assert facade.stop() == 0
