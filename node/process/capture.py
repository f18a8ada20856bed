"""Everything a task prints, whoever prints it: Python, C libraries, processes it starts.

File descriptors 1 and 2 lead into a pipe; a thread keeps the beginning and the end of what comes
out. For a process in which tasks run that may close or replace these descriptors and streams.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

from retire_cluster.node.process import streams
from retire_cluster.node.process.perform import MAX_LOG_BYTES
from retire_cluster.node.tasks.bounded_output import HeadTail, Kept

_MARK_SECONDS = 1.0


class Capture:
    """Takes over stdout and stderr of this process for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept = HeadTail(MAX_LOG_BYTES)
        self._mark = b""
        self._marked = threading.Event()
        reading, self._writing = os.pipe()
        streams.flush()
        os.dup2(self._writing, 1)
        os.dup2(self._writing, 2)
        for stream in (sys.stdout, sys.stderr):
            # Unbuffered enough that prints and C output keep their order.
            stream.reconfigure(  # type: ignore[union-attr]
                encoding="utf-8", errors="replace", line_buffering=True
            )
        threading.Thread(target=self._read, args=(reading,), name="capture", daemon=True).start()

    def _read(self, fd: int) -> None:
        held = b""
        while part := os.read(fd, 65_536):
            with self._lock:
                held = self._add(held + part)

    def _add(self, part: bytes) -> bytes:
        """Keep a part of the output; what may be the mark's beginning is given back."""
        if not self._mark:
            self._kept.add(part)
            return b""
        before, mark, after = part.partition(self._mark)
        if mark:
            self._mark = b""
            self._kept.add(before + after)
            self._marked.set()
            return b""
        held = len(self._mark) - 1
        self._kept.add(part[:-held])
        return part[-held:]

    def take(self) -> Kept:
        """What was printed since the last call."""
        streams.flush()
        mark = b"\0" + os.urandom(16)
        with self._lock:
            self._mark = mark
            self._marked.clear()
        # What was written before the mark has been read once the mark comes out. By a descriptor
        # of our own: the task's may be closed, or lead into a file of its own by now.
        with contextlib.suppress(OSError):
            os.write(self._writing, mark)
            self._marked.wait(_MARK_SECONDS)
        with self._lock:
            self._mark = b""
            return self._kept.take()
