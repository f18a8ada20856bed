"""Shared memory that a task made and did not remove: a name in /dev/shm that is its alone.

A segment that Python names for a task bears the mark of its task process: whoever outlives the
task knows it, whatever the task did to itself, closed before its end, or killed. Other names do not
say whose they are, and other programs of the same user have theirs there. Such a one counts as a
task's only when it is new, one of the task's processes has it open or mapped, and nobody else has;
what a task closed before its end is left to Python's resource tracker (resource_trackers.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from retire_cluster.node.system import process_tree

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

FOLDER = "/dev/shm"
_MODULE = "multiprocessing.shared_memory"
#: Of the task process that this process belongs to; empty: names are as Python makes them.
mark = ""


def prefix_of(marked: str) -> str:
    """How the names begin that Python gives to segments of a task with this mark."""
    return f"psm_rc{marked}_"


def name_segments() -> None:
    """Have Python put this process's mark into the names of segments that it will make.

    Nothing is imported for it: the module is told when the task imports it.
    """
    if not mark or not process_tree.IS_LINUX:
        return
    module = sys.modules.get(_MODULE)
    if isinstance(module, ModuleType):
        _set_prefix(module)
    else:
        sys.meta_path.insert(0, _Namer())


def _set_prefix(module: ModuleType) -> None:
    # Linux takes names of 255 bytes; the module's limit is that of other systems.
    prefix = f"/{prefix_of(mark)}"
    if hasattr(module, "_SHM_NAME_PREFIX") and hasattr(module, "_SHM_SAFE_NAME_LENGTH"):
        vars(module)["_SHM_NAME_PREFIX"] = prefix
        vars(module)["_SHM_SAFE_NAME_LENGTH"] = len(prefix) + 8


class _Namer:
    """Finds the module of shared memory as the others do, and sets its prefix once it is loaded."""

    def __init__(self) -> None:
        self._done = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's spec with a loader that sets the prefix; None for every other module."""
        if name != _MODULE or self._done:
            return None
        self._done = True  # and it stays in the list, which others may be going through
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            load = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                _set_prefix(module)

            with contextlib.suppress(AttributeError, TypeError):
                loader.exec_module = exec_module
        return spec


def remove_marked(marked: str) -> int:
    """Remove the segments whose names begin as those of this mark do; how many.

    :param marked: a mark, or the beginning of several
    """
    begin = prefix_of(marked)[:-1]
    return sum(_remove(name) for name in names() if marked and name.startswith(begin))


def _remove(name: str) -> bool:
    try:
        os.unlink(os.path.join(FOLDER, name))
    except OSError:
        return False
    return True


def names() -> frozenset[str]:
    """What is there now; nothing where the system has no such folder."""
    try:
        return frozenset(os.listdir(FOLDER))
    except OSError:
        return frozenset()


def remove_of(pids: Iterable[int], before: frozenset[str]) -> int:
    """Remove what these processes made since `before` was listed and still hold; how many."""
    new = names() - before
    if not new:
        return 0
    tree = set(pids)
    ours = set().union(*(held(pid, new) for pid in tree)) if tree else set()
    if not ours:
        return 0
    for pid in process_tree.table():
        if pid not in tree:
            ours -= held(pid, ours)
    return sum(_remove(name) for name in ours)


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
