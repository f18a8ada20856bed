"""REST requests per second beside Falcon on waitress with one ZeroMQ round trip, run by run."""

from __future__ import annotations

import json
import statistics

from bench import http_load
from bench.hello import hello
from bench.product import Product, product
from bench.report import Figure, ratios
from bench.throughput import PAYLOAD

_SECONDS = 3.0
_ONE = b'{"task_type":"echo","payload":' + PAYLOAD + b"}"
_MANY = b'{"tasks":[' + b",".join([_ONE] * 500) + b"]}"


def _rate(port: int, request: bytes, connections: int) -> tuple[float, float]:
    """Requests per second and the median of their times in ms."""
    load = http_load.run(port, request, connections, _SECONDS)
    if not set(load.statuses) <= {200, 201}:
        raise RuntimeError(f"the API answered {load.statuses}")
    return load.rate, statistics.median(load.latencies_ms)


def _requests(cluster: Product) -> dict[str, bytes]:
    load = http_load.run(cluster.api_port, http_load.post("/api/v1/tasks", _ONE), 1, 0.1)
    assert load.requests
    page = http_load.fetch(cluster.api_port, "/api/v1/tasks?page_size=1")
    task_id = json.loads(page)["data"][0]["task_id"]
    return {
        "POST /tasks": http_load.post("/api/v1/tasks", _ONE),
        "GET status": http_load.get(f"/api/v1/tasks/{task_id}/status"),
    }


def rest(runs: int) -> list[Figure]:
    """Requests/s of durable POST /tasks and GET status at 8 and 64 connections, no device."""
    found: list[Figure] = []
    with hello() as port, product(workers=0) as cluster:
        for name, request in _requests(cluster).items():
            for connections in (8, 64):
                ours = Figure(f"{name}, {connections} connections", "requests/s")
                least = Figure(f"hello, {connections} connections", "requests/s")
                times = Figure(f"{name}, {connections} connections, p50", "ms")
                for _ in range(runs):
                    plain = http_load.post("/tasks", _ONE)
                    least.values.append(_rate(port, plain, connections)[0])
                    rate, median = _rate(cluster.api_port, request, connections)
                    ours.values.append(rate)
                    times.values.append(median)
                found += [ours, least, ratios("ratio", ours, least), times]
    return found


def rest_batch(runs: int) -> list[Figure]:
    """Durable tasks/s accepted by POST /tasks/batch, 500 a request, 4 connections; no device."""
    ours = Figure("accepted", "tasks/s")
    request = http_load.post("/api/v1/tasks/batch", _MANY)
    for _ in range(runs):
        with product(workers=0) as cluster:  # a full one refuses after a million tasks
            _rate(cluster.api_port, request, 4)
            ours.values.append(500 * _rate(cluster.api_port, request, 4)[0])
    return [ours]
