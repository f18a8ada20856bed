"""The records of the worker bus: what is written is read again, what does not fit is refused."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.wire import WireError
from retire_cluster.schemas.text.json_text import dumps, loads
from tests.wire.samples import FROM_BROKER, FROM_DEVICE, KEY

BOTH: list[tuple[Any, Any]] = [(msg.read_from_device, one) for one in FROM_DEVICE]
BOTH += [(msg.read_from_broker, one) for one in FROM_BROKER]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=10),
    st.just([]),
    st.just({}),
    st.lists(st.integers(0, 9), max_size=9),
    st.just({"a": [1]}),
)


@pytest.mark.parametrize(("read", "message"), BOTH)
def test_what_is_written_is_read_again(read: Any, message: Any) -> None:
    verb, header = message.write()
    assert read(verb, loads(dumps(header))) == message


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a JSON value."""
    found = [path] if path else []
    steps: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        steps = list(value.items())
    elif isinstance(value, list):
        steps = list(enumerate(value))
    for step, inner in steps:
        found += places(inner, (*path, step))
    return found


@given(st.sampled_from(BOTH), st.data())
def test_any_value_in_any_place_is_read_or_refused_but_never_breaks(
    pair: tuple[Any, Any], data: st.DataObject
) -> None:
    read, message = pair
    verb, header = message.write()
    document = copy.deepcopy(loads(dumps(header)))
    *parents, last = data.draw(st.sampled_from(places(document)))
    inside = document
    for step in parents:
        inside = inside[step]
    if data.draw(st.booleans()):
        inside[last] = data.draw(ODD)
    else:
        del inside[last]
    with contextlib.suppress(WireError):
        read(verb, document)


@pytest.mark.parametrize("read", [msg.read_from_device, msg.read_from_broker])
def test_an_unknown_verb_is_refused(read: Any) -> None:
    with pytest.raises(WireError, match="unknown verb b'SHOUT'"):
        read(b"SHOUT", {})


@pytest.mark.parametrize(
    ("verb", "header", "field"),
    [
        (b"STARTED", {"session": "s", "items": [[1, 1, 1]]}, "items"),
        (b"STARTED", {"session": "s", "items": [[0, 1, 1, 1]]}, "items"),
        (b"STARTED", {"session": "s", "items": [[1, 1, 2**53 + 1, 1]]}, "items"),
        (b"STARTED", {"session": "s", "items": [[True, 1, 1, 1]]}, "items"),
        (b"STARTED", {"session": "s", "items": [[1, 1, 1, 1]] * 20_001}, "items"),
        (b"STARTED", {"items": []}, "session"),
        (b"FINISHED", {"session": "s", "batch": -1, "groups": []}, "batch"),
        *((b"FINISHED", {"session": "s", "batch": 1, "groups": [one]}, field) for one, field in (
            ([1, 1, {}, None, None, [1], [1], [0.5]], "outcome"),
            ([1, 1, "failed", {}, None, [1], [1], [0.5]], "cause"),
            ([1, 1, "failed", None, 5, [1], [1], [0.5]], "error_message"),
            ([1, 1, "failed", None, None, [1, 2], [1], [0.5]], "equally long"),
            ([1, 1, "failed", None, None, ["1"], [1], [0.5]], "groups.tasks"),
            ([1, 1, "failed", None, None, [0], [1], [0.5]], "groups.tasks"),
            ([1, 1, "failed", None, None, [2**53 + 1], [1], [0.5]], "groups.tasks"),
            ([1, 1, "failed", None, None, [2**70], [1], [0.5]], "groups.tasks"),
            ([1, 1, "failed", None, None, [1], [0], [0.5]], "groups.attempts"),
            ([1, 1, "failed", None, None, [1], [1], [-0.5]], "execution_seconds"),
            ([1, 1, "failed", None, None, [1], [1], [None]], "execution_seconds"),
            ([1.5, 1, "failed", None, None, [1], [1], [0.5]], "lease"),
            ([1, 1, "failed", None, None, {}, [1], [0.5]], "groups.tasks"),
            ([1, 1, "failed"], "8 fields"),
            ([1, 1, "failed", None, None, [1] * 20_001, [1] * 20_001, [0] * 20_001], "at most"),
        )),
        (b"PROGRESS", {"session": "s", "items": [[*KEY, 101, ""]]}, "percent"),
        (b"HEARTBEAT", {"session": "s", "beat": 1.0}, "beat"),
        (b"HEARTBEAT", {"session": "s", "beat": 1, "rtt_ms": -1}, "rtt_ms"),
    ],
)  # fmt: skip
def test_a_header_that_does_not_fit_names_the_field(
    verb: bytes, header: dict[str, Any], field: str
) -> None:
    with pytest.raises(WireError, match=field):
        msg.read_from_device(verb, header)


@pytest.mark.parametrize("size", [100, 1_000, 100_000])
def test_long_texts_are_cut_not_refused(size: int) -> None:
    found = msg.read_from_device(b"DRAIN", {"session": "s" * size, "reason": "r" * size})
    assert isinstance(found, msg.Drain)
    assert (len(found.session), len(found.reason)) == (100, min(size, 500))


# --- a message in one frame ----------------------------------------------------------------------


@pytest.mark.parametrize("blobs", [[], [b""], [b"{}", b"", b"[1]"]])
@pytest.mark.parametrize("tag", [wire.BUS, wire.ADMIN])
def test_a_small_message_travels_in_one_frame_and_is_the_same(
    tag: bytes, blobs: list[bytes]
) -> None:
    frames = wire.encode(tag, b"VERB", {"a": [1, "ü"]}, blobs)
    (folded,) = wire.fold(frames)
    assert folded.startswith(tag)
    assert wire.unfold(folded) == frames
    assert wire.decode(tag, [folded]) == wire.decode(tag, frames)


def test_a_large_message_keeps_its_frames() -> None:
    frames = wire.encode(wire.BUS, b"VERB", {}, [b"x" * wire.MAX_FOLDED_BYTES])
    assert wire.fold(frames) is frames


def test_no_cut_and_no_addition_of_a_folded_message_is_taken_for_one() -> None:
    (whole,) = wire.fold(wire.encode(wire.ADMIN, b"CALL", {"id": 1}, [b"{}"]))
    for end in range(len(whole)):
        with pytest.raises(WireError):
            wire.decode(wire.ADMIN, [whole[:end]])
    with pytest.raises(WireError, match="do not add up"):
        wire.decode(wire.ADMIN, [whole + b"x"])
    with pytest.raises(WireError, match="expected tag RCW1"):
        wire.decode(wire.BUS, [whole])


@pytest.mark.parametrize("place", range(4))
def test_no_number_of_a_key_is_more_than_a_message_can_carry_on(place: int) -> None:
    key = [1, 1, 1, 1]
    key[place] = 2**63
    verb, header = msg.Started("s", ((1, 1, 1, 1),)).write()
    with pytest.raises(WireError, match="out of range"):
        msg.read_from_device(verb, {**header, "items": [key]})


@pytest.mark.parametrize(
    "value",
    [10**400, -(10**400), float("inf"), float("nan"), -0.5],
    ids=["huge", "hugely negative", "infinite", "no number", "negative"],
)
def test_a_number_of_any_size_is_refused_by_name(value: float) -> None:
    verb, header = msg.Heartbeat("s", 1).write()
    with pytest.raises(WireError, match=r"rtt_ms: a number from 0 to"):
        msg.read_from_device(verb, {**header, "rtt_ms": value})
