"""A process that has imported one entry point's module, from which its tasks are forked.

It saves the import that each task's own process would repeat. Only an import that left nothing
behind is kept so: one thread, no process, no new file descriptor, the same limits, signals, folder
and locale, and no source of random numbers that every task would then repeat. It never runs a task:
it forks twice, so that the server is the parent of the task's process.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import locale
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from retire_cluster.node import forked, processstate, proctree
from retire_cluster.node.forked import Ends
from retire_cluster.node.frames import Frame, read_frame, write_frame

#: For an import to end, and for a ready template to give a task's process.
IMPORT_SECONDS = 60.0
ANSWER_SECONDS = 5.0
_READY, _UNFIT, _FORK = b"r", b"u", b"f"
_PID = struct.Struct("<i")


class Template:
    """The server's end of a template process."""

    def __init__(self, entry_point: str) -> None:
        """Forks it from this process, which must have one thread. Raises `OSError`."""
        self._socket, theirs = socket.socketpair()
        self._born = time.monotonic()
        self._state: tuple[Any, ...] | None = None
        self.ready = False
        #: It cannot serve: its import failed, or left something behind.
        self.unfit = False
        self.pid = os.fork()
        if self.pid == 0:
            _become(theirs, self._socket, entry_point)
        theirs.close()
        proctree.spared.add(self.pid)

    def is_ready(self) -> bool:
        """Whether it can give processes now; does not wait."""
        if not self.ready and not self.unfit:
            if select.select([self._socket], [], [], 0)[0]:
                with contextlib.suppress(OSError):
                    self.ready = self._socket.recv(1) == _READY
                self.unfit = not self.ready
                with contextlib.suppress(OSError):
                    self._state = processstate.look(self.pid)
            elif time.monotonic() - self._born > IMPORT_SECONDS:
                self.unfit = True
        return self.ready and not self.unfit

    def fork(self, request: Frame, ends: Ends, folder: str) -> int | None:
        """The number of a task's process, a child of this one; None when it gave none."""
        try:
            # A task may have stopped it, or taken something away from it.
            if not _is_child(self.pid):
                return None
            os.kill(self.pid, signal.SIGCONT)
            if processstate.look(self.pid) != self._state:
                return None
            self._socket.settimeout(ANSWER_SECONDS)
            socket.send_fds(self._socket, [_FORK], list(ends))
            self._socket.setblocking(True)
            header = {**request.header, "folder": folder}
            write_frame(self._socket.fileno(), header, request.blob)
            self._socket.settimeout(ANSWER_SECONDS)
            text = self._socket.recv(_PID.size, socket.MSG_WAITALL)
            pid = int(_PID.unpack(text)[0])
            return pid if _is_child(pid) else None
        except (OSError, struct.error):
            return None

    def close(self) -> None:
        """Ends it and collects it."""
        self._socket.close()
        if _is_child(self.pid):
            proctree.kill_all([self.pid])
        with contextlib.suppress(OSError):
            os.waitpid(self.pid, 0)
        proctree.spared.discard(self.pid)


def _is_child(pid: int) -> bool:
    """Whether it is a child of this process that was not collected yet."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return False
    return True


def _become(ours: socket.socket, servers: socket.socket, entry_point: str) -> NoReturn:
    try:
        servers.detach()
        os.setsid()
        forked.restore_signals()
        forked.close_all_but((ours.fileno(),))
        proctree.die_with_parent()
        if _import_cleanly(entry_point):
            ours.sendall(_READY)
            _serve(ours)
        else:
            ours.sendall(_UNFIT)
    except BaseException:  # whatever a stranger's import does, the server goes without a template
        with contextlib.suppress(BaseException):
            ours.sendall(_UNFIT)
    finally:
        os._exit(0)


def _import_cleanly(entry_point: str) -> bool:
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
        processstate.look(),
        _threads(),
        tuple(process.pid for process in proctree.descendants(os.getpid())),
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


def _seed_anew() -> None:
    module = sys.modules.get("numpy.random")
    if module is not None:
        module.seed()


def _serve(ours: socket.socket) -> None:
    while True:
        order, fds, _, _ = socket.recv_fds(ours, 1, 3)
        if order != _FORK or len(fds) != 3:
            return
        request = read_frame(ours.fileno())
        if request is None:
            return
        ends = Ends(*fds)
        ours.sendall(_PID.pack(_fork_twice(ours, request, ends)))
        for fd in fds:
            os.close(fd)


def _fork_twice(ours: socket.socket, request: Frame, ends: Ends) -> int:
    """The number of the task's process, once the server has inherited it."""
    reading, writing = os.pipe()
    middle = os.fork()
    if middle == 0:
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            while os.getppid() == parent:  # until it is gone, and the server the parent
                time.sleep(0.0001)
            ours.detach()
            header: Mapping[str, Any] = request.header
            with contextlib.suppress(Exception):
                _seed_anew()
            forked.run(header, request.blob, ends, str(header["folder"]))
        os.write(writing, _PID.pack(child))
        os._exit(0)
    os.close(writing)
    try:
        os.waitpid(middle, 0)
        return int(_PID.unpack(os.read(reading, _PID.size))[0])
    finally:
        os.close(reading)
