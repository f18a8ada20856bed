"""Recorded wires: one folder a release, its bytes as a main node and a worker of it sent them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tests.wire.codec import Frozen, read
from tests.wire.shape import kind

FOLDER: Final = Path(__file__).resolve().parents[1] / "fixtures" / "wire"
RECORD: Final = "python -m tests.wire.record"


def releases() -> list[str]:
    """Those that were recorded."""
    return sorted(path.name for path in FOLDER.iterdir() if (path / "shape.json").exists())


class Recording:
    """One release's."""

    def __init__(self, release: str) -> None:
        self.folder = FOLDER / release
        self.shape: dict[str, Any] = json.loads((self.folder / "shape.json").read_text("utf-8"))
        self.protocol = int(self.shape["protocol"])
        self._messages: dict[str, list[Frozen]] = {"device": [], "main": []}
        text = (self.folder / "conversation.jsonl").read_text("utf-8")
        for line in text.splitlines():
            row = json.loads(line)
            frames = [frame.encode("latin-1") for frame in row["frames"]]
            self._messages[row["from"]].append(read(frames))

    def all(self, side: str, verb: str) -> list[Frozen]:
        """Every message of a kind, in order."""
        return [one for one in self._messages[side] if one.verb == verb]

    def one(self, side: str, verb: str, **changes: Any) -> Frozen:
        """The first of a kind with some fields of its header changed."""
        found = self.all(side, verb)[0]
        return found._replace(header={**found.header, **changes})


def write(path: Path, rows: Iterable[tuple[str, list[bytes]]]) -> None:
    """Bytes as text that a person can read: each byte is the character of its number."""
    lines = [
        json.dumps({"from": side, "frames": [frame.decode("latin-1") for frame in frames]})
        for side, frames in rows
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def misses(recorded: Frozen, sent: Frozen) -> list[str]:
    """What a receiver of the recorded message would not find in the one that is sent today."""
    found = [f"{recorded.verb} became {sent.verb}"] if recorded.verb != sent.verb else []
    for name, value in recorded.header.items():
        if name not in sent.header:
            found.append(f"{sent.verb}: {name} is not there")
        elif not _alike(kind(value), kind(sent.header[name])):
            found.append(f"{sent.verb}: {name} is {kind(sent.header[name])}, was {kind(value)}")
    return found


def _alike(was: str, now: str) -> bool:
    # Lists are compared by what they hold where both hold something, null stands for anything.
    if was.startswith(("list", "[")) and now.startswith(("list", "[")):
        return was == now or "list" in (was, now) or "null" in was + now
    return was == now or "null" in (was, now)
