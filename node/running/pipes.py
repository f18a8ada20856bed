"""The pipes between the worker and a task process, which a task may have got hold of.

A pipe stays open for as long as anybody holds its other end, and a process that was stopped reads
nothing. So neither reading nor writing waits for a pipe alone: the end of the process that the
worker started ends the conversation, whoever still holds a pipe then.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading

from retire_cluster.node.process.frames import ANSWERS, RawFrame, read_raw, take_raw
from retire_cluster.node.system.process_tree import IS_ANDROID

_PART_BYTES = 65_536
#: Where the system does not say that a process has ended, it is looked at so often.
_LOOK_MS = 200


class Pipes:
    """One conversation with a process that was started with three pipes of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._read = bytearray()
        self._writing = threading.Lock()
        self._end_fd = -1
        self._ended = False
        if sys.platform != "win32":
            for stream in (process.stdin, process.stdout, process.stderr):
                os.set_blocking(stream.fileno(), False)
            if hasattr(os, "pidfd_open") and not IS_ANDROID:
                with contextlib.suppress(OSError):
                    self._end_fd = os.pidfd_open(process.pid)

    def receive(self) -> RawFrame | None:
        """The next answer, or None when the process is gone. Raises `FrameError` and `OSError`."""
        fd = self._stdout.fileno()
        if sys.platform == "win32":
            return read_raw(fd, ANSWERS)
        while (frame := take_raw(self._read, ANSWERS)) is None:
            try:
                part = os.read(fd, _PART_BYTES)
            except BlockingIOError:
                # What it said before its end has been read by now.
                if self._ended:
                    return None
                self._wait(fd, select.POLLIN)
                continue
            if not part:
                return None
            self._read += part
        return frame

    def write(self, data: bytes | memoryview) -> None:
        """Say all of this. Raises `OSError` when the process is gone."""
        if self._stdin.closed:
            raise BrokenPipeError("the task process was told to end")
        fd = self._stdin.fileno()
        left = memoryview(data)
        with self._writing:
            while left:
                try:
                    left = left[os.write(fd, left) :]
                except BlockingIOError:
                    if self._ended:
                        raise BrokenPipeError("the task process has ended") from None
                    self._wait(fd, select.POLLOUT)

    def try_write(self, data: bytes) -> None:
        """Say this if it can be said now: few bytes, from a thread that must not wait."""
        if self._writing.acquire(blocking=False):
            try:
                with contextlib.suppress(OSError, ValueError):
                    os.write(self._stdin.fileno(), data)
            finally:
                self._writing.release()

    def retire(self) -> None:
        """Close the way to the process: nothing more is written."""
        # Not while another thread writes: the descriptor's number may be another's a moment later.
        with self._writing, contextlib.suppress(OSError):
            self._stdin.close()

    def close(self) -> bytes:
        """Give the pipes back, of a process that has ended; the last words on its stderr."""
        words = b""
        with contextlib.suppress(OSError):
            words = self._stderr.read(_PART_BYTES) or b""
        for stream in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(OSError):
                stream.close()
        if self._end_fd >= 0:
            os.close(self._end_fd)
            self._end_fd = -1
        return words

    def _wait(self, fd: int, events: int) -> None:
        """Wait until the pipe is ready or the process has ended."""
        poller = select.poll()
        poller.register(fd, events)
        if self._end_fd >= 0:
            poller.register(self._end_fd, select.POLLIN)
            self._ended = any(ready == self._end_fd for ready, _ in poller.poll())
        else:
            poller.poll(_LOOK_MS)
            self._ended = self._process.poll() is not None
