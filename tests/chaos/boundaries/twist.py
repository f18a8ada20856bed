"""Valid documents and frames made odd: every choice comes from a seeded generator."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from retire_cluster.schemas.protocol import wire

#: Values that do not belong where they are put.
_ODD: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308,
    "", "x", "0", "\u0000", "\u001b[2J\r\n", "é" * 50, "x" * 5_000, "\ud800", "../../etc/passwd",
    "%s%n{0}", [], {}, [[]], [None], {"": None}, {"__class__": "x"}, [1, "a", {}], [0] * 3_000,
    "00000000-0000-7000-8000-000000000000",
)  # fmt: skip
#: JSON that no encoder of ours would write, put in a value's place.
_RAW: Final[tuple[str, ...]] = (
    "NaN", "Infinity", "1e999", "-", "01", "1" * 400, "9" * 20_000, "[" * 300 + "]" * 300,
    "[" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000, '"\\ud800"', '"\\u0000"', '{"a":1,"a":2}',
    '"' + "x" * 200_000 + '"', "[" + "0," * 100_000 + "0]", "tru", '"', "/*x*/1", "\x00",
)  # fmt: skip
_MOST_COPIED_BYTES: Final = 100_000
_MARK: Final = "\ue000mark\ue000"


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every `holder, key` in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(inside):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from places(inner)


def odd(rng: random.Random) -> Any:
    """Some value."""
    return copy.deepcopy(rng.choice(_ODD))


def kin(value: Any, rng: random.Random) -> Any:
    """Another value of the same type: it passes for well-formed, and means something else."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((0, 1, 2, value + 1, value - 1, -value, 2**31, 2**53 - 1))
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, value * 2, 1e-9, 1e12))
    if isinstance(value, str):
        words = (
            "",
            "x",
            "success",
            "released",
            "register",
            "echo",
            value.upper(),
            value + "\u202e",
        )
        return rng.choice(words)
    if isinstance(value, list) and value:
        return rng.choice((value[:1], value[::-1], value + value[:3], []))
    return {} if isinstance(value, dict) else value


def document(value: Any, rng: random.Random) -> bytes:
    """JSON text of a value with one to three things wrong in it, or only not as they were."""
    found = copy.deepcopy(value)
    raw = ""
    if rng.random() < 0.35:
        for holder, key in rng.sample(spots := list(places(found)), min(2, len(spots))):
            with contextlib.suppress(LookupError):  # it went with what it was in
                holder[key] = kin(holder[key], rng)
        return json.dumps(found).encode()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        spots = list(places(found)) if isinstance(found, (dict, list)) else []
        if not spots or rng.random() < 0.03:
            found = odd(rng)
            continue
        holder, key = rng.choice(spots)
        draw = rng.random()
        if draw < 0.5:
            holder[key] = odd(rng)
        elif draw < 0.6:
            holder[key], raw = _MARK, rng.choice(_RAW)
        elif draw < 0.7:
            most = 1 + _MOST_COPIED_BYTES // len(json.dumps(holder[key]))
            holder[key] = [holder[key]] * min(most, rng.choice((2, 50, 1_000)))
        elif draw < 0.8 and isinstance(holder, dict):
            holder[rng.choice((f"{key}x", "", "\u0000", "__proto__", "x" * 300))] = holder.pop(key)
        elif draw < 0.9 and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = {"deep": [[[[holder[key]]]]]}
    text = json.dumps(found)
    if raw:
        text = text.replace(json.dumps(_MARK), raw, 3).replace(json.dumps(_MARK), "0")
    data = text.encode("utf-8", "surrogatepass")
    return data if rng.random() > 0.05 else cut(data, rng)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, left out, doubled, put in."""
    if not data:
        return rng.randbytes(rng.choice((1, 40)))
    draw, at = rng.randrange(6), rng.randrange(len(data))
    if draw == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if draw == 1:
        return data[:at]
    if draw == 2:
        return data[:at] + rng.randbytes(rng.choice((1, 4, 100))) + data[at:]
    if draw == 3:
        return data[:at] + data[at : at + 40] * rng.choice((2, 30)) + data[at + 40 :]
    if draw == 4:
        return data + data
    return rng.randbytes(rng.choice((0, 1, 40, 3_000)))


def frames(message: Sequence[bytes], rng: random.Random) -> list[bytes]:
    """A message of three or five frames with something wrong: header, blobs, frames or folding."""
    found = list(message)
    draw = rng.random()
    if draw < 0.6:
        found[2] = document(json.loads(found[2]), rng)
    elif draw < 0.75 and len(found) == 5:
        found = _blobs(found, rng)
    elif draw < 0.95:
        found = _whole_frames(found, rng)
    if len(found) in range(2, 9) and rng.random() < 0.5:
        found = wire.fold(found)
        if len(found) == 1 and rng.random() < 0.3:
            found = [_sizes(found[0], rng)]
    return found or [b""]


def _blobs(found: list[bytes], rng: random.Random) -> list[bytes]:
    """Sizes that lie, and texts that are no JSON."""
    sizes = list(struct.unpack(f"<{len(found[3]) // 4}I", found[3]))
    draw = rng.randrange(4)
    if draw == 0:
        at = rng.randrange(len(sizes))
        sizes[at] = rng.choice((0, 1, 2**31, 2**32 - 1, sizes[at] + 1))
        return [*found[:3], struct.pack(f"<{len(sizes)}I", *sizes), found[4]]
    if draw == 1:
        return [*found[:3], *wire.pack_blobs([cut(found[4], rng)] * len(sizes))]
    if draw == 2:
        text = rng.choice(_RAW).encode("utf-8", "surrogatepass")
        return [*found[:3], *wire.pack_blobs([text] * len(sizes))]
    return [*found[:3], *wire.pack_blobs([b"{}"] * rng.choice((0, 1, 7, 5_000)))]


def _whole_frames(found: list[bytes], rng: random.Random) -> list[bytes]:
    at = rng.randrange(len(found))
    draw = rng.randrange(7)
    if draw == 0:
        found[at] = cut(found[at], rng)
    elif draw == 1:
        del found[at]
    elif draw == 2:
        found.insert(at, found[at])
    elif draw == 3:
        found[at], found[-1] = found[-1], found[at]
    elif draw == 4:
        found[1] = rng.choice((b"", b"\xff", b"HELLO", b"x" * 70_000, b"ASSIGN", b"CALL"))
    elif draw == 5:
        found[0] = rng.choice((b"RCW1", b"RCA1", b"RCE1", b"RCW9", b"", b"\x00" * 300))
    else:
        found += [b"x"] * rng.choice((1, 5, 30, 2_000))
    return found


def _sizes(frame: bytes, rng: random.Random) -> bytes:
    """A folded message whose count or sizes lie."""
    if len(frame) < 9 or rng.random() < 0.3:
        return cut(frame, rng)
    if rng.random() < 0.5:
        return frame[:4] + bytes([rng.randrange(256)]) + frame[5:]
    return frame[:5] + struct.pack("<I", rng.choice((0, 2**31, 2**32 - 1))) + frame[9:]
