"""Tasks per second and submit-to-result latency of the product against the floor, run by run."""

from __future__ import annotations

import statistics

from bench.floor import FloorClient, floor
from bench.product import ProductClient, product
from bench.report import Figure, ratios

#: A payload of the size that the peers were measured with.
PAYLOAD = b'{"message":"' + b"x" * 200 + b'"}'
BATCH, WINDOW = 500, 20_000
#: Of latency; the picture draws them.
PERCENTILES = (10, 25, 50, 75, 90, 99)


def rate(client: FloorClient | ProductClient, tasks: int, batch: int, window: int) -> float:
    """Durable tasks per second."""
    return tasks / client.throughput(PAYLOAD, tasks, batch, window)


def batches(runs: int, tasks: int = 40_000) -> list[Figure]:
    """Durable tasks/s in batches of 500, 20,000 under way."""
    return _compare(runs, tasks, BATCH, WINDOW)


def singles(runs: int, tasks: int = 8_000) -> list[Figure]:
    """Durable tasks/s, one task a call, 200 calls under way."""
    return _compare(runs, tasks, 1, 200)


def _compare(runs: int, tasks: int, batch: int, window: int) -> list[Figure]:
    ours = Figure("product", "tasks/s")
    least = Figure("floor (no features)", "tasks/s")
    with floor() as reference, product() as cluster:
        client = cluster.client()
        rate(client, tasks // 4, batch, window)
        for _ in range(runs):
            least.values.append(rate(reference, tasks, batch, window))
            ours.values.append(rate(client, tasks, batch, window))
        client.close()
    return [ours, least, ratios("product / floor", ours, least)]


def latency(runs: int, samples: int = 300) -> list[Figure]:
    """Submit to result on an idle cluster, one task at a time."""
    ours = [Figure(f"product p{percent}", "ms") for percent in PERCENTILES]
    least = [Figure(f"floor p{percent}", "ms") for percent in PERCENTILES]
    with floor() as reference, product() as cluster:
        client = cluster.client()
        for _ in range(50):
            client.latency(PAYLOAD)
        for _ in range(runs):
            for side, figures in ((reference, least), (client, ours)):
                times = [1000 * side.latency(PAYLOAD) for _ in range(samples)]
                cuts = statistics.quantiles(times, n=100)
                for figure, percent in zip(figures, PERCENTILES, strict=True):
                    figure.values.append(cuts[percent - 1])
        client.close()
    middle = PERCENTILES.index(50)
    return [*ours, *least, ratios("product / floor p50", ours[middle], least[middle])]
