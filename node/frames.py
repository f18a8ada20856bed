"""What the worker and its task processes say to each other over pipes.

A frame is two 32-bit little-endian lengths, a JSON header and an opaque blob (a payload or a
result: JSON text that the worker passes on without decoding).
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any, NamedTuple

_LENGTHS = struct.Struct("<II")
MAX_BYTES = 64 * 1024 * 1024


class Frame(NamedTuple):
    """One message on a pipe."""

    header: dict[str, Any]
    blob: bytes


class FrameError(ValueError):
    """What came through the pipe is no frame."""


def write_frame(fd: int, header: dict[str, Any], blob: bytes = b"") -> None:
    """Writes one frame to a file descriptor. Raises `OSError` when the reader is gone."""
    text = json.dumps(header, separators=(",", ":")).encode()
    data = memoryview(_LENGTHS.pack(len(text), len(blob)) + text + blob)
    while data:
        data = data[os.write(fd, data) :]


def read_frame(fd: int) -> Frame | None:
    """The next frame, or None when the writer is gone. Raises `FrameError`."""
    head = _read_exactly(fd, _LENGTHS.size)
    if head is None:
        return None
    header_size, blob_size = _LENGTHS.unpack(head)
    if header_size > MAX_BYTES or blob_size > MAX_BYTES:
        raise FrameError("a frame is too large")
    text = _read_exactly(fd, header_size)
    blob = _read_exactly(fd, blob_size)
    if text is None or blob is None:
        return None
    try:
        header = json.loads(text)
    except ValueError as error:
        raise FrameError(f"a frame's header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise FrameError("a frame's header is not an object")
    return Frame(header, blob)


def _read_exactly(fd: int, size: int) -> bytes | None:
    parts: list[bytes] = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
