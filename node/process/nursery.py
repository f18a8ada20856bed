"""The server's children that run tasks of own types: one process for each task, one at a time.

The end of a child's process ends the attempt, whoever still holds its pipes; then everything
that it left running is ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from retire_cluster.node.process.child import END_SECONDS, Child
from retire_cluster.node.process.frames import Frame
from retire_cluster.node.process.zygote import Zygote
from retire_cluster.node.system import process_tree, shared_memory

#: Another slot's task may have used up all processes for a moment.
FORK_PATIENCE_SECONDS = 5.0
#: Imports that take longer are done once, in a zygote, for the tasks to come.
ZYGOTE_SECONDS = 0.03
MAX_ZYGOTES = 2

Header = dict[str, Any]


class Nursery:
    """Starts a child for each task and hears it out."""

    def __init__(self, requests_fd: int, tell: Callable[[Header], None]) -> None:
        """Take SIGCHLD over, in a process with one thread, and fork the seed for own types.

        Raises `OSError` when there is no room for a process.

        :param requests_fd: brings cancels while a task runs
        :param tell: passes progress on to the worker
        """
        self._requests_fd = requests_fd
        self._tell = tell
        # Before any request, and before there is anything else to inherit.
        self._seed = Zygote.seed() if os.environ.pop("RC_OWN_TYPES", "") else None
        self._woken_fd, wake_fd = os.pipe()
        for fd in (self._woken_fd, wake_fd):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake_fd, warn_on_full_buffer=False)
        self._zygotes: dict[str, Zygote] = {}
        self._unfit: set[str] = set()

    def close(self) -> None:
        """End the zygotes and the seed."""
        for zygote in self._zygotes.values():
            zygote.close()
        self._zygotes.clear()
        if self._seed is not None:
            self._seed.close()

    def start(self, request: Frame, folder: str) -> Child | None:
        """A process for the task of a request; None when this server cannot give one any more.

        Raises `OSError` when there is no room for a process.
        """
        pairs = [os.pipe() for _ in range(3)]
        (answers, answers_end), (output, output_end), (cancel_end, cancel) = pairs
        ends = (answers_end, output_end, cancel_end)
        pid = None
        try:
            pid = self._fork(request, ends, folder)
        finally:
            for fd in ends if pid else (*ends, answers, output, cancel):
                os.close(fd)
        return Child(pid, answers, output, cancel, self._tell) if pid else None

    def finish(self, request: Frame, child: Child) -> tuple[Header, bytes]:
        """Hear a task's process out and end what it left; the reply and the result's text."""
        try:
            self._attend(child)
            self._end_leftovers(child)
            child.drain()
        finally:
            child.close()
        header, data = child.outcome()
        self._prepare(str(request.header["entry_point"]), child)
        return header, data

    # --- starting -----------------------------------------------------------------------------

    def _fork(self, request: Frame, ends: tuple[int, int, int], folder: str) -> int | None:
        entry_point = str(request.header["entry_point"])
        end = time.monotonic() + FORK_PATIENCE_SECONDS
        while self._seed is not None:
            zygote = self._zygotes.get(entry_point)
            try:
                if zygote is not None and zygote.is_ready():
                    pid = zygote.fork(request, ends, folder)
                    if pid is not None:
                        return pid
                    self._drop(entry_point)
                return self._seed.fork(request, ends, folder)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        return None

    def _prepare(self, entry_point: str, child: Child) -> None:
        """Have the import done once and for all, when it is slow and nothing speaks against it."""
        zygote = self._zygotes.get(entry_point)
        if zygote is not None:
            if zygote.unfit:
                self._drop(entry_point)
                self._unfit.add(entry_point)
        elif child.import_seconds >= ZYGOTE_SECONDS and entry_point not in self._unfit:
            if len(self._zygotes) >= MAX_ZYGOTES:
                self._drop(next(iter(self._zygotes)))
            zygote = None if self._seed is None else self._seed.grow(entry_point)
            if zygote is not None:
                self._zygotes[entry_point] = zygote

    def _drop(self, entry_point: str) -> None:
        self._zygotes.pop(entry_point).close()

    # --- while it runs ------------------------------------------------------------------------

    def _attend(self, child: Child) -> None:
        poller = select.poll()
        for fd in (self._requests_fd, self._woken_fd, child.answers_fd, child.output_fd):
            poller.register(fd, select.POLLIN)
        while not self._has_ended(child):
            left = None
            if child.answered_at is not None:
                left = max(0.0, child.answered_at + END_SECONDS - time.monotonic())
                if not left:
                    child.kill()
            for fd, _ in poller.poll(None if not left else left * 1000):
                if fd == self._woken_fd:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 4096)
                elif fd != self._requests_fd:
                    if not child.read(fd):
                        poller.unregister(fd)
                elif not child.hear(fd):
                    poller.unregister(fd)

    def _has_ended(self, child: Child) -> bool:
        """Collect ended children, orphans of tasks too; whether this one is among them."""
        while child.status is None:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                child.status = 0
                break
            if not pid:
                return False
            if pid == child.pid:
                child.status = status
        return True

    def _end_leftovers(self, child: Child) -> None:
        if not process_tree.IS_LINUX:  # where its orphans are not inherited
            with contextlib.suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)
        if process_tree.has_others():
            process_tree.kill_descendants(os.getpid(), reap=True)
        shared_memory.remove_marked(shared_memory.mark)
