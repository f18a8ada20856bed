"""The application over a main node in memory: routes, envelope, logs, pages, any input at all."""

from __future__ import annotations

import functools
import json
import logging
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retire_cluster.schemas.rest.endpoints import ENDPOINTS
from tests.unit.api.kit import API, PAGES, TASK_ID, Bench, code_of

# --- the table and the routes are one ------------------------------------------------------------


@pytest.mark.parametrize("operation", ENDPOINTS.values(), ids=lambda row: row.operation_id)
def test_every_operation_of_the_table_is_routed(bench: Bench, operation: Any) -> None:
    path = operation.path.replace("{task_id}", TASK_ID).replace("{device_id}", "laptop-001")
    result = bench.ask(operation.method, path, headers={"Content-Type": "application/json"})
    assert result.status_code not in (404, 405, 500), result.text


@pytest.mark.parametrize(
    "operation",
    [row for row in ENDPOINTS.values() if row.method == "GET"],
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
    for row in ENDPOINTS.values():
        assert row.operation_id in text


# --- anything at all -----------------------------------------------------------------------------


@functools.cache
def fuzzed() -> Bench:
    return Bench("secret", cors_origins=("https://panel.example",))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
_PATHS = st.sampled_from([path for _, path in ENDPOINTS]) | st.text(max_size=20).map(
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
    result = fuzzed().ask(method, "/", body=body, headers=headers, extras=environ)
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
        result = fuzzed().send(path, raw, headers={"X-API-Key": "secret"})
        assert result.status_code in (201, 400, 413), result.text
