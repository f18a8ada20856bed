"""Whole clusters in virtual time under every fault there is: no promise is ever broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.simulation import run  # noqa: E402
from tests.simulation.bugs import BUGS  # noqa: E402
from tests.simulation.storage import SQLiteDisk  # noqa: E402
from tests.simulation.world import World  # noqa: E402

#: Seeds that CI plays, if they fit into so many seconds.
SEEDS, SECONDS = 2_000, 50
#: Within so many seeds each planted bug must be noticed.
SEEDS_TO_NOTICE = 2_000
#: Seeds that notice bugs which few do.
NOTICED = {
    "condemns-all": 1_494, "no-fence": 534, "counts-epochs": 243, "keeps-every-row": 1_648,
    "stale-token": 203, "trouble-is-damage": 64, "ages-by-the-wall-clock": 51, "eats-the-queue": 42,
}  # fmt: skip


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`run.py` in a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "simulation" / "run.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        check=False,
    )


def test_a_hundred_seeds_keep_every_promise() -> None:
    batch = run.play_some(range(100))
    assert not batch.failures, run.tell(batch.failures[0])
    assert batch.ended["success"] > 100


@pytest.mark.slow
def test_two_thousand_seeds_keep_every_promise() -> None:
    jobs = min(4, os.cpu_count() or 1)
    done = command("--seeds", str(SEEDS), "--seconds", str(SECONDS), "--jobs", str(jobs))
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.no_cover
def test_seeds_on_sqlite_files_keep_every_promise(tmp_path: Path) -> None:
    for seed in range(10_000, 10_020):
        World(seed, tmp_path, disk=SQLiteDisk(tmp_path / f"{seed}.db", seed)).run()


@pytest.mark.no_cover
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_noticed(bug: str) -> None:
    # First where it was noticed when this was written: the search takes a minute for some.
    first = NOTICED.get(bug, 0)
    batch = run.play_some([*range(first, SEEDS_TO_NOTICE), *range(first)], bug)
    assert batch.failures, f"{bug} stayed hidden for {batch.seeds} seeds"


def test_a_failure_is_told_with_everything_that_touched_the_task() -> None:
    (failure,) = run.play_some(range(SEEDS_TO_NOTICE), "charges-unstarted").failures
    story = run.tell(failure, "charges-unstarted")
    assert failure.task is not None
    assert f"--- task {failure.task} ---" in story
    assert f"task {failure.task}: assigned" in story
    assert f"--seed {failure.seed} --verbose --bug charges-unstarted" in story
    assert "did not fail again" not in story


def test_a_seed_decides_everything_and_replays_exactly() -> None:
    first, second = (
        command("--seed", "5", "--verbose", PYTHONHASHSEED=salt).stdout for salt in ("1", "2")
    )
    assert first == second
    assert "all promises kept" in first
