"""Everything a task prints, whoever prints it: Python, C libraries, processes it starts.

File descriptors 1 and 2 lead into a pipe; a thread keeps the last 64 KiB of what comes out.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading

MAX_BYTES = 64 * 1024


class Capture:
    """Takes over stdout and stderr of this process for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tail = bytearray()
        self._cut = False
        self._mark = b""
        self._marked = threading.Event()
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.close(writing)
        for stream in (sys.stdout, sys.stderr):
            # Unbuffered enough that prints and C output keep their order.
            stream.reconfigure(  # type: ignore[union-attr]
                encoding="utf-8", errors="replace", line_buffering=True
            )
        threading.Thread(target=self._read, args=(reading,), name="capture", daemon=True).start()

    def _read(self, fd: int) -> None:
        while part := os.read(fd, 65_536):
            with self._lock:
                self._tail += part
                if self._mark and (at := self._tail.find(self._mark)) >= 0:
                    del self._tail[at : at + len(self._mark)]
                    self._mark = b""
                    self._marked.set()
                if len(self._tail) > MAX_BYTES and not self._mark:
                    del self._tail[:-MAX_BYTES]
                    self._cut = True
                elif len(self._tail) > 4 * MAX_BYTES:
                    del self._tail[: -2 * MAX_BYTES]
                    self._cut = True

    def write(self, line: str) -> None:
        """Adds a line."""
        sys.stdout.write(line if line.endswith("\n") else line + "\n")
        sys.stdout.flush()

    def take(self) -> tuple[str, bool]:
        """What was printed since the last call, and whether its beginning was cut off."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        mark = b"\0" + secrets.token_bytes(16)
        with self._lock:
            self._mark = mark
            self._marked.clear()
        # What was written before the mark has been read once the mark comes out.
        with contextlib.suppress(OSError):
            os.write(1, mark)
            self._marked.wait(1.0)
        with self._lock:
            self._mark = b""
            text = self._tail.decode("utf-8", "replace").replace("\0", "\ufffd")
            cut, self._cut = self._cut, False
            self._tail.clear()
        return text, cut
