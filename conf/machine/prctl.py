"""prctl(2): what a process of Linux asks the system for itself."""

from __future__ import annotations

import sys

_PR_SET_DUMPABLE = 4


def hide_memory() -> bool:
    """Keep other processes of the same user from reading this one's memory and environment.

    Tasks of a local worker may be such processes, and this one knows the cluster's secrets.
    Returns False where the system has no such thing.
    """
    return prctl(_PR_SET_DUMPABLE, 0)


def show_memory() -> bool:
    """Undo `hide_memory`, which a forked process inherits; return False where that is not done."""
    return prctl(_PR_SET_DUMPABLE, 1)


def prctl(option: int, value: int) -> bool:
    """Call prctl(2) with one argument; return False where that is not done."""
    # sys.platform of Termux is "linux" below Python 3.13 and "android" from there.
    if not sys.platform.startswith(("linux", "android")):
        return False
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False
