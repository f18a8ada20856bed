"""A control group (v2) for each task process: bounds for a whole tree, and an end none escapes.

Made where the system has handed a group over to us: `Delegate=yes` in a unit, a container that may
write its own, a system without systemd. Limits need the controllers; `cgroup.kill` needs none.
See the kernel's cgroup-v2.rst, and systemd.io/CGROUP_DELEGATION.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from retire_cluster.node.device import cgroups
from retire_cluster.node.system import process_tree
from retire_cluster.node.system.resource_limits import Bounds
from retire_cluster.node.system.supervision import SUPERVISED

#: Where our own processes go: a group with processes of its own can give its children no limits.
_OWN = "retire-cluster.own"
_PREFIX = "retire-cluster.task"
_CONTROLLERS = ("memory", "pids", "cpu")
#: Room in `pids.max` for the keeper, the server, zygotes and the processes of a sandbox.
_OUR_PROCESSES = 16
_PERIOD_MICROSECONDS = 100_000
_TRIES = 20
PATIENCE_SECONDS = 2.0


@dataclass
class Group:
    """The control group of one task process."""

    folder: Path

    def add(self, pid: int) -> bool:
        """Take in a process that has run none but our code, with all below it."""
        if not _write(self.folder / "cgroup.procs", str(pid)):
            return False
        taken, waiting = {pid}, [pid]
        while waiting:
            for child in _children(waiting.pop()):
                if child not in taken and _write(self.folder / "cgroup.procs", str(child)):
                    waiting.append(child)
                taken.add(child)
        return True

    def kill(self) -> bool:
        """Kill every process of the group in one step; False where the kernel cannot (< 5.14)."""
        return _write(self.folder / "cgroup.kill", "1")

    def is_empty(self) -> bool:
        """Whether no process is left in it."""
        return "populated 0" in _read(self.folder / "cgroup.events")

    def close(self) -> bool:
        """Kill what is left, and remove the group; True when nothing of it is there any more."""
        end = time.monotonic() + PATIENCE_SECONDS
        if not self.is_empty():
            self.kill()
        while True:
            with contextlib.suppress(OSError):
                self.folder.rmdir()
            if not self.folder.exists():
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.005)


@dataclass
class Groups:
    """The groups of one worker."""

    #: The group that was handed over.
    folder: Path
    #: What bounds there can be.
    controllers: frozenset[str]
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def make(self, bounds: Bounds) -> Group | None:
        """An empty group with these bounds; None when the system has no room for it."""
        group = Group(self.folder / f"{_PREFIX}.{os.getpid()}.{next(self._numbers)}")
        try:
            group.folder.mkdir()
        except OSError:
            return None
        bound(group, self.controllers, bounds)
        return group

    @property
    def shown(self) -> str:
        """The groups and their controllers, in words."""
        bounded = [name for name in _CONTROLLERS if name in self.controllers]
        return f"cgroup ({', '.join(bounded)})" if bounded else "cgroup"


def bound(group: Group, controllers: frozenset[str], bounds: Bounds) -> None:
    """Set a group's bounds, as far as there are controllers for them."""
    if "memory" in controllers and bounds.memory_bytes:
        _write(group.folder / "memory.max", str(bounds.memory_bytes))
    if "pids" in controllers:
        _write(group.folder / "pids.max", str(bounds.new_processes + _OUR_PROCESSES))
    if "cpu" in controllers and bounds.cpu_percent:
        quota = bounds.cpu_percent * _PERIOD_MICROSECONDS // 100
        _write(group.folder / "cpu.max", f"{quota} {_PERIOD_MICROSECONDS}")


def ending(groups: Groups | None) -> str:
    """By what all processes of a task are bounded and ended, in few words."""
    if groups is not None:
        return f"processes: {groups.shown}"
    if process_tree.IS_LINUX:
        return "processes: whole trees, also what left its session"
    if sys.platform == "win32":
        return "processes: Job Objects"
    return "processes: groups; what leaves its session escapes"


def find(root: Path = Path("/")) -> Groups | None:
    """The groups for this worker's tasks, None where none was handed over to it.

    Groups that an earlier worker has left are ended with all that is in them.
    """
    folder = cgroups.unified_folder(root) if process_tree.IS_LINUX else None
    if folder is None:
        return None
    if folder.name == _OWN:
        folder = folder.parent
    if not _is_ours(folder, root):
        return None
    found = Groups(folder, _controllers(folder))
    _end_earlier(folder)
    trial = found.make(Bounds())
    if trial is None:
        return None
    # A kernel before 5.14: groups that cannot be killed would only be in the way.
    works = (trial.folder / "cgroup.kill").exists()
    trial.close()
    return found if works else None


def _is_ours(folder: Path, root: Path) -> bool:
    if not all(
        os.access(path, os.W_OK)
        for path in (folder, folder / "cgroup.procs", folder / "cgroup.subtree_control")
    ):
        return False
    if os.geteuid() != 0:
        return True  # given to this user, by whoever might
    if {"0::/", f"0::/{_OWN}"} & set(_read(root / "proc/self/cgroup").splitlines()):
        # A container's own, or a system where nobody else makes groups. An earlier worker may have
        # put us, or who started us, into a group of it.
        return True
    return _is_delegated(folder)


def _controllers(folder: Path) -> frozenset[str]:
    """Those that groups in this one have, once it has let them have what there is."""
    control = folder / "cgroup.subtree_control"
    there = _read(folder / "cgroup.controllers").split()
    wanted = " ".join(f"+{name}" for name in _CONTROLLERS if name in there)
    if wanted and not _write(control, wanted) and _may_be_moved(folder):
        own = folder / _OWN
        with contextlib.suppress(OSError):
            own.mkdir(exist_ok=True)
        for _ in range(_TRIES):
            for pid in _read(folder / "cgroup.procs").split():
                _write(own / "cgroup.procs", pid)
            if _write(control, wanted):
                break
    return frozenset(_read(control).split())


def _may_be_moved(folder: Path) -> bool:
    """Whether the processes in a group are ours to move: not a terminal's shell, or a desktop."""
    if os.geteuid() == 0 or _is_delegated(folder):
        return True
    # A supervisor's children have a pipe of it.
    top = os.getppid() if SUPERVISED in os.environ else os.getpid()
    ours = {str(top), *(str(process.pid) for process in process_tree.descendants(top))}
    return ours >= set(_read(folder / "cgroup.procs").split())


def _is_delegated(folder: Path) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _end_earlier(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}.*.*"):
        pid = path.name.split(".")[-2]
        if pid.isdecimal() and (int(pid) == os.getpid() or process_tree.find(int(pid)) is None):
            Group(path).close()


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ValueError):
        return [process.pid for process in process_tree.descendants(pid)]


def _write(path: Path, text: str) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.write(fd, text.encode("ascii")) > 0
    except OSError:
        return False
    finally:
        os.close(fd)


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""
