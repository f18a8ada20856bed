"""Named points at which a test lets a process die, as a power cut would: at once, nothing tidied.

`RETIRE_CLUSTER_TEST_FAILPOINT=NAME` or `NAME:N` ends the process when it reaches the point for the
N-th time. Without it a point costs one comparison. The points that exist are listed in
`docs/guarantees.md`; `tests/chaos` walks through all of them.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "RETIRE_CLUSTER_TEST_FAILPOINT"

_name = ""
_left = 0


def arm(text: str) -> None:
    """Choose the point (`NAME` or `NAME:N`); an empty text means none."""
    global _name, _left
    name, _, times = text.partition(":")
    _name, _left = name, int(times) if times.isdecimal() else 1


def reach(name: str) -> None:
    """Die here, if this is the point that was asked for and it was reached often enough."""
    if name == _name:
        _count()


def _count() -> None:
    global _left
    _left -= 1
    if _left <= 0:
        if hasattr(signal, "SIGKILL"):
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(137)


arm(os.environ.get(VARIABLE, ""))
