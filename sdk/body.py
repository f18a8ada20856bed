"""Write a request's body as JSON, and name the field of what cannot be written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from retire_cluster.schemas.errors import ValidationError

#: How a text that may hold half of a character is written.
_MAYBE_LONE: Final = re.compile(r"\\ud[89a-f]")
_LONE: Final = re.compile("[\ud800-\udfff]")
_NOT_UNICODE: Final = "is not valid Unicode; bytes go as base64, or decode them"


def encode(value: Any, where: str = "") -> bytes:
    """Write JSON in ASCII. Raises `ValidationError` naming the field below `where` that is none."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        wrong = next(_wrong(value, where), (where, f"cannot be sent as JSON: {error}"))
        raise ValidationError(*wrong) from None
    if _MAYBE_LONE.search(text):
        for field, reason in _wrong(value, where):
            raise ValidationError(field, reason)
    return text.encode("ascii")


def _wrong(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield the fields that cannot be sent, with reason and cure."""
    left: list[tuple[str, Any]] = [(where, value)]
    seen: set[int] = set()
    while left:
        field, item = left.pop()
        if isinstance(item, (dict, list, tuple)):
            if id(item) in seen:  # one that holds itself has no end
                continue
            seen.add(id(item))
        if isinstance(item, dict):
            inner = []
            for name, each in item.items():
                if name is not None and not isinstance(name, (str, int, float)):
                    kind = type(name).__name__
                    yield field, f"has a name that is a {kind}; names are text"
                elif isinstance(name, str) and _LONE.search(name):
                    yield field, f"the name {name!a} {_NOT_UNICODE}"
                inner.append((f"{field}.{name}" if field else str(name), each))
            left += reversed(inner)
        elif isinstance(item, (list, tuple)):
            numbered = [(f"{field}[{number}]", each) for number, each in enumerate(item)]
            left += reversed(numbered)
        elif isinstance(item, str):
            if _LONE.search(item):
                yield field, _NOT_UNICODE
        elif isinstance(item, float):
            if not math.isfinite(item):
                yield field, f"{item} is no number in JSON; send null or text"
        elif item is not None and not isinstance(item, int):
            kind = type(item).__name__
            cure = {"set": "a list", "frozenset": "a list", "bytes": "text, as base64"}
            given = "a dict" if isinstance(item, Mapping) else cure.get(kind, "text or a number")
            yield field, f"is a {kind}, which JSON does not have; give {given}"
