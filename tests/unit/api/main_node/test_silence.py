"""Answers while the main node is silent, degraded or draining."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.broker.client import NoAnswer, RawAnswer
from retire_cluster.schemas.errors import ClusterUnavailable, InternalError, TaskNotFound
from tests.unit.api.kit import API, Bench, MemoryCluster, code_of


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
    bench.facade.shutdown.begin()
    assert bench.ask("GET", "/health").status_code == 503


def test_a_silent_main_node_holds_one_caller_at_a_time() -> None:
    cluster = MemoryCluster()
    guarded = MainNodeLink(cluster)
    cluster.answers["x"] = NoAnswer()
    nested: list[type[BaseException]] = []
    original: Callable[..., RawAnswer] = cluster.call_raw

    def call_raw(*args: Any, **options: Any) -> RawAnswer:
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
    guarded = MainNodeLink(cluster)
    for error in (TaskNotFound(), InternalError(), ClusterUnavailable("not now")):
        cluster.answers["x"] = error
        with pytest.raises(type(error)):
            guarded.call("x")
        assert guarded.reachable


def test_parked_polls_leave_most_threads_free() -> None:
    bench = Bench(threads=4)
    waits: list[float] = []
    original = bench.cluster.call_raw

    def call_raw(op: str, args: Any = None, *rest: Any, **options: Any) -> RawAnswer:
        if op == "events.poll":
            waits.append(args["wait_seconds"])
            if len(waits) == 1:  # a second poll comes while the first one waits
                second = bench.ask("GET", f"{API}/events?since=1&wait=25")
                assert second.json["data"]["events"] == []
                bench.facade.shutdown.begin()
        return original(op, args, *rest, **options)

    bench.cluster.call_raw = call_raw  # type: ignore[method-assign]
    environ = {"wsgi.multithread": True}
    first = bench.ask("GET", f"{API}/events?since=1&wait=25", extras=environ)
    assert first.status_code == 200
    assert waits[0] > 0
    assert waits[1] == 0
