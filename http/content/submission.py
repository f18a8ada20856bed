"""Turn the JSON body of a submission into what the main node's `task.submit` takes.

A body is parsed once, and each payload leaves here as JSON bytes, which are stored and sent to a
device as they are. The main node parses each payload once more, to check it itself: it does not
trust the facade, and other clients may reach its admin socket. The fields around a payload repeat
from task to task, so what they validate to is kept: a batch of a thousand alike is validated once.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import orjson

from retire_cluster.schemas.errors import PayloadTooLarge, ValidationError
from retire_cluster.schemas.protocol.wire import MAX_PAYLOAD_BYTES
from retire_cluster.schemas.rest import payload as payloads
from retire_cluster.schemas.rest.requests import MAX_BATCH, TASK_BATCH, TASK_FIELDS, TASK_SUBMISSION
from retire_cluster.schemas.rest.validation import validate

_REMEMBERED = 1024
_BATCH_WITHOUT_ITEMS: dict[str, Any] = {
    "tasks": {rule: value for rule, value in TASK_BATCH["tasks"].items() if rule != "schema"}
}


class TaskSubmission(NamedTuple):
    """One task of a submission."""

    #: Type, priority, requirements, metadata, delay: defaults filled in. Shared; never changed.
    fields: dict[str, Any]
    #: The payload as JSON.
    payload: bytes


class SubmissionReader:
    """Read submissions. Safe to use from all threads."""

    def __init__(self) -> None:
        self._known: dict[bytes, dict[str, Any]] = {}

    def one(self, document: dict[str, Any]) -> TaskSubmission:
        """Read the body of `POST /tasks`.

        Raises `ValidationError`, or `PayloadTooLarge` for a payload above 256 KiB.
        """
        found = self._read(document, "")
        if found is None:
            validate(TASK_SUBMISSION, document)
            raise ValidationError("payload", "must be an object")
        return found

    def many(self, document: dict[str, Any]) -> list[TaskSubmission]:
        """Read the body of `POST /tasks/batch`; raises like `one`."""
        items = document.get("tasks")
        if len(document) != 1 or not isinstance(items, list) or not 1 <= len(items) <= MAX_BATCH:
            validate(_BATCH_WITHOUT_ITEMS, document)
            raise ValidationError("tasks", f"must have 1 to {MAX_BATCH} items")
        found = []
        for index, item in enumerate(items):
            read = self._read(item, f"tasks.{index}") if isinstance(item, dict) else None
            if read is None:
                validate(TASK_BATCH, document)
                raise ValidationError(f"tasks.{index}", "must be an object")
            found.append(read)
        return found

    def _read(self, item: dict[str, Any], where: str) -> TaskSubmission | None:
        """Read one submission; None for one that the full schema refuses, and says why."""
        rest = item.copy()
        payload = rest.pop("payload", None)
        if not isinstance(payload, dict):
            return None
        key = _dumps(rest)
        fields = self._known.get(key)
        if fields is None:
            try:
                fields = validate(TASK_FIELDS, rest, where=where)
            except ValidationError:
                return None
            for name in ("metadata", "requirements"):
                payloads.check_depth(fields[name], where=_dotted(where, name))
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = fields
        place = _dotted(where, "payload")
        text = _dumps(payload)
        if len(text) > MAX_PAYLOAD_BYTES:
            raise PayloadTooLarge(
                f"{place}: must not be larger than {MAX_PAYLOAD_BYTES} bytes as JSON",
                details={"field": place, "limit_bytes": MAX_PAYLOAD_BYTES},
            )
        if text.count(b"{") + text.count(b"[") > payloads.MAX_DEPTH:
            payloads.check_depth(payload, where=place)
        payloads.check_builtin_payload(fields["task_type"], payload, where=place)
        return TaskSubmission(fields, text)


def submit_args(submissions: list[TaskSubmission]) -> dict[str, Any]:
    """Return the arguments of `task.submit`: fields that all tasks share are sent once."""
    first = submissions[0].fields
    if len(submissions) > 1 and all(each.fields is first for each in submissions):
        return {"task": first, "count": len(submissions)}
    return {"tasks": [each.fields for each in submissions]}


def fingerprint(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a body's canonical JSON: bodies that mean the same share it."""
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise ValidationError("", f"cannot be written as JSON: {error}") from None


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
