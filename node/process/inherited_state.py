"""What of a process another may change from outside, and a child inherits.

A task that runs as the same user may renice the process that started it, take away its file
descriptors (prlimit) or its processors. Whoever starts the next task looks first.
"""

from __future__ import annotations

import os
from typing import Any

from retire_cluster.node.system.process_tree import IS_LINUX


def snapshot(pid: int = 0) -> tuple[Any, ...]:
    """Niceness, limits and processors of a process (0: this one), to compare with a later look."""
    found: list[Any] = []
    if hasattr(os, "getpriority"):
        found.append(os.getpriority(os.PRIO_PROCESS, pid))
    if hasattr(os, "sched_getaffinity"):
        found.append(sorted(os.sched_getaffinity(pid)))
    found += _limits(pid)
    return tuple(found)


def _limits(pid: int) -> list[tuple[int, int]]:
    try:
        import resource
    except ImportError:  # Windows
        return []
    kinds = [getattr(resource, name) for name in _KINDS if hasattr(resource, name)]
    if not pid:
        return [resource.getrlimit(kind) for kind in kinds]
    if not IS_LINUX or not hasattr(resource, "prlimit"):
        return []
    return [resource.prlimit(pid, kind) for kind in kinds]


_KINDS = (
    "RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_MEMLOCK",
    "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_RSS",
    "RLIMIT_RTPRIO", "RLIMIT_RTTIME", "RLIMIT_SIGPENDING", "RLIMIT_STACK",
)  # fmt: skip
