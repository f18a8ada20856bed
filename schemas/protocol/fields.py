"""Read fields of message headers strictly: every function raises `WireError` naming the field."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any

from retire_cluster.schemas.bounds import MAX_EXACT_INT, MAX_MEASURE, is_whole
from retire_cluster.schemas.protocol.wire import WireError

Header = Mapping[str, Any]
#: `(task, attempt, token, epoch)`: the name of one attempt under one lease.
AttemptKey = tuple[int, int, int, int]

MAX_ITEMS = 20_000
MAX_TEXT = 4_096


def text(header: Header, name: str, *, default: str | None = None, limit: int = MAX_TEXT) -> str:
    """Read a text, and cut it to `limit` characters."""
    value = header.get(name, default)
    if not isinstance(value, str):
        raise WireError(f"{name}: a text is required")
    return value[:limit]


def whole(header: Header, name: str, *, low: int = 0, high: int = MAX_EXACT_INT) -> int:
    """Read a whole number from `low` to `high`."""
    value = header.get(name)
    if not is_whole(value, low, high):
        raise WireError(f"{name}: a whole number from {low} to {high} is required")
    return value


def number(value: object, name: str, *, low: float = 0.0, high: float = MAX_MEASURE) -> float:
    """Check that `value`, called `name` in the error, is a finite number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WireError(f"{name}: a number is required")
    # In this order: a whole number of any size can be compared, but not be made a float.
    if not low <= value <= high or not math.isfinite(value):
        raise WireError(f"{name}: a number from {low:g} to {high:g} is required")
    return float(value)


def flag(header: Header, name: str, default: bool) -> bool:
    """Read true or false; `default` where the field is absent."""
    value = header.get(name, default)
    if not isinstance(value, bool):
        raise WireError(f"{name}: true or false is required")
    return value


def mapping(header: Header, name: str) -> dict[str, Any]:
    """Read an object; an empty one where the field is absent or null."""
    value = header.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise WireError(f"{name}: an object is required")
    return value


def rows(header: Header, name: str) -> list[Any]:
    """Read a list of at most `MAX_ITEMS` items; an empty one where the field is absent."""
    value = header.get(name, [])
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise WireError(f"{name}: a list of at most {MAX_ITEMS} items is required")
    return value


def attempt_key(row: object, size: int, name: str) -> AttemptKey:
    """Read the key at the beginning of a row of `size` fields."""
    if not isinstance(row, (list, tuple)) or len(row) != size:
        raise WireError(f"{name}: each item has {size} fields")
    task, attempt, token, epoch = row[0], row[1], row[2], row[3]
    if not (type(task) is type(attempt) is type(token) is type(epoch) is int):
        raise WireError(f"{name}: an attempt's key is four whole numbers")
    if (
        task < 1
        or attempt < 1
        or token < 0
        or epoch < 0
        or max(task, attempt, token, epoch) > MAX_EXACT_INT
    ):
        raise WireError(f"{name}: an attempt's key is out of range")
    return (task, attempt, token, epoch)


def attempt_keys(header: Header, name: str) -> tuple[AttemptKey, ...]:
    """Read a list of attempts' keys."""
    return tuple(attempt_key(row, 4, name) for row in rows(header, name))


def texts(header: Header, name: str, limit: int = 200) -> tuple[str, ...]:
    """Read a list of at most `limit` texts."""
    found = rows(header, name)
    if len(found) > limit or not all(isinstance(row, str) for row in found):
        raise WireError(f"{name}: a list of at most {limit} texts is required")
    return tuple(found)


def wholes(value: object, name: str, *, low: int = 0, high: int = MAX_EXACT_INT) -> list[int]:
    """Check a list of whole numbers, in a few steps of C however long it is."""
    if not isinstance(value, list):
        raise WireError(f"{name}: a list is required")
    try:
        found = array("q", value)
    except (TypeError, OverflowError):
        raise WireError(f"{name}: whole numbers are required") from None
    if found and not (low <= min(found) and max(found) <= high):
        raise WireError(f"{name}: whole numbers from {low} to {high} are required")
    return found.tolist()


def numbers(
    value: object, name: str, *, low: float = 0.0, high: float = MAX_MEASURE
) -> list[float]:
    """Check a list of finite numbers, in a few steps of C however long it is."""
    if not isinstance(value, list):
        raise WireError(f"{name}: a list is required")
    try:
        found = array("d", value)
    except (TypeError, OverflowError):
        raise WireError(f"{name}: numbers are required") from None
    # A NaN is found by its sum, however min and max take it.
    if found and not (low <= min(found) and max(found) <= high and math.isfinite(sum(found))):
        raise WireError(f"{name}: numbers from {low:g} to {high:g} are required")
    return found.tolist()
