"""`retire-cluster-api` as a process: starting, refusing to start, keys, a main node that goes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.schemas.text.hosts import bracketed

API = "/api/v1"
MODULE = "retire_cluster.api.cli"
LINE = "retire-cluster-api on "


def url_of(process: Any) -> str:
    return str(process.wait_for(LINE).removeprefix(LINE))


def test_port_zero_is_picked_printed_and_written_and_the_file_goes_with_the_process(
    start: Any, tmp_path: Path, cluster: Any
) -> None:
    process = start(
        MODULE, "--port=0", f"--cluster-port={cluster.admin_port}", f"--data-dir={tmp_path}"
    )
    url = url_of(process)
    run_file = tmp_path / "run" / "api.json"
    document = json.loads(run_file.read_text("utf-8"))
    assert document["pid"] == process.popen.pid
    assert url == f"http://{document['host']}:{document['port']}"
    assert process.stop() == 0
    assert not run_file.exists()


def test_a_taken_port_is_one_line_and_exit_2(start: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(MODULE, f"--port={port}", f"--data-dir={tmp_path}")
        assert process.popen.wait(20) == 2
    time.sleep(0.1)
    (line,) = process.err
    assert f"127.0.0.1:{port}" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--host", "192.0.2.1"), "192.0.2.1 is not an address of this machine; it has 127.0.0.1"),
        (("--host", "2001:db8::1"), "2001:db8::1 is not an address of this machine"),
        (("--host", "no-such-host.invalid"), "is no name that this machine knows"),
    ],
)
def test_an_address_of_another_machine_is_to_blame_not_the_port(
    start: Any, tmp_path: Path, flags: tuple[str, ...], told: str
) -> None:
    process = start(MODULE, *flags, "--port=0", f"--data-dir={tmp_path}")
    assert process.popen.wait(20) == 2
    time.sleep(0.1)
    (line,) = process.err
    assert f"cannot listen on {bracketed(flags[1])}:0: " in line
    assert told in line
    assert "--port" not in line


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--port", "99999"], "port"),
        (["--threads", "0"], "threads"),
        (["--cors-origin", "panel"], "cors_origins"),
        (["--trusted-proxy", "nobody"], "trusted_proxies"),
        (["--host", "no such host"], "no such host"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
        (["--frobnicate"], "frobnicate"),
    ],
)
def test_a_flag_that_cannot_work_is_exit_2_and_named(
    start: Any, tmp_path: Path, flags: list[str], word: str
) -> None:
    process = start(MODULE, f"--data-dir={tmp_path}", *flags)
    assert process.popen.wait(20) == 2
    deadline = time.monotonic() + 5
    while not process.err and time.monotonic() < deadline:
        time.sleep(0.01)
    assert word in "\n".join(process.err)
    assert "Traceback" not in "\n".join(process.err)


def test_a_broken_key_file_is_named_and_exit_2(start: Any, tmp_path: Path) -> None:
    (tmp_path / "api-keys.json").write_text("{", "utf-8")
    process = start(MODULE, "--port=0", f"--data-dir={tmp_path}")
    assert process.popen.wait(20) == 2


def test_auth_without_a_key_makes_one_shows_it_once_and_keeps_its_hash(
    start: Any, at: Any, tmp_path: Path, cluster: Any
) -> None:
    flags = (
        "--auth", "--port=0", f"--cluster-port={cluster.admin_port}", f"--data-dir={tmp_path}",
        "--no-rate-limit",
    )  # fmt: skip
    process = start(MODULE, *flags)
    key = process.wait_for("API key").rpartition(" ")[2]
    api = at(url_of(process))
    assert api.get(f"{API}/config").status == 401
    assert api.get(f"{API}/config", key=key).status == 200
    path = tmp_path / "api-keys.json"
    assert key not in path.read_text("utf-8")
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert process.stop() == 0
    assert sum(key in line for line in [*process.out, *process.err]) == 1

    again = start(MODULE, *flags[1:])
    api = at(url_of(again))
    assert not [line for line in again.out if "API key" in line]
    assert api.get(f"{API}/config").status == 401, "a kept key keeps authentication on"
    assert api.get(f"{API}/config", key=key).status == 200


def test_keys_never_reach_the_log(start: Any, at: Any, tmp_path: Path, cluster: Any) -> None:
    process = start(
        MODULE, "--port=0", f"--cluster-port={cluster.admin_port}", f"--data-dir={tmp_path}",
        "--debug", "--log-format=json", "--api-key=canary-one",
        RETIRE_CLUSTER_API_KEY="canary-two",
    )  # fmt: skip
    api = at(url_of(process))
    for key in ("canary-one", "canary-wrong"):
        api.get(f"{API}/config?token=canary-query", key=key)
        api.get(f"{API}/tasks/canary%0d%0aforged", key=key)
        api.post(f"{API}/tasks", {"task_type": "echo", "payload": {"canary-body": 1}}, key=key)
    process.stop()
    text = "\n".join(process.err)
    assert "api.requests" in text
    for secret in ("one", "two", "wrong", "query", "body"):
        assert f"canary-{secret}" not in text
    assert not [line for line in process.err if line.startswith("forged")]


def test_listening_for_others_without_authentication_warns(
    start: Any, tmp_path: Path, until: Any
) -> None:
    process = start(MODULE, "--host=0.0.0.0", "--port=0", f"--data-dir={tmp_path}")
    url_of(process)
    until(lambda: [line for line in process.err if "without authentication" in line])


def test_several_keys_open_and_each_has_its_own_limit(start_api: Any) -> None:
    mark = str(time.monotonic_ns())
    api = start_api("--api-key", f"a{mark}", "--api-key", f"b{mark}")
    for _ in range(2):
        for name in "ab":
            reply = api.get(f"{API}/config", key=name + mark)
            assert reply.status == 200
    assert reply.headers["X-RateLimit-Remaining"] == "58"


def test_auth_reads_closes_everything_but_health(start_api: Any) -> None:
    api = start_api("--auth-reads", "--api-key", "k", "--no-rate-limit")
    assert api.get("/health").status == 200
    for path in ("/metrics", f"{API}/devices", API, "/", f"{API}/openapi.json", f"{API}/docs"):
        assert api.get(path).status == 401, path
        assert api.get(path, key="k").status == 200, path


def test_cors_flags(start_api: Any) -> None:
    api = start_api("--cors-origin", "https://panel.example", "--no-rate-limit")
    headers = {"Origin": "https://panel.example"}
    reply = api.get(f"{API}/devices", headers=headers)
    assert reply.headers["Access-Control-Allow-Origin"] == "https://panel.example"
    none = start_api("--no-cors", "--no-rate-limit").get(f"{API}/devices", headers=headers)
    assert not [name for name in none.headers if name.lower().startswith("access-control")]


def test_the_log_is_text_or_json_as_told(start_api: Any, until: Any) -> None:
    api = start_api("--log-format", "text", "--no-rate-limit")
    api.get("/health")
    line = until(lambda: [line for line in api.process.err if "Request processed" in line])[0]
    assert "api.requests" in line
    assert not line.startswith("{")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM to handle")
def test_sigterm_lets_running_requests_finish(
    start: Any, at: Any, tmp_path: Path, cluster: Any
) -> None:
    process = start(
        MODULE, "--port=0", f"--cluster-port={cluster.admin_port}", f"--data-dir={tmp_path}",
        "--no-rate-limit",
    )  # fmt: skip
    url = url_of(process)
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=15) as polling:
        polling.sendall(
            b"GET /api/v1/events?wait=30&type=none.such HTTP/1.1\r\nHost: localhost\r\n"
            b"Connection: close\r\n\r\n"
        )
        time.sleep(0.3)
        started = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        assert polling.recv(65536).startswith(b"HTTP/1.1 200")
    assert process.popen.wait(10) == 0
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_without_a_main_node_it_says_how_to_start_one_and_finds_it_later(
    start: Any, at: Any, tmp_path: Path, free_port: int, until: Any
) -> None:
    process = start(
        MODULE, "--port=0", f"--cluster-port={free_port}", f"--data-dir={tmp_path / 'api'}"
    )
    api = at(url_of(process))
    for path in ("/cluster/status", "/tasks", "/devices"):
        started = time.monotonic()
        reply = api.get(API + path)
        assert (reply.status, reply.code) == (503, "CLUSTER_UNAVAILABLE")
        assert int(reply.headers["Retry-After"]) >= 1
        assert time.monotonic() - started < 2.6
    health = api.get("/health")
    assert (health.status, health.json["status"]) == (503, "unhealthy")
    assert set(health.json["components"]) == {"api", "cluster_server", "task_scheduler"}
    assert api.get(f"{API}/openapi.json").status == 200
    hint = until(lambda: [line for line in process.err if "no main node answers" in line])[0]
    assert re.search(rf"retire-cluster-main --port {free_port}\b", hint)

    broker = start(
        "retire_cluster.broker.cli", f"--port={free_port}", "--worker-port=0", "--event-port=0",
        f"--data-dir={tmp_path / 'main'}",
    )  # fmt: skip
    until(lambda: api.get("/health").status == 200)
    assert api.get(f"{API}/cluster/status").status == 200
    assert broker.stop() == 0
    until(lambda: api.get("/health").status == 503)
    started = time.monotonic()
    assert api.get(f"{API}/tasks").status == 503
    assert time.monotonic() - started < 2.6


@pytest.mark.slow
def test_a_frozen_main_node_does_not_hold_health_up(
    start: Any, at: Any, tmp_path: Path, free_port: int, until: Any
) -> None:
    if not hasattr(signal, "SIGSTOP"):
        pytest.skip("no SIGSTOP here")
    broker = start(
        "retire_cluster.broker.cli", f"--port={free_port}", "--worker-port=0", "--event-port=0",
        f"--data-dir={tmp_path / 'main'}",
    )  # fmt: skip
    process = start(
        MODULE, "--port=0", f"--cluster-port={free_port}", f"--data-dir={tmp_path / 'api'}",
        "--no-rate-limit", "--threads=2",
    )  # fmt: skip
    api = at(url_of(process))
    until(lambda: api.get("/health").status == 200)
    broker.popen.send_signal(signal.SIGSTOP)
    try:
        until(lambda: api.get("/health").status == 503)
        for _ in range(5):
            started = time.monotonic()
            assert api.get(f"{API}/tasks").status == 503
            assert time.monotonic() - started < 2.6
    finally:
        broker.popen.send_signal(signal.SIGCONT)
    until(lambda: api.get("/health").status == 200)
    assert api.get(f"{API}/tasks").status == 200
