"""The wire changes only together with its number, or in ways that no older peer notices."""

from __future__ import annotations

import copy
import json
from importlib.metadata import version
from typing import Any

import pytest

from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.parts import BusMessage
from retire_cluster.schemas.protocol.wire import PROTOCOL, WireError
from tests.wire.fixtures import FOLDER, RECORD, releases
from tests.wire.samples import FROM_BROKER, FROM_DEVICE
from tests.wire.shape import compare, shape


def _advice(release: str, breaking: list[str], harmless: list[str]) -> str:
    if breaking:
        listed = "\n  ".join(breaking)
        return (
            f"a peer of {release} cannot live with this change of the wire:\n  {listed}\nRaise"
            " PROTOCOL in schemas/protocol/wire.py, say in docs/protocol.md what changed, and"
            f" record it: {RECORD} (with --unreleased where {release} was never released: then"
            " the number may stay)."
        )
    listed = "\n  ".join(harmless)
    return f"the wire got something new that {release} ignores:\n  {listed}\nRecord it: {RECORD}"


def test_the_wire_is_as_it_was_recorded_for_this_version() -> None:
    release = version("retire-cluster")
    path = FOLDER / release / "shape.json"
    assert path.exists(), f"{release} has no recorded wire: {RECORD}"
    recorded, today = json.loads(path.read_text("utf-8")), shape()
    breaking, harmless = compare(recorded, today)
    assert recorded == today, _advice(release, breaking, harmless)


@pytest.mark.parametrize("release", releases())
def test_an_older_release_of_the_same_number_is_understood(release: str) -> None:
    recorded = json.loads((FOLDER / release / "shape.json").read_text("utf-8"))
    if recorded["protocol"] == PROTOCOL:
        breaking, _ = compare(recorded, shape())
        assert not breaking, _advice(release, breaking, [])


def test_every_message_has_a_sample() -> None:
    def verbs(base: Any) -> set[str]:
        found: set[str] = {base.verb.decode()} if hasattr(base, "verb") else set()
        for sub in base.__subclasses__():
            found |= verbs(sub)
        return found

    sampled = {one.verb.decode() for one in (*FROM_DEVICE, *FROM_BROKER)}
    everything = verbs(BusMessage) | {"ASSIGN", "FINISHED"}
    assert everything == sampled


def _changed(change: str) -> dict[str, Any]:
    """Today's shape after a change of the code."""
    found = copy.deepcopy(shape())
    hello = found["messages"]["device HELLO"]
    if change == "a field is dropped":
        del hello["slots"]
    elif change == "a field is renamed":
        hello["slot_count"] = hello.pop("slots")
    elif change == "a field is of another kind":
        hello["tags"] = "text, required"
    elif change == "a new field is required":
        hello["colour"] = "text, required"
    elif change == "a new field is optional":
        hello["task_types.[].colour"] = "object, optional"
    elif change == "a new word":
        found["words"]["cause"].append("moonlight")
    elif change == "a new verb":
        found["messages"]["main SING"] = {"session": "text, required"}
    else:
        found["framing"]["one frame"] = "00" + found["framing"]["one frame"]
    return found


@pytest.mark.parametrize(
    ("change", "breaks"),
    [
        ("a field is dropped", True),
        ("a field is renamed", True),
        ("a field is of another kind", True),
        ("a new field is required", True),
        ("a new field is optional", False),
        ("a new word", True),
        ("a new verb", True),
        ("another framing", True),
    ],
)
def test_a_change_is_told_by_what_it_does_to_an_older_peer(change: str, breaks: bool) -> None:
    breaking, harmless = compare(shape(), _changed(change))
    assert (bool(breaking), bool(harmless)) == (breaks, not breaks)
    advice = _advice("0.1.0", breaking, harmless)
    assert ("Raise PROTOCOL" in advice) is breaks
    assert RECORD in advice


def test_a_reader_that_wants_more_than_before_changes_the_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, real = shape(), msg._FROM_DEVICE[b"HEARTBEAT"]

    def strict(header: dict[str, Any]) -> Any:
        if "rtt_ms" not in header:
            raise WireError("rtt_ms: a number is required")
        return real(header)

    monkeypatch.setitem(msg._FROM_DEVICE, b"HEARTBEAT", strict)
    breaking, _ = compare(before, shape())
    assert len(breaking) == 1
    assert breaking[0].startswith("device HEARTBEAT: rtt_ms: ")
