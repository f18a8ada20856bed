"""Shared memory that a task made and did not remove: a name in /dev/shm that only its tree holds.

Names do not say whose they are, and other programs of the same user have theirs there. So a name
counts as a task's only when it is new, one of the task's processes has it open or mapped, and
nobody else has. What a task closed before its end is removed by Python's resource tracker.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from retire_cluster.node import proctree

FOLDER = "/dev/shm"


def names() -> frozenset[str]:
    """What is there now; nothing where the system has no such folder."""
    try:
        return frozenset(os.listdir(FOLDER))
    except OSError:
        return frozenset()


def remove_of(pids: Iterable[int], before: frozenset[str]) -> int:
    """Removes what these processes made since `before` was listed and still hold; how many."""
    new = names() - before
    if not new:
        return 0
    tree = set(pids)
    ours = set().union(*(held(pid, new) for pid in tree)) if tree else set()
    if not ours:
        return 0
    for pid in proctree.table():
        if pid not in tree:
            ours -= held(pid, ours)
    removed = 0
    for name in ours:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(FOLDER, name))
            removed += 1
    return removed


def held(pid: int, wanted: Iterable[str]) -> set[str]:
    """Which of these names a process has open or mapped."""
    paths = {f"{FOLDER}/{name}": name for name in wanted}
    found = set()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
        for line in file.read().decode("utf-8", "surrogateescape").splitlines():
            path = line[line.find("/") :] if "/" in line else ""
            if path in paths:
                found.add(paths[path])
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/{pid}/fd/{fd}")
                if path in paths:
                    found.add(paths[path])
    return found
