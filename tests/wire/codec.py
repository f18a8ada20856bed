"""The framing of protocol 2 as a release has it, written down a second time and never changed.

Replayed recordings are read and written by this, not by the code under test: a change of
`schemas.wire` cannot change both sides at once. A new framing gets a codec of its own.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple


class Frozen(NamedTuple):
    """One message."""

    verb: str
    header: dict[str, Any]
    blobs: list[bytes]


def read(frames: Sequence[bytes]) -> Frozen:
    """From frames, or from the one that holds them all."""
    if len(frames) == 1:
        (frame,) = frames
        count = frame[4]
        sizes = struct.unpack_from(f"<{count}I", frame, 5)
        assert 5 + 4 * count + sum(sizes) == len(frame), "a folded message of another form"
        start, parts = 5 + 4 * count, [frame[:4]]
        for size in sizes:
            parts.append(frame[start : start + size])
            start += size
        frames = parts
    assert frames[0] == b"RCW1", frames[0]
    header = json.loads(frames[2])
    blobs: list[bytes] = []
    if len(frames) == 5:
        sizes = struct.unpack(f"<{len(frames[3]) // 4}I", frames[3])
        start = 0
        for size in sizes:
            blobs.append(frames[4][start : start + size])
            start += size
        assert start == len(frames[4]), "lengths that do not add up"
    return Frozen(bytes(frames[1]).decode(), header, blobs)


def write(message: Frozen) -> list[bytes]:
    """In one frame, as small messages travel."""
    rest = [message.verb.encode(), json.dumps(message.header).encode()]
    if message.blobs:
        rest.append(struct.pack(f"<{len(message.blobs)}I", *map(len, message.blobs)))
        rest.append(b"".join(message.blobs))
    sizes = struct.pack(f"<{len(rest)}I", *map(len, rest))
    return [b"".join((b"RCW1", bytes((len(rest),)), sizes, *rest))]
