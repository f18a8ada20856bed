"""Read requests strictly: bodies by size, media type and schema, ids by pattern.

Falcon's own readers are not used: its JSON handler answers 500 to deep nesting and lone surrogates,
its parameters take `1_0` and full-width digits, and any bytes reach an id.
"""

from __future__ import annotations

import re
from typing import Any

import falcon

from retire_cluster.api.content.bodies import MAX_BODY_BYTES, body_limit, too_large
from retire_cluster.schemas.errors import (
    DeviceNotFound,
    TaskNotFound,
    UnsupportedMediaType,
    ValidationError,
)
from retire_cluster.schemas.rest.endpoints import Endpoint
from retire_cluster.schemas.rest.payload import parse_json_object
from retire_cluster.schemas.rest.requests import TASK_ID_PATTERN
from retire_cluster.schemas.rest.validation import validate
from retire_cluster.schemas.vocabulary import DEVICE_ID_PATTERN

#: Deeper than any payload inside its body may be; each payload is then measured by itself.
MAX_BODY_DEPTH = 200
IDEMPOTENCY_PATTERN = r"[\x21-\x7e]{1,200}"

_DEVICE_ID = re.compile(DEVICE_ID_PATTERN)
_TASK_ID = re.compile(TASK_ID_PATTERN)
_IDEMPOTENCY_KEY = re.compile(IDEMPOTENCY_PATTERN)


def read_body(req: falcon.Request, *, stranger: bool = False) -> bytes:
    """Read the raw body, empty when there is none. Raises `PayloadTooLarge`."""
    limit = body_limit(req.path)
    if stranger:
        limit = min(limit, MAX_BODY_BYTES)
    length = req.content_length
    if length is not None:
        if length > limit:
            raise too_large(limit, stranger=stranger)
        return bytes(req.bounded_stream.read())
    # Without a length only a server that ends the input itself can be read from.
    if not req.env.get("wsgi.input_terminated"):
        return b""
    raw = bytes(req.stream.read(limit + 1))
    if len(raw) > limit:
        raise too_large(limit, stranger=stranger)
    return raw


def json_body(
    req: falcon.Request, *, optional: bool = False, stranger: bool = False
) -> dict[str, Any]:
    """Read the body as an object. With `optional`, no body stands for `{}`.

    `stranger`: the caller has no right of its own to send more than any body may have.

    Raises `PayloadTooLarge`, `UnsupportedMediaType` or `ValidationError`.
    """
    raw = read_body(req, stranger=stranger)
    if optional and not raw.strip():
        return {}
    if not _is_json(req.content_type):
        raise UnsupportedMediaType()
    if req.get_header("Content-Encoding", default="identity").strip().lower() != "identity":
        raise UnsupportedMediaType("Bodies are taken without Content-Encoding only")
    if not raw.strip():
        raise ValidationError("", "the body must be a JSON object; it is empty")
    return parse_json_object(raw, max_depth=MAX_BODY_DEPTH)


def checked_body(req: falcon.Request) -> dict[str, Any]:
    """Read the body by its row in `schemas/rest/endpoints.py`, defaults filled in.

    Raises as `json_body`.
    """
    endpoint: Endpoint = req.context.endpoint
    document = json_body(req, optional=endpoint.body_optional)
    return validate(endpoint.body or {}, document)


def _is_json(content_type: str | None) -> bool:
    media_type, *parameters = (part.strip().lower() for part in (content_type or "").split(";"))
    if media_type != "application/json":
        return False
    charsets = [text[8:].strip('"') for text in parameters if text.startswith("charset=")]
    return all(charset in ("utf-8", "utf8", "us-ascii") for charset in charsets)


def device_id(text: str) -> str:
    """Check a device id of a path; raises `DeviceNotFound` for what cannot be one."""
    if not _DEVICE_ID.fullmatch(text):
        raise DeviceNotFound()
    return text


def task_id(text: str) -> str:
    """Return a task id of a path in lower case; raises `TaskNotFound` for what is none."""
    if not _TASK_ID.fullmatch(text):
        raise TaskNotFound()
    return text.lower()


def idempotency_key(req: falcon.Request) -> str | None:
    """Return the `Idempotency-Key` header; raises `ValidationError` for one that cannot be kept."""
    key = req.get_header("Idempotency-Key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise ValidationError("Idempotency-Key", "must be 1 to 200 visible ASCII characters")
    return key
