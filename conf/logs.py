"""Logging to stderr: the REST document's JSON, or one readable line on a terminal.

Whatever reaches a log line may come from a stranger. Control characters are escaped in both
formats, so that no text can forge a second line or move a terminal's cursor, and known secrets
are replaced before anything is written.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from retire_cluster.conf.outlet import Outlet
from retire_cluster.conf.sections import Logging
from retire_cluster.schemas.text.clean_text import escaped

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # takes no type argument before Python 3.11

#: The document's fields of a request, in its order; other extras follow them.
REQUEST_FIELDS = ("request_id", "method", "path", "status_code", "duration_ms")
REDACTED = "[redacted]"

_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_JSON = json.JSONEncoder(allow_nan=False)


class Redaction:
    """Replaces known secrets in a text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: tuple[str, ...] = ()
        self.add(*secrets)

    def add(self, *secrets: str) -> None:
        """Hide these secrets too; longer ones are replaced first, as one may contain another."""
        known = {secret for secret in (*self._secrets, *secrets) if secret}
        self._secrets = tuple(sorted(known, key=len, reverse=True))

    def __call__(self, text: str) -> str:
        """Return the text with `REDACTED` in place of every secret."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, REDACTED)
        return text


class _Formatter(logging.Formatter):
    """What both formats share: the message, the extra fields, the trace, all redacted."""

    def __init__(self, redaction: Redaction, *, traces: bool) -> None:
        super().__init__()
        self.redaction = redaction
        self.traces = traces

    def message(self, record: logging.LogRecord) -> str:
        """Return the message with its arguments; a broken format never loses the line."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError, KeyError):
            text = f"{record.msg} {record.args}"
        return self.redaction(text)

    def extras(self, record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
        """Yield the fields given by `extra=`: the REST document's, then the others by name."""
        given = {k: v for k, v in vars(record).items() if k not in _OWN_ATTRIBUTES}
        names = [name for name in REQUEST_FIELDS if name in given]
        names += sorted(given.keys() - set(names))
        for name in names:
            value = given[name]
            if isinstance(value, str):
                value = self.redaction(str(value))
            elif value is not None and not isinstance(value, (bool, int, float)):
                value = self.redaction(repr(value))
            yield name, value

    def error(self, record: logging.LogRecord) -> str:
        """Return the exception on one line, or the empty text."""
        kind, value = (record.exc_info or (None, None, None))[:2]
        return self.redaction(f"{kind.__name__}: {value}") if kind else ""

    def trace(self, record: logging.LogRecord) -> str:
        """Return the exception's trace, where traces are on."""
        if not self.traces or not record.exc_info or record.exc_info[0] is None:
            return ""
        return self.redaction("".join(traceback.format_exception(*record.exc_info)).rstrip())


class JsonFormatter(_Formatter):
    """One JSON object a line, with the REST document's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of ASCII JSON."""
        line: dict[str, Any] = {
            "timestamp": _timestamp(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": escaped(self.message(record)),
        }
        for name, value in self.extras(record):
            line.setdefault(name, escaped(value) if isinstance(value, str) else value)
        if error := self.error(record):
            line.setdefault("error", escaped(error))
        if trace := self.trace(record):
            line.setdefault("traceback", trace)
        try:
            return _JSON.encode(line)
        except ValueError:
            return _JSON.encode({k: v if isinstance(v, str) else repr(v) for k, v in line.items()})


class TextFormatter(_Formatter):
    """One line for people: `time level logger: message field=value …`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, and below it the trace, every line of it marked."""
        parts = [
            time.strftime("%H:%M:%S", time.localtime(record.created)),
            f"{record.levelname:<7}",
            f"{record.name}:",
            escaped(self.message(record)),
        ]
        parts += [f"{name}={escaped(str(value))}" for name, value in self.extras(record)]
        if error := self.error(record):
            parts.append(f"[{escaped(error)}]")
        trace = self.trace(record)
        # A forged line inside a trace still starts with the mark.
        return "\n".join([" ".join(parts), *(f"  | {escaped(row)}" for row in trace.splitlines())])


class _Handler(_StreamHandler):
    """Writes to a stream at once; one that is closed or full loses a line, never the process."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: the one place to say it is what failed."""


class _Queue(logging.Handler):
    """Hands records to an outlet: who logs never waits for who reads the log."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._outlet: Outlet[logging.LogRecord] = Outlet(stream, self._text, self._loss)

    def handle(self, record: logging.LogRecord) -> bool:
        """Take a record without the handler's lock: putting it into a queue needs none."""
        found = self.filter(record)
        if found:
            self.emit(found if isinstance(found, logging.LogRecord) else record)
        return bool(found)

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record over; never wait."""
        self._outlet.put(record)

    def flush(self) -> None:
        """Do nothing: `logging.shutdown` calls this after the outlet has ended."""

    def close(self) -> None:
        """Write what is left, and end the outlet."""
        self._outlet.close()
        super().close()

    def _text(self, record: logging.LogRecord) -> str:
        return self.format(record) + "\n"

    def _loss(self, count: int, why: str) -> str:
        text = f"{count} earlier lines could not be written: {why}"
        fields = {"name": "log", "levelname": "WARNING", "levelno": logging.WARNING, "msg": text}
        return self._text(logging.makeLogRecord(fields))


def configure(
    settings: Logging,
    secrets: Iterable[str] = (),
    *,
    stream: TextIO | None = None,
    queued: bool = False,
) -> Redaction:
    """Send this process's log to `stream` (stderr) as `settings` say.

    `queued`: for a process that lives on; lines come a moment later, and nobody waits for them.
    Replaces what an earlier call set up. Returns the redaction, so that secrets made later can be
    added to it.
    """
    stream = sys.stderr if stream is None else stream
    redaction = Redaction(secrets)
    kind = settings.format
    if kind == "auto":
        kind = "text" if _is_terminal(stream) else "json"
    handler: logging.Handler = _Queue(stream) if queued else _Handler(stream)
    formatter = TextFormatter if kind == "text" else JsonFormatter
    handler.setFormatter(formatter(redaction, traces=settings.debug))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, (_Handler, _Queue))]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if settings.debug else settings.level)
    # It tells of every tick at INFO.
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    return redaction


def _timestamp(epoch_seconds: float) -> str:
    whole, milliseconds = divmod(int(epoch_seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False
