"""A monotonic clock that goes on while the device sleeps.

A laptop whose lid was closed for an hour has lost its lease, but `time.monotonic` on Linux stands
still meanwhile (clock_gettime(2), CLOCK_BOOTTIME).
"""

from __future__ import annotations

import time
from collections.abc import Callable


def _find() -> Callable[[], float]:
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):
        clock_id = getattr(time, name, None)
        if clock_id is None:
            continue
        try:
            time.clock_gettime(clock_id)
        except OSError:
            continue
        return lambda: time.clock_gettime(clock_id)
    return time.monotonic


#: Seconds from an arbitrary moment; never jumps back, counts sleep where the system can.
monotonic: Callable[[], float] = _find()
