"""Sends cases over a boundary and watches: lives, memory, time, and that others are served."""

from __future__ import annotations

import contextlib
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from retire_cluster.conf.machine.processes import started

#: After so many cases a well-behaved peer has to be served.
BATCH: Final = 100
#: Memory counts from here on: pools and caches are full then.
_WARM_UP: Final = 0.3
_MOST_PROBLEMS: Final = 10
#: All else is a finding, also the failures of pytest's, which are no `Exception`.
_STOPPED: Final = (KeyboardInterrupt, SystemExit)


class Boundary(ABC):
    """One way in. A case is made from a generator alone, so that its number brings it back."""

    name: str
    #: No case may end a process; else `send` looks after that itself.
    must_live: bool = True
    #: Longest that one case may keep what it is sent to, on a busy machine.
    case_seconds: float = 5.0
    #: What the processes may have grown by at the end.
    growth_mb: float = 30.0
    #: What a single batch may make them take for a moment.
    peak_mb: float = 250.0

    @abstractmethod
    def case(self, rng: random.Random) -> Any:
        """One odd case."""

    @abstractmethod
    def send(self, case: Any) -> None:
        """Send it, and wait until it has been dealt with. Raises where it was not."""

    @abstractmethod
    def witness(self) -> None:
        """A well-behaved peer is served. Raises where it is not."""

    @abstractmethod
    def pids(self) -> Sequence[int]:
        """The processes that are sent to."""

    def complaints(self) -> list[str]:
        """What the logs say that no message from outside may lead to."""
        return []

    def close(self) -> None:  # noqa: B027 - most start nothing themselves
        """End what it started."""


@dataclass
class Found:
    """What came of it."""

    name: str
    cases: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    slowest_case: int = 0
    growth_mb: float = 0.0
    peak_mb: float = 0.0
    #: What has to be mended, with the numbers of the cases.
    problems: list[str] = field(default_factory=list)


def generator(name: str, seed: int, number: int) -> random.Random:
    """The one that makes a case."""
    return random.Random(f"{name}/{seed}/{number}")


def hammer(boundary: Boundary, numbers: Sequence[int], seed: int) -> Found:
    """Send the cases of these numbers; what came of it."""
    found = Found(boundary.name)
    began = time.monotonic()
    boundary.witness()
    lives = [started(pid) for pid in boundary.pids()]
    before: list[float] = []
    for start in range(0, len(numbers), BATCH):
        batch = numbers[start : start + BATCH]
        if not before and start >= len(numbers) * _WARM_UP:
            before = [memory_mb(pid) for pid in boundary.pids()]
        _reset_peaks(boundary.pids())
        resting = [memory_mb(pid) for pid in boundary.pids()]
        for number in batch:
            _one(boundary, number, seed, found)
        where = f"cases {batch[0]} to {batch[-1]} of seed {seed}"
        try:
            boundary.witness()
        except _STOPPED:
            raise
        except BaseException as error:
            found.problems.append(f"{where}: the witness is not served: {error!r}")
        if boundary.must_live and [started(pid) for pid in boundary.pids()] != lives:
            found.problems.append(f"{where}: a process ended")
            lives = [started(pid) for pid in boundary.pids()]
        peaks = [memory_mb(pid, "VmHWM") for pid in boundary.pids()]
        peak = max(after - rest for after, rest in zip(peaks, resting, strict=False))
        found.peak_mb = max(found.peak_mb, peak)
        if peak > boundary.peak_mb:
            found.problems.append(f"{where}: {peak:.0f} MB more for a moment")
        found.problems += [f"{where}: {text}" for text in boundary.complaints()]
        if len(found.problems) >= _MOST_PROBLEMS:
            break
    after = [memory_mb(pid) for pid in boundary.pids()]
    found.growth_mb = max((b - a for a, b in zip(before, after, strict=False)), default=0.0)
    if found.growth_mb > boundary.growth_mb:
        found.problems.append(f"grew by {found.growth_mb:.0f} MB")
    found.seconds = time.monotonic() - began
    return found


def _one(boundary: Boundary, number: int, seed: int, found: Found) -> None:
    case = boundary.case(generator(boundary.name, seed, number))
    began = time.monotonic()
    try:
        boundary.send(case)
    except _STOPPED:
        raise
    except BaseException as error:
        found.problems.append(f"case {number} of seed {seed}: {error!r}")
    took = time.monotonic() - began
    found.cases += 1
    if took > found.slowest_seconds:
        found.slowest_seconds, found.slowest_case = took, number
    if took > boundary.case_seconds:
        found.problems.append(f"case {number} of seed {seed} took {took:.1f} s")


def memory_mb(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process, or its highest with `VmHWM`; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _reset_peaks(pids: Sequence[int]) -> None:
    """Have the highest memory counted from now on (proc(5), clear_refs)."""
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")
