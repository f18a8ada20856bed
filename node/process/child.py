"""The process of one task of an own type, as the server that forked it sees it: its pipes, its end.

Everything that it says is hostile until checked here and in the worker.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable
from typing import Any

from retire_cluster.node.process import replies
from retire_cluster.node.process.frames import FrameError, RawFrame, read_frame, take_raw
from retire_cluster.node.process.perform import (
    MAX_LOG_BYTES,
    MIN_PROGRESS_SECONDS,
    add_logs,
    reply,
)
from retire_cluster.node.process.replies import BadReply, Done, Progress
from retire_cluster.node.system import process_tree
from retire_cluster.node.tasks.bounded_output import HeadTail
from retire_cluster.schemas.vocabulary import Cause, Outcome

#: A child that has answered has this long to be gone, and its pipes this long to be drained.
END_SECONDS = 1.0
_SAID = frozenset(("progress", "done"))

Header = dict[str, Any]


class Child:
    """A task's process, as its parent sees it.

    :param answers_fd: its answers come from here
    :param output_fd: what is printed in it comes from here
    :param cancel_fd: closed to tell it that its task is cancelled
    :param tell: passes progress on to the worker
    """

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

    def __repr__(self) -> str:
        state = "runs" if self.status is None else how_it_ended(self.status)
        return f"<Child {self.pid}: {state}>"

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
