"""Make text valid Unicode, and free of characters that steer what shows it.

Python's text may hold lone surrogates, which no UTF-8 and no JSON can. They come from names that
are no UTF-8 (`os.listdir`, `os.environ`), from escapes in JSON and from whoever makes them on
purpose.

Whoever names a thing may put in what moves a terminal's cursor, begins a line of a log, or turns
the order in which a text is shown. `STEERING` is the one list of such characters: `plain` replaces
them in names as they come in, `escaped` writes them as escapes in whatever is shown or logged.
"""

from __future__ import annotations

import re
from typing import Any, Final

#: In a character class: controls (C0, DEL, C1), what has no width, separators of lines, what turns
#: the direction, tags, lone surrogates.
STEERING: Final = (
    r"\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
_ANY: Final = re.compile(f"[{STEERING}]")
_BUT_LINES: Final = re.compile(f"(?![\t\n])[{STEERING}]")
#: The colours that the command line itself paints with.
_BUT_PAINT: Final = re.compile(rf"(?![\t\n]|\x1b\[(?:[012]|3[123])m)[{STEERING}]")


def plain(text: str) -> str:
    """Put U+FFFD for each steering character of a name from outside: it stays on one line."""
    return text if text.isascii() and text.isprintable() else _ANY.sub("\ufffd", text)


def plain_lines(text: str) -> str:
    """Do as `plain` for a text that may have lines and tabs."""
    if text.isascii() and text.isprintable():
        return text
    return _BUT_LINES.sub("\ufffd", text.replace("\r\n", "\n"))


def plain_value(value: Any) -> Any:
    """Make all texts of a JSON value `plain`, names too. Raises `RecursionError` for a deep one."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(name): plain_value(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain_value(each) for each in value]
    return value


def escaped(text: str) -> str:
    """Write each steering character as an escape: the text stays on one line."""
    if text.isascii() and text.isprintable():
        return text
    return _ANY.sub(_escape, text)


def escaped_lines(text: str, *, painted: bool = False) -> str:
    """Do as `escaped` for a text of lines; `painted` keeps the command line's own colours."""
    if text.isascii() and text.isprintable():
        return text
    return (_BUT_PAINT if painted else _BUT_LINES).sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def clean(text: str) -> str:
    """Put U+FFFD for each lone surrogate, and for a pair the character that it stands for."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    # A subclass may have its own idea of what it is.
    return text if type(text) is str else str.__str__(text)


def cleaned(value: Any) -> Any:
    """Make all texts of a JSON value `clean`, names too. Raises `RecursionError` for a deep one."""
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
    """Cut a text after `limit` characters, and say at its end how many are left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} [... {len(text) - limit} more characters]"
