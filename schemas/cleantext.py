"""Text that is Unicode: Python's may hold lone surrogates, which no UTF-8 and no JSON can.

They come from names that are no UTF-8 (`os.listdir`, `os.environ`), from escapes in JSON and from
whoever makes them on purpose.
"""

from __future__ import annotations

from typing import Any


def clean(text: str) -> str:
    """The text with U+FFFD for each lone surrogate; pairs become the character they stand for."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    # A subclass may have its own idea of what it is.
    return text if type(text) is str else str.__str__(text)


def cleaned(value: Any) -> Any:
    """A JSON value whose texts, names too, are clean. Raises `RecursionError` when it is deep."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {
            clean(name) if isinstance(name, str) else name: cleaned(each)
            for name, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [cleaned(each) for each in value]
    return value


def shorten(text: str, limit: int) -> str:
    """At most about `limit` characters, with a word on how many are left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} [... {len(text) - limit} more characters]"
