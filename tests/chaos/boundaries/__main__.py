"""`python -m tests.chaos.boundaries [--only bus,rest] [--cases 2000] [--seed 1] [--case 17]`.

Prints a line a boundary. Exit code 1 when something has to be mended.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from retire_cluster.node.system import process_tree
from tests.chaos.boundaries import bus, device, web
from tests.chaos.boundaries.hammer import Boundary, Found, hammer
from tests.chaos.red.target import Target
from tests.chaos.redteam import folder


@contextmanager
def _of_cluster(place: Path, make: Callable[[Target], Boundary]) -> Iterator[Boundary]:
    target = Target(place / "up", *bus.FLAGS, settings=bus.SETTINGS)
    try:
        made = make(target)
        yield made
        made.close()
    finally:
        target.close()


@contextmanager
def _of_its_own(place: Path, make: Callable[[Path], Boundary]) -> Iterator[Boundary]:
    made = make(place / "own")
    try:
        yield made
    finally:
        made.close()


BOUNDARIES: dict[str, Callable[[Path], AbstractContextManager[Boundary]]] = {
    "bus": lambda place: _of_cluster(place, bus.Device),
    "join": lambda place: _of_cluster(place, bus.TokenHolder),
    "admin": lambda place: _of_cluster(place, bus.Administrator),
    "rest": lambda place: _of_cluster(place, web.Rest),
    "ws": lambda place: _of_cluster(place, web.Stream),
    "installer": lambda place: _of_its_own(place, web.Installer),
    "device": lambda place: _of_its_own(place, device.MainNode),
    "child": lambda place: _of_its_own(place, device.TaskProcess),
    "spool": lambda place: _of_its_own(place, device.DamagedSpool),
}


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(BOUNDARIES), help="which, by commas (all)")
    parser.add_argument("--cases", type=int, default=2_000, help="over each boundary (2000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int, help="this one alone, as a problem named it")
    args = parser.parse_args()
    wanted = [name for name in args.only.split(",") if name]
    if unknown := set(wanted) - set(BOUNDARIES):
        parser.error(f"there is no boundary {', '.join(sorted(unknown))}")
    numbers = range(args.cases) if args.case is None else range(args.case, args.case + 1)
    process_tree.become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of every `finally`
    rows: list[Found] = []
    for name in wanted:
        print(f"{name} …", flush=True)
        with folder() as place, BOUNDARIES[name](place) as boundary:
            rows.append(hammer(boundary, numbers, args.seed))
        for problem in rows[-1].problems:
            print(f"  {problem}", flush=True)
    print("\n| boundary | cases | s | slowest | grew | for a moment | |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        verdict = "good" if not row.problems else f"{len(row.problems)} PROBLEMS"
        print(
            f"| {row.name} | {row.cases} | {row.seconds:.0f} | {row.slowest_seconds:.2f} s"
            f" ({row.slowest_case}) | {row.growth_mb:.1f} MB | {row.peak_mb:.0f} MB | {verdict} |"
        )
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
