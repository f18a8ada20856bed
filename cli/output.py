"""What commands print: the envelope for programs, tables for people, hints beside them.

Data goes to standard output, progress and hints to standard error. Colour and Unicode are used only
where the terminal says that it can show them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TextIO

from retire_cluster.schemas.errors import ClusterError
from retire_cluster.schemas.text.clean_text import STEERING, escaped, escaped_lines

_MISSING = "-"
_COLOURS = {"green": "32", "red": "31", "yellow": "33", "dim": "2", "bold": "1"}
_STATUS_COLOURS = {
    "online": "green",
    "success": "green",
    "healthy": "green",
    "ok": "green",
    "offline": "red",
    "failed": "red",
    "timeout": "red",
    "unhealthy": "red",
    "warn": "yellow",
    "running": "yellow",
    "assigned": "yellow",
    "degraded": "yellow",
    "cancelled": "dim",
}


@dataclass(frozen=True)
class Style:
    """What a stream can show."""

    #: Escape sequences for colour may be sent.
    colour: bool = False
    #: Characters beyond ASCII can be written.
    unicode: bool = False

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str] = os.environ) -> Style:
        """Judge a stream by its encoding and the environment (`NO_COLOR`, `TERM=dumb`)."""
        dumb = environ.get("TERM", "") == "dumb"
        terminal = bool(getattr(stream, "isatty", lambda: False)())
        if terminal and sys.platform == "win32" and not environ.get("WT_SESSION"):
            terminal = "ANSICON" in environ or "TERM" in environ
        encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
        return cls(
            colour=terminal and not dumb and not environ.get("NO_COLOR"),
            unicode=not dumb and encoding.startswith("utf"),
        )

    def paint(self, text: str, colour: str) -> str:
        """Return the text in a colour, or as it is."""
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.colour else text

    @property
    def ellipsis(self) -> str:
        """What ends a text that was cut."""
        return "…" if self.unicode else "~"


def now_text() -> str:
    """Return the present moment as the contract writes it: UTC, ISO 8601, ending in `Z`."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def success_envelope(
    data: Any, *, message: str | None = None, pagination: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the contract's envelope around an answer."""
    envelope: dict[str, Any] = {"status": "success", "data": data}
    if pagination is not None:
        envelope["pagination"] = dict(pagination)
    if message:
        envelope["message"] = message
    return {**envelope, "timestamp": now_text(), "request_id": str(uuid.uuid4())}


def error_envelope(error: ClusterError) -> dict[str, Any]:
    """Return the contract's envelope around an error."""
    return {
        "status": "error",
        "message": error.message,
        "error_code": error.code,
        "error_details": error.details,
        "timestamp": now_text(),
        "request_id": str(uuid.uuid4()),
    }


#: What steers a terminal or turns the order of what is shown, beside tabs and line ends.
_STEERS = re.compile(f"(?![\\t\\n])[{STEERING}]")

#: The text with control characters shown, so that a name cannot steer the terminal.
clean = escaped


def clean_lines(text: str) -> str:
    """Return a text of many lines that steers no terminal; a progress bar's steps are lines."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return escaped_lines(lines)


def clean_json(text: str) -> str:
    """Return JSON that steers no terminal and means the same."""
    return _STEERS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def cell(value: Any, style: Style) -> str:
    """Return one value as a table shows it."""
    if value is None or value == "":
        return _MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(item, style) for item in value) or _MISSING
    if isinstance(value, Mapping):
        parts = (f"{clean(str(name))}={cell(item, style)}" for name, item in value.items())
        return " ".join(parts) or _MISSING
    return clean(str(value))


def table(
    headers: Sequence[str], rows: Iterable[Sequence[Any]], style: Style, *, width: int = 0
) -> str:
    """Return rows as a table, columns aligned and status words coloured.

    :param width: the columns of the terminal, 0 for no limit; the last column is cut to fit
    """
    texts = [[cell(value, style) for value in row] for row in rows]
    sizes = [
        max([len(header), *(len(row[index]) for row in texts)])
        for index, header in enumerate(headers)
    ]
    if width and sizes:
        room = width - sum(sizes[:-1]) - 2 * (len(sizes) - 1)
        sizes[-1] = min(sizes[-1], max(room, len(headers[-1]), 8))
    lines = [style.paint(_line([*map(clean, headers)], sizes), "bold")]
    lines += [_painted(row, sizes, style) for row in texts]
    return "\n".join(lines)


def _line(row: Sequence[str], sizes: Sequence[int]) -> str:
    return "  ".join(text.ljust(size) for text, size in zip(row, sizes, strict=True)).rstrip()


def _painted(row: Sequence[str], sizes: Sequence[int], style: Style) -> str:
    shown = []
    for position, (text, size) in enumerate(zip(row, sizes, strict=True)):
        short = text if len(text) <= size else text[: size - 1] + style.ellipsis
        padded = short if position == len(row) - 1 else short.ljust(size)
        colour = _STATUS_COLOURS.get(text)
        shown.append(style.paint(padded, colour) if colour else padded)
    return "  ".join(shown).rstrip()


def facts(pairs: Iterable[tuple[str, Any]], style: Style) -> str:
    """Return `name  value` lines, values aligned."""
    rows = [(clean(name), cell(value, style)) for name, value in pairs]
    size = max((len(name) for name, _ in rows), default=0)
    lines = []
    for name, text in rows:
        colour = _STATUS_COLOURS.get(text)
        lines.append(f"{name.ljust(size)}  {style.paint(text, colour) if colour else text}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Output:
    """Where a command prints."""

    out: TextIO
    err: TextIO
    #: Print the envelope instead of tables.
    as_json: bool = False

    @classmethod
    def standard(cls, *, as_json: bool = False) -> Output:
        """Return the process's own streams."""
        return cls(sys.stdout, sys.stderr, as_json)

    @property
    def style(self) -> Style:
        """What `out` can show."""
        return Style.of(self.out)

    @property
    def width(self) -> int:
        """Columns of the terminal, 0 when the output is no terminal."""
        if not self.out.isatty():
            return 0
        try:
            return os.get_terminal_size(self.out.fileno()).columns
        except (OSError, ValueError):
            return 80

    def data(
        self,
        data: Any,
        text: str,
        *,
        message: str | None = None,
        pagination: Mapping[str, Any] | None = None,
        as_it_is: bool = False,
    ) -> None:
        """Print an answer: `data` in the envelope for programs, `text` for people.

        :param as_it_is: what a task wrote, see `written`
        """
        if self.as_json:
            envelope = success_envelope(data, message=message, pagination=pagination)
            self._write(pretty(envelope, self.style))
        elif text:
            _write_line(self.out, text, as_it_is=as_it_is)

    def written(self, text: str, *, raw: bool = False) -> str:
        """Return what a task wrote, for `data`: unchanged into a file or pipe, else cleaned.

        :param raw: unchanged in any case
        """
        return text if raw or not self.out.isatty() else clean_lines(text)

    def error(self, error: ClusterError, cure: str = "") -> None:
        """Print an error: the envelope for programs, one line on standard error for people."""
        if self.as_json:
            self._write(pretty(error_envelope(error), self.style))
            return
        cure = f" ({cure})" if cure else ""
        self.hint(
            f"{Style.of(self.err).paint('error:', 'red')} {clean(error.message)}{clean(cure)}"
        )
        listed = error.details.get("errors") or []
        if len(listed) > 1:
            for entry in listed[1:]:
                reason = clean(str(entry.get("reason", "")))
                self.hint(f"       {clean(str(entry.get('field', '')))}: {reason}")

    def hint(self, text: str) -> None:
        """Say something to the person at the terminal, never into the data."""
        with contextlib.suppress(OSError):  # what it is about happens all the same
            _write_line(self.err, text)

    def _write(self, text: str) -> None:
        _write_line(self.out, text)


def pretty(value: Any, style: Style) -> str:
    """Return indented JSON; characters beyond ASCII only where the stream can show them."""
    return clean_json(json.dumps(value, indent=2, ensure_ascii=not style.unicode))


def _write_line(stream: TextIO, text: str, *, as_it_is: bool = False) -> None:
    if not as_it_is:
        # Names are cleaned where they are put into a text; this is for the one that was forgotten.
        text = escaped_lines(text, painted=True)
    try:
        stream.write(text + "\n")
    except UnicodeEncodeError:
        encoding = getattr(stream, "encoding", None) or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()
