"""`/metrics`: what the main node counts, and this process's own HTTP histograms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import falcon
from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.api.main_node.stats import HttpStats
from retire_cluster.api.resources.base import Resource
from retire_cluster.schemas.errors import ClusterError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "retire_cluster_"


class PrometheusResource(Resource):
    """Serve `/metrics`. A silent main node gives `retire_cluster_up 0`, not an error."""

    def __init__(self, link: MainNodeLink, stats: HttpStats) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._link = link
        self._stats = stats

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer all metrics in the text format 0.0.4."""
        try:
            data: dict[str, Any] | None = self._link.data("metrics")
        except ClusterError:
            data = None
        registry = CollectorRegistry()
        registry.register(_Scrape(data))
        resp.content_type = CONTENT_TYPE
        resp.data = generate_latest(registry) + generate_latest(self._stats.registry)


class _Scrape:
    """Turn one answer of the operation `metrics` into Prometheus families."""

    def __init__(self, data: Mapping[str, Any] | None) -> None:
        self._data = data

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        up = 0.0 if self._data is None else 1.0
        yield GaugeMetricFamily(_PREFIX + "up", "Whether the main node answers", value=up)
        if self._data is not None:
            yield from families(self._data)


def families(data: Mapping[str, Any]) -> Iterator[Metric]:
    """Return the Prometheus families of what the operation `metrics` answers."""
    yield InfoMetricFamily(
        _PREFIX + "build", "Version of the main node", value={"version": str(data["version"])}
    )
    yield GaugeMetricFamily(
        _PREFIX + "uptime_seconds", "Uptime of the main node", value=data["uptime_seconds"]
    )
    # The name is the REST document's, though Prometheus keeps `_total` for counters.
    yield _gauges("devices_total", "Total number of registered devices", "status", data["devices"])
    yield _counters("tasks", "Total number of tasks", "status", data["tasks"])
    yield _counters(
        "tasks_ended",
        "Tasks that ended since the main node started",
        "status",
        data["tasks_ended"],
    )
    yield _gauges("backlog_tasks", "Tasks that wait, by priority", "priority", data["backlog"])
    yield _gauges("slots", "Slots of the online devices", "state", data["slots"])
    yield _gauges(
        "heartbeat_age_seconds",
        "Seconds since an online device was heard of",
        "device_id",
        data["heartbeat_age_seconds"],
    )
    yield _durations(data["task_duration_seconds"])
    yield _counters("retries", "Attempts that were retried", "cause", data["retries"])
    yield _counters(
        "passed_over",
        "Times that a device was passed over for a kind of task",
        "cause",
        data["passed_over"],
    )
    yield _counters(
        "dropped_messages", "Messages dropped as malformed", "reason", data["dropped_messages"]
    )
    yield _counter("http_requests", "HTTP requests of all processes", data["http"]["requests"])
    yield _counter("http_errors", "HTTP requests answered 5xx", data["http"]["errors"])
    yield _counter("store_commits", "Commits of the store", data["store_commits"])
    yield _counter("events", "Events since the main node started", data["events"])


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([str(key)], value)
    return family


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([str(key)], value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, text, value=value)


def _durations(found: Mapping[str, Any]) -> Metric:
    """Add up counts a bucket, as Prometheus wants them."""
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip(found["bounds"], found["counts"], strict=True):
        total += count
        buckets.append((str(float(bound)), total))
    buckets.append(("+Inf", found["count"]))
    return HistogramMetricFamily(
        _PREFIX + "task_duration_seconds",
        "Execution time of ended tasks",
        buckets=buckets,
        sum_value=found["sum"],
    )
