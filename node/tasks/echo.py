"""`echo`: the payload comes back, without ever being decoded here."""

from __future__ import annotations

from retire_cluster.schemas.task_types import BUILTIN

INFO = BUILTIN["echo"]


def result_data(payload: bytes) -> bytes:
    """`{"echo": payload}` as JSON text; the main node has checked that the payload is JSON."""
    return b'{"echo":' + (payload or b"{}") + b"}"
