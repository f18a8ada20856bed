"""Read `Accept`, `Accept-Encoding` and `If-None-Match` (RFC 9110)."""

from __future__ import annotations

import re

_TAG = re.compile(r'(?:W/)?("[^"]*")')


def accepts(header: str, wanted: str) -> bool:
    """Tell whether a list with weights (`gzip;q=0.5, br`) takes `wanted`.

    The most exact entry decides: `wanted` itself, then `type/*` for a media type, then `*`. A
    weight of 0 refuses, and so does one that is no number. An empty list takes nothing.
    """
    weights: dict[str, float] = {}
    for part in header.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                weight = _weight(value.strip())
        weights.setdefault(name, weight)
    kind, slash, _ = wanted.partition("/")
    for name in (wanted, f"{kind}/*", "*/*") if slash else (wanted, "*"):
        if name in weights:
            return weights[name] > 0
    return False


def names(header: str, wanted: str) -> bool:
    """Tell whether such a list names `wanted` itself: browsers do, programs do not."""
    return any(
        part.partition(";")[0].strip().lower() == wanted for part in header.split(",")
    ) and accepts(header, wanted)


def has(header: str, tag: str) -> bool:
    """Tell whether an `If-None-Match` says that the client has `tag`.

    Compared weakly, as it has to be: a proxy that compresses makes a tag weak.
    """
    return header.strip() == "*" or tag in _TAG.findall(header)


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
