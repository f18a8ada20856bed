"""Two hundred tasks of all sorts over three different devices, watched through the event feed."""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.kit import Cluster
from tests.command_kit import until

pytestmark = pytest.mark.slow

#: The contract's state machine; a retry on request starts again from an end.
LEGAL = {
    (None, "queued"),
    (None, "pending"),
    ("pending", "queued"),
    ("queued", "assigned"),
    ("assigned", "running"),
    ("assigned", "pending"),
    ("running", "pending"),
    ("running", "success"),
    ("running", "failed"),
    ("running", "timeout"),
    *((state, "cancelled") for state in ("pending", "queued", "assigned", "running")),
}
DEVICES: dict[str, dict[str, Any]] = {
    "red": {"role": "compute", "tags": {"red", "shared"}, "command": True},
    "blue": {"role": "storage", "tags": {"blue", "shared"}, "command": False},
    "plain": {"role": "mobile", "tags": set(), "command": False},
}
REQUIREMENTS: list[dict[str, Any]] = [
    {},
    {"required_tags": ["red"]},
    {"required_tags": ["blue"]},
    {"required_tags": ["shared"]},
    {"required_role": "mobile"},
    {"required_role": "storage", "required_tags": ["shared"]},
    {"min_cpu_cores": 1, "required_role": "compute"},
]
#: Task type, payload, how it ends.
KINDS: list[tuple[str, dict[str, Any], str]] = [
    ("echo", {"deep": [1, {"ü": None}]}, "success"),
    ("sleep", {"duration": 0.02}, "success"),
    ("system_info", {}, "success"),
    ("python_eval", {"expression": "[n ** 2 for n in range(9)]"}, "success"),
    ("python_eval", {"expression": "1 / 0"}, "failed"),
    ("command", {"command": [sys.executable, "-c", "print(1)"]}, "success"),
    ("command", {"command": [sys.executable, "-c", "raise SystemExit(9)"]}, "failed"),
    ("sleep", {"duration": 30}, "timeout"),
]
WEIGHTS = [40, 20, 15, 15, 10, 8, 4, 2]


def allowed_on(task_type: str, requirements: dict[str, Any]) -> set[str]:
    """The devices that may run such a task."""
    return {
        name
        for name, device in DEVICES.items()
        if set(requirements.get("required_tags", ())) <= device["tags"]
        and requirements.get("required_role", device["role"]) == device["role"]
        and (task_type != "command" or device["command"])
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("mix"), "--no-rate-limit", "--workers", "0")
    try:
        for name, device in DEVICES.items():
            flags = ["--role", device["role"], *(f"--tag={tag}" for tag in sorted(device["tags"]))]
            if device["command"]:
                flags += ["--allow", "command", "--allow-root"]
            found.join(name, *flags, "--slots", "3")
        yield found
    finally:
        assert found.close() == 0


def test_every_task_ends_as_it_must_and_only_where_it_may(cluster: Cluster) -> None:
    rest, pick = cluster.rest, random.Random(20)
    since = rest.cursor()
    wanted: list[tuple[dict[str, Any], str, set[str]]] = []
    while len(wanted) < 200:
        (task_type, payload, end), requirements = (
            pick.choices(KINDS, WEIGHTS)[0],
            pick.choice(REQUIREMENTS),
        )
        places = allowed_on(task_type, requirements)
        if places:
            limits = {"max_retries": 0, "timeout_seconds": 1 if end == "timeout" else 60}
            body = {
                "task_type": task_type,
                "payload": payload,
                "priority": pick.choice(["low", "normal", "high", "urgent"]),
                "requirements": {**requirements, **limits},
            }
            wanted.append((body, end, places))
    ids = rest.batch(body for body, _, _ in wanted)

    def ended() -> bool:
        tasks = rest.get("/cluster/status")["tasks"]
        return bool(tasks["queued"] + tasks["running"] == 0 and not tasks["by_status"]["pending"])

    until(ended, "all to end", 90)
    found = [rest.get(f"/tasks/{task_id}") for task_id in ids]
    assert [task["status"] for task in found] == [end for _, end, _ in wanted]
    astray = [
        (task["assigned_device_id"], body)
        for task, (body, _, places) in zip(found, wanted, strict=True)
        if task["assigned_device_id"] not in places
    ]
    assert astray == []
    assert {task["assigned_device_id"] for task in found} == set(DEVICES)

    paths: dict[str, list[tuple[str | None, str]]] = defaultdict(list)
    for event in rest.events(since):
        kind = event["type"].partition(".")[2]
        if event["type"].startswith("task.") and kind != "progress":
            paths[event["task_id"]].append((event["data"]["from"], kind))
    assert set(paths) >= set(ids)
    for task_id, task in zip(ids, found, strict=True):
        path = paths[task_id]
        assert set(path) <= LEGAL, path
        assert [before for before, _ in path] == [None, *(after for _, after in path[:-1])]
        assert path[-1][1] == task["status"]

    statistics = rest.get("/tasks/statistics")
    assert statistics["queue_stats"]["total_tasks"] >= 200
    assert statistics["current_load"]["running_tasks"] == 0
    devices = {device: rest.get(f"/devices/{device}") for device in DEVICES}
    done = sum(d["tasks_succeeded"] for d in devices.values())
    assert done == sum(task["status"] == "success" for task in found)


def test_the_feed_continues_where_a_client_left_off(cluster: Cluster) -> None:
    rest = cluster.rest
    since = rest.cursor()
    task_id = rest.submit("echo", {}, required_tags=["red"])
    rest.result(task_id)
    types: list[str] = []
    while "task.success" not in types:
        data = rest.get(f"/events?since={since}&wait=10&task_id={task_id}")
        assert data["events"], types
        assert data["next"] > since
        since = data["next"]
        types += [event["type"] for event in data["events"]]
    assert types == ["task.queued", "task.assigned", "task.running", "task.success"]
    assert rest.get(f"/events?since={since}&wait=0&task_id={task_id}")["events"] == []
