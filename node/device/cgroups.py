"""What a control group leaves this process of the machine: cgroup v1, v2, and both at once.

Containers and services are limited so (`docker run --cpus 0.5 --memory 512m`, `CPUQuota=`). A limit
may be set at any level above us, so each level that is mounted here is read and the least counts.
`root` is where `/proc` and `/sys` are looked for. See cgroups(7) and the kernel's cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

#: v1 says "no limit" by the largest multiple of a page; no machine has as much.
_UNLIMITED_BYTES = 1 << 60
_MAX_BYTES = 1 << 20
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Allowance(NamedTuple):
    """What may be used; None: no limit of its own."""

    #: Processors' worth of time, 0.5 is half of one.
    processors: float | None = None
    #: How many processors it may run on.
    cpus: int | None = None
    memory_bytes: int | None = None


class _Mount(NamedTuple):
    #: Folder of the group's hierarchy that is seen at `point`.
    root: PurePosixPath
    point: PurePosixPath
    #: v1's controllers; empty for v2.
    controllers: frozenset[str]
    unified: bool


def allowance(root: Path = Path("/")) -> Allowance:
    """The least of all limits above this process. What cannot be read limits nothing."""
    quotas: list[float] = []
    cpus: list[int] = []
    memory: list[int] = []
    for folder, mount in _levels(root):
        if mount.unified:
            quotas += _quota_v2(_text(folder / "cpu.max"))
            cpus += _count(_text(folder / "cpuset.cpus.effective"))
            memory += _bytes(_text(folder / "memory.max"))
            continue
        if "cpu" in mount.controllers:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
            quotas += _quota_v2(f"{quota} {period}")
        if "cpuset" in mount.controllers:
            effective = _text(folder / "cpuset.effective_cpus") or _text(folder / "cpuset.cpus")
            cpus += _count(effective)
        if "memory" in mount.controllers:
            memory += _bytes(_text(folder / "memory.limit_in_bytes"))
    return Allowance(min(quotas, default=None), min(cpus, default=None), min(memory, default=None))


def memory_used(root: Path = Path("/")) -> int | None:
    """Bytes in use of the tightest memory limit, without what the kernel can drop at once."""
    tightest: tuple[int, Path, bool] | None = None
    for folder, mount in _levels(root):
        name = "memory.max" if mount.unified else "memory.limit_in_bytes"
        for limit in _bytes(_text(folder / name)):
            if tightest is None or limit < tightest[0]:
                tightest = (limit, folder, mount.unified)
    if tightest is None:
        return None
    _, folder, unified = tightest
    used = _bytes(_text(folder / ("memory.current" if unified else "memory.usage_in_bytes")))
    if not used:
        return None
    wanted = "inactive_file" if unified else "total_inactive_file"
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == wanted and value.isdigit():
            return max(0, used[0] - int(value))
    return used[0]


def unified_folder(root: Path = Path("/")) -> Path | None:
    """The folder of this process's own group of version 2, None where it cannot be seen."""
    for folder, mount in _levels(root):
        if mount.unified:
            return folder if (folder / "cgroup.procs").exists() else None
    return None


def _levels(root: Path) -> Iterator[tuple[Path, _Mount]]:
    """Every folder that limits this process, with the mount it is of."""
    mounts = list(_mounts(_text(root / "proc/self/mountinfo")))
    groups = list(_groups(_text(root / "proc/self/cgroup")))
    if not mounts and (root / "sys/fs/cgroup/cgroup.controllers").exists():
        # Without /proc the place that everyone uses, where a container sees its own group.
        at = PurePosixPath("/sys/fs/cgroup")
        mounts = [_Mount(PurePosixPath("/"), at, frozenset(), unified=True)]
    for mount in mounts:
        own = [
            path
            for names, path in groups
            if (not names if mount.unified else names & mount.controllers)
        ]
        below = own[0] if own else PurePosixPath("/")
        try:
            relative = below.relative_to(mount.root)
        except ValueError:  # another namespace's name for it: what is mounted is what we are in
            relative = PurePosixPath()
        for level in (relative, *relative.parents):
            if ".." in level.parts:
                continue
            yield root / mount.point.relative_to("/") / level, mount


def _mounts(text: str) -> Iterator[_Mount]:
    """The control groups' file systems of /proc/self/mountinfo."""
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not dash or len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        with contextlib.suppress(ValueError):
            at, point = (PurePosixPath(_unescaped(field)) for field in fields[3:5])
            if point.is_absolute():
                options = frozenset() if kind[0] == "cgroup2" else frozenset(kind[2].split(","))
                yield _Mount(at, point, options, kind[0] == "cgroup2")


def _groups(text: str) -> Iterator[tuple[frozenset[str], PurePosixPath]]:
    """Controllers (v2: none) and path of each line of /proc/self/cgroup."""
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3 and fields[2].startswith("/"):
            yield frozenset(filter(None, fields[1].split(","))), PurePosixPath(fields[2])


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)


def _quota_v2(text: str) -> list[float]:
    """`QUOTA PERIOD` in microseconds as processors; `max` and -1 are no limit."""
    words = text.split()
    if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
        return []
    quota, period = int(words[0]), int(words[1])
    return [quota / period] if quota and period else []


def _count(text: str) -> list[int]:
    """How many processors a list such as `0-3,8` names."""
    total = 0
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            return []
        total += int(last if dash else first) - int(first) + 1
    return [total] if total > 0 else []


def _bytes(text: str) -> list[int]:
    word = text.strip()
    if not word.isascii() or not word.isdigit():
        return []
    return [int(word)] if 0 < int(word) < _UNLIMITED_BYTES else []


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
