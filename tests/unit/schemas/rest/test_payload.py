"""Bodies are read exactly as written or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.rest.payload import (
    check_builtin_payload,
    check_depth,
    parse_json_object,
)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b" ", b"[]", b"null", b"1", b'"a"', b"{", b"{,}", b'{"a":NaN}', b'{"a":Infinity}',
        b'{"a":-Infinity}', b'{"a":1e400}', b'{"a":"\\ud800"}', b'{"a":"\xff"}',
        b"\xef\xbb\xbf{}", b'{"a":01}', b"{'a':1}", b'{"a":1}x', b"\x00",
    ],
)  # fmt: skip
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(ValidationError):
        parse_json_object(raw)


@pytest.mark.parametrize(
    "digits", [str(2**64), str(-(2**63) - 1), "1" + "0" * 30, "9" * 5000], ids=len
)
def test_a_whole_number_beyond_64_bits_is_refused_by_its_path(digits: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_json_object(f'{{"payload":{{"a":[1,{digits}]}}}}'.encode())
    assert caught.value.field == "payload.a.1"


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63), 2**53 + 1, 0])
def test_a_whole_number_within_64_bits_stays_exact(number: int) -> None:
    assert parse_json_object(f'{{"a":{number}}}'.encode()) == {"a": number}


def test_many_digits_after_a_point_are_no_whole_number() -> None:
    assert parse_json_object(b'{"a":0.12345678901234567890123}')["a"] == pytest.approx(0.1234567)


def test_nesting_is_measured_from_the_object_itself() -> None:
    assert parse_json_object(b'{"a":' + b"[" * 63 + b"]" * 63 + b"}")
    with pytest.raises(ValidationError):
        parse_json_object(b'{"a":' + b"[" * 64 + b"]" * 64 + b"}")
    with pytest.raises(ValidationError):
        parse_json_object(b"[" * 100_000)


def test_brackets_in_a_text_are_no_nesting() -> None:
    assert parse_json_object(b'{"a":"' + b"[" * 500 + b'"}')


def test_depth_names_the_place_it_was_asked_for() -> None:
    with pytest.raises(ValidationError) as caught:
        check_depth({"a": {"b": {}}}, 2, where="payload")
    assert caught.value.field == "payload"


def test_of_equal_names_the_last_counts() -> None:
    assert parse_json_object(b'{"a":1,"a":2}') == {"a": 2}


@given(
    st.dictionaries(
        st.text(), st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False,
        allow_infinity=False) | st.text() | st.lists(st.booleans())
    )
)  # fmt: skip
def test_what_json_writes_is_read_back_the_same(document: dict[str, object]) -> None:
    try:
        raw = json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert parse_json_object(raw) == document


@given(st.binary(max_size=60))
def test_any_bytes_are_an_object_or_refused(raw: bytes) -> None:
    try:
        assert isinstance(parse_json_object(raw), dict)
    except ValidationError:
        return


@pytest.mark.parametrize(
    ("task_type", "payload", "field"),
    [
        ("sleep", {"duration": -1}, "payload.duration"),
        ("sleep", {"duration": True}, "payload.duration"),
        ("sleep", {"seconds": 1}, "payload.seconds"),
        ("system_info", {"a": 1}, "payload.a"),
        ("python_eval", {}, "payload.expression"),
        ("python_eval", {"expression": ""}, "payload.expression"),
        ("http_request", {"url": "http://x", "method": "BREW"}, "payload.method"),
        ("http_request", {"url": "http://x", "headers": {"a": 1}}, "payload.headers.a"),
        ("http_request", {"url": "http://127.0.0.1:99999/"}, "payload.url"),
        ("http_request", {"url": "http://example.org:x/"}, "payload.url"),
        ("http_request", {"url": "http://example.org:0/"}, "payload.url"),
        ("http_request", {"url": "http://[::1"}, "payload.url"),
        ("http_request", {"url": "example.org"}, "payload.url"),
        ("http_request", {"url": "ftp://example.org/"}, "payload.url"),
        ("http_request", {"url": "http:///x"}, "payload.url"),
        ("http_request", {"url": "http://a b/"}, "payload.url"),
        ("command", {"command": []}, "payload.command"),
    ],
)
def test_a_built_in_payload_that_cannot_work_is_refused_at_submission(
    task_type: str, payload: dict[str, object], field: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        check_builtin_payload(task_type, payload)
    assert caught.value.field == field


def test_echo_and_own_types_take_any_object() -> None:
    check_builtin_payload("echo", {"anything": [1, {"goes": None}]})
    check_builtin_payload("own.type", {"x": 1})
