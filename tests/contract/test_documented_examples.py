"""One test an example of the REST document: what it shows is what happens, types included."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import uuid
from typing import Any

import pytest
import requests

from tests.contract.kit import API, UPTIME, UTC, enveloped, shape

# --- basic usage and the health check ------------------------------------------------------------


def test_the_basic_curl_lines_work(api: Any) -> None:
    lines = (
        f"curl -s {api.url}/health",
        f"curl -s {api.url}{API}/cluster/status",
        f"curl -s {api.url}{API}/devices",
        f"curl -s -X POST {api.url}{API}/tasks -H 'Content-Type: application/json'"
        """ -d '{"task_type": "echo", "payload": {"message": "Hello World"}}'""",
    )
    for line in lines:
        try:
            done = subprocess.run(shlex.split(line), capture_output=True, check=False, text=True)
        except FileNotFoundError:
            pytest.skip("curl is not installed")
        assert '"status":"' in done.stdout, line
        assert "error" not in done.stdout.partition("{")[0], line


def test_the_health_check_answers_exactly_as_documented(api: Any) -> None:
    reply = api.get("/health")
    assert reply.status == 200
    document = reply.json
    assert set(document) == {"status", "timestamp", "components"}
    assert document["status"] == "healthy"
    assert UTC.fullmatch(document["timestamp"])
    assert document["components"] == {
        "api": "healthy",
        "cluster_server": "healthy",
        "task_scheduler": "healthy",
    }
    assert set(api.get("/api/health").json) == set(document)


# --- cluster -------------------------------------------------------------------------------------


def test_cluster_status_has_the_documented_fields(api: Any) -> None:
    data = enveloped(api.get(f"{API}/cluster/status"))["data"]
    shape(
        {
            "cluster_stats": {
                "total_devices": 5, "online_devices": 4, "offline_devices": 1,
                "health_percentage": 80.0,
                "total_resources": {"cpu_cores": 32, "memory_gb": 128, "storage_gb": 2000},
                "by_role": {}, "by_platform": {},
            },
            "server_info": {"version": "1", "uptime": "2d 4h 30m", "host": "h", "port": 8080},
        },
        data,
    )  # fmt: skip
    stats = data["cluster_stats"]
    assert stats["total_devices"] == stats["online_devices"] + stats["offline_devices"] == 1
    assert stats["health_percentage"] == 100.0
    assert stats["total_resources"]["cpu_cores"] >= 1
    assert sum(stats["by_role"].values()) == sum(stats["by_platform"].values()) == 1
    assert UPTIME.fullmatch(data["server_info"]["uptime"])


def test_the_main_nodes_admin_port_is_what_server_info_reports(api: Any, cluster: Any) -> None:
    assert api.get(f"{API}/cluster/status").data["server_info"]["port"] == cluster.admin_port


@pytest.mark.parametrize("path", ["/cluster/metrics", "/cluster/config"])
def test_metrics_and_configuration_of_the_cluster_are_answered(api: Any, path: str) -> None:
    assert enveloped(api.get(API + path))["data"]


# --- devices -------------------------------------------------------------------------------------


def test_the_documented_device_query_works(api: Any) -> None:
    path = f"{API}/devices?page=1&page_size=20&status=online&role=compute"
    assert enveloped(api.get(path))["pagination"]["page_size"] == 20


def test_a_device_has_the_documented_fields(api: Any, cluster: Any) -> None:
    document = enveloped(api.get(f"{API}/devices"))
    shape(
        [
            {
                "device_id": "laptop-001", "role": "compute", "platform": "linux",
                "status": "online", "ip_address": "192.168.1.101", "last_heartbeat": "t",
                "uptime": "2h 30m",
                "capabilities": {
                    "cpu_count": 8, "memory_total_gb": 16, "storage_total_gb": 500,
                    "has_gpu": True,
                },
                "tags": ["development"],
            }
        ],
        document["data"],
    )  # fmt: skip
    (device,) = document["data"]
    assert device["device_id"] == cluster.device_id
    assert UTC.fullmatch(device["last_heartbeat"])
    assert document["pagination"] == {
        "page": 1, "page_size": 20, "total_items": 1, "total_pages": 1, "has_next": False,
        "has_previous": False, **{k: v for k, v in document["pagination"].items()
                                  if k == "next_cursor"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "query", ["status=all", "status=offline", "role=worker", "platform=linux", "tags=a&tags=b"]
)
def test_every_documented_device_filter_is_taken(api: Any, query: str) -> None:
    assert isinstance(enveloped(api.get(f"{API}/devices?{query}"))["data"], list)


def test_details_status_ping_and_summary_of_devices(api: Any, cluster: Any) -> None:
    path = f"{API}/devices/{cluster.device_id}"
    assert enveloped(api.get(path))["data"]["device_id"] == cluster.device_id
    assert enveloped(api.get(f"{path}/status"))["data"]["is_online"] is True
    ping = enveloped(api.post(f"{path}/ping"))["data"]
    assert ping["ping_successful"] is True
    assert ping["response_time_ms"] > 0
    assert enveloped(api.get(f"{API}/devices/summary"))["data"]["total_devices"] == 1


# --- configuration -------------------------------------------------------------------------------


def test_the_documented_configuration_changes_work(api: Any) -> None:
    try:
        for section, values in (
            ("server", {"max_connections": 100}),
            ("heartbeat", {"interval": 60, "timeout": 300, "max_missed": 3}),
        ):
            path = f"{API}/config/{section}"
            updated = enveloped(api.ask("PUT", path, json=values))["data"]
            assert sorted(updated["updated_fields"]) == sorted(values)
            found = enveloped(api.get(path))["data"]
            assert {name: found[name] for name in values} == values
        assert api.get(f"{API}/config").data["heartbeat"]["interval"] == 60
    finally:
        reset = enveloped(api.post(f"{API}/config/reset"))["data"]
    assert reset["current_config"]["heartbeat"]["interval"] == 5
    assert api.get(f"{API}/config/heartbeat").data["interval"] == 5


# --- errors, limits, keys ------------------------------------------------------------------------


def test_an_error_has_the_documented_format(api: Any) -> None:
    reply = api.post(f"{API}/tasks", {"task_type": "echo"})
    assert reply.status == 400
    document = reply.json
    shape(
        {
            "status": "error", "message": "m", "error_code": "c",
            "error_details": {"field": "f", "reason": "r"}, "timestamp": "t", "request_id": "u",
        },
        document,
    )  # fmt: skip
    assert document["error_code"] == "VALIDATION_ERROR"
    assert document["error_details"]["field"] == "payload"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"{API}/nope", "NOT_FOUND"),
        (f"{API}/devices/nope", "DEVICE_NOT_FOUND"),
        (f"{API}/tasks/550e8400-e29b-41d4-a716-446655440000", "TASK_NOT_FOUND"),
        (f"{API}/tasks/550e8400-e29b-41d4-a716-446655440000/result", "TASK_NOT_FOUND"),
    ],
)
def test_the_documented_not_found_codes(api: Any, path: str, code: str) -> None:
    reply = api.get(path)
    assert (reply.status, reply.code) == (404, code)


def test_the_documented_key_headers_open_the_configuration(start_api: Any) -> None:
    api = start_api("--auth", "--api-key", "your-secret-key", "--no-rate-limit")
    refused = api.get(f"{API}/cluster/config")
    assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
    for headers in (
        {"X-API-Key": "your-secret-key"},
        {"Authorization": "Bearer your-secret-key"},
    ):
        assert api.get(f"{API}/cluster/config", headers=headers).status == 200


def test_the_documented_rate_limit_headers_count_down_and_end_in_429(start_api: Any) -> None:
    # Requests are counted for all facades together: this one speaks for a client of its own.
    api = start_api("--api-key", uuid.uuid4().hex, "--trusted-proxy", "127.0.0.1")
    client = {"X-Forwarded-For": "192.0.2.77"}
    remaining = []
    for _ in range(70):
        reply = api.get(f"{API}/cluster/status", headers=client)
        assert reply.status == 200, reply.text
        remaining.append(int(reply.headers["X-RateLimit-Remaining"]))
        assert int(reply.headers["X-RateLimit-Reset"]) > 1640995200
    assert remaining == [*range(59, -1, -1), *[0] * 10]
    over = api.get(f"{API}/cluster/status", headers=client)
    assert (over.status, over.code) == (429, "RATE_LIMIT_EXCEEDED")
    assert 1 <= int(over.headers["Retry-After"]) <= 60
    assert api.get("/health").status == 200


# --- the SDK snippet, gunicorn, environment ------------------------------------------------------

SNIPPET = """
import requests

class RetireClusterAPI:
    def __init__(self, base_url, api_key=None):
        self.base_url = base_url
        self.headers = {'Content-Type': 'application/json'}
        if api_key:
            self.headers['X-API-Key'] = api_key

    def get_cluster_status(self):
        response = requests.get(
            f"{self.base_url}/cluster/status",
            headers=self.headers
        )
        return response.json()

    def submit_task(self, task_type, payload, **kwargs):
        data = {
            'task_type': task_type,
            'payload': payload,
            **kwargs
        }
        response = requests.post(
            f"{self.base_url}/tasks",
            json=data,
            headers=self.headers
        )
        return response.json()
"""


def test_the_python_snippet_works_as_printed(api: Any) -> None:
    space: dict[str, Any] = {}
    exec(SNIPPET, space)
    client = space["RetireClusterAPI"](f"{api.url}{API}")
    assert client.get_cluster_status()["data"]["cluster_stats"]["total_devices"] == 1
    task = client.submit_task("echo", {"message": "Hello"})
    assert task["data"]["task"]["status"] == "queued"


def test_the_documented_environment_variables_are_read(start_api: Any, cluster: Any) -> None:
    api = start_api(
        "--no-rate-limit",
        RETIRE_CLUSTER_API_HOST="127.0.0.1",
        RETIRE_CLUSTER_API_KEY="from-environment",
        RETIRE_CLUSTER_CLUSTER_HOST="localhost",
        RETIRE_CLUSTER_CLUSTER_PORT="1",  # the flag wins
    )
    assert api.get(f"{API}/config").status == 401
    assert api.get(f"{API}/config", key="from-environment").status == 200


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs fork")
def test_gunicorn_serves_the_documented_application(
    cluster: Any, tmp_path: Any, free_port: int, until: Any
) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RETIRE_CLUSTER_")}
    # What tests start listens on this machine only.
    environ["RETIRE_CLUSTER_SERVER_WORKER_HOST"] = "127.0.0.1"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "-w", "4", "-b", f"127.0.0.1:{free_port}"),
            "retire_cluster.api.wsgi:app",
        ],
        env={
            **environ,
            "RETIRE_CLUSTER_CLUSTER_PORT": str(cluster.admin_port),
            "RETIRE_CLUSTER_DATA_DIR": str(tmp_path),
            "RETIRE_CLUSTER_API_KEY": f"gunicorn-{free_port}",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{free_port}"

        def healthy() -> bool:
            try:
                return requests.get(f"{url}/health", timeout=5).status_code == 200
            except requests.ConnectionError:
                assert process.poll() is None
                return False

        until(healthy)
        headers = {"X-API-Key": f"gunicorn-{free_port}"}
        answers = [
            requests.get(f"{url}{API}/tasks", headers=headers, timeout=10) for _ in range(72)
        ]
        assert [answer.status_code for answer in answers] == [200] * 70 + [429] * 2
        remaining = [int(answer.headers["X-RateLimit-Remaining"]) for answer in answers[:60]]
        assert remaining == list(range(59, -1, -1)), "four processes share one count"
        stream = requests.get(
            f"{url}/ws", headers={"Upgrade": "websocket", "Connection": "Upgrade"}, timeout=10
        )
        assert stream.status_code == 503
        assert "/api/v1/events" in stream.json()["message"]
    finally:
        process.terminate()
        process.wait(20)


# --- metrics and log -----------------------------------------------------------------------------


def test_the_documented_metrics_are_exported(api: Any) -> None:
    reply = api.get("/metrics")
    for line in (
        "# HELP retire_cluster_devices_total Total number of registered devices",
        "# TYPE retire_cluster_devices_total gauge",
        "# HELP retire_cluster_tasks_total Total number of tasks",
        "# TYPE retire_cluster_tasks_total counter",
    ):
        assert line in reply.text.splitlines()
    assert re.search(r'^retire_cluster_devices_total\{status="online"\} 1(\.0)?$', reply.text, re.M)
    assert re.search(r'^retire_cluster_tasks_total\{status="success"\} [1-9]', reply.text, re.M)


def test_a_request_is_logged_in_the_documented_format(start_api: Any, until: Any) -> None:
    api = start_api("--log-format", "json", "--no-rate-limit")
    request_id = str(uuid.uuid4())
    api.get(f"{API}/cluster/status", headers={"X-Request-ID": request_id})

    def line() -> Any:
        return next((text for text in api.process.err if request_id in text), None)

    document = json.loads(until(line))
    shape(
        {
            "timestamp": "t", "level": "INFO", "logger": "api.requests", "message": "m",
            "request_id": "u", "method": "GET", "path": "/api/v1/cluster/status",
            "status_code": 200, "duration_ms": 45.2,
        },
        document,
    )  # fmt: skip
    assert UTC.fullmatch(document["timestamp"])
    assert document["logger"] == "api.requests"
    assert document["message"] == "Request processed"
    assert document["path"] == "/api/v1/cluster/status"
    assert document["status_code"] == 200
