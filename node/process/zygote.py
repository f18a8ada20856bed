"""Processes from which those of tasks are forked: they have never seen a task.

The server reads what all its tasks are given and answers, and a forked process has a copy of its
parent's memory. So the *seed* is forked from the server before the first request, and everything
else from that. A *zygote* is grown from it: it has imported one entry point's module, which saves
the import that each task's own process would repeat. Only an import that left nothing behind is
kept so (clean_import.py). Neither runs a task, nor reads a request: they fork twice, so that the
server is the parent of a process that reads it by itself.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from retire_cluster.node.process import forked_task, inherited_state
from retire_cluster.node.process.clean_import import import_cleanly
from retire_cluster.node.process.forked_task import Ends
from retire_cluster.node.process.frames import Frame, pack
from retire_cluster.node.system import process_tree
from retire_cluster.node.walls import enforcement

#: For an import to end, and for a ready zygote to give a task's process.
IMPORT_SECONDS = 60.0
ANSWER_SECONDS = 5.0
_READY, _UNFIT, _FORK, _GROW = b"r", b"u", b"f", b"g"
_PID = struct.Struct("<i")
_SIZE = struct.Struct("<I")


class Zygote:
    """The server's end of the seed or of a zygote."""

    def __init__(self, pid: int, end: socket.socket, *, ready: bool) -> None:
        self.pid = pid
        self._socket = end
        self._born = time.monotonic()
        self._state: tuple[Any, ...] | None = inherited_state.snapshot(pid) if ready else None
        self.ready = ready
        #: It cannot serve: its import failed, or left something behind.
        self.unfit = False
        process_tree.spared.add(pid)

    @classmethod
    def seed(cls) -> Zygote:
        """Fork one from this process, which must have one thread. Raises `OSError`."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            _become(theirs, "")
        theirs.close()
        return cls(pid, ours, ready=True)

    def grow(self, entry_point: str) -> Zygote | None:
        """A zygote from this seed; None when it gave none."""
        ours, theirs = socket.socketpair()
        text = entry_point.encode("utf-8", "replace")
        with theirs:
            pid = self._order(_GROW, [theirs.fileno()], _SIZE.pack(len(text)) + text)
        if pid:
            return Zygote(pid, ours, ready=False)
        ours.close()
        return None

    def is_sound(self) -> bool:
        """Whether no task has ended it or taken something away from it."""
        try:
            return _is_child(self.pid) and inherited_state.snapshot(self.pid) == self._state
        except OSError:
            return False

    def is_ready(self) -> bool:
        """Whether it can give processes now; does not wait."""
        if not self.ready and not self.unfit:
            if select.select([self._socket], [], [], 0)[0]:
                with contextlib.suppress(OSError):
                    self.ready = self._socket.recv(1) == _READY
                self.unfit = not self.ready
                with contextlib.suppress(OSError):
                    self._state = inherited_state.snapshot(self.pid)
            elif time.monotonic() - self._born > IMPORT_SECONDS:
                self.unfit = True
        return self.ready and not self.unfit

    def fork(self, request: Frame, ends: tuple[int, int, int], folder: str) -> int | None:
        """The number of a task's process, a child of this one; None when it gave none.

        Raises `BlockingIOError` when there is no room for a process now.

        :param ends: those of its answers, its output and of what cancels it
        """
        if not self.is_sound():
            return None
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                pid = self._order(_FORK, [*ends, theirs.fileno()])
            if pid is None:
                return None
            if not pid:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            try:
                ours.settimeout(ANSWER_SECONDS)
                ours.sendall(pack({**request.header, "folder": folder}, request.blob))
            except OSError:
                process_tree.kill_all([pid])  # it was stopped, or is gone already
        return pid

    def _order(self, what: bytes, fds: list[int], more: bytes = b"") -> int | None:
        """The number of a new process, 0 for no room, None for no answer."""
        try:
            os.kill(self.pid, signal.SIGCONT)  # a task may have stopped it
            self._socket.settimeout(ANSWER_SECONDS)
            socket.send_fds(self._socket, [what], fds)
            self._socket.sendall(more)
            text = self._socket.recv(_PID.size, socket.MSG_WAITALL)
            pid = int(_PID.unpack(text)[0])
        except (OSError, struct.error):
            return None
        return pid if not pid or _is_child(pid) else None

    def close(self) -> None:
        """End it and collect it."""
        self._socket.close()
        if _is_child(self.pid):
            process_tree.kill_all([self.pid])
        with contextlib.suppress(OSError):
            os.waitpid(self.pid, 0)
        process_tree.spared.discard(self.pid)


def _is_child(pid: int) -> bool:
    """Whether it is a child of this process that was not collected yet."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return False
    return True


def _become(ours: socket.socket, entry_point: str) -> NoReturn:
    try:
        if entry_point:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for fd in (1, 2):
                os.dup2(nothing, fd)
        forked_task.restore_signals()
        forked_task.close_all_but((ours.fileno(),))
        process_tree.die_with_parent()
        if not entry_point:
            gc.freeze()
            _serve(ours)
        else:
            enforcement.enter()
            if import_cleanly(entry_point):
                ours.sendall(_READY)
                _serve(ours)
            else:
                ours.sendall(_UNFIT)
    except BaseException:  # whatever a stranger's import does, the server goes without a zygote
        with contextlib.suppress(BaseException):
            ours.sendall(_UNFIT)
    finally:
        os._exit(0)


def _seed_anew() -> None:
    module = sys.modules.get("numpy.random")
    if module is not None:
        module.seed()


def _serve(ours: socket.socket) -> None:
    while True:
        order, fds, _, _ = socket.recv_fds(ours, 1, 4)
        if order == _FORK and len(fds) == 4:
            ends = Ends(*fds)
            pid = _fork_twice(ours, partial(_run, ends))
        elif order == _GROW and len(fds) == 1:
            size = _SIZE.unpack(ours.recv(_SIZE.size, socket.MSG_WAITALL))[0]
            entry_point = ours.recv(size, socket.MSG_WAITALL).decode()
            pid = _fork_twice(ours, partial(_grow, fds[0], entry_point))
        else:
            return
        ours.sendall(_PID.pack(pid))
        for fd in fds:
            os.close(fd)


def _run(ends: Ends) -> NoReturn:
    with contextlib.suppress(Exception):
        _seed_anew()
    forked_task.run(ends)


def _grow(end: int, entry_point: str) -> NoReturn:
    _become(socket.socket(fileno=end), entry_point)


def _fork_twice(ours: socket.socket, become: Callable[[], NoReturn]) -> int:
    """The number of the new process, once the server has inherited it; 0 for no room."""
    reading, writing = os.pipe()
    try:
        middle = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        return 0
    if middle == 0:
        pid = 0
        with contextlib.suppress(OSError):
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                while os.getppid() == parent:  # until it is gone, and the server the parent
                    time.sleep(0.0001)
                ours.detach()
                become()
        os.write(writing, _PID.pack(pid))
        os._exit(0)
    os.close(writing)
    try:
        os.waitpid(middle, 0)
        return int(_PID.unpack(os.read(reading, _PID.size))[0])
    finally:
        os.close(reading)
