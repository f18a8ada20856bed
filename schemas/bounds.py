"""The ranges of numbers that every boundary keeps to: REST, the worker bus, settings, results.

Numbers in JSON that people and tasks write may be as large as 64 bits hold. Numbers that the
protocol itself counts (tasks, attempts, sizes in bytes) stop where a reader that keeps every number
as a double, as JavaScript does, is no longer exact.
"""

from __future__ import annotations

import math
from typing import Final, TypeGuard

#: Smallest and largest whole number of a JSON document: `int64` below zero, `uint64` above.
MIN_JSON_INT: Final = -(2**63)
MAX_JSON_INT: Final = 2**64 - 1
#: Largest whole number that a double holds exactly together with all below it.
MAX_EXACT_INT: Final = 2**53
#: Largest measured number (seconds, megabytes, percent) of a message of the worker bus.
MAX_MEASURE: Final = 1e12
#: Largest number of a TCP port.
MAX_PORT: Final = 65_535


def is_whole(value: object, low: int = MIN_JSON_INT, high: int = MAX_JSON_INT) -> TypeGuard[int]:
    """Tell whether `value` is a whole number from `low` to `high`; True and 1.0 are not."""
    return type(value) is int and low <= value <= high


def is_finite(value: object) -> TypeGuard[float]:
    """Tell whether `value` is a number of JSON: not True, NaN or infinite, nor above 64 bits."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))
