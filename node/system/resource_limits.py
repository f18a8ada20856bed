"""Bounds for a task process, so that one task cannot take the device down."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, replace

#: Processes and threads that one user's tasks may add.
MAX_NEW_PROCESSES = 512
_CPU_GRACE_SECONDS = 5


@dataclass(frozen=True)
class Bounds:
    """What a task process and all it starts may use; 0: as much as there is."""

    memory_bytes: int = 0
    cpu_seconds: int = 0
    file_bytes: int = 0
    new_processes: int = MAX_NEW_PROCESSES
    #: Of one processor, for all of a task together; needs a control group (task_cgroups.py).
    cpu_percent: int = 0


#: Those of this process.
current = Bounds(new_processes=0)
_NO_MEMORY = ("memoryerror", "cannot allocate memory", "out of memory", "bad_alloc")
_NO_PROCESS = (
    "cannot fork",
    "fork: ",
    "resource temporarily unavailable",
    "can't start new thread",
)
_TOO_LARGE = ("file too large", "file size limit exceeded")


def hint(said: str) -> str:
    """What to add to an error that a bound may be the reason of: the setting that it is."""
    said = said.lower()
    found = ""
    if current.memory_bytes and any(words in said for words in _NO_MEMORY):
        mib = current.memory_bytes // (1024 * 1024)
        found += f"; a task has {mib} MiB of memory on this device (policy.memory_limit_mb)"
    if current.new_processes and any(words in said for words in _NO_PROCESS):
        found += (
            f"; tasks may add {current.new_processes} processes and threads on this device"
            " (policy.process_limit)"
        )
    if current.file_bytes and any(words in said for words in _TOO_LARGE):
        mib = current.file_bytes // (1024 * 1024)
        found += f"; a file of a task has {mib} MiB at most on this device (policy.file_limit_mb)"
    return found


def apply(bounds: Bounds) -> None:
    """Bound this process and what it starts for good: none of them can raise a bound again.

    Switch core files off too. Set each bound on its own, and pass over those that fail.
    """
    global current
    memory_bytes = bounds.memory_bytes
    if sys.platform == "win32":
        return
    import resource

    # Root's processes are not counted, but in a control group.
    current = bounds if os.geteuid() != 0 else replace(bounds, new_processes=0)

    _bound(resource.RLIMIT_CORE, 0)
    if memory_bytes:
        # On Linux it counts private writable pages, so a reserved address space costs nothing.
        _bound(resource.RLIMIT_DATA, memory_bytes)
    if hasattr(resource, "RLIMIT_NPROC") and os.geteuid() != 0:
        tasks = _tasks_of_user()
        if tasks:
            _bound(resource.RLIMIT_NPROC, tasks + bounds.new_processes)
    if bounds.cpu_seconds:
        # At the soft limit of processor time a process is told, at the hard one it is killed.
        _bound(resource.RLIMIT_CPU, bounds.cpu_seconds, bounds.cpu_seconds + _CPU_GRACE_SECONDS)
    if bounds.file_bytes:
        _bound(resource.RLIMIT_FSIZE, bounds.file_bytes)
    # When memory runs out, the system should end a task and not the worker.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("800")


def _bound(kind: int, value: int, final: int | None = None) -> None:
    import resource

    final = value if final is None else final
    with contextlib.suppress(ValueError, OSError):
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value, final = min(value, hard), min(final, hard)
        resource.setrlimit(kind, (value, final))


def _tasks_of_user() -> int:
    """Threads of this user in /proc; 0 where that cannot be counted."""
    count = 0
    try:
        names = os.listdir("/proc")
    except OSError:
        return 0
    for name in names:
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                if os.stat(f"/proc/{name}").st_uid == os.getuid():
                    with open(f"/proc/{name}/stat", "rb") as file:
                        text = file.read()
                    count += int(text[text.rfind(b")") + 2 :].split()[17])
    return count
