"""The SDK on a real facade with the documented limits: waiting costs nothing of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from retire_cluster.sdk import Cluster as Sdk
from retire_cluster.sdk import RetireClusterAPI
from tests.acceptance.kit import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("limits"))
    try:
        yield found
    finally:
        assert found.close() == 0


def test_a_map_of_three_thousand_tasks_costs_a_handful_of_requests(cluster: Cluster) -> None:
    before = int(cluster.rest.ask("GET", "/api/v1/tasks").headers["x-ratelimit-remaining"])
    with Sdk(cluster.rest.url + "/api/v1") as sdk:
        payloads = ({"n": n} for n in range(3_000))
        results = list(sdk.map("echo", payloads, timeout=50, buffersize=1_000))
    assert [each["echo"]["n"] for each in results] == list(range(3_000))
    after = int(cluster.rest.ask("GET", "/api/v1/tasks").headers["x-ratelimit-remaining"])
    assert before - after <= 12


def test_tasks_that_are_left_are_cancelled_with_one_request(cluster: Cluster) -> None:
    before = int(cluster.rest.ask("GET", "/api/v1/tasks").headers["x-ratelimit-remaining"])
    with Sdk(cluster.rest.url + "/api/v1") as sdk:
        results = sdk.map("sleep", ({"duration": 0.05 if n == 0 else 600} for n in range(500)))
        assert next(results) == {"slept_for": 0.05}
        results.close()  # type: ignore[attr-defined]
    after = cluster.rest.ask("GET", "/api/v1/tasks?status=cancelled&page_size=1")
    assert after.json["pagination"]["total_items"] == 499
    assert before - int(after.headers["x-ratelimit-remaining"]) <= 4


def test_asking_for_the_same_results_without_end_meets_the_limit(tmp_path: Path) -> None:
    # A cluster of its own: its budget is used up.
    cluster = Cluster(tmp_path)
    try:
        task_id = cluster.rest.submit("sleep", {"duration": 1})
        slow = cluster.rest.ask("GET", f"/api/v1/tasks/{task_id}/result?wait=20")
        assert slow.status == 200
        assert "x-ratelimit-remaining" not in slow.headers
        ids = cluster.rest.batch({"task_type": "echo", "payload": {"n": n}} for n in range(200))
        cluster.rest.ask("POST", "/api/v1/tasks/results?wait=20", {"task_ids": ids})
        one = f"/api/v1/tasks/{ids[0]}/result?wait=20"
        many = ("POST", "/api/v1/tasks/results?wait=20", {"task_ids": ids})
        unknown = "/api/v1/tasks/550e8400-e29b-41d4-a716-446655440000/result?wait=20"
        left = [
            int(answer.headers["x-ratelimit-remaining"])
            for answer in (
                cluster.rest.ask("GET", one),
                cluster.rest.ask(*many),
                cluster.rest.ask("GET", unknown),
            )
        ]
        assert left == [left[0], left[0] - 1, left[0] - 2]
        statuses = [cluster.rest.ask("GET", one).status for _ in range(80)]
        assert statuses.count(429) >= 10
        page = {"X-Requested-With": "retire-cluster-dashboard"}
        assert cluster.rest.ask("GET", "/api/v1/cluster/status", headers=page).status == 200
    finally:
        assert cluster.close() == 0


def test_waiting_for_each_task_on_its_own_is_free(cluster: Cluster) -> None:
    ids = cluster.rest.batch({"task_type": "echo", "payload": {"n": n}} for n in range(120))
    api = RetireClusterAPI(cluster.rest.url + "/api/v1", limit_seconds=0)
    answers = [api.wait(task_id, timeout_seconds=20) for task_id in ids]
    assert [answer["status"] for answer in answers] == ["success"] * 120
