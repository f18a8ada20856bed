"""The server's children that run tasks of own types: one process for each task, one at a time.

Everything a child says is hostile until checked here and in the worker. The end of its process ends
the attempt, whoever still holds its pipes; then everything it left running is ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from retire_cluster.node.process import replies
from retire_cluster.node.process.frames import Frame, FrameError, RawFrame, read_frame, take_raw
from retire_cluster.node.process.perform import MIN_PROGRESS_SECONDS, add_logs, reply
from retire_cluster.node.process.replies import BadReply, Done, Progress
from retire_cluster.node.process.zygote import Zygote
from retire_cluster.node.system import process_tree, shared_memory
from retire_cluster.node.tasks.bounded_output import HeadTail
from retire_cluster.schemas.vocabulary import Cause, Outcome

MAX_LOG_BYTES = 64 * 1024
#: A child that has answered has this long to be gone, and its pipes this long to be drained.
END_SECONDS = 1.0
#: Another slot's task may have used up all processes for a moment.
FORK_PATIENCE_SECONDS = 5.0
#: Imports that take longer are done once, in a zygote, for the tasks to come.
ZYGOTE_SECONDS = 0.03
MAX_ZYGOTES = 2
_SAID = frozenset(("progress", "done"))

Header = dict[str, Any]


class Nursery:
    """Starts a child for each task and hears it out."""

    def __init__(self, requests_fd: int, tell: Callable[[Header], None]) -> None:
        """For a process with one thread. `requests_fd` brings cancels while a task runs.

        Raises `OSError` when there is no room for a process.
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


class Child:
    """A task's process, as its parent sees it."""

    def __init__(
        self, pid: int, answers_fd: int, output_fd: int, cancel_fd: int, tell: Callable[..., None]
    ) -> None:
        self.pid = pid
        self.answers_fd = answers_fd
        self.output_fd = output_fd
        self._cancel_fd: int | None = cancel_fd
        self._tell = tell
        self._logs = HeadTail(MAX_LOG_BYTES)
        self._pending = bytearray()
        self._done: Done | None = None
        #: What was wrong with what it said.
        self._problem: str | None = None
        self._told_at = 0.0
        self._told_all = False
        #: When the answer came, of the monotonic clock.
        self.answered_at: float | None = None
        #: As of waitpid(2), None while it runs.
        self.status: int | None = None
        #: How long its imports took, as it says.
        self.import_seconds = 0.0
        for fd in (answers_fd, output_fd):
            os.set_blocking(fd, False)

    def kill(self) -> None:
        """End it at once."""
        if self.status is None:
            process_tree.kill_all([self.pid])

    def hear(self, requests_fd: int) -> bool:
        """Take the worker's word while the task runs; False when there will be no other."""
        try:
            frame = read_frame(requests_fd)
        except (OSError, FrameError):
            frame = None
        if frame is not None and frame.header.get("kind") == "cancel" and self._cancel_fd:
            os.close(self._cancel_fd)
            self._cancel_fd = None
        return frame is not None

    def read(self, fd: int) -> bool:
        """Take what a pipe has now; False when nothing will come any more."""
        try:
            part = os.read(fd, 65_536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if fd == self.output_fd:
            self._logs.add(part)
        elif self._done is None and not self._problem:
            self._pending += part
            self._parse()
        return bool(part)

    def drain(self) -> None:
        """Take what is left in the pipes of a child that is gone."""
        end = time.monotonic() + END_SECONDS
        poller = select.poll()
        for fd in (self.answers_fd, self.output_fd):
            poller.register(fd, select.POLLIN)
        open_fds = 2
        while open_fds and (left := end - time.monotonic()) > 0:
            for fd, _ in poller.poll(left * 1000):
                if not self.read(fd):
                    poller.unregister(fd)
                    open_fds -= 1

    def close(self) -> None:
        """Give the file descriptors back."""
        for fd in (self.answers_fd, self.output_fd, self._cancel_fd):
            if fd is not None:
                os.close(fd)

    def outcome(self) -> tuple[Header, bytes]:
        """How the attempt ended, with its logs."""
        if self._done is not None:
            done = self._done
            header: Header = {
                "kind": "done",
                "outcome": done.outcome,
                "cause": done.cause,
                "error_message": done.error_message,
                "details": json.loads(done.details or b"{}"),
            }
            data = done.data
        else:
            message = self._problem or how_it_ended(self.status or 0)
            header, data = reply(Outcome.FAILED, Cause.ERROR, message, {}), b""
        add_logs(header["details"], self._logs.take())
        return header, data

    def _parse(self) -> None:
        try:
            while self._done is None and (frame := take_raw(self._pending, _SAID)) is not None:
                answer = replies.read(frame)
                if isinstance(answer, Done):
                    self._done = answer
                    self.answered_at = time.monotonic()
                    self.import_seconds = _import_seconds(frame)
                elif isinstance(answer, Progress):
                    self._take_progress(answer)
        except (FrameError, BadReply, RecursionError, MemoryError) as error:
            self._problem = replies.failed(str(error)).error_message
            self._pending.clear()
            self.kill()

    def _take_progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._told_at < MIN_PROGRESS_SECONDS / 2:
            if progress.percent != 100 or self._told_all:
                return
            self._told_all = True
        self._told_at = now
        self._tell({"kind": "progress", **progress._asdict()})


def _import_seconds(frame: RawFrame) -> float:
    seconds = json.loads(frame.header).get("import_seconds")
    return seconds if isinstance(seconds, float) else 0.0


def how_it_ended(status: int) -> str:
    """A process that gave no answer, in words; `status` as of waitpid(2)."""
    if os.WIFSIGNALED(status):
        return f"the task's process was killed by signal {os.WTERMSIG(status)}"
    return f"the task's process ended by itself with exit code {os.WEXITSTATUS(status)}"
