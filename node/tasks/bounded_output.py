"""An output that may be endless: its beginning and its end are kept, the middle is counted. Pure.

The beginning tells how it was called and what went wrong first, the end how it came out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from retire_cluster.schemas.text.truncation import Cut


class Kept(NamedTuple):
    """What is left of an output."""

    head: bytes
    #: Empty when nothing is missing between, or after, what `head` holds.
    tail: bytes
    #: Bytes that came; None when nobody counted to the end.
    total_bytes: int | None

    @property
    def kept_bytes(self) -> int:
        """Bytes of head and tail together."""
        return len(self.head) + len(self.tail)

    @property
    def cut(self) -> Cut | None:
        """What is missing, or None when it is whole."""
        if self.total_bytes == self.kept_bytes:
            return None
        if not self.kept_bytes:
            missing = "all"
        elif not self.tail:
            missing = "end"
        else:
            missing = "middle" if self.head else "beginning"
        return Cut(self.total_bytes, self.kept_bytes, missing)

    @property
    def text(self) -> str:
        """Head and tail with a line between them that says what is missing there.

        Bytes that are no UTF-8 are replaced.
        """
        if self.total_bytes == self.kept_bytes:
            return (self.head + self.tail).decode("utf-8", "replace")
        if self.total_bytes is None:
            words = "more bytes"
        else:
            words = f"{self.total_bytes - self.kept_bytes} of {self.total_bytes} bytes"
        head = self.head.decode("utf-8", "replace")
        start = "\n" if head and not head.endswith("\n") else ""
        tail = self.tail.decode("utf-8", "replace")
        return f"{head}{start}[... {words} are missing here ...]\n{tail}"

    def smaller(self, limit_bytes: int) -> Kept:
        """At most so much of it, from both ends inwards; no character is cut in two."""
        if self.kept_bytes <= limit_bytes:
            return self
        head, tail = self.head, self.tail
        if len(head) == self.total_bytes:
            half = len(head) // 2
            head, tail = head[:half], head[half:]
        share = min(limit_bytes // 2, len(tail))
        head = head[: limit_bytes - share]
        tail = tail[len(tail) - share :]
        return Kept(head[: _whole_end(head)], tail[_whole_start(tail) :], self.total_bytes)


def _whole_end(head: bytes | bytearray) -> int:
    """Where the last whole character ends."""
    for back in range(1, min(4, len(head) + 1)):
        byte = head[-back]
        if byte & 0xC0 == 0x80:
            continue
        size = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(head) - back if size > back else len(head)
    return len(head)


def _whole_start(tail: bytes | bytearray) -> int:
    """Where the first whole character begins."""
    start = 0
    while start < min(3, len(tail)) and tail[start] & 0xC0 == 0x80:
        start += 1
    return start


class HeadTail:
    """Takes an output part by part and keeps `limit_bytes` of it, half of them from the end."""

    def __init__(self, limit_bytes: int) -> None:
        self._tail_limit = limit_bytes // 2
        self._head_limit = limit_bytes - self._tail_limit
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0

    def add(self, part: bytes) -> None:
        """Take more of the output."""
        self._total += len(part)
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += part[:room]
            part = part[room:]
        if part:
            self._tail += part[-self._tail_limit :] if self._tail_limit else b""
            # Not at every part: moving the whole tail for a few bytes would be slow.
            if len(self._tail) > 2 * self._tail_limit:
                del self._tail[: -self._tail_limit]

    @property
    def total_bytes(self) -> int:
        """Bytes that came since the beginning or the last `take`."""
        return self._total

    def take(self) -> Kept:
        """What is left, without halves of characters at the cut. Begins anew."""
        head, tail, total = self._head, self._tail, self._total
        self._head, self._tail, self._total = bytearray(), bytearray(), 0
        if self._tail_limit:
            del tail[: -self._tail_limit]
        if len(head) + len(tail) == total:
            return Kept(bytes(head + tail), b"", total)
        return Kept(bytes(head[: _whole_end(head)]), bytes(tail[_whole_start(tail) :]), total)


def of_text(text: str, limit_bytes: int) -> Kept:
    """A whole text, cut to `limit_bytes` when it is longer."""
    data = text.encode("utf-8", "replace")
    return Kept(data, b"", len(data)).smaller(limit_bytes)


def fit(outputs: Mapping[str, Kept], limit_bytes: int) -> dict[str, Kept]:
    """Outputs whose texts together take at most `limit_bytes` as JSON.

    Escapes make a text up to six times longer there. The longest is halved until all of them fit.
    """
    found = dict(outputs)
    sizes = {name: json_size(kept.text) for name, kept in found.items()}
    while found and sum(sizes.values()) > limit_bytes:
        longest = max(sizes, key=lambda name: sizes[name])
        if not found[longest].kept_bytes:
            break
        found[longest] = found[longest].smaller(found[longest].kept_bytes // 2)
        sizes[longest] = json_size(found[longest].text)
    return found


def json_size(value: object) -> int:
    """Bytes that it takes as JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode("utf-8", "replace"))


def cuts(outputs: Mapping[str, Kept]) -> dict[str, Cut]:
    """What is missing of each output that is not whole."""
    return {name: kept.cut for name, kept in outputs.items() if kept.cut is not None}
