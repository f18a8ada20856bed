"""Runs seeds of the simulation; a failing one is replayed and told.

python tests/simulation/run.py --seed 17 --verbose
python tests/simulation/run.py --seeds 2000
python tests/simulation/run.py --seeds 100000 --jobs 2
python tests/simulation/run.py --seeds 2000 --bug stale-token
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # started by path: the checkout is not on the way yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.simulation.bugs import BUGS, planted
from tests.simulation.engine import Story, Violation
from tests.simulation.world import Summary, World

_CHUNK = 50
_SEEDS_PER_COLLECTION = 10


class Failure(NamedTuple):
    """A seed that broke a promise."""

    seed: int
    text: str
    task: int | None


class Batch(NamedTuple):
    """What some seeds did."""

    seeds: int
    events: int
    tasks: int
    ended: Counter[str]
    failures: list[Failure]


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for SQLite files, in memory where there is such a place."""
    shm = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="simulation-", dir=shm if shm.is_dir() else None)


def play(seed: int, folder: Path, bug: str = "", story: Story | None = None) -> Summary:
    """Play one seed, with a planted bug if one is named. Raises `Violation`."""
    with planted(bug) as disk:
        try:
            return World(seed, folder, story, disk).run()
        except Exception as error:
            where = "".join(traceback.format_tb(error.__traceback__)[-3:])
            raise Violation(f"{type(error).__name__}: {error}\n{where}") from error


def play_some(seeds: Sequence[int], bug: str = "", failures: int = 1) -> Batch:
    """Play seeds until so many have failed."""
    events = tasks = done = 0
    ended: Counter[str] = Counter()
    failed: list[Failure] = []
    gc.disable()  # a world is small and full of cycles: all of them go at once
    with scratch() as name:
        for seed in seeds:
            done += 1
            if done % _SEEDS_PER_COLLECTION == 0:
                gc.collect()
            try:
                summary = play(seed, Path(name), bug)
            except Violation as violation:
                failed.append(Failure(seed, violation.text, violation.task))
                if len(failed) >= failures:
                    break
                continue
            events += summary.events
            tasks += summary.tasks
            ended.update(summary.ended)
    gc.enable()
    return Batch(done, events, tasks, ended, failed)


def tell(failure: Failure, bug: str = "") -> str:
    """A failed seed's story: everything that touched the task, or the last that happened."""
    story = Story()
    again = "it did not fail again: something is not decided by the seed alone"
    with scratch() as name:
        try:
            play(failure.seed, Path(name), bug, story)
        except Violation as violation:
            same = violation.text == failure.text
            again = "" if same else f"replayed it says: {violation.text}"
    lines = story.of(failure.task)
    if len(lines) > 400:
        lines = [*lines[:100], f"    … {len(lines) - 400} lines …", *lines[-300:]]
    about = "the last events" if failure.task is None else f"task {failure.task}"
    flag = f" --bug {bug}" if bug else ""
    return "\n".join(
        [
            f"seed {failure.seed}: {failure.text}",
            *([again] if again else []),
            f"--- {about} ---",
            *lines,
            f"--- replay: python tests/simulation/run.py --seed {failure.seed} --verbose{flag}",
        ]
    )


def _batches(args: argparse.Namespace) -> Iterator[Batch]:
    seeds = range(args.start, args.start + args.seeds)
    chunks = [seeds[at : at + _CHUNK] for at in range(0, len(seeds), _CHUNK)]
    if args.jobs <= 1:
        for chunk in chunks:
            yield play_some(chunk, args.bug, args.failures)
        return
    left = iter(chunks)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        running: set[Future[Batch]] = set()
        try:
            while True:
                while len(running) < 2 * args.jobs and (more := next(left, None)) is not None:
                    running.add(pool.submit(play_some, more, args.bug, args.failures))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _many(args: argparse.Namespace) -> int:
    began = told = time.monotonic()
    total = Batch(0, 0, 0, Counter(), [])
    for batch in _batches(args):
        total = Batch(
            total.seeds + batch.seeds, total.events + batch.events, total.tasks + batch.tasks,
            total.ended + batch.ended, total.failures + batch.failures,
        )  # fmt: skip
        now = time.monotonic()
        if now - told >= 10:
            told = now
            print(f"{total.seeds} seeds, {total.seeds / (now - began):.0f}/s", flush=True)
        over = args.seconds is not None and now - began >= args.seconds
        if len(total.failures) >= args.failures or over:
            break
    seconds = time.monotonic() - began
    ended = ", ".join(f"{count} {word}" for word, count in sorted(total.ended.items()))
    print(
        f"{total.seeds} seeds in {seconds:.1f} s ({total.seeds / seconds:.0f} seeds/s),"
        f" {total.events / max(1, total.seeds):.0f} events a seed, {total.tasks} tasks ({ended}),"
        f" {len(total.failures)} failed"
    )
    for failure in total.failures:
        print(tell(failure, args.bug) if args.stories else f"seed {failure.seed}: {failure.text}")
    return 1 if total.failures else 0


def _one(args: argparse.Namespace) -> int:
    story = Story(print if args.verbose else None)
    with scratch() as name:
        try:
            summary = play(args.seed, Path(name), args.bug, story)
        except Violation as violation:
            if args.verbose:
                print(f"seed {args.seed}: {violation.text}")
            else:
                print(tell(Failure(args.seed, violation.text, violation.task), args.bug))
            return 1
    print(f"seed {args.seed}: all promises kept; {summary}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = found.add_argument
    add("--seed", type=int, help="play this one and tell its story if it fails")
    add("--verbose", action="store_true", help="with --seed: print everything as it happens")
    add("--seeds", type=int, default=2_000, help="how many to play")
    add("--start", type=int, default=0, help="the first of them")
    add("--jobs", type=int, default=1, help="processes")
    add("--seconds", type=float, help="stop after this long")
    add("--failures", type=int, default=1, help="stop after so many")
    add("--no-stories", dest="stories", action="store_false", help="one line a failure")
    add("--bug", default="", choices=("", *BUGS), help="plant this bug first")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Play; 1 when a promise was broken."""
    args = parser().parse_args(argv)
    return _many(args) if args.seed is None else _one(args)


if __name__ == "__main__":
    sys.exit(main())
