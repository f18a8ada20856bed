"""Put the opaque parts of the main node's answers where they belong."""

from __future__ import annotations

import logging
from typing import Any

import orjson

from retire_cluster.broker.client import RawAnswer, place
from retire_cluster.schemas.errors import InternalError

_log = logging.getLogger("api")


def spliced(answer: RawAnswer) -> dict[str, Any]:
    """Put an answer's opaque JSON texts into its data, unread but proved to be JSON.

    They come from strangers' devices: one that is not JSON would break the envelope around it, so
    null stands in its place. Reading them for good would round whole numbers beyond 64 bits.
    """
    for path, text in answer.blobs:
        value: Any = None
        if text:
            try:
                orjson.loads(text)
                value = orjson.Fragment(text)
            except orjson.JSONDecodeError:
                _log.warning("an opaque part of an answer is not JSON", extra={"part": path})
        try:
            place(answer.data, path, value)
        except (KeyError, IndexError, TypeError, ValueError):
            raise InternalError("the main node's answer does not fit the protocol") from None
    return answer.data
