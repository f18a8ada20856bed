"""The odd-task campaign: tasks that do one to three odd things, between innocent witnesses.

On a real device with two slots, whose own types come from `odd_plugin`. A witness must never be
late, wrong or failed, and the device must be as before: its process, memory, descriptors, folders,
shared memory, and nothing of a task running. One harm is left out, for nobody can keep it off but
`policy.user`: a task that kills the worker itself, as the same user may.

Some deeds close and remove what is around them: nothing may run after one has left its folder.
Where the system allows it, what is mounted at / can be written to only there besides (`SHUT`).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retire_cluster.node.system import process_tree, shared_memory
from retire_cluster.schemas.protocol.messages import AttemptKey
from tests.chaos import odd_plugin
from tests.integration.node_kit import Bus

#: A witness that takes longer was harmed.
LATE_SECONDS = 10.0
#: One second for a deed that never ends.
TIMEOUT_SECONDS = 1
#: For all others. A program started in a folder too deep to be named takes seconds to load; less
#: than the bus is patient.
LONG_SECONDS = 10
SLOTS = 2
DEEDS = tuple(sorted(odd_plugin.DEEDS))
#: Runs a program with a view of its own of the file system: of the one mounted at /, only this
#: folder can be changed. Others, as /dev/shm, are as they were.
SHUT = (
    "unshare", "--mount", "sh", "-c",
    'mount --make-rprivate / && mount --bind "$0" "$0" && mount -o remount,bind,ro / &&'
    ' cd "$0" && exec "$@"',
)  # fmt: skip
ENTRY_POINTS = """[retire_cluster.task_types]
odd = odd_plugin:odd
witness = odd_plugin:witness
"""


@dataclass
class Found:
    """What a campaign saw."""

    odd_tasks: int = 0
    witnesses: int = 0
    slowest_witness_seconds: float = 0.0
    #: The most of any worker's.
    rss_growth_mb: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def install(folder: Path) -> Path:
    """The plugin as an installed package; the folder for PYTHONPATH."""
    info = folder / "odd_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copytree(Path(odd_plugin.__file__).parent, folder / "odd_plugin")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def shut(folder: Path) -> tuple[str, ...]:
    """What to put before a command so that it can change this folder only; () where it cannot."""
    line = (*SHUT, str(folder))
    with contextlib.suppress(OSError):
        if not subprocess.run([*line, "true"], capture_output=True, check=False).returncode:
            return line
    return ()


@contextmanager
def device(folder: Path) -> Iterator[Device]:
    """A worker that has joined."""
    bus = Bus()
    folder.mkdir(exist_ok=True)
    site = install(folder / "site")
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    log = folder / "worker.log"
    temporary = folder / "tmp"
    temporary.mkdir()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(temporary)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                *shut(folder), sys.executable, "-m", "retire_cluster.node",
                "--join", f"127.0.0.1:{bus.port}", "--data-dir", str(folder / "w"),
                "--slots", str(SLOTS), "--allow", "command", "--allow-root",
            ],
            cwd=folder, env=environ,
            stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        bus.welcome()
        yield Device(bus, process, folder / "w", log)
    finally:
        process.kill()
        process.wait()
        bus.close()
        bus.context.term()


class Device:
    """A running worker, and how it was at the beginning."""

    def __init__(
        self, bus: Bus, process: subprocess.Popen[bytes], data_dir: Path, log: Path
    ) -> None:
        self.bus = bus
        self.process = process
        self.data_dir = data_dir
        self.log = log
        self._expected: Any = None
        self._drawn: set[tuple[float, ...]] = set()
        self._count = 0
        self._began: dict[int, float] = {}

    def run(self, found: Found, combinations: Iterator[tuple[str, ...]]) -> Found:
        """Runs each combination, a witness beside it and a witness after it."""
        self._see(found, [self._witness() for _ in range(SLOTS)], ())
        rss, fds = self._rss_mb(), self._fds()
        shared = self._shared()
        for deeds in combinations:
            odd = self._assign("odd", {"deeds": deeds}, deeds)
            beside = self._witness()
            self._see(found, [beside], deeds)
            if found.problems:
                break
            outcome = self.bus.result(odd).item.outcome
            found.odd_tasks += 1
            found.outcomes[outcome] += 1
            self._see(found, [self._witness() for _ in range(SLOTS)], deeds)
            self._look(found, deeds, shared)
            if found.problems:
                break
        found.rss_growth_mb = max(found.rss_growth_mb, self._rss_mb() - rss)
        grown = self._fds() - fds
        if grown > 0:
            found.problems.append(f"the worker has {grown} descriptors more")
        gaps = [b - a for a, b in zip(self.bus.beats, self.bus.beats[1:], strict=False)]
        if max(gaps, default=0.0) > LATE_SECONDS:
            found.problems.append(f"{max(gaps):.1f} s without a heartbeat")
        return found

    # --- parts --------------------------------------------------------------------------------

    def _assign(self, task_type: str, payload: Any, deeds: tuple[str, ...]) -> AttemptKey:
        seconds = TIMEOUT_SECONDS if odd_plugin.SLOW & set(deeds) else LONG_SECONDS
        return self.bus.assign(task_type, payload, seconds)

    def _witness(self) -> AttemptKey:
        self._count += 1
        key = self.bus.assign("witness", {"n": self._count}, 30)
        self._began[key[0]] = time.monotonic()
        return key

    def _see(self, found: Found, keys: list[AttemptKey], deeds: tuple[str, ...]) -> None:
        for key in keys:
            try:
                ended = self.bus.result(key)
            except AssertionError:
                found.problems.append(f"a witness of {' + '.join(deeds)}: never ended")
                return
            took = time.monotonic() - self._began.pop(key[0])
            found.witnesses += 1
            found.slowest_witness_seconds = max(found.slowest_witness_seconds, took)
            where = f"a witness of {' + '.join(deeds)}"
            if ended.item.outcome != "success":
                found.problems.append(f"{where}: {ended.item.outcome} {ended.item.error_message}")
                continue
            if self._expected is None:
                self._expected = ended.data["state"]
            if ended.data["state"] != self._expected:
                changed = {
                    name: (self._expected[name], value)
                    for name, value in ended.data["state"].items()
                    if value != self._expected[name]
                }
                found.problems.append(f"{where}: found {changed}")
            if ended.details.get("logs") != f"witness {ended.data['n']}\n":
                found.problems.append(f"{where}: its logs are {ended.details.get('logs')!r:.200}")
            drawn = tuple(ended.data["drawn"])
            if drawn in self._drawn:
                found.problems.append(f"{where}: drew random numbers that another had drawn")
            self._drawn.add(drawn)
            if took > LATE_SECONDS:
                found.problems.append(f"{where}: {took:.1f} s late")
            del self.bus.ended[key[0]]

    def _look(self, found: Found, deeds: tuple[str, ...], shared: set[str]) -> None:
        """Whether the device is as before."""
        self.bus.seen.clear()
        if self.process.poll() is not None:
            found.problems.append(f"{deeds}: the worker has ended: {self.log.read_text()[-500:]}")
            return
        left = [path.name for path in (self.data_dir / "work").glob("*/*") if path.is_dir()]
        if left:
            found.problems.append(f"{deeds}: the folders {left} are left")
        # Another run on this machine may have some for a moment.
        end = time.monotonic() + 5.0
        while (more := self._shared() - shared) and time.monotonic() < end:
            self.bus.step(50)
        # A keeper, a server and its seed for each slot; templates come and go.
        below = process_tree.descendants(self.process.pid)
        if more:
            ours = {self.process.pid, *(process.pid for process in below)}
            for pid in set(process_tree.table()) - ours:
                more -= shared_memory.held(pid, more)  # another program's
        if more:
            found.problems.append(f"{deeds}: shared memory {more} is left")
        if len(below) > 5 * SLOTS:
            found.problems.append(f"{deeds}: {len(below)} processes are below the worker")

    def _rss_mb(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0

    def _fds(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @staticmethod
    def _shared() -> set[str]:
        names: set[str] = set()
        with contextlib.suppress(OSError):
            names.update(name for name in os.listdir("/dev/shm") if name.startswith(("psm", "sem")))
        return names


def each_once() -> Iterator[tuple[str, ...]]:
    """Every deed alone."""
    for name in DEEDS:
        yield (name,)


def drawn(count: int, seed: int) -> Iterator[tuple[str, ...]]:
    """One to three deeds, drawn; what never ends comes last and is rarer."""
    rng = random.Random(seed)
    quick = [name for name in DEEDS if name not in odd_plugin.SLOW]
    slow = sorted(odd_plugin.SLOW)
    for _ in range(count):
        deeds = rng.sample(quick, rng.randint(1, 3))
        if rng.random() < 0.03:
            deeds[-1] = rng.choice(slow)
        yield tuple(deeds)
