"""The SDK on a real facade with the documented limits: waiting costs nothing of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from retire_cluster.sdk import Cluster as Sdk
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
