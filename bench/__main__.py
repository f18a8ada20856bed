"""`python -m bench [NAME] [--runs N] [--json]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from bench import (
    checking,
    conditions,
    footprint,
    peers,
    redis_peer,
    report,
    rest,
    scale,
    throughput,
)

BENCHMARKS: dict[str, Callable[[int], list[report.Figure]]] = {
    "batches": throughput.batches,
    "singles": throughput.singles,
    "latency": throughput.latency,
    "rest": rest.rest,
    "rest-batch": rest.rest_batch,
    "validation": checking.validation,
    "encryption": conditions.encryption,
    "slow-disk": conditions.slow_disk,
    "heartbeats": footprint.heartbeats,
    "queued": scale.queued,
    "devices": scale.devices,
    "restart": scale.restart,
    "worker": footprint.worker,
    "huey": peers.huey,
    "redis": redis_peer.redis,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark, or list them."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object a benchmark")
    args = parser.parse_args(argv)
    if args.name is None:
        for name, run in BENCHMARKS.items():
            print(f"{name:12} {(run.__doc__ or '').splitlines()[0]}")
        return 0
    for name in BENCHMARKS if args.name == "all" else [args.name]:
        run = BENCHMARKS[name]
        try:
            figures = run(args.runs)
        except report.Unavailable as error:
            print(f"{name} {error}", file=sys.stderr)
            if args.name == "all":
                continue
            return 2
        title = (run.__doc__ or name).splitlines()[0]
        print(report.as_json(name, figures) if args.json else report.table(title, figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
