"""A few words that tell a task from others of its type in a list."""

from __future__ import annotations

import re
from typing import Any, Final

from retire_cluster.schemas.text.clean_text import plain
from retire_cluster.schemas.text.json_text import JSONError, loads

#: Of a payload so much is looked at, so that a list costs the same whatever its tasks carry.
HEAD_BYTES: Final = 400
MOST_CHARACTERS: Final = 80
#: A text or a number of a JSON text; a text that is a name has its colon.
_VALUE = re.compile(r'"((?:[^"\\]|\\.)*)("\s*:|"|\Z)|(-?[0-9][0-9.eE+-]*|true|false)')


def label(document: bytes, payload: bytes) -> str:
    """Return `metadata.name` if it is a text, else the payload's values; at most 80 characters.

    :param document: `{"requirements", "metadata"}` as JSON
    :param payload: JSON text, or its beginning
    """
    words = _name(document) or " ".join(_values(payload[:HEAD_BYTES].decode("utf-8", "ignore")))
    words = plain(" ".join(words.split()))
    return words if len(words) <= MOST_CHARACTERS else f"{words[: MOST_CHARACTERS - 1]}…"


def _name(document: bytes) -> str:
    if b'"name"' not in document:
        return ""
    try:
        found: Any = loads(document)["metadata"]["name"]
    except (JSONError, KeyError, TypeError):
        return ""
    return found[:1_000] if isinstance(found, str) else ""


def _values(text: str) -> list[str]:
    found = []
    for match in _VALUE.finditer(text):
        inner, end, plain = match.groups()
        if plain is not None:
            found.append(plain)
        elif not end.endswith(":"):
            found.append(_read(inner))
    return found


def _read(inner: str) -> str:
    try:
        return str(loads(f'"{inner}"'.encode()))
    except JSONError:  # cut within an escape
        return inner
