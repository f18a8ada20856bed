"""Bound JSON text before it is parsed: what parsing would cost, and numbers as written.

A parser makes some two hundred bytes of an object that is written in three, so a text may cost many
times its size. `check_cost` bounds that beforehand. `long_number` finds whole numbers that 64 bits
cannot hold, which orjson reads as floats, silently, and names their place. Both take time in
proportion to the text, whatever is in it, and keep next to nothing of it.
"""

from __future__ import annotations

import re
from typing import Final

from retire_cluster.schemas.bounds import MAX_JSON_INT, MIN_JSON_INT
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.text.json_text import JSONError, loads

#: What the values of one text may cost: a value 1, a member's name 3 more, a list or an object 8
#: more. That is some 25 to 40 bytes of memory each.
MAX_COST: Final = 6_000_000
#: Digits that a number may have, whatever it is: more tell nobody anything.
MAX_DIGITS: Final = 4_300

_DIGITS: Final = re.compile(rb"[0-9]{19,}")
_TOKENS: Final = re.compile(rb'[\[\]{},:]|"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
#: A string in a text without escapes.
_STRINGS: Final = re.compile(rb'"[^"]*"')
#: With more quotes what is in strings is not looked for: that would cost what it shall save.
_MAX_QUOTES: Final = 500_000
#: Every digit becomes a zero: nineteen in a row are then found by one search at C speed.
_ZEROS: Final = bytes.maketrans(b"123456789", b"000000000")
_LONG: Final = b"0" * 19
#: Beyond so many bytes a place is told by its byte: the path would cost too much.
_WALKED_BYTES: Final = 128 * 1024


def check_cost(raw: bytes) -> None:
    """Raise `ValidationError` for a text whose values would take too much memory."""
    if len(raw) * 9 <= MAX_COST or _cost(raw) <= MAX_COST:
        return
    # Commas and brackets in strings cost nothing.
    if raw.count(b'"') > _MAX_QUOTES or _cost(_STRINGS.sub(b"", _unescaped(raw))) > MAX_COST:
        raise ValidationError(
            "", f"has too many values (they cost more than {MAX_COST}); send it in several parts"
        )


def _unescaped(raw: bytes) -> bytes:
    """Drop escaped quotes and backslashes: the quotes left begin and end strings."""
    return raw.replace(b"\\\\", b"").replace(b'\\"', b"")


def _cost(raw: bytes) -> int:
    count = raw.count
    return count(b",") + 3 * count(b":") + 8 * (count(b"[") + count(b"{"))


def long_number(raw: bytes) -> ValidationError | None:
    """Return the error for the first whole number beyond 64 bits or with too many digits."""
    if _LONG not in raw.translate(_ZEROS):
        return None
    in_string, seen = False, 0
    for found in _DIGITS.finditer(raw):
        start, end = found.span()
        in_string ^= bool(_unescaped(raw[seen:start]).count(b'"') & 1)
        seen = end
        if in_string:
            continue
        if end - start > MAX_DIGITS:
            reason = f"has {end - start} digits in a row; at most {MAX_DIGITS} are taken"
        elif _is_whole(raw, start, end) and not _fits(raw, start, end):
            reason = f"must be a whole number from {MIN_JSON_INT} to {MAX_JSON_INT}"
        else:
            continue
        path = _path(raw, start)
        if path is None:
            return ValidationError("", f"the number at byte {start} {reason}")
        return ValidationError(path, reason)
    return None


def _is_whole(raw: bytes, start: int, end: int) -> bool:
    """Tell whether these digits are a whole number, and not part of one with a fraction."""
    if raw[end : end + 1] in (b".", b"e", b"E"):
        return False
    before = raw[max(0, start - 2) : start]
    if before.endswith((b".", b"e", b"E", b"+")):
        return False
    return not before.endswith((b"e-", b"E-"))


def _fits(raw: bytes, start: int, end: int) -> bool:
    if end - start > 20:
        return False
    value = int(raw[start:end])
    return -value >= MIN_JSON_INT if raw[start - 1 : start] == b"-" else value <= MAX_JSON_INT


def _path(raw: bytes, position: int) -> str | None:
    """Return where in the document a byte is, as `payload.a.1`; None when it is too far in."""
    if position > _WALKED_BYTES:
        return None
    #: Names of members and positions in lists; None for a member whose name has not come yet.
    steps: list[str | int | None] = []
    name = ""
    for found in _TOKENS.finditer(raw, 0, position):
        token = found.group()
        if token == b"{":
            steps.append(None)
        elif token == b"[":
            steps.append(0)
        elif token in (b"]", b"}"):
            if steps:
                steps.pop()
        elif token == b":":
            if steps and not isinstance(steps[-1], int):
                steps[-1] = name
        elif token == b",":
            if steps:
                step = steps[-1]
                steps[-1] = step + 1 if isinstance(step, int) else None
        else:
            try:
                name = str(loads(token))
            except JSONError:
                return None
    return ".".join("" if step is None else str(step) for step in steps)
