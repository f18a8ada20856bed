"""The answers that the contract adds to the document: every field it names, and what it means."""

from __future__ import annotations

import time
from typing import Any

import pytest

from retire_cluster.conf import curve

API = "/api/v1"


def fields(text: str) -> set[str]:
    return set(text.replace(",", " ").split())


def test_the_index_names_version_features_and_endpoints(api: Any) -> None:
    data = api.get(API).data
    assert set(data) >= fields("api_version server_info features endpoints")
    assert {"method": "POST", "path": f"{API}/tasks"}.items() <= next(
        row.items() for row in data["endpoints"] if row["method"] == "POST"
        and row["path"] == f"{API}/tasks"
    )  # fmt: skip


def test_cluster_status_adds_statuses_and_tasks(api: Any) -> None:
    data = api.get(f"{API}/cluster/status").data
    assert data["cluster_stats"]["by_status"]["online"] == 1
    assert set(data["tasks"]) >= fields("by_status queued running")


def test_cluster_metrics_are_measured(api: Any, until: Any) -> None:
    api.finished(api.submit("echo", {}))
    data = api.get(f"{API}/cluster/metrics").data
    assert set(data["devices"]) >= fields("total online by_role by_platform")
    assert set(data["resources"]) >= fields(
        "total_cpu_cores total_memory_gb total_storage_gb average_utilization"
    )
    assert set(data["performance"]) >= fields(
        "average_response_time request_rate error_rate dispatch_latency_ms tasks_per_second"
    )
    assert set(data["performance"]["dispatch_latency_ms"]) >= fields("p50 p95 p99")
    assert set(data["tasks"]) >= fields("by_status by_priority backlog")
    assert data["performance"]["dispatch_latency_ms"]["p50"] > 0

    def reported() -> bool:
        performance = api.get(f"{API}/cluster/metrics").data["performance"]
        return bool(performance["request_rate"] > 0 and performance["average_response_time"] > 0)

    until(reported)


def test_cluster_config_tells_of_this_facade(api: Any, start_api: Any) -> None:
    data = api.get(f"{API}/cluster/config").data
    assert set(data["server"]) >= fields("host port max_connections")
    assert set(data["heartbeat"]) >= fields("interval timeout max_missed")
    assert data["features"] == {
        "task_scheduling": True, "api_enabled": True, "auth_required": False,
    }  # fmt: skip
    closed = start_api("--api-key", "k", "--no-rate-limit")
    assert closed.get(f"{API}/cluster/config", key="k").data["features"]["auth_required"] is True


def test_cluster_health_is_the_same_in_the_envelope(api: Any) -> None:
    assert (
        api.get(f"{API}/cluster/health").data["components"] == api.get("/health").json["components"]
    )


def test_device_details_have_every_field(api: Any, cluster: Any, until: Any) -> None:
    path = f"{API}/devices/{cluster.device_id}"
    before = api.get(path).data["tasks_succeeded"]
    api.finished(api.submit("echo", {}))
    data = until(lambda: (d := api.get(path).data)["total_heartbeats"] and d)
    assert set(data) >= fields(
        "device_id role platform status ip_address last_heartbeat uptime capabilities tags hostname"
        " registered_at total_heartbeats task_types slots running_tasks tasks_succeeded"
        " tasks_failed last_error passed_over own_task_types walls metrics metrics_history"
    )
    assert set(data["metrics"]) >= fields(
        "cpu_percent memory_percent disk_percent load_average temperature_c battery_percent"
        " power_plugged"
    )
    assert data["tasks_succeeded"] > before
    assert "echo" in data["task_types"]
    assert len(data["metrics_history"]) <= 60


def test_device_status_has_every_field(api: Any, cluster: Any) -> None:
    data = api.get(f"{API}/devices/{cluster.device_id}/status").data
    assert set(data) >= fields(
        "device_id status is_online last_heartbeat uptime response_time_ms current_load accepting"
        " not_accepting_reason timestamp"
    )
    assert set(data["current_load"]) >= fields("running_tasks slots cpu_percent memory_percent")
    assert data["accepting"] is True


def test_ping_has_every_field(api: Any, cluster: Any) -> None:
    data = api.post(f"{API}/devices/{cluster.device_id}/ping").data
    assert set(data) >= fields(
        "device_id ping_successful response_time_ms ping_timestamp duration_ms"
    )


def test_device_summary_has_every_field(api: Any) -> None:
    data = api.get(f"{API}/devices/summary").data
    assert set(data) >= fields(
        "total_devices online_devices offline_devices by_role by_platform by_status"
        " resource_totals capabilities"
    )
    assert set(data["resource_totals"]) >= fields("cpu_cores memory_gb storage_gb")
    assert set(data["capabilities"]) >= fields("gpu_enabled mobile_devices server_grade")


TASK_FIELDS = fields(
    "task_id task_type status priority created_at assigned_device_id assigned_at started_at"
    " completed_at execution_time_seconds retry_count"
)


def test_a_submission_and_its_details_have_every_field(api: Any) -> None:
    data = api.post(f"{API}/tasks", {"task_type": "echo", "payload": {}}).data
    assert set(data) >= fields("task_id task submitted_at")
    assert set(data["task"]) >= TASK_FIELDS
    api.finished(data["task_id"])
    details = api.get(f"{API}/tasks/{data['task_id']}").data
    assert set(details) >= TASK_FIELDS | fields(
        "payload requirements metadata attempts error_history result"
    )
    assert len(details["attempts"]) == 1
    listed = api.get(f"{API}/tasks?page_size=1").data[0]
    assert set(listed) >= TASK_FIELDS


def test_status_says_why_a_task_waits(api: Any) -> None:
    task_id = api.submit("echo", {}, requirements={"required_tags": ["nowhere"]})
    data = api.status(task_id)
    assert set(data) >= (TASK_FIELDS - {"task_type"}) | fields(
        "attempt progress is_terminal can_retry queued_reason timestamp"
    )
    assert data["queued_reason"]["eligible_devices"] == 0
    assert data["queued_reason"]["rejected"] == {"missing tag nowhere": 1}
    assert (data["is_terminal"], data["can_retry"]) == (False, False)
    api.post(f"{API}/tasks/{task_id}/cancel")


def test_a_result_has_every_field_and_before_that_there_is_none(api: Any) -> None:
    task_id = api.submit("sleep", {"duration": 0.3})
    early = api.get(f"{API}/tasks/{task_id}/result")
    assert (early.status, early.code) == (404, "NO_TASK_RESULT")
    data = api.finished(task_id)
    assert set(data) >= fields(
        "task_id status result_data execution_time_seconds worker_device_id started_at completed_at"
        " error_message error_traceback logs"
    )
    assert data["result_data"] == {"slept_for": 0.3}
    assert data["execution_time_seconds"] >= 0.3


def test_a_failed_task_says_why(api: Any) -> None:
    task_id = api.submit("python_eval", {"expression": "1/0"})
    data = api.finished(task_id)
    assert data["status"] == "failed"
    assert data["error_message"]
    assert api.get(f"{API}/tasks/{task_id}").data["error_history"]
    assert api.status(task_id)["can_retry"] is True


def test_what_has_ended_cannot_be_cancelled_and_success_not_retried(api: Any) -> None:
    task_id = api.submit("echo", {})
    api.finished(task_id)
    for what, code in (("cancel", "CANNOT_CANCEL_TASK"), ("retry", "CANNOT_RETRY_TASK")):
        reply = api.post(f"{API}/tasks/{task_id}/{what}")
        assert (reply.status, reply.code) == (400, code)


def test_retry_keeps_the_old_outcomes(api: Any) -> None:
    task_id = api.submit("python_eval", {"expression": "1/0"})
    api.finished(task_id)
    assert set(api.post(f"{API}/tasks/{task_id}/retry").data) >= fields("task_id status retried_at")
    api.finished(task_id)
    assert len(api.get(f"{API}/tasks/{task_id}").data["attempts"]) == 2


def test_statistics_are_measured(api: Any) -> None:
    api.finished(api.submit("echo", {}))
    data = api.get(f"{API}/tasks/statistics").data
    assert set(data) >= fields("queue_stats performance_metrics current_load timestamp")
    assert set(data["queue_stats"]) >= fields("total_tasks by_status by_priority by_device by_type")
    assert set(data["performance_metrics"]) >= fields(
        "success_rate average_execution_time p95_execution_time tasks_per_hour device_utilization"
    )
    assert set(data["current_load"]) >= fields("pending_tasks running_tasks capacity_utilization")
    assert data["queue_stats"]["by_type"]["echo"] >= 1
    assert data["performance_metrics"]["tasks_per_hour"] >= 1


def test_types_tell_devices_schema_and_description(api: Any) -> None:
    data = api.get(f"{API}/tasks/types").data
    assert set(data) >= fields(
        "supported_types builtin_types custom_types total_count online_devices by_type"
    )
    for facts in data["by_type"].values():
        assert set(facts) >= fields("devices payload_schema description")
    assert data["total_count"] == len(data["supported_types"])


def test_a_batch_is_one_answer_with_all_ids(api: Any) -> None:
    tasks = [{"task_type": "echo", "payload": {"n": n}} for n in range(1000)]
    reply = api.post(f"{API}/tasks/batch", {"tasks": tasks})
    assert reply.status == 201
    ids = reply.data["task_ids"]
    assert len(set(ids)) == 1000
    assert api.finished(ids[-1])["result_data"] == {"echo": {"n": 999}}
    assert api.finished(ids[0])["result_data"] == {"echo": {"n": 0}}


def test_a_batch_with_one_fault_submits_nothing(api: Any) -> None:
    before = api.get(f"{API}/tasks").json["pagination"]["total_items"]
    bad = {"tasks": [{"task_type": "echo", "payload": {}}, {"task_type": "nobody.has.this",
                                                            "payload": {}}]}  # fmt: skip
    reply = api.post(f"{API}/tasks/batch", bad)
    assert (reply.status, reply.code) == (400, "VALIDATION_ERROR")
    assert reply.json["error_details"]["field"] == "tasks.1.task_type"
    assert api.get(f"{API}/tasks").json["pagination"]["total_items"] == before


def test_a_long_poll_returns_with_the_event_it_waited_for(api: Any) -> None:
    since = api.get(f"{API}/events").data["next"]
    task_id = api.submit("sleep", {"duration": 0.5})
    started = time.monotonic()
    found = api.get(f"{API}/events?since={since}&wait=25&type=task.success&task_id={task_id}").data
    assert time.monotonic() - started < 10
    (event,) = found["events"]
    assert event["task_id"] == task_id
    assert event["type"] == "task.success"
    again = api.get(f"{API}/events?since={since}&task_id={task_id}&device_id=").data
    kinds = [event["type"] for event in again["events"]]
    assert kinds[0] == "task.queued"
    assert kinds[-1] == "task.success"
    assert again["next"] >= again["events"][-1]["id"]


def test_a_long_poll_without_events_ends_when_its_time_is_over(api: Any) -> None:
    started = time.monotonic()
    data = api.get(f"{API}/events?wait=1&type=device.removed").data
    assert data["events"] == []
    assert 0.9 < time.monotonic() - started < 5


def test_the_configuration_has_all_sections_and_no_secret(start_api: Any) -> None:
    api = start_api("--api-key", "canary-key", "--no-rate-limit")
    reply = api.get(f"{API}/config", key="canary-key")
    assert set(reply.data) >= fields("server heartbeat scheduler retention database logging api")
    assert "canary-key" not in reply.text
    assert reply.data["api"]["rate_limit"] is False


@pytest.mark.parametrize(
    ("section", "values", "field"),
    [
        ("heartbeat", {"interval": 0}, "interval"),
        ("heartbeat", {"interval": 3601}, "interval"),
        ("heartbeat", {"max_missed": 0}, "max_missed"),
        ("heartbeat", {"max_missed": 101}, "max_missed"),
        ("heartbeat", {"max_missed": 1.5}, "max_missed"),
        ("heartbeat", {"timeout": 86_401}, "timeout"),
        ("heartbeat", {"timeout": 14}, "timeout"),
        ("heartbeat", {"interval": "5"}, "interval"),
        ("heartbeat", {"interval": None}, "interval"),
        ("heartbeat", {"interval": 5, "nope": 1}, "nope"),
        ("server", {"max_connections": 0}, "max_connections"),
        ("server", {"max_connections": 100_001}, "max_connections"),
        ("server", {"max_connections": True}, "max_connections"),
        ("server", {}, ""),
    ],
)
def test_a_configuration_out_of_bounds_changes_nothing(
    api: Any, section: str, values: dict[str, Any], field: str
) -> None:
    path = f"{API}/config/{section}"
    before = api.get(path).data
    reply = api.ask("PUT", path, json=values)
    assert (reply.status, reply.code) == (400, "VALIDATION_ERROR")
    assert reply.json["error_details"]["field"] == field
    assert api.get(path).data == before


def test_a_partial_change_is_judged_on_the_merged_values(api: Any) -> None:
    path = f"{API}/config/heartbeat"
    reply = api.ask("PUT", path, json={"interval": 20})
    assert reply.json["error_details"]["field"] in ("timeout", "interval")
    try:
        assert api.ask("PUT", path, json={"interval": 10}).status == 200
        assert api.get(path).data["timeout"] == 30
    finally:
        api.post(f"{API}/config/reset")


def test_a_reset_answers_with_the_configuration_that_then_holds(api: Any) -> None:
    api.ask("PUT", f"{API}/config/server", json={"max_connections": 77})
    data = api.post(f"{API}/config/reset").data
    assert set(data) >= fields("reset_at current_config")
    assert data["current_config"] == api.get(f"{API}/config").data
    assert data["current_config"]["server"]["max_connections"] == 1000


def test_an_idempotency_key_gives_the_first_answer_again(api: Any) -> None:
    document = {"task_type": "echo", "payload": {"once": True}}
    headers = {"Idempotency-Key": f"key-{time.monotonic_ns()}"}
    first = api.post(f"{API}/tasks", document, headers=headers)
    again = api.post(f"{API}/tasks", document, headers=headers)
    assert (first.status, again.status) == (201, 201)
    assert again.data["task_id"] == first.data["task_id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    other = api.post(f"{API}/tasks", {**document, "payload": {}}, headers=headers)
    assert (other.status, other.code) == (409, "IDEMPOTENCY_CONFLICT")


def test_deep_lists_go_on_by_cursor(api: Any) -> None:
    api.post(f"{API}/tasks/batch", {"tasks": [{"task_type": "echo", "payload": {}}] * 5})
    first = api.get(f"{API}/tasks?page_size=2&task_type=echo").json
    cursor = first["pagination"]["next_cursor"]
    second = api.get(f"{API}/tasks?page_size=2&task_type=echo&after={cursor}").json
    paged = api.get(f"{API}/tasks?page_size=2&task_type=echo&page=2").json
    ids = [task["task_id"] for task in second["data"]]
    assert ids == [task["task_id"] for task in paged["data"]]
    created = [task["created_at"] for task in [*first["data"], *second["data"]]]
    assert created == sorted(created, reverse=True)


def test_an_empty_list_has_no_pages(api: Any) -> None:
    document = api.get(f"{API}/devices?tags=nowhere").json
    assert document["data"] == []
    assert document["pagination"]["total_pages"] == 0
    assert api.get(f"{API}/devices?page_size=1000").json["pagination"]["page_size"] == 100


def test_a_drained_device_gets_nothing_new_until_it_is_resumed(api: Any, cluster: Any) -> None:
    device = f"{API}/devices/{cluster.device_id}"
    drained = api.post(f"{device}/drain").data
    try:
        assert (drained["is_online"], drained["accepting"]) == (True, False)
        assert drained["not_accepting_reason"]
        task_id = api.submit("echo", {})
        found = api.get(f"{API}/tasks/{task_id}/explanation").data
        assert (found["task_id"], found["status"]) == (task_id, "queued")
        (row,) = found["devices"]
        assert (row["device_id"], row["eligible"]) == (cluster.device_id, False)
        assert row["reasons"] == ["draining"]
        assert found["queued_reason"] == api.status(task_id)["queued_reason"]
    finally:
        resumed = api.post(f"{device}/resume").data
    assert resumed["accepting"] is True
    assert api.finished(task_id)["status"] == "success"
    ended = api.get(f"{API}/tasks/{task_id}/explanation").data
    assert (ended["queued_reason"], ended["devices"]) == (None, [])


def test_a_join_token_is_told_once_as_the_line_to_paste(api: Any, start_api: Any) -> None:
    reply = api.post(f"{API}/join-tokens", {"host": "192.168.1.10", "uses": 2})
    assert reply.status == 201
    data = reply.data
    assert set(data) == fields("join command one_line local_only token_id uses expires_at")
    assert data["command"] == f"retire-cluster-worker --join {data['join']}"
    assert data["uses"] == 2
    said = curve.read_join(data["join"])
    assert (said.host, data["local_only"]) == ("192.168.1.10", False)
    # Without a host it is where the worker bus listens.
    plain = api.post(f"{API}/join-tokens").data
    bound = api.get(f"{API}/config/server").data["worker_host"]
    assert plain["uses"] == 1
    assert bound in ("", curve.read_join(plain["join"]).host)
    assert plain["local_only"] == (curve.read_join(plain["join"]).host == "127.0.0.1")
    for bad in ({"host": "a b"}, {"uses": 0}, {"age_seconds": 59}, {"nope": 1}):
        assert api.post(f"{API}/join-tokens", bad).code == "VALIDATION_ERROR"
    closed = start_api("--api-key", "k", "--no-rate-limit")
    assert closed.post(f"{API}/join-tokens").status == 401
    assert closed.post(f"{API}/join-tokens", key="k").status == 201


def test_a_join_token_names_the_host_that_the_settings_say(start_api: Any) -> None:
    api = start_api("--no-rate-limit", RETIRE_CLUSTER_SERVER_PUBLIC_HOST="nas.example")
    data = api.post(f"{API}/join-tokens").data
    assert (curve.read_join(data["join"]).host, data["local_only"]) == ("nas.example", False)


def test_draining_needs_a_key_that_may_and_a_device_that_is_there(
    api: Any, start_api: Any, cluster: Any
) -> None:
    closed = start_api("--api-key", "k", "--no-rate-limit")
    for verb in ("drain", "resume"):
        assert closed.post(f"{API}/devices/{cluster.device_id}/{verb}").status == 401
        assert api.post(f"{API}/devices/nobody/{verb}").code == "DEVICE_NOT_FOUND"
    missing = "550e8400-e29b-41d4-a716-446655440000"
    assert api.get(f"{API}/tasks/{missing}/explanation").code == "TASK_NOT_FOUND"
