"""Read and write JSON: with orjson where it is installed, else with the standard library.

A device may have no orjson (32-bit, Termux), so both must read and write the same texts. Neither
reads or writes text that is not Unicode; `dumps_clean` writes U+FFFD for it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from retire_cluster.schemas.text.clean_text import cleaned

try:
    import orjson
except ImportError:  # pragma: no cover - the device without a wheel; its own test runs it
    orjson = None  # type: ignore[assignment,unused-ignore]


class JSONError(ValueError):
    """A text that is not JSON, or a value that JSON cannot hold."""


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _loads_std(text: bytes | str) -> Any:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    try:
        # The module would also take UTF-16 and a byte order mark.
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
        if _SURROGATE.search(data):
            _dumps_std(value)  # pairs are fine, a lone one is not
        return value
    except (ValueError, RecursionError, MemoryError) as error:
        raise JSONError(str(error) or type(error).__name__) from None


def _dumps_std(value: Any) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8")
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise JSONError(str(error) or type(error).__name__) from None


def _loads_fast(text: bytes | str) -> Any:
    try:
        return orjson.loads(text)
    except (ValueError, TypeError, MemoryError) as error:
        raise JSONError(str(error) or type(error).__name__) from None


def _dumps_fast(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except (ValueError, TypeError, MemoryError) as error:
        raise JSONError(str(error) or type(error).__name__) from None


#: `loads(bytes) -> value`; raises `JSONError`.
loads = _loads_std if orjson is None else _loads_fast
#: `dumps(value) -> bytes`; raises `JSONError`.
dumps = _dumps_std if orjson is None else _dumps_fast


def dumps_clean(value: Any) -> bytes:
    """Write as `dumps`, with U+FFFD for text that is not Unicode. Raises `JSONError`."""
    try:
        return dumps(value)
    except JSONError:
        try:
            return dumps(cleaned(value))
        except RecursionError as error:
            raise JSONError(str(error)) from None


def is_deeper(value: object, levels: int) -> bool:
    """Tell whether a JSON value is nested deeper than `levels` (a scalar has none)."""
    level: list[object] = [value]
    depth = 0
    while True:
        inner = [each for each in level if isinstance(each, (dict, list))]
        if not inner:
            return False
        depth += 1
        if depth > levels:
            return True
        level = []
        for each in inner:
            level.extend(each.values() if isinstance(each, dict) else each)
