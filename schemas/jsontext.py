"""JSON as bytes: orjson where it is installed, the standard library's json where it is not.

A device may have no orjson (32-bit, Termux), so both must read and write the same texts.
"""

from __future__ import annotations

import json
from typing import Any

try:
    import orjson
except ImportError:  # pragma: no cover - the device without a wheel; its own test runs it
    orjson = None  # type: ignore[assignment,unused-ignore]


class JSONError(ValueError):
    """A text is not JSON, or a value cannot be written as JSON."""


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _loads_std(text: bytes | str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise JSONError(str(error)) from None


def _dumps_std(value: Any) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise JSONError(str(error)) from None


def _loads_fast(text: bytes | str) -> Any:
    try:
        return orjson.loads(text)
    except (ValueError, TypeError) as error:
        raise JSONError(str(error)) from None


def _dumps_fast(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except (ValueError, TypeError) as error:
        raise JSONError(str(error)) from None


#: `loads(bytes) -> value`; raises `JSONError`.
loads = _loads_std if orjson is None else _loads_fast
#: `dumps(value) -> bytes`; raises `JSONError`.
dumps = _dumps_std if orjson is None else _dumps_fast
