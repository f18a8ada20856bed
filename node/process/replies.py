"""What a task process says, made into data that the worker can rely on.

The one gate between a task and the worker: a task shares its process with the code that answers
for it, so every answer is read as a stranger's. What comes out is of the right types, bounded and
Unicode; what does not fit raises `BadReply`, which fails that attempt and nothing else.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from retire_cluster.node.process.frames import RawFrame
from retire_cluster.node.tasks.json_result import MAX_DEPTH
from retire_cluster.schemas.protocol.wire import MAX_DETAILS_BYTES
from retire_cluster.schemas.text import truncation
from retire_cluster.schemas.text.clean_text import clean, shorten
from retire_cluster.schemas.text.json_text import JSONError, dumps_clean, is_deeper, loads
from retire_cluster.schemas.vocabulary import Cause, Outcome

MAX_MESSAGE: Final = 4_000
MAX_PROGRESS_TEXT: Final = 1_000
#: Levels of a header; `described` holds payload schemas.
_MAX_HEADER_DEPTH: Final = 32
_OUTCOMES: Final = frozenset((Outcome.SUCCESS, Outcome.FAILED, Outcome.TIMEOUT))
#: That a device was lost is for the main node to say, and counts against other things than a task.
_CAUSES: Final = frozenset(Cause) - {Cause.WORKER_LOST}


class BadReply(ValueError):
    """A task process said something that is no answer; the text says what is wrong with it."""


class Begun(NamedTuple):
    """The task begins to run."""


class Progress(NamedTuple):
    """How far it is."""

    percent: float | None
    message: str


class Done(NamedTuple):
    """How it ended."""

    outcome: str
    cause: str | None
    error_message: str | None
    #: JSON text of the result, or empty.
    data: bytes
    #: JSON text of logs, trace and what was cut, or empty.
    details: bytes
    #: The process takes no further task.
    last: bool


class Described(NamedTuple):
    """What task types there are: objects, otherwise unread (`own_type.read_description`)."""

    rows: list[dict[str, Any]]


Reply = Begun | Progress | Done | Described


def failed(words: str) -> Done:
    """The end of an attempt whose process gave a bad answer."""
    message = f"the task's process gave an answer that is none: {words}"
    return Done(
        Outcome.FAILED.value, Cause.ERROR.value, shorten(clean(message), 1_000), b"", b"", True
    )


def read(frame: RawFrame) -> Reply:
    """What a frame says. Raises `BadReply`."""
    header = _object(frame.header)
    if frame.kind == "started":
        return Begun()
    if frame.kind == "progress":
        words = _text(header, "message", "")[:MAX_PROGRESS_TEXT]
        return Progress(_percent(header.get("percent")), words)
    if frame.kind == "described":
        return Described(_rows(header.get("types")))
    outcome = header.get("outcome")
    if not isinstance(outcome, str) or outcome not in _OUTCOMES:
        raise BadReply("its outcome is none of success, failed and timeout")
    cause = header.get("cause")
    if cause is not None and (not isinstance(cause, str) or cause not in _CAUSES):
        raise BadReply("its cause is not one that a task can have")
    message = header.get("error_message")
    if message is not None:
        message = shorten(_text(header, "error_message", ""), MAX_MESSAGE)
    last = header.get("last")
    if not isinstance(last, bool):
        raise BadReply("its word on whether it takes another task is not true or false")
    return Done(
        str(outcome), cause, message, _result(frame.blob), _details(header.get("details")), last
    )


def _object(text: bytes) -> dict[str, Any]:
    try:
        header = loads(text)
    except JSONError as error:
        raise BadReply(f"it is not JSON: {error}") from None
    if is_deeper(header, _MAX_HEADER_DEPTH):
        raise BadReply(f"it is nested deeper than {_MAX_HEADER_DEPTH} levels")
    if not isinstance(header, dict):
        raise BadReply("it is not an object")
    return header


def _text(header: dict[str, Any], name: str, default: str) -> str:
    value = header.get(name, default)
    if not isinstance(value, str):
        raise BadReply(f"its {name} is not a text")
    return clean(value)


def _percent(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadReply("its percent is not a number")
    if not (0 <= value <= 100 and math.isfinite(value)):
        raise BadReply("its percent is not a number from 0 to 100")
    return value


def _rows(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise BadReply("its task types are not a list of objects")
    return value


def _result(blob: bytes) -> bytes:
    if not blob:
        return b""
    try:
        value = loads(blob)
    except JSONError as error:
        raise BadReply(f"its result is not JSON: {error}") from None
    # Each level costs a bracket: with few brackets there is nothing to measure.
    brackets = blob.count(b"[") + blob.count(b"{")
    if brackets > MAX_DEPTH and is_deeper(value, MAX_DEPTH):
        raise BadReply(f"its result is nested deeper than {MAX_DEPTH} levels")
    return blob


def _details(value: object) -> bytes:
    if value is None:
        return b""
    if not isinstance(value, dict):
        raise BadReply("its details are not an object")
    details: dict[str, Any] = {
        name: _text(value, name, "") for name in ("error_traceback", "logs") if value.get(name)
    }
    cuts = truncation.read(value.get("truncated"))
    if cuts:
        details["truncated"] = truncation.write(cuts)
    text = dumps_clean(details) if details else b""
    if len(text) > MAX_DETAILS_BYTES:
        raise BadReply(f"its logs and trace have more than {MAX_DETAILS_BYTES} bytes")
    return text
