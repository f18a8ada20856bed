"""JSON with and without orjson: the same texts are read, refused and written."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.text import clean_text, json_text
from retire_cluster.schemas.text.json_text import JSONError

LOADS = [json_text._loads_std, json_text._loads_fast]
DUMPS = [json_text._dumps_std, json_text._dumps_fast]


@pytest.mark.parametrize("loads", LOADS)
@pytest.mark.parametrize(
    "text",
    [
        b'"\\ud800"', b'{"\\uDFFF": 1}', b'["\\ud83d", "\\ude00"]', b'"\xed\xa0\x80"', b'"\xff"',
        b"NaN", b"-Infinity", b"[1,]", b"", b"\xef\xbb\xbf{}", b"[" * 200_000,
        b'{"a":' * 200_000, "{}".encode("utf-16"),
    ],
)  # fmt: skip
def test_both_refuse_the_same_texts(loads: Callable[[bytes], Any], text: bytes) -> None:
    with pytest.raises(JSONError):
        loads(text)


@pytest.mark.parametrize("loads", LOADS)
def test_both_read_pairs_of_surrogates_and_escaped_backslashes(
    loads: Callable[[bytes], Any],
) -> None:
    assert loads(b'["\\ud83d\\ude00", "\\\\ud800", "\xc3\xa4"]') == ["😀", "\\ud800", "ä"]


@pytest.mark.parametrize("dumps", DUMPS)
@pytest.mark.parametrize("value", ["\ud800", {"\udce9": 1}, [["\udfff"]]])
def test_neither_writes_text_that_is_not_unicode(dumps: Callable[[Any], bytes], value: Any) -> None:
    with pytest.raises(JSONError):
        dumps(value)


def test_clean_writing_puts_the_replacement_character_there() -> None:
    value = {"caf\udce9": ["\ud800", {"a": ("b\udfff",)}, 1, None]}
    assert json.loads(json_text.dumps_clean(value)) == {
        "caf\ufffd": ["\ufffd", {"a": ["b\ufffd"]}, 1, None]
    }
    with pytest.raises(JSONError):
        json_text.dumps_clean({"a": object()})


def test_any_text_of_a_header_can_be_sent() -> None:
    header = {"session": "s", "text": "caf\udce9", "rows": [["\ud800", 1]]}
    message = wire.decode(wire.BUS, wire.encode(wire.BUS, b"X", header))
    assert message.header == {"session": "s", "text": "caf\ufffd", "rows": [["\ufffd", 1]]}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain ä 😀 \0", "plain ä 😀 \0"),
        ("caf\udce9", "caf\ufffd"),
        ("\ud800\ud800x", "\ufffd\ufffdx"),
        (chr(0xD83D) + chr(0xDE00), "😀"),
        (chr(0xDE00) + chr(0xD83D), "\ufffd\ufffd"),
        ("", ""),
    ],
)
def test_only_lone_surrogates_are_replaced(text: str, clean: str) -> None:
    assert clean_text.clean(text) == clean
    assert clean_text.clean(text).encode().decode() == clean


def test_a_shortened_text_says_how_much_is_left_out() -> None:
    assert clean_text.shorten("abc", 3) == "abc"
    assert clean_text.shorten("abcdef", 2) == "ab [... 4 more characters]"
