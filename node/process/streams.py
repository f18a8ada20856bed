"""The output streams of a process in which a task runs, which may have closed or replaced them."""

from __future__ import annotations

import contextlib
import os
import sys


def flush() -> None:
    """Let out what was printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def write_line(text: str) -> None:
    """Add a line to what the process prints."""
    line = text if text.endswith("\n") else text + "\n"
    try:
        sys.stdout.write(line)
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        with contextlib.suppress(OSError):
            os.write(1, line.encode("utf-8", "replace"))
