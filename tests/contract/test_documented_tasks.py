"""The document's examples of tasks: what they show is what happens."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.contract.kit import API, UTC, enveloped, shape

REQUEST_BODY = {
    "task_type": "echo",
    "payload": {"message": "Hello World"},
    "priority": "normal",
    "requirements": {
        "min_cpu_cores": 2,
        "min_memory_gb": 4,
        "required_platform": "linux",
        "timeout_seconds": 300,
    },
    "metadata": {"created_by": "api_user"},
}


def test_the_documented_submission_is_answered_as_documented(api: Any) -> None:
    reply = api.post(f"{API}/tasks", REQUEST_BODY)
    assert reply.status == 201
    data = enveloped(reply)["data"]
    shape(
        {
            "task_id": "uuid",
            "task": {
                "task_id": "uuid", "task_type": "echo", "status": "queued",
                "priority": "normal", "created_at": "t",
            },
        },
        data,
    )  # fmt: skip
    assert data["task"]["status"] == "queued"
    assert data["task"]["task_id"] == data["task_id"]
    uuid.UUID(data["task_id"])
    api.post(f"{API}/tasks/{data['task_id']}/cancel")


def test_the_documented_result_is_what_comes_back(api: Any, cluster: Any) -> None:
    task_id = api.submit("echo", {"message": "Hello World"})
    data = api.finished(task_id)
    shape(
        {
            "task_id": "uuid", "status": "success",
            "result_data": {"echo": {"message": "Hello World"}},
            "execution_time_seconds": 0.05, "worker_device_id": "laptop-001",
            "started_at": "t", "completed_at": "t",
        },
        data,
    )  # fmt: skip
    assert data["result_data"] == {"echo": {"message": "Hello World"}}
    assert data["worker_device_id"] == cluster.device_id


@pytest.mark.parametrize("priority", ["low", "normal", "high", "urgent"])
def test_every_documented_priority_is_taken(api: Any, priority: str) -> None:
    task_id = api.submit("echo", {}, priority=priority)
    assert api.get(f"{API}/tasks/{task_id}").data["priority"] == priority


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_cpu_cores", 1), ("min_memory_gb", 0.1), ("min_memory_gb", 1),
        ("min_storage_gb", 0.5), ("required_platform", "linux"), ("required_role", "compute"),
        ("required_tags", ["a", "b"]), ("gpu_required", False), ("internet_required", False),
        ("timeout_seconds", 5), ("max_retries", 0),
    ],
)  # fmt: skip
def test_every_documented_requirement_is_taken_and_shown(api: Any, name: str, value: Any) -> None:
    task_id = api.submit("echo", {}, requirements={name: value})
    assert api.get(f"{API}/tasks/{task_id}").data["requirements"][name] == value
    api.post(f"{API}/tasks/{task_id}/cancel")


def test_the_documented_task_query_works(api: Any) -> None:
    document = enveloped(api.get(f"{API}/tasks?status=running&page=1&page_size=20"))
    assert isinstance(document["data"], list)


@pytest.mark.parametrize(
    "status",
    [*("pending", "queued", "assigned", "running", "success", "failed", "cancelled", "timeout")],
)
def test_every_documented_status_is_a_filter(api: Any, status: str) -> None:
    for task in enveloped(api.get(f"{API}/tasks?status={status}"))["data"]:
        assert task["status"] == status


@pytest.mark.parametrize("query", ["task_type=echo", "priority=high", "device_id=laptop-001"])
def test_every_other_task_filter_is_taken(api: Any, query: str) -> None:
    name, _, value = query.partition("=")
    field = {"device_id": "assigned_device_id"}.get(name, name)
    for task in enveloped(api.get(f"{API}/tasks?{query}"))["data"]:
        assert task[field] == value


def test_details_and_status_of_a_task(api: Any) -> None:
    task_id = api.submit("echo", {"a": 1}, metadata={"created_by": "me"})
    api.finished(task_id)
    details = enveloped(api.get(f"{API}/tasks/{task_id}"))["data"]
    assert details["payload"] == {"a": 1}
    assert details["metadata"] == {"created_by": "me"}
    assert details["result"]["result_data"] == {"echo": {"a": 1}}
    assert enveloped(api.get(f"{API}/tasks/{task_id}/status"))["data"]["status"] == "success"


def test_cancel_and_retry(api: Any) -> None:
    task_id = api.submit("sleep", {"duration": 60})
    cancelled = enveloped(api.post(f"{API}/tasks/{task_id}/cancel"))["data"]
    assert cancelled["task_id"] == task_id
    assert api.finished(task_id)["status"] == "cancelled"
    retried = enveloped(api.post(f"{API}/tasks/{task_id}/retry"))["data"]
    assert UTC.fullmatch(retried["retried_at"])
    api.post(f"{API}/tasks/{task_id}/cancel")
    assert api.finished(task_id)["status"] == "cancelled"


def test_statistics_and_types(api: Any) -> None:
    assert enveloped(api.get(f"{API}/tasks/statistics"))["data"]["queue_stats"]
    types = enveloped(api.get(f"{API}/tasks/types"))["data"]
    documented = ["echo", "sleep", "system_info", "python_eval", "http_request", "command"]
    assert types["builtin_types"] == [*documented, "python_call"]
    assert set(documented) <= set(types["supported_types"])
