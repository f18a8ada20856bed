"""Read bodies and payloads strictly and within bounds; check those of built-in task types."""

from __future__ import annotations

from typing import Any, Final

from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.rest.validation import validate
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text import web_url
from retire_cluster.schemas.text.json_scan import check_cost, long_number
from retire_cluster.schemas.text.json_text import JSONError, is_deeper, loads

#: How deep a payload may be nested (docs/contract.md, Task types).
MAX_DEPTH: Final = 64


def parse_json_object(raw: bytes, *, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Parse the JSON object in `raw`; refuse what would have to be rounded.

    Raises `ValidationError` for anything that is not JSON in UTF-8 (NaN, infinities, lone
    surrogates included) or not an object, for nesting deeper than `max_depth`, for whole numbers
    outside -2**63 to 2**64-1 and for more values than `json_scan.MAX_COST` lets through. It is read
    once, and not before its cost is known. Of equal names the last one counts.
    """
    check_cost(raw)
    too_long = long_number(raw)
    if too_long is not None:
        raise too_long
    try:
        document = loads(raw)
    except JSONError as error:
        raise ValidationError("", f"the body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValidationError("", "the body must be a JSON object")
    # Each level costs a bracket: with few brackets there is nothing to measure.
    if raw.count(b"{") + raw.count(b"[") > max_depth:
        check_depth(document, max_depth)
    return document


def check_depth(value: object, max_depth: int = MAX_DEPTH, *, where: str = "") -> None:
    """Raise `ValidationError` when `value` is nested deeper than `max_depth` (a scalar is 0)."""
    if is_deeper(value, max_depth):
        raise ValidationError(where, f"must not be nested deeper than {max_depth} levels")


def check_builtin_payload(
    task_type: str, payload: dict[str, Any], *, where: str = "payload"
) -> None:
    """Raise `ValidationError` when a built-in type cannot take `payload`.

    Other types pass: the devices that advertise them know what they take.
    """
    info = BUILTIN.get(task_type)
    if info is not None and info.payload_schema is not None:
        validate(info.payload_schema, payload, where=where)
    if task_type == "http_request":
        try:
            web_url.split(payload["url"])
        except ValueError as error:
            raise ValidationError(f"{where}.url", str(error)) from None
