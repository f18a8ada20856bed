"""The REST document works literally: every block of it is run, sent or compared.

The document lies beside the checkout (`../shared/spec/rest-api.md`) where the project is developed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Message, Request

from retire_cluster.api.cli import parser as api_parser
from tests.acceptance import documents
from tests.acceptance.documents import Block, blocks, has_shape
from tests.acceptance.kit import Cluster, Process, Rest
from tests.command_kit import API, Answer, until
from tests.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="the document's commands are for a POSIX shell"),
]

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT.parent / "shared" / "spec" / "rest-api.md"
BLOCKS = blocks(DOCUMENT) if DOCUMENT.exists() else []
if not BLOCKS:
    pytestmark.append(pytest.mark.skip(reason="the REST document is not beside this checkout"))

KEY = "your-secret-key"
#: How a block of the document begins → the test below that runs it, or why none does.
TREATED = {
    "pip install retire-cluster[api]": "installs from an index; see test_packaging.py",
    "# Start with default settings": "test_the_commands_that_start_the_api",
    "# Check API health": "test_the_basic_usage",
    "http://localhost:8081/api/v1": "test_the_base_address",
    "# Include API key in header": "test_a_key_in_either_header",
    '{\n  "status": "success|error"': "test_every_answer_has_the_format_of_answers",
    '{\n  "status": "error"': "test_an_error_has_the_format_of_errors",
    "X-RateLimit-Remaining": "test_the_headers_of_the_rate_limit",
    "const ws": "test_the_websocket",
    "import requests": "test_the_python_sdk",
    "class RetireClusterAPI {": "test_the_javascript_sdk",
    "pip install gunicorn": "test_gunicorn",
    "FROM python:3.11-slim": "test_the_command_of_the_dockerfile; Docker itself is not run",
    "export RETIRE_CLUSTER_API_HOST": "test_the_environment_variables",
    "# HELP retire_cluster_devices_total": "test_the_metrics",
    '{\n  "timestamp"': "test_the_format_of_the_log",
    "retire-cluster-api --debug": "test_debug_mode",
}


def block(beginning: str) -> Block:
    """The one block that begins so."""
    (found,) = [b for b in BLOCKS if b.text.startswith(beginning)]
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without limits, with the document's device."""
    found = Cluster(tmp_path_factory.mktemp("rest"), "--no-rate-limit")
    try:
        tags = ("--tag", "development", "--tag", "gpu-capable")
        found.join("laptop-001", "--role", "compute", *tags)
        yield found
    finally:
        assert found.close() == 0


class Facade:
    """One more facade of the cluster, started by a line of shell."""

    def __init__(self, cluster: Cluster, folder: Path, line: str, **environ: str) -> None:
        environ = {
            "PATH": documents.command_environment()["PATH"],
            "RETIRE_CLUSTER_CLUSTER_PORT": str(cluster.admin_port),
            "RETIRE_CLUSTER_API_RATE_LIMIT": "false",
            "RETIRE_CLUSTER_DATA_DIR": str(folder / "data"),
            **environ,
        }
        self.process = Process(folder / "log", line, command=["bash", "-c"], environ=environ)

    def serving(self) -> Rest:
        """It, once it says where it listens."""
        return Rest(self.process.line(r"retire-cluster-api on (http://\S+)")[1])

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log that are JSON."""
        found = []
        for line in self.process.log.read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found


@contextlib.contextmanager
def facade(cluster: Cluster, folder: Path, line: str, **environ: str) -> Iterator[Facade]:
    """A facade that is ended, by SIGTERM to it alone, in the end."""
    found = Facade(cluster, folder, f"exec {line}", **environ)
    try:
        yield found
    finally:
        code = found.process.stop()
    assert code == 0


# --- the list of blocks ---------------------------------------------------------------------------


def http_exchanges() -> list[tuple[Block, Block | None, Block | None]]:
    """Each request of the document with its body and its answer, where it shows them."""
    found: list[tuple[Block, Block | None, Block | None]] = []
    for one in BLOCKS:
        if one.language == "http":
            found.append((one, None, None))
        elif one.language == "json" and not one.text.startswith(tuple(TREATED)):
            request, body, answer = found[-1]
            if one.lead == "**Response:**":
                assert answer is None
                found[-1] = (request, body, one)
            else:
                assert body is None
                assert answer is None
                found[-1] = (request, one, answer)
    return found


EXCHANGES = http_exchanges()


def test_every_block_of_the_document_is_treated() -> None:
    exchanged = [b for exchange in EXCHANGES for b in exchange if b is not None]
    left = [b for b in BLOCKS if b not in exchanged and not b.text.startswith(tuple(TREATED))]
    assert [b.name for b in left] == []
    for beginning, how in TREATED.items():
        assert block(beginning)
        name = how.partition(";")[0]
        assert not name.startswith("test_") or callable(globals()[name])


# --- requests and answers -------------------------------------------------------------------------


def sent(rest: Rest, request: Block, body: Block | None, **ids: str) -> Answer:
    """Send a request as it is printed."""
    first, *rest_of_it = request.text.strip().splitlines()
    method, path = first.split()
    headers = dict(line.split(": ", 1) for line in rest_of_it)
    for name, value in ids.items():
        path = path.replace(f"{{{name}}}", value)
    assert "{" not in path
    return rest.ask(method, path, body.text.encode() if body else None, headers)


def envelope_example() -> Any:
    """What every answer has beside `data`."""
    example = json.loads(block('{\n  "status": "success|error"').text)
    assert example.pop("data") == {}
    return example


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda e: e[0].text.splitlines()[0])
def test_a_request_of_the_document_is_answered_as_it_shows(
    cluster: Cluster, exchange: tuple[Block, Block | None, Block | None]
) -> None:
    request, body, answer = exchange
    rest = cluster.rest
    device_id = "laptop-001"
    if request.text.startswith("DELETE"):
        device_id = "laptop-002"
        cluster.join(device_id)
    task_id = ""
    if "{task_id}/cancel" in request.text or "?status=running" in request.text:
        task_id = rest.submit("sleep", {"duration": 600})
        rest.await_status(task_id, "running")
    elif "{task_id}/retry" in request.text:
        task_id = rest.submit("python_eval", {"expression": "1 / 0"})
        rest.await_status(task_id, "failed")
    elif "{task_id}" in request.text:
        task_id = rest.submit("echo", {"message": "Hello World"})
        rest.await_status(task_id, "success")
    found = sent(rest, request, body, device_id=device_id, task_id=task_id)
    assert found.status == (201 if request.text.startswith("POST /api/v1/tasks\n") else 200)
    if request.text.startswith("GET /health"):
        assert set(found.json) == set(json.loads(answer.text)) if answer else False
    else:
        assert found.json["status"] == "success"
        has_shape(envelope_example(), found.json)
    if answer is not None:
        has_shape(json.loads(answer.text), found.json)
    if task_id and not rest.status(task_id)["is_terminal"]:
        rest.post(f"/tasks/{task_id}/cancel")


def test_the_task_of_the_document_runs_with_its_requirements_and_metadata(rest: Rest) -> None:
    (body,) = [b for r, b, _ in EXCHANGES if r.text.startswith("POST /api/v1/tasks\n")]
    assert body
    shown = json.loads(body.text)
    task_id = rest.ask("POST", f"{API}/tasks", shown).data["task_id"]
    details = rest.get(f"/tasks/{task_id}")
    assert (details["payload"], details["metadata"]) == (shown["payload"], shown["metadata"])
    assert {**details["requirements"], **shown["requirements"]} == details["requirements"]
    laptop = rest.get("/devices/laptop-001")
    has = laptop["capabilities"]
    if has["cpu_count"] >= 2 and has["memory_total_gb"] >= 4 and laptop["platform"] == "linux":
        assert rest.result(task_id)["result_data"] == {"echo": shown["payload"]}


def test_the_devices_of_the_document_are_filtered(rest: Rest) -> None:
    found = rest.get("/devices?page=1&page_size=20&status=online&role=compute")
    assert [device["device_id"] for device in found] == ["laptop-001"]
    assert {"development", "gpu-capable"} <= set(found[0]["tags"])
    assert rest.get("/devices?tags=development,gpu-capable") == rest.get(
        "/devices?tags=development&tags=gpu-capable"
    )


def test_every_answer_has_the_format_of_answers(rest: Rest) -> None:
    for path in ("/cluster/status", "/tasks/statistics", "/config", ""):
        answer = rest.ask("GET", API + path)
        has_shape(envelope_example(), answer.json)
        assert isinstance(answer.json["data"], dict)
        assert answer.headers["x-request-id"] == str(uuid.UUID(answer.json["request_id"]))


def test_an_error_has_the_format_of_errors(rest: Rest) -> None:
    example = json.loads(block('{\n  "status": "error"').text)
    answer = rest.ask("POST", f"{API}/tasks", {"task_type": "echo"})
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")
    has_shape(example, answer.json)
    assert set(answer.json) == set(example)
    assert answer.json["error_details"]["field"] == "payload"


def test_the_error_codes_of_the_document_are_met(rest: Rest) -> None:
    for path, code in (
        ("/nothing", "NOT_FOUND"),
        ("/devices/nobody", "DEVICE_NOT_FOUND"),
        ("/tasks/550e8400-e29b-41d4-a716-446655440000", "TASK_NOT_FOUND"),
    ):
        answer = rest.ask("GET", API + path)
        assert (answer.status, answer.code) == (404, code)


def test_the_base_address(rest: Rest) -> None:
    address = block("http://localhost:8081/api/v1").at(rest.port).strip()
    with urllib.request.urlopen(address, timeout=10) as answer:
        data = json.load(answer)["data"]
    assert {"api_version", "server_info", "features", "endpoints"} <= set(data)


# --- commands -------------------------------------------------------------------------------------


def test_the_basic_usage(rest: Rest) -> None:
    printed = documents.bash(block("# Check API health").at(rest.port)).splitlines()
    health, *others = [json.loads(line) for line in printed]
    assert health["status"] == "healthy"
    assert [answer["status"] for answer in others] == ["success"] * 3
    assert rest.result(others[-1]["data"]["task_id"])["status"] == "success"


@pytest.mark.parametrize("number", range(3))
def test_the_commands_that_start_the_api(cluster: Cluster, tmp_path: Path, number: int) -> None:
    lines = block("# Start with default settings").text.splitlines()
    line = [line for line in lines if line.startswith("retire-cluster-api")][number]
    port = str(free_port())
    line = line.replace("--port 8081", f"--port {port}").replace("0.0.0.0", "127.0.0.1")
    line = line.replace("192.168.1.100", "127.0.0.1").replace("8080", str(cluster.admin_port))
    environ = {} if "--port" in line.split() else {"RETIRE_CLUSTER_API_PORT": port}
    with facade(cluster, tmp_path, line, **environ) as found:
        rest = found.serving()
        assert rest.url == f"http://127.0.0.1:{port}"
        assert rest.get("/cluster/status")["cluster_stats"]["online_devices"] >= 2
        asks = rest.ask("GET", f"{API}/config").status
        assert asks == (401 if "--auth" in line else 200)


def test_a_key_in_either_header(cluster: Cluster, tmp_path: Path) -> None:
    with facade(cluster, tmp_path, f"retire-cluster-api --port 0 --auth --api-key {KEY}") as found:
        rest = found.serving()
        printed = documents.bash(block("# Include API key in header").at(rest.port))
        answers = [json.loads(line) for line in printed.splitlines()]
        assert len(answers) == 2
        for answer in answers:
            assert {"server", "heartbeat", "features"} <= set(answer["data"])
            assert answer["data"]["features"]["auth_required"] is True
        refused = rest.ask("GET", f"{API}/cluster/config")
        assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
        assert KEY not in found.process.log.read_text()


def test_the_environment_variables(cluster: Cluster, tmp_path: Path) -> None:
    port = free_port()
    exports = block("export RETIRE_CLUSTER_API_HOST").text
    exports = exports.replace("0.0.0.0", "127.0.0.1").replace("8081", str(port))
    exports = exports.replace("8080", str(cluster.admin_port))
    found = Facade(cluster, tmp_path, f"{exports}\nexec retire-cluster-api")
    try:
        rest = found.serving()
        assert rest.port == port
        assert rest.ask("GET", f"{API}/config").status == 401
        assert rest.ask("GET", f"{API}/config", headers={"X-API-Key": KEY}).status == 200
    finally:
        assert found.process.stop() == 0


def test_gunicorn(cluster: Cluster, tmp_path: Path) -> None:
    if shutil.which("gunicorn", path=documents.command_environment()["PATH"]) is None:
        pytest.skip("gunicorn is not installed")
    line = block("pip install gunicorn").text.splitlines()[1]
    assert line == "gunicorn -w 4 -b 0.0.0.0:8081 retire_cluster.api.wsgi:app"
    port = free_port()
    with facade(cluster, tmp_path, line.replace("0.0.0.0:8081", f"127.0.0.1:{port}")):
        rest = Rest(f"http://127.0.0.1:{port}")
        until(rest.healthy, "gunicorn")
        task_id = rest.submit("echo", {"message": "by gunicorn"})
        assert rest.result(task_id)["status"] == "success"
        assert rest.ask("GET", "/metrics").status == 200
        assert rest.get("/events?since=0&wait=0")["events"]


def test_the_command_of_the_dockerfile() -> None:
    command = re.search(r"^CMD (.+)$", block("FROM python:3.11-slim").text, re.MULTILINE)
    assert command
    program, *words = json.loads(command[1])
    assert program == "retire-cluster-api"
    args = api_parser().parse_args(words)
    assert (args.host, args.port) == ("0.0.0.0", 8081)


def test_debug_mode(cluster: Cluster, tmp_path: Path) -> None:
    line = block("retire-cluster-api --debug").text.strip()
    with facade(cluster, tmp_path, line, RETIRE_CLUSTER_API_PORT="0") as found:
        rest = found.serving()
        broken = rest.ask("POST", f"{API}/tasks", b"{", {"Content-Type": "application/json"})
        assert broken.code == "VALIDATION_ERROR"
        assert b"Traceback" not in broken.body
        refused = until(
            lambda: [x for x in found.log() if x["level"] == "DEBUG" and "error_code" in x],
            "a detailed log",
        )
        assert refused[0]["error_code"] == "VALIDATION_ERROR"
        assert refused[0]["request_id"] == broken.json["request_id"]


# --- clients --------------------------------------------------------------------------------------


def test_the_python_sdk(rest: Rest) -> None:
    pytest.importorskip("requests")
    script = block("import requests").at(rest.port)
    printed = documents.python(f"{script}\nimport json\nprint(json.dumps([status, task]))")
    status, task = json.loads(printed)
    assert status["data"]["cluster_stats"]["online_devices"] >= 2
    assert rest.result(task["data"]["task_id"])["result_data"] == {"echo": {"message": "Hello"}}


def test_the_javascript_sdk(rest: Rest, tmp_path: Path) -> None:
    script = block("class RetireClusterAPI {").at(rest.port)
    more = "\nconsole.log(JSON.stringify([status, task]));"
    status, task = json.loads(documents.javascript(script + more, tmp_path))
    assert status["data"]["cluster_stats"]["online_devices"] >= 2
    assert rest.result(task["data"]["task_id"])["result_data"] == {"echo": {"message": "Hello"}}


def _node_with_websocket() -> list[str] | None:
    """A command for a Node that has `WebSocket` (22 as it is, 20 by a flag)."""
    for command in (["node"], ["node", "--experimental-websocket", "--no-warnings"]):
        with contextlib.suppress(OSError):
            done = subprocess.run(
                [*command, "-e", "process.exit(typeof WebSocket === 'function' ? 0 : 1)"],
                capture_output=True,
            )
            if done.returncode == 0:
                return command
    return None


def test_the_websocket(rest: Rest, tmp_path: Path) -> None:
    command = _node_with_websocket()
    if command is None:
        pytest.skip("this node has no WebSocket; the next test asks the same address without it")
    script = block("const ws").at(rest.port)
    opened = "\nws.onopen = () => console.log('open');\nws.onerror = () => process.exit(1);"
    (tmp_path / "ws.mjs").write_text(script + opened)
    watching = Process(tmp_path / "log", str(tmp_path / "ws.mjs"), command=command)
    try:
        watching.line("open")
        rest.submit("echo", {})
        watching.line("Cluster update: .*")
    finally:
        watching.kill()


def test_the_address_of_the_websocket_sends_events_to_any_client(rest: Rest) -> None:
    address = re.search(r"'ws://([\w.]+):\d+(/\w+)'", block("const ws").at(rest.port))
    assert address
    websocket = WSConnection(ConnectionType.CLIENT)
    with socket.create_connection((address[1], rest.port), timeout=15) as connection:
        connection.sendall(websocket.send(Request(host=address[1], target=address[2])))
        updates: list[Any] = []
        task_id = ""
        while not any(u.get("type") == "task.success" for u in updates):
            received = connection.recv(65536)
            assert received, updates
            websocket.receive_data(received)
            for event in websocket.events():
                if isinstance(event, AcceptConnection):
                    task_id = rest.submit("echo", {})
                elif isinstance(event, Message):
                    update = json.loads(event.data)
                    updates += update if isinstance(update, list) else [update]
        assert [u["task_id"] for u in updates if u.get("type") == "task.success"] == [task_id]


# --- limits, metrics, log -------------------------------------------------------------------------


def test_the_headers_of_the_rate_limit(cluster: Cluster, tmp_path: Path) -> None:
    shown = dict(x.split(": ") for x in block("X-RateLimit-Remaining").text.splitlines())
    line = f"retire-cluster-api --port 0 --api-key {KEY}-of-limits"
    environ = {"RETIRE_CLUSTER_API_RATE_LIMIT": "true"}
    with facade(cluster, tmp_path, line, **environ) as found:
        rest = found.serving()
        headers = {"X-API-Key": f"{KEY}-of-limits"}
        answer = rest.ask("GET", f"{API}/devices", headers=headers)
    assert {name.lower() for name in shown} <= set(answer.headers)
    assert answer.headers["x-ratelimit-remaining"] == shown["X-RateLimit-Remaining"] == "59"
    assert len(answer.headers["x-ratelimit-reset"]) == len(shown["X-RateLimit-Reset"])
    assert answer.headers["x-ratelimit-limit"] == "60"


def test_the_metrics(rest: Rest) -> None:
    rest.result(rest.submit("echo", {}))
    metrics = rest.ask("GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    served = metrics.body.decode()
    for line in block("# HELP retire_cluster_devices_total").text.splitlines():
        if line.startswith("#"):
            assert line in served.splitlines()
        elif line:
            sample = line.rpartition(" ")[0]
            values = re.findall(rf"^{re.escape(sample)} (\S+)$", served, re.MULTILINE)
            assert len(values) == 1, line
            assert float(values[0]) >= 1
    assert "_created" not in served


def test_the_format_of_the_log(cluster: Cluster, tmp_path: Path) -> None:
    shown = json.loads(block('{\n  "timestamp"').text)
    with facade(cluster, tmp_path, "retire-cluster-api --port 0") as found:
        answer = found.serving().ask(shown["method"], shown["path"])
        line = until(
            lambda: next((x for x in found.log() if x.get("path") == shown["path"]), None),
            "the line of the log",
        )
    has_shape(shown, line)
    assert list(line) == list(shown)
    same = ("level", "logger", "message", "method", "path", "status_code")
    assert {name: line[name] for name in same} == {name: shown[name] for name in same}
    assert line["request_id"] == answer.json["request_id"]


def test_the_words_of_the_shell_blocks_are_our_commands() -> None:
    for one in BLOCKS:
        if one.language == "bash":
            for line in one.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                assert not words or words[0] in {
                    "pip", "curl", "gunicorn", "export", "retire-cluster-api",
                }  # fmt: skip
