"""Write the envelope of every JSON answer (docs/rest.md)."""

from __future__ import annotations

import logging
import random
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

import orjson

from retire_cluster.schemas.bounds import MAX_JSON_INT, MIN_JSON_INT
from retire_cluster.schemas.errors import ClusterError

JSON = "application/json"
_log = logging.getLogger("api")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def utc(epoch_seconds: float) -> str:
    """Format an instant: `2023-01-01T12:00:00.123Z`."""
    whole, milliseconds = divmod(int(epoch_seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"


def request_id(sent: str | None) -> str:
    """Return the client's own request id when it is a UUID, else a new one."""
    if sent and _UUID.fullmatch(sent):
        return sent
    # A name for the log, no secret: asking the system for randomness would give the turn away.
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def dump(document: Any) -> bytes:
    """Write JSON; lone surrogates of a text become U+FFFD."""
    try:
        return orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError):
        return orjson.dumps(_writable(document), option=orjson.OPT_NON_STR_KEYS)


def success(
    data: Any,
    *,
    now: float,
    request_id: str,
    message: str = "OK",
    pagination: Mapping[str, Any] | None = None,
) -> bytes:
    """Write the envelope of an answer. `now` is epoch seconds."""
    document: dict[str, Any] = {"status": "success", "data": data}
    if pagination is not None:
        document["pagination"] = pagination
    document["message"] = message
    document["timestamp"] = utc(now)
    document["request_id"] = request_id
    return dump(document)


def failure(error: ClusterError, *, now: float, request_id: str) -> bytes:
    """Write the envelope of an error. `now` is epoch seconds."""
    return dump(
        {
            "status": "error",
            "message": error.message,
            "error_code": error.code,
            "error_details": error.details,
            "timestamp": utc(now),
            "request_id": request_id,
        }
    )


def _writable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_writable(str(name)): _writable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(each) for each in value]
    if value is None or isinstance(value, (bool, float, orjson.Fragment)):
        return value
    small = isinstance(value, int) and MIN_JSON_INT <= value <= MAX_JSON_INT
    return value if small else str(value)
