"""From what a task returned to the JSON text of `result_data`, with nothing rounded or guessed."""

from __future__ import annotations

import json
import math
from typing import Any

from retire_cluster.schemas.bounds import MAX_JSON_INT, MIN_JSON_INT
from retire_cluster.schemas.protocol.wire import MAX_RESULT_BYTES
from retire_cluster.schemas.text.clean_text import clean

MAX_DEPTH = 64
MAX_ITEMS = 500_000


class NotJson(ValueError):
    """A value cannot be sent as a result; the text says where and why."""


def to_json(value: Any) -> bytes:
    """The JSON text of a result, as `json.dumps` gives it where it gives any.

    So subclasses of `str`, `int` and `float` (enumerations, numpy's) are what they hold, and keys
    that are numbers, booleans or None are texts. Tuples, sets and other plain iterables become
    lists, text that is not Unicode gets U+FFFD. Raises `NotJson` for numbers that readers would
    round (NaN, infinities, integers outside 64 bits), for other types, for two keys that would be
    one, and for what is too large or too deep.
    """
    plain = _Plain().convert(value, "result", 0)
    text = json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > MAX_RESULT_BYTES:
        raise NotJson(
            f"the result has {len(text)} bytes; the limit is {MAX_RESULT_BYTES} (1 MiB)."
            " Store it elsewhere and return where it is"
        )
    return text


class _Plain:
    def __init__(self) -> None:
        self._count = 0

    def convert(self, value: Any, where: str, depth: int) -> Any:
        self._count += 1
        if self._count > MAX_ITEMS:
            raise NotJson(f"the result has more than {MAX_ITEMS} items")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return clean(value)
        # What a subclass says of itself is not asked: an enumeration's str() is its name.
        if isinstance(value, int):
            whole = int.__int__(value)
            if not MIN_JSON_INT <= whole <= MAX_JSON_INT:
                raise NotJson(
                    f"{where} is an integer outside -2**63...2**64-1, which JSON readers would"
                    " round; return it as text, by str(...)"
                )
            return whole
        if isinstance(value, float):
            number = float.__float__(value)
            if not math.isfinite(number):
                raise NotJson(f"{where} is {number}, which JSON does not have")
            return number
        if depth >= MAX_DEPTH:
            raise NotJson(f"the result is nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict):
            return self._convert_dict(value, where, depth)
        if isinstance(value, (list, tuple, set, frozenset, range, zip, enumerate, map, filter)):
            return [
                self.convert(item, f"{where}[{index}]", depth + 1)
                for index, item in enumerate(_ordered(value))
            ]
        raise NotJson(f"{where} is of type {type(value).__name__}, which JSON does not have")

    def _convert_dict(self, value: dict[Any, Any], where: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in value.items():
            name = _name(key, where)
            if name in found:
                raise NotJson(f"{where} has two keys that would both be {name!r}")
            found[name] = self.convert(item, f"{where}.{name}"[:200], depth + 1)
        return found


def _name(key: object, where: str) -> str:
    if isinstance(key, str):
        return clean(key)
    if key is None:
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int):
        return int.__repr__(key)
    if isinstance(key, float) and math.isfinite(float.__float__(key)):
        return float.__repr__(key)
    if isinstance(key, float):
        raise NotJson(f"{where} has the key {float.__repr__(key)}, which JSON does not have")
    raise NotJson(f"{where} has a key of type {type(key).__name__}; keys are texts")


def _ordered(value: Any) -> Any:
    if not isinstance(value, (set, frozenset)):
        return value
    try:
        return sorted(value)
    except TypeError:
        return list(value)
