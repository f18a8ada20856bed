"""The application over a main node in memory: envelopes, headers, access, limits, bad input."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from falcon import testing
from hypothesis import given, settings
from hypothesis import strategies as st

from retire_cluster.api.admission.keys import KeyRing, key_of
from retire_cluster.api.app import Facade, create_app
from retire_cluster.api.mainnode.cluster import GuardedCluster
from retire_cluster.broker.client import Answer, NoAnswer
from retire_cluster.conf.settings import Api, Settings
from retire_cluster.schemas.errors import BY_CODE, ClusterUnavailable, InternalError, TaskNotFound
from retire_cluster.schemas.rest.operations import OPERATIONS

TASK_ID = "550e8400-e29b-41d4-a716-446655440000"
API = "/api/v1"
ECHO = {"task_type": "echo", "payload": {"message": "Hello World"}}
PAGES = {"page": 1, "page_size": 20, "total_items": 0, "total_pages": 0, "has_next": False,
         "has_previous": False}  # fmt: skip


class MemoryCluster:
    """A main node that answers from memory and remembers what it was asked."""

    timeout_seconds = 2.0

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], list[bytes]]] = []
        self.answers: dict[str, Any] = {
            "health": {"components": {"cluster_server": "healthy", "task_scheduler": "healthy"}},
            "cluster.status": {"server_info": {"version": "1", "uptime": "0m", "host": "h",
                                               "port": 1}},
            "cluster.config": {"server": {}, "heartbeat": {}, "features": {}},
            "config.get": {"worker_host": ""},
            "config.reset": {"reset_at": "t", "current_config": {}},
            "token.create": {"token_id": "t", "uses": 1, "expires_at": "t", "token": "00" * 16,
                             "server_key": "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7",
                             "worker_port": 8082},
            "device.list": {"items": [], "pagination": PAGES},
            "task.list": {"items": [], "pagination": PAGES},
            "device.ping": {"ping_successful": False},
            "task.cancel_many": {"cancelled": [TASK_ID], "not_cancelled": [], "cancelled_at": "t"},
            "facade.identity": {"cluster_id": "c1", "session_secret": "00" * 32},
            "rate.hit": {"allowed": True, "limit": 60, "remaining": 59, "reset": 1640995200},
            "events.poll": {"events": [], "next": 5, "gap": False},
            "metrics": {
                "version": "1", "uptime_seconds": 1.0, "devices": {"online": 4},
                "tasks": {"success": 1250}, "backlog": {"normal": 1},
                "slots": {"used": 0, "total": 4}, "heartbeat_age_seconds": {"laptop-001": 0.5},
                "task_duration_seconds": {"bounds": [0.1, 1.0], "counts": [3, 2], "sum": 2.5,
                                          "count": 6},
                "retries": {"error": 1}, "passed_over": {"not_here": 2}, "dropped_messages": {},
                "http": {"requests": 1, "errors": 0}, "store_commits": 9, "last_event": 5,
                "events": 5, "tasks_ended": {"success": 1250, "failed": 3},
            },
        }  # fmt: skip
        self.blobs: dict[str, list[tuple[str, bytes]]] = {}

    def call_raw(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        timeout_seconds: float | None = None,
    ) -> Answer:
        self.calls.append((op, dict(args or {}), list(blobs)))
        if op == "task.submit" and op not in self.answers:
            asked = dict(args or {})
            count = len(asked.get("tasks", ())) or asked.get("count", 1)
            task = {"task_id": TASK_ID, "status": "queued"}
            data: Any = {
                "task_ids": [TASK_ID] * count, "tasks": [task] * count,
                "submitted_at": "2023-01-01T12:00:00Z", "replayed": False,
            }  # fmt: skip
        else:
            data = self.answers.get(op, {})
        if isinstance(data, Exception):
            raise data
        return Answer(json.loads(json.dumps(data)), self.blobs.get(op, []))

    def close(self) -> None:
        return

    def asked(self, op: str) -> tuple[dict[str, Any], list[bytes]]:
        return next((args, blobs) for name, args, blobs in self.calls if name == op)


class Bench:
    """An application, its main node and a client."""

    def __init__(self, *keys: str, **options: Any) -> None:
        self.cluster = MemoryCluster()
        api = Api(**{"rate_limit": False, **options})
        self.facade: Facade = create_app(
            self.cluster,
            Settings(data_dir=Path("data"), api=api),
            keys=KeyRing(map(key_of, keys)),
            clock=lambda: 1672574400.25,
        )
        self.facade.reporter.stop()
        self.client = testing.TestClient(self.facade.app)

    def ask(self, method: str, path: str, **options: Any) -> testing.Result:
        options.setdefault("remote_addr", "127.0.0.1")
        options.setdefault("host", "localhost")
        return self.client.simulate_request(method, path, **options)

    def send(self, path: str, document: Any, method: str = "POST", **options: Any) -> Any:
        raw = document if isinstance(document, bytes) else orjson.dumps(document)
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return self.ask(method, path, body=raw, headers=headers, **options)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def code_of(result: testing.Result) -> str:
    document = result.json
    assert document["status"] == "error"
    assert set(document) >= {"message", "error_code", "error_details", "timestamp", "request_id"}
    assert document["error_code"] in BY_CODE
    return str(document["error_code"])


# --- the table and the routes are one ------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda row: row.operation_id)
def test_every_operation_of_the_table_is_routed(bench: Bench, operation: Any) -> None:
    path = operation.path.replace("{task_id}", TASK_ID).replace("{device_id}", "laptop-001")
    result = bench.ask(operation.method, path, headers={"Content-Type": "application/json"})
    assert result.status_code not in (404, 405, 500), result.text


@pytest.mark.parametrize(
    "operation",
    [row for row in OPERATIONS.values() if row.method == "GET"],
    ids=lambda row: row.operation_id,
)
def test_head_works_wherever_get_does(bench: Bench, operation: Any) -> None:
    path = operation.path.replace("{task_id}", TASK_ID).replace("{device_id}", "laptop-001")
    got, head = bench.ask("GET", path), bench.ask("HEAD", path)
    assert head.status_code == got.status_code
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]


# --- envelope ------------------------------------------------------------------------------------


def test_an_answer_wears_the_envelope(bench: Bench) -> None:
    document = bench.ask("GET", f"{API}/devices").json
    assert document["status"] == "success"
    assert document["data"] == []
    assert document["pagination"] == PAGES
    assert document["timestamp"] == "2023-01-01T12:00:00.250Z"
    assert re.fullmatch(r"[0-9a-f-]{36}", document["request_id"])


def test_a_valid_request_id_is_kept_and_another_replaced(bench: Bench) -> None:
    path = f"{API}/devices"
    kept = bench.ask("GET", path, headers={"X-Request-ID": TASK_ID})
    assert kept.json["request_id"] == kept.headers["x-request-id"] == TASK_ID
    replaced = bench.ask("GET", path, headers={"X-Request-ID": "x\\r\\n"})
    assert replaced.headers["x-request-id"] == replaced.json["request_id"] != "x\\r\\n"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "NOT_FOUND"),
        ("GET", f"{API}/nope", 404, "NOT_FOUND"),
        ("PATCH", f"{API}/tasks", 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/health", 405, "METHOD_NOT_ALLOWED"),
        ("TRACE", f"{API}/tasks", 405, "METHOD_NOT_ALLOWED"),
        ("GET", f"{API}/tasks/not-a-uuid", 404, "TASK_NOT_FOUND"),
        ("GET", f"{API}/tasks/{TASK_ID}x/status", 404, "TASK_NOT_FOUND"),
        ("GET", f"{API}/devices/%ff%00", 404, "DEVICE_NOT_FOUND"),
        ("GET", f"{API}/devices/-x/status", 404, "DEVICE_NOT_FOUND"),
        ("GET", f"{API}/tasks?page=1_0", 400, "VALIDATION_ERROR"),
        ("GET", f"{API}/cluster/status?x=1", 400, "VALIDATION_ERROR"),
    ],
)
@pytest.mark.parametrize("accept", ["*/*", "text/html", "application/xml"])
def test_errors_wear_it_too_whatever_the_client_accepts(
    bench: Bench, method: str, path: str, status: int, code: str, accept: str
) -> None:
    result = bench.ask(method, path, headers={"Accept": accept})
    assert (result.status_code, code_of(result)) == (status, code)
    assert result.headers["content-type"] == "application/json"


def test_405_says_which_methods_there_are(bench: Bench) -> None:
    assert "POST" in bench.ask("DELETE", f"{API}/tasks").headers["allow"]


def test_a_trailing_slash_is_the_same_resource(bench: Bench) -> None:
    for path in (f"{API}/tasks/", f"{API}/devices/", "/health/", f"{API}/", f"{API}/events/"):
        assert bench.ask("GET", path).status_code == 200, path


def test_a_fault_of_ours_is_500_without_its_trace(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.cluster.answers["cluster.status"] = RuntimeError("secret inside")
    result = bench.ask("GET", f"{API}/cluster/status")
    assert (result.status_code, code_of(result)) == (500, "INTERNAL_ERROR")
    assert "secret inside" not in result.text
    assert any(record.exc_info for record in caplog.records)


def test_results_pass_through_unread_and_exact(bench: Bench) -> None:
    bench.cluster.answers["task.result"] = {"task_id": TASK_ID, "result_data": None}
    bench.cluster.blobs["task.result"] = [("result_data", b'{"result": 123456789012345678901234}')]
    text = bench.ask("GET", f"{API}/tasks/{TASK_ID}/result").text
    assert '"result_data":{"result": 123456789012345678901234}' in text


@pytest.mark.parametrize("blob", [b"", b"not json", b'"}, "status": "error', b"\xff", b"NaN"])
def test_a_result_that_is_no_json_cannot_break_the_envelope(bench: Bench, blob: bytes) -> None:
    bench.cluster.answers["task.result"] = {"task_id": TASK_ID, "result_data": None}
    bench.cluster.blobs["task.result"] = [("result_data", blob)]
    document = bench.ask("GET", f"{API}/tasks/{TASK_ID}/result").json
    assert document["status"] == "success"
    assert document["data"]["result_data"] is None


# --- submission ----------------------------------------------------------------------------------


def test_a_submission_reaches_the_main_node_with_its_defaults(bench: Bench) -> None:
    result = bench.send(f"{API}/tasks", ECHO)
    assert result.status_code == 201
    assert set(result.json["data"]) == {"task_id", "task", "submitted_at"}
    args, blobs = bench.cluster.asked("task.submit")
    assert blobs == [b'{"message":"Hello World"}']
    assert args["task"]["requirements"] == {"timeout_seconds": 300, "max_retries": 3}
    assert args["task"]["priority"] == "normal"


def test_a_batch_of_tasks_alike_is_said_once(bench: Bench) -> None:
    result = bench.send(f"{API}/tasks/batch", {"tasks": [ECHO, {**ECHO, "payload": {}}]})
    assert result.status_code == 201
    assert result.json["data"]["task_ids"] == [TASK_ID, TASK_ID]
    args, blobs = bench.cluster.asked("task.submit")
    assert args["count"] == 2
    assert len(blobs) == 2


@pytest.mark.parametrize(
    ("tasks", "field"),
    [
        ([], "tasks"),
        ("x", "tasks"),
        ([1], "tasks.0"),
        ([ECHO] * 1001, "tasks"),
        ([ECHO, {"task_type": "echo"}], "tasks.1.payload"),
        ([ECHO, {**ECHO, "priority": "now"}], "tasks.1.priority"),
        ([ECHO, {"task_type": "sleep", "payload": {"duration": -1}}], "tasks.1.payload.duration"),
    ],
)
def test_a_batch_is_all_or_nothing_and_names_the_offender(
    bench: Bench, tasks: Any, field: str
) -> None:
    result = bench.send(f"{API}/tasks/batch", {"tasks": tasks})
    assert (result.status_code, code_of(result)) == (400, "VALIDATION_ERROR")
    assert result.json["error_details"]["field"] == field
    assert not bench.cluster.calls


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"task_type": "A"}, "task_type"),
        ({"task_type": None}, "task_type"),
        ({"payload": None}, "payload"),
        ({"payload": []}, "payload"),
        ({"extra": 1}, "extra"),
        ({"metadata": {"a": "x" * 17_000}}, "metadata"),
        ({"requirements": {"min_cpu_cores": 0}}, "requirements.min_cpu_cores"),
        ({"requirements": {"min_cpu_cores": True}}, "requirements.min_cpu_cores"),
        ({"requirements": {"min_memory_gb": 0}}, "requirements.min_memory_gb"),
        ({"requirements": {"timeout_seconds": 86_401}}, "requirements.timeout_seconds"),
        ({"requirements": {"timeout_seconds": 1.5}}, "requirements.timeout_seconds"),
        ({"requirements": {"max_retries": 11}}, "requirements.max_retries"),
        ({"requirements": {"required_platform": "amiga"}}, "requirements.required_platform"),
        ({"requirements": {"required_tags": "gpu"}}, "requirements.required_tags"),
        ({"requirements": {"gpu_required": 1}}, "requirements.gpu_required"),
        ({"requirements": {"cores": 1}}, "requirements.cores"),
        ({"requirements": []}, "requirements"),
    ],
)
def test_a_submission_with_a_fault_names_its_field(
    bench: Bench, change: dict[str, Any], field: str
) -> None:
    result = bench.send(f"{API}/tasks", {**ECHO, **change})
    assert (result.status_code, code_of(result)) == (400, "VALIDATION_ERROR")
    assert result.json["error_details"]["field"] == field


def test_a_payload_may_nest_64_levels_and_no_more(bench: Bench) -> None:
    def nested(levels: int) -> bytes:
        inner = b'{"a":' * levels + b"1" + b"}" * levels
        return b'{"task_type":"echo","payload":' + inner + b"}"

    assert bench.send(f"{API}/tasks", nested(64)).status_code == 201
    for levels in (65, 150, 500, 5000):
        result = bench.send(f"{API}/tasks", nested(levels))
        assert code_of(result) == "VALIDATION_ERROR", levels
    assert bench.send(f"{API}/tasks", nested(65)).json["error_details"]["field"] == "payload"


def test_large_bodies_and_payloads_are_413(bench: Bench) -> None:
    large = bench.send(f"{API}/tasks", {**ECHO, "payload": {"a": "x" * 262_144}})
    assert (large.status_code, code_of(large)) == (413, "PAYLOAD_TOO_LARGE")
    huge = bench.send(f"{API}/tasks", b" " * (1024 * 1024 + 1))
    assert (huge.status_code, code_of(huge)) == (413, "PAYLOAD_TOO_LARGE")
    many = {"tasks": [{**ECHO, "payload": {"a": "x" * 2000}}] * 1000}
    assert bench.send(f"{API}/tasks/batch", many).status_code == 201


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "",
                     "application/json; charset=latin-1", "multipart/form-data"],
)  # fmt: skip
def test_bodies_are_json_or_415(bench: Bench, content_type: str) -> None:
    result = bench.send(f"{API}/tasks", ECHO, headers={"Content-Type": content_type})
    assert (result.status_code, code_of(result)) == (415, "UNSUPPORTED_MEDIA_TYPE")


def test_json_with_a_utf8_charset_is_json(bench: Bench) -> None:
    headers = {"Content-Type": "Application/JSON; Charset=UTF-8"}
    assert bench.send(f"{API}/tasks", ECHO, headers=headers).status_code == 201


def test_compressed_bodies_are_refused(bench: Bench) -> None:
    result = bench.send(f"{API}/tasks", ECHO, headers={"Content-Encoding": "gzip"})
    assert result.status_code == 415


@pytest.mark.parametrize("what", ["cancel", "retry"])
def test_an_empty_json_body_is_valid_where_nothing_is_needed(bench: Bench, what: str) -> None:
    path = f"{API}/tasks/{TASK_ID}/{what}"
    for body in (b"", b"{}", b"  "):
        assert bench.send(path, body).status_code == 200
    assert bench.ask("POST", path).status_code == 200
    assert bench.send(path, {"x": 1}).json["error_details"]["field"] == "x"


def test_ids_are_passed_on_in_their_canonical_form(bench: Bench) -> None:
    bench.ask("GET", f"{API}/tasks/{TASK_ID.upper()}")
    assert bench.cluster.asked("task.get")[0] == {"task_id": TASK_ID}


def test_many_tasks_are_cancelled_with_one_request(bench: Bench) -> None:
    found = bench.send(f"{API}/tasks/cancel", {"task_ids": [TASK_ID]}).json
    assert (found["message"], found["data"]["cancelled"]) == ("1 tasks cancelled", [TASK_ID])
    assert bench.cluster.asked("task.cancel_many")[0] == {"task_ids": [TASK_ID]}
    assert code_of(bench.send(f"{API}/tasks/cancel", {"task_ids": ["x"]})) == "VALIDATION_ERROR"


def test_an_idempotency_key_goes_with_owner_and_fingerprint(bench: Bench) -> None:
    headers = {"Idempotency-Key": "night-1"}
    bench.send(f"{API}/tasks", b'{"task_type":"echo","payload":{"a":1,"b":2}}', headers=headers)
    first = bench.cluster.asked("task.submit")[0]
    bench.cluster.calls.clear()
    bench.send(f"{API}/tasks", b'{"payload":{"b":2, "a":1},"task_type":"echo"}', headers=headers)
    second = bench.cluster.asked("task.submit")[0]
    assert first == second
    assert first["owner"] == "anonymous:127.0.0.1"
    assert first["idempotency_key"] == "night-1"
    bad = bench.send(f"{API}/tasks", ECHO, headers={"Idempotency-Key": "x" * 201})
    assert bad.json["error_details"]["field"] == "Idempotency-Key"


# --- access --------------------------------------------------------------------------------------


def test_protected_operations_are_401_without_a_key() -> None:
    bench = Bench("secret")
    for row in OPERATIONS.values():
        path = row.path.replace("{task_id}", TASK_ID).replace("{device_id}", "laptop-001")
        result = bench.ask(row.method, path, headers={"Content-Type": "application/json"})
        assert (result.status_code == 401) is bool(row.scope), row
        if row.scope:
            assert code_of(result) == "UNAUTHORIZED"
            assert "Bearer" in result.headers["www-authenticate"]


def test_a_key_opens_them_in_either_header() -> None:
    bench = Bench("secret")
    for headers in ({"X-API-Key": "secret"}, {"Authorization": "Bearer secret"}):
        assert bench.ask("GET", f"{API}/config", headers=headers).status_code == 200


def test_dangerous_types_need_a_key_even_inside_a_batch() -> None:
    bench = Bench("secret")
    evil = {"task_type": "command", "payload": {"command": ["ls"]}}
    assert bench.send(f"{API}/tasks", ECHO).status_code == 201
    assert bench.send(f"{API}/tasks", evil).status_code == 401
    assert bench.send(f"{API}/tasks/batch", {"tasks": [ECHO, evil]}).status_code == 401
    headers = {"X-API-Key": "secret"}
    assert bench.send(f"{API}/tasks", evil, headers=headers).status_code == 201


def test_strangers_are_not_this_machine_while_authentication_is_off(bench: Bench) -> None:
    stranger = {"remote_addr": "192.0.2.1"}
    result = bench.ask("DELETE", f"{API}/devices/laptop-001", **stranger)
    assert (result.status_code, code_of(result)) == (401, "UNAUTHORIZED")
    assert "--auth" in result.json["message"]
    assert bench.send(f"{API}/tasks", ECHO, **stranger).status_code == 201
    proxied = bench.ask("GET", f"{API}/config", headers={"X-Forwarded-For": "127.0.0.1"})
    assert proxied.status_code == 401
    assert bench.ask("GET", f"{API}/config").status_code == 200


def test_ten_wrong_keys_are_429_and_the_right_one_still_works() -> None:
    bench = Bench("secret")
    for _ in range(10):
        result = bench.ask("GET", f"{API}/config", headers={"X-API-Key": "guess"})
        assert result.status_code == 401
    result = bench.ask("GET", f"{API}/config", headers={"X-API-Key": "guess"})
    assert (result.status_code, code_of(result)) == (429, "RATE_LIMIT_EXCEEDED")
    assert int(result.headers["retry-after"]) >= 1
    assert bench.ask("GET", f"{API}/config", headers={"X-API-Key": "secret"}).status_code == 200


# --- behind a path -------------------------------------------------------------------------------


def test_the_document_names_the_path_in_front_as_a_trusted_proxy_tells_it() -> None:
    bench = Bench(trusted_proxies=("127.0.0.1",))

    def servers(prefix: str, **options: Any) -> Any:
        headers = {"X-Forwarded-Prefix": prefix, "X-Forwarded-For": "192.0.2.1"}
        return bench.ask("GET", f"{API}/openapi.json", headers=headers, **options).json["servers"]

    assert servers("/cluster/") == [{"url": "/cluster"}]
    assert servers("/a/b-1.2~x") == [{"url": "/a/b-1.2~x"}]
    bad = ("cluster", "//evil.example", "/a//b", "/../a", "/a/.", "https://evil.example", "/a b",
           "/a;b", "/ü", "/", "", "/a?b")  # fmt: skip
    for prefix in bad:
        assert servers(prefix) == [{"url": "/"}], prefix
    assert servers("/cluster", remote_addr="192.0.2.9") == [{"url": "/"}]


# --- origin and CORS -----------------------------------------------------------------------------


def test_a_foreign_page_may_not_change_anything(bench: Bench) -> None:
    for headers in (
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
    ):
        result = bench.send(f"{API}/tasks", ECHO, headers=headers)
        assert (result.status_code, code_of(result)) == (403, "FORBIDDEN")
        assert bench.ask("GET", f"{API}/tasks", headers=headers).status_code == 200


def test_a_rebound_name_is_refused_while_authentication_is_off(bench: Bench) -> None:
    rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
    for method in ("GET", "POST"):
        result = bench.ask(method, f"{API}/tasks", headers=rebound)
        assert (result.status_code, code_of(result)) == (400, "VALIDATION_ERROR")
        assert result.json["error_details"]["field"] == "Host"
    assert Bench("k").ask("GET", f"{API}/tasks", headers=rebound).status_code == 200
    named = Bench(allowed_hosts=("evil.example",))
    assert named.ask("GET", f"{API}/tasks", headers=rebound).status_code == 200


def test_an_allowed_page_may_and_is_told_so() -> None:
    bench = Bench(cors_origins=("https://panel.example",))
    headers = {"Origin": "https://panel.example", "Sec-Fetch-Site": "cross-site"}
    result = bench.send(f"{API}/tasks", ECHO, headers=headers)
    assert result.status_code == 201
    assert result.headers["access-control-allow-origin"] == "https://panel.example"
    assert "X-RateLimit-Remaining" in result.headers["access-control-expose-headers"]
    assert "Origin" in result.headers["vary"]
    other = bench.ask("GET", f"{API}/tasks", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_preflights_are_answered_without_a_key_for_allowed_origins_only() -> None:
    bench = Bench("secret", cors_origins=("https://panel.example",))
    asks = {"Access-Control-Request-Method": "PUT"}
    good = bench.ask(
        "OPTIONS", f"{API}/config/server", headers={"Origin": "https://panel.example", **asks}
    )
    assert good.status_code == 204
    assert "PUT" in good.headers["access-control-allow-methods"]
    assert "X-API-Key" in good.headers["access-control-allow-headers"]
    bad = bench.ask(
        "OPTIONS", f"{API}/config/server", headers={"Origin": "https://evil.example", **asks}
    )
    assert "access-control-allow-origin" not in bad.headers


def test_no_cors_sends_no_cors_header_and_allows_nobody() -> None:
    bench = Bench(cors=False, cors_origins=("https://panel.example",))
    headers = {"Origin": "https://panel.example"}
    result = bench.ask("GET", f"{API}/tasks", headers=headers)
    assert not [name for name in result.headers if name.startswith("access-control")]
    assert bench.send(f"{API}/tasks", ECHO, headers=headers).status_code == 403


def test_credentials_are_never_offered_to_any_origin() -> None:
    result = Bench(cors_origins=("*",)).ask("GET", f"{API}/tasks", headers={"Origin": "http://x"})
    assert result.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in result.headers


# --- limits --------------------------------------------------------------------------------------


def test_limited_answers_carry_the_documented_headers() -> None:
    bench = Bench(rate_limit=True)
    for path in (f"{API}/tasks", f"{API}/nope", f"{API}/tasks?x=1"):
        headers = bench.ask("GET", path).headers
        assert headers["x-ratelimit-limit"] == "60"
        assert headers["x-ratelimit-remaining"] == "59"
        assert headers["x-ratelimit-reset"] == "1640995200"
    assert bench.cluster.asked("rate.hit")[0]["client"] == "address:127.0.0.1"


def test_over_the_limit_is_429_with_retry_after() -> None:
    bench = Bench(rate_limit=True)
    bench.cluster.answers["rate.hit"] = {
        "allowed": False, "limit": 60, "remaining": 0, "reset": 5, "retry_after": 12.2,
    }  # fmt: skip
    result = bench.ask("GET", f"{API}/tasks")
    assert (result.status_code, code_of(result)) == (429, "RATE_LIMIT_EXCEEDED")
    assert result.headers["retry-after"] == "13"
    assert result.headers["x-ratelimit-remaining"] == "0"


@pytest.mark.parametrize(
    "path", ["/health", "/api/health", "/metrics", f"{API}/events", "/ws", "/ui/app.js", "/health/"]
)
def test_some_paths_cost_no_limit(path: str) -> None:
    bench = Bench(rate_limit=True)
    result = bench.ask("GET", path)
    assert "x-ratelimit-limit" not in result.headers
    assert not [call for call in bench.cluster.calls if call[0] == "rate.hit"]


def test_a_valid_key_is_counted_by_itself() -> None:
    bench = Bench("secret", rate_limit=True)
    bench.ask("GET", f"{API}/tasks", headers={"X-API-Key": "secret"})
    assert bench.cluster.asked("rate.hit")[0]["client"].startswith("key:")


# --- the main node is silent ---------------------------------------------------------------------


def test_without_a_main_node_answers_are_503_with_retry_after(bench: Bench) -> None:
    for op in ("cluster.status", "health", "metrics", "task.submit", "task.list"):
        bench.cluster.answers[op] = NoAnswer()
    result = bench.ask("GET", f"{API}/cluster/status")
    assert (result.status_code, code_of(result)) == (503, "CLUSTER_UNAVAILABLE")
    assert result.headers["retry-after"] == "1"
    health = bench.ask("GET", "/health")
    assert health.status_code == 503
    assert health.json == {
        "status": "unhealthy",
        "timestamp": "2023-01-01T12:00:00.250Z",
        "components": {
            "api": "healthy", "cluster_server": "unhealthy", "task_scheduler": "unhealthy",
        },
    }  # fmt: skip
    assert bench.ask("GET", f"{API}/cluster/health").status_code == 503
    assert "retire_cluster_up 0.0" in bench.ask("GET", "/metrics").text
    assert bench.ask("GET", f"{API}/openapi.json").status_code == 200


def test_what_needs_no_main_node_is_answered_even_with_limits_on() -> None:
    bench = Bench(rate_limit=True)
    bench.cluster.answers["rate.hit"] = NoAnswer()
    assert bench.ask("GET", f"{API}/openapi.json").status_code == 200
    assert bench.ask("GET", f"{API}/docs").status_code == 200
    assert bench.ask("GET", f"{API}/tasks").status_code == 503


def test_health_is_degraded_and_200_while_a_component_is(bench: Bench) -> None:
    bench.cluster.answers["health"] = {
        "components": {"cluster_server": "healthy", "task_scheduler": "degraded"}
    }
    result = bench.ask("GET", "/health")
    assert (result.status_code, result.json["status"]) == (200, "degraded")
    detailed = bench.ask("GET", f"{API}/cluster/health")
    assert detailed.status_code == 503
    assert detailed.json["data"]["components"]["task_scheduler"] == "degraded"


def test_health_is_off_while_the_server_drains(bench: Bench) -> None:
    bench.facade.drain.begin()
    assert bench.ask("GET", "/health").status_code == 503


def test_a_silent_main_node_holds_one_caller_at_a_time() -> None:
    cluster = MemoryCluster()
    guarded = GuardedCluster(cluster)
    cluster.answers["x"] = NoAnswer()
    nested: list[type[BaseException]] = []
    original: Callable[..., Answer] = cluster.call_raw

    def call_raw(*args: Any, **options: Any) -> Answer:
        if not guarded.reachable and not nested:
            nested.append(NoAnswer)
            before = len(cluster.calls)
            with pytest.raises(NoAnswer):
                guarded.call("x")
            assert len(cluster.calls) == before, "a second caller must not wait too"
        return original(*args, **options)

    cluster.call_raw = call_raw  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(NoAnswer):
            guarded.call("x")
    assert nested
    cluster.answers["x"] = {"ok": True}
    assert guarded.data("x") == {"ok": True}
    assert guarded.reachable


def test_an_error_answer_is_an_answer() -> None:
    cluster = MemoryCluster()
    guarded = GuardedCluster(cluster)
    for error in (TaskNotFound(), InternalError(), ClusterUnavailable("not now")):
        cluster.answers["x"] = error
        with pytest.raises(type(error)):
            guarded.call("x")
        assert guarded.reachable


# --- logs, metrics, pages ------------------------------------------------------------------------


def test_the_request_log_has_the_documented_fields_and_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench("secret-key")
    with caplog.at_level(logging.INFO, logger="api.requests"):
        bench.ask("GET", f"{API}/tasks/a%0d%0ab?task=canary", headers={"X-API-Key": "secret-key"})
    (record,) = [record for record in caplog.records if record.name == "api.requests"]
    assert record.getMessage() == "Request processed"
    facts = vars(record)
    assert facts["method"] == "GET"
    assert facts["status_code"] == 400
    assert isinstance(facts["duration_ms"], float)
    assert facts["request_id"]
    assert "canary" not in str(facts)
    assert "secret-key" not in str(facts)


def test_metrics_have_the_documented_names_and_no_created_series(bench: Bench) -> None:
    bench.ask("GET", f"{API}/tasks/{TASK_ID}")
    result = bench.ask("GET", "/metrics")
    lines = result.text.splitlines()
    assert result.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        "# HELP retire_cluster_devices_total Total number of registered devices",
        "# TYPE retire_cluster_devices_total gauge",
        'retire_cluster_devices_total{status="online"} 4.0',
        "# HELP retire_cluster_tasks_total Total number of tasks",
        "# TYPE retire_cluster_tasks_total counter",
        'retire_cluster_tasks_total{status="success"} 1250.0',
        'retire_cluster_task_duration_seconds_bucket{le="1.0"} 5.0',
        'retire_cluster_task_duration_seconds_bucket{le="+Inf"} 6.0',
    ):
        assert line in lines
    assert "_created" not in result.text
    assert 'route="/api/v1/tasks/{task_id}"' in result.text
    assert TASK_ID not in result.text


def test_a_browser_is_sent_from_the_root_to_the_dashboard_and_a_program_gets_json(
    bench: Bench,
) -> None:
    page = bench.ask("GET", "/", headers={"Accept": "text/html,*/*;q=0.8"})
    assert page.status_code == 302
    assert page.headers["location"] == "ui/"
    assert page.headers["vary"] == "Accept"
    assert bench.ask("GET", "/").json["data"]["api_version"] == "v1"
    for accepted in ("application/json, text/html;q=0", "text/html-not", "*/*"):
        answer = bench.ask("GET", "/", headers={"Accept": accepted})
        assert answer.status_code == 200, accepted


@pytest.mark.parametrize("method", ["PATCH", "TRACE"])
def test_a_method_that_is_not_possible_is_told_which_are(bench: Bench, method: str) -> None:
    result = bench.ask(method, f"{API}/cluster/status")
    assert (result.status_code, result.json["error_code"]) == (405, "METHOD_NOT_ALLOWED")
    allowed = {word.strip() for word in result.headers["allow"].split(",")}
    assert {"GET", "HEAD"} <= allowed


def test_the_documentation_page_needs_nothing_from_elsewhere(bench: Bench) -> None:
    text = bench.ask("GET", f"{API}/docs").text
    assert "://" not in re.sub(r"<pre[^>]*>.*?</pre>", "", text, flags=re.S)
    assert "<script" not in text
    anchors, targets = set(re.findall(r'href="#(\w+)"', text)), set(re.findall(r'id="(\w+)"', text))
    assert anchors == targets
    # Fields inside an object, of the body and of the answer; where a program goes on from here.
    assert "<code>requirements.required_tags</code>" in text
    assert "<code>queued_reason.eligible_devices</code>" in text
    assert re.search(r'From here: .*<a href="#getTaskResult">', text)
    assert "`" not in re.sub(r"<pre[^>]*>.*?</pre>", "", text, flags=re.S)
    for row in OPERATIONS.values():
        assert row.operation_id in text


def test_parked_polls_leave_most_threads_free() -> None:
    bench = Bench(threads=4)
    waits: list[float] = []
    original = bench.cluster.call_raw

    def call_raw(op: str, args: Any = None, *rest: Any, **options: Any) -> Answer:
        if op == "events.poll":
            waits.append(args["wait_seconds"])
            if len(waits) == 1:  # a second poll comes while the first one waits
                second = bench.ask("GET", f"{API}/events?since=1&wait=25")
                assert second.json["data"]["events"] == []
                bench.facade.drain.begin()
        return original(op, args, *rest, **options)

    bench.cluster.call_raw = call_raw  # type: ignore[method-assign]
    environ = {"wsgi.multithread": True}
    first = bench.ask("GET", f"{API}/events?since=1&wait=25", extras=environ)
    assert first.status_code == 200
    assert waits[0] > 0
    assert waits[1] == 0


# --- anything at all -----------------------------------------------------------------------------

_FUZZED = Bench("secret", cors_origins=("https://panel.example",))
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
_PATHS = st.sampled_from([path for _, path in OPERATIONS]) | st.text(max_size=20).map(
    lambda text: "/" + text
)


@settings(max_examples=400, deadline=None)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]),
    path=_PATHS,
    identifier=st.text(min_size=1, max_size=30),
    query=st.text(max_size=40),
    body=st.binary(max_size=80) | _JSON.map(lambda value: json.dumps(value).encode()),
    headers=st.dictionaries(
        st.sampled_from(
            ["Content-Type", "Accept", "Origin", "X-API-Key", "Authorization", "X-Request-ID",
             "X-Forwarded-For", "Idempotency-Key", "Host", "Access-Control-Request-Method",
             "Sec-Fetch-Site", "Upgrade", "Range", "If-Match", "Expect", "Content-Encoding"]
        ),
        st.sampled_from(["application/json", "application/json;;=", "", "null", "secret"])
        | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20),
        max_size=5,
    ),
)  # fmt: skip
def test_no_request_at_all_is_answered_500(
    method: str, path: str, identifier: str, query: str, body: bytes, headers: dict[str, str]
) -> None:
    filled = path.replace("{task_id}", identifier).replace("{device_id}", identifier)
    environ = {"PATH_INFO": filled.encode("utf-8", "surrogatepass").decode("latin-1"),
               "QUERY_STRING": query.encode("utf-8", "replace").decode("latin-1")}  # fmt: skip
    result = _FUZZED.ask(method, "/", body=body, headers=headers, extras=environ)
    assert result.status_code < 500 or result.status_code == 503, (result.status, result.text)
    if result.status_code >= 400 and method != "HEAD":
        code_of(result)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["task_type", "payload", "priority", "requirements", "metadata", "tasks"]),
        _JSON | st.just("echo") | st.just({}),
    )
)
def test_no_submission_at_all_is_answered_500(document: dict[str, Any]) -> None:
    raw = json.dumps(document).encode()
    for path in (f"{API}/tasks", f"{API}/tasks/batch"):
        result = _FUZZED.send(path, raw, headers={"X-API-Key": "secret"})
        assert result.status_code in (201, 400, 413), result.text
