"""What a user asks of a running cluster: order, requirements, limits, cancelling, trying again."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.cli.endpoints import pid_alive
from tests.acceptance.kit import Cluster, Rest, all_gone
from tests.command_kit import until

pytestmark = pytest.mark.slow

#: Starts a child, and a grandchild in a session of its own, notes all three numbers, then waits.
FAMILY = """
import os, subprocess, sys, time
wait = [sys.executable, "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(wait)
read_end, write_end = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(write_end, str(os.getpid()).encode())
        os.execv(sys.executable, wait)
    os._exit(0)
grandchild = int(os.read(read_end, 32))
with open(sys.argv[1] + ".new", "w") as file:
    file.write(f"{os.getpid()} {child.pid} {grandchild}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the worker's owner opens to tasks."""
    return tmp_path_factory.mktemp("opened")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, opened: Path) -> Iterator[Cluster]:
    """A cluster whose local worker may run commands, and one device more with a single slot."""
    found = Cluster(
        tmp_path_factory.mktemp("work"),
        *("--no-rate-limit", "--slots", "2", "--allow", "command"),
        RETIRE_CLUSTER_ALLOW_ROOT="1",  # where tests run as root
        RETIRE_CLUSTER_POLICY_FOLDERS=str(opened),
    )
    try:
        found.join("single", "--slots", "1", "--tag", "single", "--role", "storage")
        yield found
    finally:
        assert found.close() == 0


def python(code: str, *args: str, **fields: Any) -> dict[str, Any]:
    """A payload of `command` that runs Python code."""
    return {"command": [sys.executable, "-c", code, *args], **fields}


def in_order(rest: Rest, kind: str, since: int, ids: set[str]) -> list[str]:
    """The ids in the order of events of a kind."""
    events = (e for e in rest.events(since) if e["type"] == kind)
    return [e["task_id"] for e in events if e["task_id"] in ids]


def test_a_worker_that_joined_by_the_printed_line_runs_tasks(rest: Rest) -> None:
    task_id = rest.submit("python_eval", {"expression": "6 * 7"}, required_tags=["single"])
    result = rest.result(task_id)
    assert result["worker_device_id"] == "single"
    assert result["result_data"] == {"result": 42, "expression": "6 * 7"}


def test_urgent_goes_before_high_before_normal_before_low_and_each_in_order(rest: Rest) -> None:
    since = rest.cursor()
    blocker = rest.submit("sleep", {"duration": 600}, required_tags=["single"])
    rest.await_status(blocker, "running")
    names = {}
    for number in range(3):
        for priority in ("low", "normal", "high", "urgent"):
            task_id = rest.submit(
                "python_eval", {"expression": "1"}, required_tags=["single"], priority=priority
            )
            names[task_id] = (priority, number)
    assert {rest.status(task_id)["status"] for task_id in names} == {"queued"}
    rest.post(f"/tasks/{blocker}/cancel")
    for task_id in names:
        assert rest.result(task_id)["status"] == "success"
    wanted = [(p, n) for p in ("urgent", "high", "normal", "low") for n in range(3)]
    # By events: two may end in the same millisecond, and then their times say nothing.
    for kind in ("task.assigned", "task.success"):
        assert [names[t] for t in in_order(rest, kind, since, set(names))] == wanted


def test_a_cancelled_command_takes_its_whole_family_with_it(rest: Rest, opened: Path) -> None:
    noted = opened / "pids of a cancelled one"
    task_id = rest.submit("command", python(FAMILY, str(noted)))
    until(noted.exists, "the command's family")
    pids = [int(word) for word in noted.read_text().split()]
    assert len(pids) == 3
    assert all(map(pid_alive, pids))
    answer = rest.post(f"/tasks/{task_id}/cancel")
    assert answer["status"] == "cancelled"
    assert answer["cancelled_at"]
    all_gone(pids, 3.0)
    assert rest.result(task_id)["status"] == "cancelled"
    again = rest.ask("POST", f"/api/v1/tasks/{task_id}/cancel", {})
    assert (again.status, again.code) == (400, "CANNOT_CANCEL_TASK")


def test_a_queued_task_that_is_cancelled_never_runs(rest: Rest) -> None:
    task_id = rest.submit("echo", {}, required_tags=["nobody"])
    assert rest.post(f"/tasks/{task_id}/cancel")["status"] == "cancelled"
    details = rest.get(f"/tasks/{task_id}")
    assert details["attempts"] == []
    assert details["started_at"] is None


def test_a_task_over_its_time_is_ended_with_its_family(rest: Rest, opened: Path) -> None:
    noted = opened / "pids of a slow one"
    started = time.monotonic()
    task_id = rest.submit("command", python(FAMILY, str(noted)), timeout_seconds=1)
    result = rest.result(task_id)
    assert result["status"] == "timeout"
    assert 1.0 <= time.monotonic() - started < 8
    assert result["execution_time_seconds"] < 5
    all_gone([int(word) for word in noted.read_text().split()], 3.0)


def test_a_timeout_uses_a_retry_and_the_last_one_stands(rest: Rest) -> None:
    task_id = rest.submit("sleep", {"duration": 60}, timeout_seconds=1, max_retries=1)
    rest.await_status(task_id, "timeout")
    details = rest.get(f"/tasks/{task_id}")
    assert details["retry_count"] == 1
    assert len(details["attempts"]) == 2
    assert rest.status(task_id)["can_retry"] is True


def test_an_error_that_may_pass_is_tried_again_by_itself(rest: Rest, opened: Path) -> None:
    code = (
        "import os, sys; there = os.path.exists(sys.argv[1]); open(sys.argv[1], 'w').close();"
        " raise SystemExit(0 if there else 7)"
    )
    task_id = rest.submit("command", python(code, str(opened / "been-here")), max_retries=2)
    assert rest.result(task_id)["status"] == "success"
    details = rest.get(f"/tasks/{task_id}")
    assert details["retry_count"] == 1
    assert len(details["attempts"]) == 2
    assert len(details["error_history"]) == 1


def test_an_error_that_would_come_again_is_not_tried_again(rest: Rest) -> None:
    task_id = rest.submit("python_eval", {"expression": "1 / 0"}, max_retries=3)
    result = rest.result(task_id)
    assert result["status"] == "failed"
    assert "division" in result["error_message"]
    assert rest.status(task_id)["retry_count"] == 0


def test_a_failed_task_is_retried_on_request_and_keeps_its_old_outcome(
    rest: Rest, tmp_path: Path
) -> None:
    code = "import os, sys; print('hi'); raise SystemExit(0 if os.path.exists(sys.argv[1]) else 3)"
    task_id = rest.submit("command", python(code, str(tmp_path / "ready")))
    result = rest.result(task_id)
    assert result["status"] == "failed"
    assert result["result_data"]["return_code"] == 3
    assert result["result_data"]["stdout"] == "hi\n"
    (tmp_path / "ready").touch()
    assert rest.post(f"/tasks/{task_id}/retry")["retried_at"]
    assert rest.result(task_id)["status"] == "success"
    details = rest.get(f"/tasks/{task_id}")
    assert len(details["attempts"]) == 2
    again = rest.ask("POST", f"/api/v1/tasks/{task_id}/retry", {})
    assert (again.status, again.code) == (400, "CANNOT_RETRY_TASK")


def test_retry_works_from_cancelled_too(rest: Rest) -> None:
    task_id = rest.submit("sleep", {"duration": 0.01}, required_role="storage")
    rest.result(task_id)
    waiting = rest.submit("sleep", {"duration": 600}, required_role="storage")
    rest.await_status(waiting, "running")
    rest.post(f"/tasks/{waiting}/cancel")
    rest.await_status(waiting, "cancelled")
    rest.post(f"/tasks/{waiting}/retry")
    rest.await_status(waiting, "running")
    rest.post(f"/tasks/{waiting}/cancel")
    assert len(rest.get(f"/tasks/{waiting}")["attempts"]) == 2


@pytest.mark.parametrize(
    ("requirements", "reason"),
    [
        ({"min_cpu_cores": 100_000}, "fewer than 100000 CPU cores"),
        ({"min_memory_gb": 1e7}, "GB memory"),
        ({"min_storage_gb": 1e9}, "GB storage"),
        ({"required_platform": "darwin"}, "platform is not darwin"),
        ({"required_role": "mobile"}, "role is not mobile"),
        ({"required_tags": ["single", "no-such"]}, "missing tag no-such"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_requirement_that_nobody_meets_is_named_in_the_status(
    rest: Rest, requirements: dict[str, Any], reason: str
) -> None:
    task_id = rest.submit("echo", {}, **requirements)
    status = rest.status(task_id)
    assert status["status"] == "queued"
    queued_reason = status["queued_reason"]
    assert queued_reason["eligible_devices"] == 0
    rejected = {text: n for text, n in queued_reason["rejected"].items() if reason in text}
    assert list(rejected.values()) == [2], queued_reason
    rest.post(f"/tasks/{task_id}/cancel")


@pytest.mark.parametrize(
    "requirements",
    [
        {"min_cpu_cores": 1, "min_memory_gb": 0.01, "min_storage_gb": 0.001},
        {"required_role": "storage"},
        {"required_tags": ["single"]},
        {"required_role": "storage", "required_tags": ["single"]},
    ],
    ids=["totals", "role", "tags", "both"],
)
def test_a_requirement_that_somebody_meets_is_met(rest: Rest, requirements: Any) -> None:
    task_id = rest.submit("system_info", {}, **requirements)
    result = rest.result(task_id)
    assert result["status"] == "success"
    if "min_cpu_cores" not in requirements:
        assert result["worker_device_id"] == "single"
    assert result["result_data"]["cpu_count"] >= 1


@pytest.mark.parametrize(
    ("requirement", "fact", "reason"),
    [
        ("gpu_required", "has_gpu", "no GPU"),
        ("internet_required", "has_internet", "no internet access"),
    ],
)
def test_gpu_and_internet_are_required_of_the_devices_own_facts(
    rest: Rest, requirement: str, fact: str, reason: str
) -> None:
    has = rest.get("/devices/single")["capabilities"].get(fact)
    task_id = rest.submit("echo", {}, required_role="storage", **{requirement: True})
    if has:
        assert rest.result(task_id)["worker_device_id"] == "single"
        return
    status = rest.status(task_id)
    assert status["status"] == "queued"
    assert reason in status["queued_reason"]["rejected"]
    rest.post(f"/tasks/{task_id}/cancel")


def test_the_platform_of_the_devices_is_met(rest: Rest) -> None:
    platform = rest.get("/devices/single")["platform"]
    assert rest.result(rest.submit("echo", {}, required_platform=platform))["status"] == "success"


def test_a_type_that_only_some_devices_allow_goes_to_those(cluster: Cluster) -> None:
    rest = cluster.rest
    task_id = rest.submit("command", python("print('done')"))
    assert rest.result(task_id)["worker_device_id"] == cluster.local
    waits = rest.submit("command", python("print('never')"), required_tags=["single"])
    reasons = rest.status(waits)["queued_reason"]["rejected"]
    assert reasons["does not run command (its owner allows it with --allow command)"] == 1
    rest.post(f"/tasks/{waits}/cancel")


def test_a_busy_device_is_given_as_the_reason_to_wait(rest: Rest) -> None:
    blocker = rest.submit("sleep", {"duration": 600}, required_tags=["single"])
    rest.await_status(blocker, "running")
    waits = rest.submit("sleep", {"duration": 0}, required_tags=["single"])
    reason = rest.status(waits)["queued_reason"]
    assert (reason["eligible_devices"], reason["busy_devices"]) == (1, 1)
    rest.post(f"/tasks/{blocker}/cancel")
    assert rest.result(waits)["status"] == "success"


def test_the_same_submission_twice_is_one_task(rest: Rest) -> None:
    body = {"task_type": "echo", "payload": {"n": 1}}
    headers = {"Idempotency-Key": "acceptance-1"}
    first = rest.ask("POST", "/api/v1/tasks", body, headers)
    second = rest.ask("POST", "/api/v1/tasks", body, headers)
    assert first.status == second.status == 201
    assert first.data["task_id"] == second.data["task_id"]
    other = rest.ask("POST", "/api/v1/tasks", {**body, "payload": {"n": 2}}, headers)
    assert (other.status, other.code) == (409, "IDEMPOTENCY_CONFLICT")


def test_what_takes_no_body_takes_an_empty_one(rest: Rest) -> None:
    json_type = {"Content-Type": "application/json"}
    task_id = rest.submit("echo", {}, required_tags=["nobody"])
    for path in (f"/tasks/{task_id}/cancel", f"/tasks/{task_id}/retry", "/devices/single/ping"):
        answer = rest.ask("POST", f"/api/v1{path}", b"", json_type)
        assert answer.status == 200, (path, answer.body)
    rest.post(f"/tasks/{task_id}/cancel")


def test_head_answers_as_get_does_without_a_body(rest: Rest) -> None:
    for path in ("/health", "/metrics", "/api/v1/tasks", "/api/v1/devices/single", "/api/v1"):
        answer, get = rest.ask("HEAD", path), rest.ask("GET", path)
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-type"] == get.headers["content-type"]


def test_a_ping_goes_to_the_device_and_back(rest: Rest) -> None:
    ping = rest.post("/devices/single/ping")
    assert ping["ping_successful"] is True
    assert 0 < ping["response_time_ms"] < 1500


@pytest.mark.skipif(os.name == "nt", reason="looks at a task's environment by env(1)")
def test_a_command_sees_its_own_environment_and_input_only(rest: Rest, opened: Path) -> None:
    code = (
        "import json, os, sys; print(json.dumps([sys.stdin.read(), os.getcwd(), dict(os.environ)]))"
    )
    where = os.path.realpath(opened)
    task_id = rest.submit("command", python(code, stdin="given", env={"MINE": "1"}, cwd=where))
    given, folder, environment = json.loads(rest.result(task_id)["result_data"]["stdout"])
    assert (given, folder, environment["MINE"]) == ("given", where, "1")
    assert environment["RC_TASK_ID"] == task_id
    assert environment["RC_ATTEMPT"] == "1"
    assert not [name for name in environment if name.startswith("RETIRE_CLUSTER_")]
