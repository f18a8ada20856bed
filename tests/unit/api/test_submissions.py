"""What a submission says reaches the main node, or names its fault."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.api.kit import API, ECHO, TASK_ID, Bench, code_of


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
