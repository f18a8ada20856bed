"""Frames on the wire: tag, verb, header, packed blobs (docs/protocol.md, Framing).

Only `encode`, `decode`, `fold`, `unfold` and `verb_of` know the layout. Blobs stay bytes: who needs
the content decodes it.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from retire_cluster.schemas.text.json_text import JSONError, dumps_clean, loads

BUS = b"RCW1"
ADMIN = b"RCA1"
FEED = b"RCE1"
#: The version of everything on the worker bus. It rises with every change that the other side of an
#: older release would read otherwise (tests/wire says when; docs/protocol.md, Versions).
PROTOCOL = 2
#: The version of the admin socket. It rises with every change of a call or an answer that the other
#: side of an older release would read otherwise; a call that names none is of the first.
ADMIN_PROTOCOL = 1

MAX_HEADER_BYTES = 4 * 1024 * 1024
MAX_FRAME_BYTES = 32 * 1024 * 1024
#: Smaller on the worker bus, so that little is kept for a stranger before his message is judged.
MAX_BUS_FRAME_BYTES = MAX_HEADER_BYTES + 64 * 1024
#: Clients of the event feed send subscriptions only.
MAX_FEED_FRAME_BYTES = 4 * 1024
MAX_FRAMES = 8
#: A sender splits batches so that a message stays below this.
BATCH_BYTES = 8 * 1024 * 1024
MAX_PAYLOAD_BYTES = 256 * 1024
MAX_RESULT_BYTES = 1024 * 1024
MAX_DETAILS_BYTES = 256 * 1024

#: Messages larger than this are not folded: copying them costs more than their frames.
MAX_FOLDED_BYTES = 64 * 1024

_SIZES = {count: struct.Struct(f"<{count}I") for count in range(1, MAX_FRAMES)}
_UINT32 = next(code for code in "IL" if array(code).itemsize == 4)
_SWAP = sys.byteorder == "big"


class WireError(ValueError):
    """A message is not of the protocol's form; the text says what is wrong with it."""


class Message(NamedTuple):
    """One decoded message."""

    verb: bytes
    header: dict[str, Any]
    blobs: list[bytes]


def pack_blobs(blobs: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the two frames `(lengths, blob)` that hold some opaque texts."""
    lengths = array(_UINT32, map(len, blobs))
    if _SWAP:
        lengths.byteswap()
    return lengths.tobytes(), b"".join(blobs)


def unpack_blobs(lengths: bytes, blob: bytes) -> list[bytes]:
    """Return the texts that two frames hold. Raises `WireError` when the lengths do not add up."""
    if len(lengths) % 4:
        raise WireError("the lengths frame is not a row of 32-bit integers")
    sizes = array(_UINT32)
    sizes.frombytes(lengths)
    if _SWAP:
        sizes.byteswap()
    if sum(sizes) != len(blob):
        raise WireError("the lengths do not add up to the blob's size")
    found = []
    start = 0
    for size in sizes:
        end = start + size
        found.append(blob[start:end])
        start = end
    return found


def fold(frames: list[bytes]) -> list[bytes]:
    """Return a small message in one frame, which is cheaper to send; a large one as it is.

    Each frame has its price: a system call's worth of work on both sides, an encryption, and in a
    process of many threads a turn of Python's lock.
    """
    if sum(map(len, frames)) > MAX_FOLDED_BYTES:
        return frames
    tag, *rest = frames
    sizes = _SIZES[len(rest)].pack(*map(len, rest))
    return [b"".join((tag, bytes((len(rest),)), sizes, *rest))]


def is_folded(frames: Sequence[bytes]) -> bool:
    """Tell whether a message came in one frame; a tag alone is no message."""
    return len(frames) == 1 and len(frames[0]) > len(BUS)


def unfold(frame: bytes) -> list[bytes]:
    """Return the frames of a message for which `is_folded` holds. Raises `WireError`."""
    if frame[4] not in _SIZES:
        raise WireError("a message in one frame is its tag, a count, as many sizes, and as much")
    count = frame[4]
    start = 5 + 4 * count
    if len(frame) < start:
        raise WireError("the sizes in the frame are cut off")
    sizes = _SIZES[count].unpack_from(frame, 5)
    if start + sum(sizes) != len(frame):
        raise WireError("the sizes in the frame do not add up to its length")
    found = [frame[:4]]
    for size in sizes:
        end = start + size
        found.append(frame[start:end])
        start = end
    return found


def verb_of(frames: Sequence[bytes]) -> bytes:
    """Return the verb of an undecoded message; empty when the message is malformed."""
    if not is_folded(frames):
        return bytes(frames[1]) if len(frames) > 1 else b""
    frame = frames[0]
    count = frame[4]
    start = 5 + 4 * count
    if count not in _SIZES or len(frame) < start:
        return b""
    return frame[start : start + int.from_bytes(frame[5:9], "little")]


def encode(
    tag: bytes, verb: bytes, header: dict[str, Any], blobs: Sequence[bytes] = ()
) -> list[bytes]:
    """Return the frames of a message.

    Writes U+FFFD for text that is not Unicode. Raises `JSONError` for what is no JSON value.
    """
    frames = [tag, verb, dumps_clean(header)]
    if blobs:
        frames += pack_blobs(blobs)
    return frames


def decode(tag: bytes, frames: Sequence[bytes]) -> Message:
    """Read a message from its frames (without routing id), or from the one it was folded into.

    Raises `WireError` naming what is wrong: tag, frame count, sizes, header, blobs.
    """
    if is_folded(frames) and frames[0].startswith((BUS, ADMIN)):
        frames = unfold(frames[0])
    if not 3 <= len(frames) <= MAX_FRAMES:
        raise WireError(f"a message has 3 to {MAX_FRAMES} frames, not {len(frames)}")
    if frames[0] != tag:
        raise WireError(f"expected tag {tag.decode()}, got {bytes(frames[0][:16])!r}")
    if len(frames[2]) > MAX_HEADER_BYTES:
        raise WireError("the header is too large")
    try:
        header = loads(frames[2])
    except JSONError as error:
        raise WireError(f"the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise WireError("the header is not a JSON object")
    blobs: list[bytes] = []
    if len(frames) == 5:
        blobs = unpack_blobs(frames[3], frames[4])
    elif len(frames) != 3:
        raise WireError("a body is two frames: lengths and blob")
    return Message(bytes(frames[1]), header, blobs)


def split_batch(sizes: Iterable[int], limit: int = BATCH_BYTES) -> list[int]:
    """Return how many items go into each message: one, or as many as fit into `limit` bytes."""
    counts: list[int] = []
    count = total = 0
    for size in sizes:
        if count and total + size > limit:
            counts.append(count)
            count = total = 0
        count += 1
        total += size
    if count:
        counts.append(count)
    return counts
