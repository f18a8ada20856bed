"""Bodies and payloads: read strictly, bounded, and checked against the built-in task types."""

from __future__ import annotations

import contextlib
import json
from typing import Any, Final

from retire_cluster.schemas import weburl
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.jsontext import JSONError, is_deeper, loads
from retire_cluster.schemas.strict import MAX_INT, MIN_INT
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.validation import validate

#: How deep a payload may be nested (contract.md, Task types).
MAX_DEPTH: Final = 64
#: Every digit becomes a zero: nineteen in a row are then found by one search at C speed.
_ZEROS: Final = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER: Final = b"0" * 19
_INT_REASON: Final = f"must be a whole number from {MIN_INT} to {MAX_INT}"


class _OutOfRange:
    """Stands where a whole number was that 64 bits cannot hold."""


_OUT_OF_RANGE: Final = _OutOfRange()


def parse_json_object(raw: bytes, *, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The JSON object in `raw`, exactly as written or refused, never rounded.

    Raises `ValidationError` for anything that is not JSON in UTF-8 (NaN, infinities, lone
    surrogates included) or not an object, for nesting deeper than `max_depth` and for whole numbers
    outside -2**63 to 2**64-1. Of equal names the last one counts.
    """
    try:
        document = loads(raw)
    except JSONError as error:
        if _LONG_NUMBER in raw.translate(_ZEROS):
            # A number of hundreds of digits is no JSON to orjson; say where it is.
            with contextlib.suppress(ValueError, RecursionError):
                _refuse_large_integers(raw)
        raise ValidationError("", f"the body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValidationError("", "the body must be a JSON object")
    # Each level costs a bracket: with few brackets there is nothing to measure.
    if raw.count(b"{") + raw.count(b"[") > max_depth:
        check_depth(document, max_depth)
    if _LONG_NUMBER in raw.translate(_ZEROS):
        _refuse_large_integers(raw)
    return document


def check_depth(value: object, max_depth: int = MAX_DEPTH, *, where: str = "") -> None:
    """Raises `ValidationError` when `value` is nested deeper than `max_depth` (a scalar is 0)."""
    if is_deeper(value, max_depth):
        raise ValidationError(where, f"must not be nested deeper than {max_depth} levels")


def _parse_int(text: str) -> object:
    # Leaves the conversion of very long texts out: Python refuses some and is slow at the others.
    if len(text) > 20:
        return _OUT_OF_RANGE
    value = int(text)
    return value if MIN_INT <= value <= MAX_INT else _OUT_OF_RANGE


def _refuse_large_integers(raw: bytes) -> None:
    """Looks at whole numbers as they were written: orjson reads 2**64 as a float, silently."""
    pending: list[tuple[str, object]] = [("", json.loads(raw, parse_int=_parse_int))]
    while pending:
        path, value = pending.pop()
        if value is _OUT_OF_RANGE:
            raise ValidationError(path, _INT_REASON)
        if isinstance(value, dict):
            inner = [(str(name), each) for name, each in value.items()]
        elif isinstance(value, list):
            inner = [(str(index), each) for index, each in enumerate(value)]
        else:
            continue
        pending += [(f"{path}.{step}" if path else step, each) for step, each in reversed(inner)]


def check_builtin_payload(
    task_type: str, payload: dict[str, Any], *, where: str = "payload"
) -> None:
    """Raises `ValidationError` when a built-in type cannot take `payload`.

    Other types pass: the devices that advertise them know what they take.
    """
    info = BUILTIN.get(task_type)
    if info is not None and info.payload_schema is not None:
        validate(info.payload_schema, payload, where=where)
    if task_type == "http_request":
        try:
            weburl.split(payload["url"])
        except ValueError as error:
            raise ValidationError(f"{where}.url", str(error)) from None
