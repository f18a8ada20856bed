"""What the worker and its task processes say to each other over pipes.

A frame is a kind (one byte), two 32-bit little-endian lengths, a JSON header and an opaque blob (a
payload or a result: JSON text that is passed on). Each kind has its limits, and they are checked
before anything is read for it: a task shares its process with what answers for it, so whatever
comes out of there may be a stranger's. What an answer means is read in replies.py.
"""

from __future__ import annotations

import json
import os
import struct
from typing import Any, Final, NamedTuple

from retire_cluster.schemas.protocol.wire import MAX_DETAILS_BYTES, MAX_RESULT_BYTES
from retire_cluster.schemas.text.clean_text import clean

_HEAD = struct.Struct("<cII")
_KIB = 1024


class _Form(NamedTuple):
    letter: bytes
    max_header_bytes: int
    max_blob_bytes: int


_FORMS: Final = {
    # Requests. A run carries the environment of what the task starts, and the payload.
    "run": _Form(b"R", 4 * _KIB * _KIB, _KIB * _KIB),
    "describe": _Form(b"D", 64 * _KIB, 0),
    "cancel": _Form(b"C", 2, 0),
    # Answers.
    "started": _Form(b"s", 2, 0),
    "progress": _Form(b"p", 16 * _KIB, 0),
    # Beside the details there are a message and a few words.
    "done": _Form(b"d", MAX_DETAILS_BYTES + 64 * _KIB, MAX_RESULT_BYTES),
    "described": _Form(b"t", 256 * _KIB, 0),
}
_KINDS: Final = {form.letter: kind for kind, form in _FORMS.items()}
REQUESTS: Final = frozenset(("run", "describe", "cancel"))
ANSWERS: Final = frozenset(("started", "progress", "done", "described"))


class Frame(NamedTuple):
    """One request to a task process."""

    #: With its kind under `kind`.
    header: dict[str, Any]
    blob: bytes


class RawFrame(NamedTuple):
    """One message on a pipe, within the limits of its kind and otherwise not looked at."""

    kind: str
    header: bytes
    blob: bytes


class FrameError(ValueError):
    """What came through the pipe, or should go, is no frame."""


def write_frame(fd: int, header: dict[str, Any], blob: bytes = b"") -> None:
    """Write one frame, of the kind that its header names, to a file descriptor.

    Raises `OSError` when the reader is gone, `FrameError` for more than the kind may have.
    """
    data = memoryview(pack(header, blob))
    while data:
        data = data[os.write(fd, data) :]


def pack(header: dict[str, Any], blob: bytes = b"") -> bytes:
    """The bytes of one frame, of the kind that its header names.

    Raises `FrameError` for more than the kind may have.
    """
    kind = header["kind"]
    rest = {name: value for name, value in header.items() if name != "kind"}
    text = clean(json.dumps(rest, ensure_ascii=False, separators=(",", ":"))).encode()
    letter = _FORMS[kind].letter
    _check(kind, len(text), len(blob))
    return _HEAD.pack(letter, len(text), len(blob)) + text + blob


def read_frame(fd: int) -> Frame | None:
    """The next request, or None when the writer is gone. Raises `FrameError`."""
    raw = read_raw(fd, REQUESTS)
    if raw is None:
        return None
    try:
        header = json.loads(raw.header)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame's header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise FrameError("a frame's header is not an object")
    return Frame({**header, "kind": raw.kind}, raw.blob)


def read_raw(fd: int, expected: frozenset[str]) -> RawFrame | None:
    """The next frame of one of the expected kinds, or None when the writer is gone.

    Raises `FrameError` for another one, and for one that is larger than its kind may be.
    """
    head = _read_exactly(fd, _HEAD.size)
    if head is None:
        return None
    letter, header_size, blob_size = _HEAD.unpack(head)
    kind = _KINDS.get(letter)
    if kind is None or kind not in expected:
        raise FrameError("what it wrote is no message of ours")
    _check(kind, header_size, blob_size)
    header = _read_exactly(fd, header_size)
    blob = _read_exactly(fd, blob_size)
    return None if header is None or blob is None else RawFrame(kind, header, blob)


def take_raw(buffer: bytearray, expected: frozenset[str]) -> RawFrame | None:
    """The next frame out of what has come so far, or None when it is not whole yet.

    Raises `FrameError` as `read_raw` does, before the whole of it has come.
    """
    if len(buffer) < _HEAD.size:
        return None
    letter, header_size, blob_size = _HEAD.unpack_from(buffer)
    kind = _KINDS.get(letter)
    if kind is None or kind not in expected:
        raise FrameError("what it wrote is no message of ours")
    _check(kind, header_size, blob_size)
    middle = _HEAD.size + header_size
    if len(buffer) < middle + blob_size:
        return None
    frame = RawFrame(
        kind, bytes(buffer[_HEAD.size : middle]), bytes(buffer[middle : middle + blob_size])
    )
    del buffer[: middle + blob_size]
    return frame


def _check(kind: str, header_size: int, blob_size: int) -> None:
    form = _FORMS[kind]
    for what, size, limit in (
        ("header", header_size, form.max_header_bytes),
        ("content", blob_size, form.max_blob_bytes),
    ):
        if size > limit:
            raise FrameError(f"the {what} of its message ({kind}) has {size} bytes, not {limit}")


def _read_exactly(fd: int, size: int) -> bytes | None:
    parts: list[bytes] = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
