"""Makes sure that standard input, output and error exist.

A process started with one of them closed (`2>&-`, some supervisors) gives its number to the first
file or socket it opens. Whatever then is printed, by us or by a library, goes into that.
"""

from __future__ import annotations

import os
import sys

_NAMES = ("stdin", "stdout", "stderr")
_closed: set[str] = set()


def settle() -> None:
    """Open the null device in place of each that is closed. Call it before anything is opened."""
    for number, name in enumerate(_NAMES):
        mode = "r" if number == 0 else "w"
        if getattr(sys, name) is not None:
            continue
        _closed.add(name)
        if not _is_open(number):
            opened = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            # What this process starts is to have one too.
            os.set_inheritable(number, True)
            stream = open(number, mode, closefd=False, encoding="utf-8")  # noqa: SIM115
        else:
            # Closed when Python began, something else by now: not ours to write to.
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
        setattr(sys, name, stream)


def was_closed(name: str) -> bool:
    """Tell whether `stdin`, `stdout` or `stderr` was closed when this process was started."""
    return name in _closed or getattr(sys, name) is None


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
