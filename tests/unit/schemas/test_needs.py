"""What payloads need, and what devices tell that they allow."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.schemas import needs
from retire_cluster.schemas.protocol import messages as msg


@pytest.mark.parametrize(
    ("task_type", "payload", "need"),
    [
        ("command", {"command": ["ffmpeg", "-i", "x"]}, "program ffmpeg"),
        ("command", {"command": "echo x"}, needs.SHELL),
        ("command", {"command": []}, ""),
        ("command", {"command": [3]}, ""),
        ("command", {}, ""),
        ("http_request", {"url": "https://Example.org:8/x"}, "host example.org"),
        ("http_request", {"url": "http://192.168.1.4/"}, needs.PRIVATE),
        ("http_request", {"url": "http://[fe80::1%25eth0]/"}, needs.PRIVATE),
        ("http_request", {"url": "http://[::1"}, ""),
        ("http_request", {"url": "http://127.0.0.1:99999/"}, ""),
        ("http_request", {"url": 3}, ""),
        ("http_request", {"url": "http:///x"}, ""),
        ("http_request", {"url": "http://a.localhost/"}, needs.PRIVATE),
        ("echo", {"command": ["x"]}, ""),
    ],
)
def test_a_payload_says_what_it_needs(task_type: str, payload: dict[str, Any], need: str) -> None:
    assert needs.of(task_type, payload) == need


@given(
    st.sampled_from(["command", "http_request", "python_call"]),
    st.dictionaries(
        st.sampled_from(["command", "url", "function", "name", "digest", "source", "call"]),
        st.none() | st.text() | st.integers() | st.lists(st.text() | st.integers()),
    ),
)
def test_no_payload_can_break_it_and_the_word_is_short_text(
    task_type: str, payload: dict[str, Any]
) -> None:
    need = needs.of(task_type, payload)
    assert len(need) <= 220
    need.encode()
    needs.in_words(need).encode("ascii")
    needs.refusal(need, {"programs": ["x"], "shell": False, "private_addresses": False})


@pytest.mark.parametrize(
    ("need", "allows", "may"),
    [
        ("program git", {"shell": False, "programs": ["git"]}, True),
        ("program git", {"shell": False}, True),
        ("program git", {"shell": False, "programs": ["rm"]}, False),
        ("program git", {}, False),
        (needs.SHELL, {"shell": True}, True),
        (needs.SHELL, {"shell": False}, False),
        ("host example.org", {"private_addresses": False}, False),
        ("", {"shell": True}, False),
    ],
)
def test_what_is_told_says_whether_a_refusal_is_of_all_or_of_one(
    need: str, allows: dict[str, Any], may: bool
) -> None:
    assert needs.permits(need, allows) is may


@pytest.mark.parametrize(
    ("told", "read"),
    [
        ({"shell": True, "programs": ["a", "b*"]}, {"shell": True, "programs": ["a", "b*"]}),
        ({"private_addresses": False, "more": 1}, {"private_addresses": False}),
        ({"shell": 1, "programs": ["a", 3]}, {}),
        ({"programs": ["x"] * 101}, {}),
        ({"programs": ["x" * 201]}, {}),
        (None, {}),
        ("shell", {}),
        ([], {}),
    ],
)
def test_what_a_device_tells_is_read_as_far_as_it_has_the_form(
    told: object, read: dict[str, Any]
) -> None:
    assert msg.TypeInfo.read({"name": "command", "allows": told}).allows == read
    assert msg.TypeInfo.read({"name": "command"}).allows == {}


def test_functions_of_one_name_are_told_apart_by_what_they_are() -> None:
    assert needs.of("python_call", {"function": "math:sqrt"}) == "function math:sqrt"
    named = {"name": "f", "digest": "ab12", "function": "f"}
    assert needs.of("python_call", named) == "function f ab12"
    assert needs.of("python_call", {"name": 3, "digest": []}) == ""
    sources = [{"function": "f", "source": text} for text in ("import a", "import b")]
    assert len({needs.of("python_call", each) for each in sources}) == 2
    # Without any name, what one lacks would be said of the whole type.
    assert needs.of("python_call", {"call": "gAQ="}).startswith("function ")
    assert needs.in_words("function f\u202e") == "function f\\u202e"
