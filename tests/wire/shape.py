"""The wire's shape as data: what each message has, of which kind, and what a reader insists on.

It is found by trying: every field of every sample (`samples.py`) is left out once, and the real
reader says whether it can do without. So a field that is added, dropped, of another kind or newly
required changes the shape, whoever changed it and wherever.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.text.json_text import dumps, loads
from retire_cluster.schemas.vocabulary import Cause, Outcome
from tests.wire.samples import FROM_BROKER, FROM_DEVICE

#: Objects of this place's own that anything may be in.
_OPEN = frozenset({"capabilities", "metrics"})
_Path = tuple[str, ...]


def kind(value: object) -> str:
    """What a JSON value is; a row of different things is told by its positions."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, dict):
        return "object"
    assert isinstance(value, list)
    kinds = [kind(each) for each in value]
    if not kinds:
        return "list"
    if len(set(kinds)) == 1:
        return f"list of {kinds[0]}"
    return f"[{', '.join(kinds)}]"


def shape() -> dict[str, Any]:
    """Today's."""
    sides: list[tuple[str, Any, Callable[[bytes, Any], Any]]] = []
    sides += [("device", one, msg.read_from_device) for one in FROM_DEVICE]
    sides += [("main", one, msg.read_from_broker) for one in FROM_BROKER]
    messages: dict[str, dict[str, str]] = {}
    for side, sample, read in sides:
        verb, header = sample.write()
        fields = messages.setdefault(f"{side} {verb.decode()}", {})
        for name, told in _fields(verb, loads(dumps(header)), read):
            known = fields.get(name)
            if known not in (None, told) and told not in str(known).split(" | "):
                told = " | ".join(sorted({*str(known).split(" | "), told}))
            fields[name] = told if known is None or " | " in told else known
    frames = wire.encode(wire.BUS, b"VERB", {"a": 1}, [b"xy", b"", b"z"])
    return {
        "protocol": wire.PROTOCOL,
        "framing": {
            "frames": [frame.hex() for frame in frames],
            "one frame": wire.fold(frames)[0].hex(),
            "tags": [tag.decode() for tag in (wire.BUS, wire.ADMIN, wire.FEED)],
            "most bytes": [
                wire.MAX_HEADER_BYTES, wire.MAX_FRAME_BYTES, wire.MAX_FRAMES,
                wire.MAX_PAYLOAD_BYTES, wire.MAX_RESULT_BYTES, wire.MAX_DETAILS_BYTES,
            ],
        },
        "words": {
            "outcome": sorted(word.value for word in Outcome),
            "cause": sorted(word.value for word in Cause),
        },
        "messages": messages,
    }  # fmt: skip


def _fields(
    verb: bytes, header: dict[str, Any], read: Callable[[bytes, Any], Any]
) -> Iterator[tuple[str, str]]:
    for path, value in _walk(header, ()):
        without = copy.deepcopy(header)
        place = without
        for step in path[:-1]:
            place = place[step] if step != "[]" else place[0]  # type: ignore[index]
        del place[path[-1]]
        try:
            read(verb, without)
            needed = "optional"
        except wire.WireError:
            needed = "required"
        yield ".".join(path), f"{kind(value)}, {needed}"


def _walk(value: dict[str, Any], at: _Path) -> Iterator[tuple[_Path, Any]]:
    for name, content in value.items():
        path = (*at, name)
        yield path, content
        if name in _OPEN or name == "payload_schema":
            continue
        if isinstance(content, dict):
            yield from _walk(content, path)
        elif isinstance(content, list) and content and isinstance(content[0], dict):
            yield from _walk(content[0], (*path, "[]"))


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str]]:
    """`(what the other side of the old shape cannot live with, what it never notices)`."""
    breaking: list[str] = []
    harmless: list[str] = []
    for part in ("framing", "words"):
        breaking += [
            f"{part}: {name}: {old[part].get(name)} became {new[part].get(name)}"
            for name in sorted({*old[part], *new[part]})
            if old[part].get(name) != new[part].get(name)
        ]
    for verb in sorted({*old["messages"], *new["messages"]}):
        before, after = old["messages"].get(verb), new["messages"].get(verb)
        if before is None or after is None:
            breaking.append(f"{verb}: is {'new' if before is None else 'gone'}")
            continue
        for name in sorted({*before, *after}):
            was, now = before.get(name), after.get(name)
            if was == now:
                continue
            if was is None and "required" not in str(now):
                harmless.append(f"{verb}: {name} was added ({now})")
            else:
                breaking.append(f"{verb}: {name}: {was or 'not there'} became {now or 'gone'}")
    return breaking, harmless
