"""Whether the import of a module leaves nothing behind for those who are forked after it.

One thread, no process, no new file descriptor, the same limits, signals, folder and locale, and no
source of random numbers that every task would then repeat.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import locale
import os
import random
import signal
import socket
import sys
import time
from typing import Any

from retire_cluster.node.process import inherited_state
from retire_cluster.node.system import process_tree


def import_cleanly(entry_point: str) -> bool:
    """Import an entry point's module; whether that left nothing behind. Raises what it raises."""
    random.random()
    before = _surroundings()
    importlib.import_module(entry_point.partition(":")[0].strip())
    gc.collect()
    clean = _surroundings() == before and not _random_sources()
    gc.freeze()
    return clean


def _surroundings() -> tuple[Any, ...]:
    """What an import may change for those who come after it."""
    handlers = tuple(
        signal.getsignal(number) for number in signal.Signals if number not in _NO_HANDLERS
    )
    mask = tuple(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    timers = tuple(
        signal.getitimer(which)[0] > 0
        for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    )
    umask = os.umask(0o077)
    os.umask(umask)
    faults = sys.modules.get("faulthandler")
    return (
        inherited_state.snapshot(),
        _threads(),
        tuple(process.pid for process in process_tree.descendants(os.getpid())),
        _open_files(),
        handlers,
        mask,
        timers,
        umask,
        os.getcwd(),
        locale.setlocale(locale.LC_ALL),
        time.tzname,
        os.environ.get("TZ"),
        socket.getdefaulttimeout(),
        sys.getrecursionlimit(),
        id(sys.stdout),
        id(sys.stderr),
        bool(faults and faults.is_enabled()),
    )


_NO_HANDLERS = frozenset({signal.SIGKILL, signal.SIGSTOP})


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        import threading

        return threading.active_count()


def _open_files() -> tuple[str, ...]:
    found = []
    for fd in range(256):
        with contextlib.suppress(OSError):
            stat = os.fstat(fd)
            found.append(f"{fd} {stat.st_dev} {stat.st_ino}")
    return tuple(found)


def _random_sources() -> bool:
    """Whether a module has made its own, which would give each task the same numbers."""
    # The one behind random.random() is seeded anew in every forked process.
    pythons_own = getattr(random.random, "__self__", None)
    for found in gc.get_objects():
        kind = type(found)
        if kind.__module__.startswith("numpy.random") and kind.__name__ in _NUMPY_SOURCES:
            own = _is_numpys_own(found)
        elif isinstance(found, random.Random):
            own = found is pythons_own or isinstance(found, random.SystemRandom)
        else:
            continue
        if not own:
            return True
    return False


_NUMPY_SOURCES = frozenset({"Generator", "RandomState"})


def _is_numpys_own(found: object) -> bool:
    module = sys.modules.get("numpy.random")
    return getattr(getattr(module, "seed", None), "__self__", None) is found
