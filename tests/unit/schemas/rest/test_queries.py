"""Query strings read strictly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.rest.requests import (
    DEVICE_LIST_QUERY,
    EVENTS_QUERY,
    NO_QUERY,
    TASK_LIST_QUERY,
    parse_query,
    split_query,
)


def read(schema: dict[str, object], text: str) -> dict[str, object]:
    return parse_query(schema, split_query(text))


def test_defaults_are_those_of_the_document() -> None:
    assert read(DEVICE_LIST_QUERY, "") == {"page": 1, "page_size": 20, "status": "all"}


@pytest.mark.parametrize("size", ["101", "1000", "99999999999999"])
def test_a_page_size_above_the_limit_is_clamped(size: str) -> None:
    assert read(DEVICE_LIST_QUERY, f"page_size={size}")["page_size"] == 100


@pytest.mark.parametrize(
    "text",
    [
        "page=0", "page=-1", "page=1_0", "page=%EF%BC%91", "page=1.0", "page=", "page=a", "page=+1",
        "page=%2B1", "page=1%00", "page=1&page=2", "page=99999999999999999999", "page_size=0",
    ],
)  # fmt: skip
def test_a_page_is_ascii_digits_from_one_and_given_once(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read(DEVICE_LIST_QUERY, text)
    assert caught.value.field == text.partition("=")[0]


@pytest.mark.parametrize(
    "text", ["tags=a,b&tags=c", "tags=a&tags=b&tags=c", "tags=a,b,c", "tags=a%2Cb,c,"]
)
def test_tags_repeat_or_are_separated_by_commas(text: str) -> None:
    assert read(DEVICE_LIST_QUERY, text)["tags"] == ["a", "b", "c"]


def test_unknown_parameters_are_errors() -> None:
    with pytest.raises(ValidationError) as caught:
        read(NO_QUERY, "x=1")
    assert (caught.value.field, caught.value.reason) == ("x", "unknown field")


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (DEVICE_LIST_QUERY, "status=busy"),
        (DEVICE_LIST_QUERY, "role=boss"),
        (DEVICE_LIST_QUERY, "platform=amiga"),
        (TASK_LIST_QUERY, "status=done"),
        (TASK_LIST_QUERY, "priority=5"),
        (TASK_LIST_QUERY, "task_type=A"),
        (EVENTS_QUERY, "since=x"),
        (EVENTS_QUERY, "wait=61"),
        (EVENTS_QUERY, "wait=NaN"),
        (EVENTS_QUERY, "task_id=5"),
    ],
)
def test_filters_take_only_what_can_match(schema: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError):
        read(schema, text)


def test_an_empty_text_filter_counts_as_not_given() -> None:
    found = read(EVENTS_QUERY, "since=7&wait=25&type=&task_id=&device_id=")
    assert found == {"since": 7, "wait": 25.0, "limit": 1000}


def test_a_query_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ValidationError):
        split_query("page=%ff")


def test_a_query_of_too_many_parameters_is_refused() -> None:
    with pytest.raises(ValidationError):
        split_query("&".join("a=1" for _ in range(500)))


@given(st.text(alphabet="pagesizt=&%_0123456789,abcdef +", max_size=60))
def test_any_query_is_read_or_refused(text: str) -> None:
    for schema in (DEVICE_LIST_QUERY, TASK_LIST_QUERY, EVENTS_QUERY):
        try:
            read(schema, text)
        except ValidationError:
            continue


@pytest.mark.parametrize("text", ["101", "9" * 19, "9" * 20, "9" * 21, "9" * 5_000], ids=len)
def test_a_page_size_of_any_length_is_clamped(text: str) -> None:
    assert read(DEVICE_LIST_QUERY, f"page_size={text}")["page_size"] == 100
