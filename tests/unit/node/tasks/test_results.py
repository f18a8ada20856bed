"""What a task returned as JSON: what `json.dumps` gives, or a refusal that names the place."""

from __future__ import annotations

import json
import re
from collections import OrderedDict, defaultdict
from enum import Enum, IntEnum
from typing import Any

import pytest

from retire_cluster.node.tasks import exception_text
from retire_cluster.node.tasks.json_result import NotJson, to_json


def test_results_become_plain_json() -> None:
    value = {"a": (1, 2.5), "b": {3, 1}, "c": range(2), 4: None, "d": [True, "ä"]}
    text = '{"a":[1,2.5],"b":[1,3],"c":[0,1],"4":null,"d":[true,"ä"]}'
    assert to_json(value) == text.encode()


class _Color(str, Enum):
    RED = "red"


class _Level(IntEnum):
    HIGH = 3


class _Ratio(float, Enum):
    HALF = 0.5


class _Shouting(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


class _Odd(int):
    def __int__(self) -> int:
        return 2**70

    def __repr__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    "value",
    [
        {"c": _Color.RED, "l": _Level.HIGH, "r": _Ratio.HALF, "s": _Shouting("low"), "o": _Odd(5)},
        {_Color.RED: 1, _Level.HIGH: 2, _Ratio.HALF: 3, _Shouting("low"): 4, _Odd(5): 5},
        {True: 1, False: 2, None: 3, 4: 4, -0.5: 5, 1e300: 6},
        [_Color.RED, (_Level.HIGH, [_Ratio.HALF]), re.RegexFlag.IGNORECASE],
        OrderedDict(b=1, a=defaultdict(int, x=2)),
        "\ud83d\ude00 as two halves".encode("utf-16", "surrogatepass").decode("utf-16"),
    ],
)
def test_results_are_what_json_dumps_makes_of_them(value: Any) -> None:
    theirs = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert to_json(value).decode() == theirs


def test_text_of_a_result_that_is_not_unicode_is_replaced() -> None:
    assert to_json({"caf\udce9": ["\ud800", "\ud83d\ude00"]}) == '{"caf�":["�","😀"]}'.encode()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("inf"), "result is inf"),
        ([1, {"a": float("nan")}], r"result\[1\]\.a is nan"),
        (2**64, "outside"),
        (-(2**63) - 1, "outside"),
        (object(), "type object"),
        ({(1,): 2}, "key of type tuple"),
        ({1: 2, "1": 3}, "two keys"),
        (dict.fromkeys(["\ud800", "\udfff"]), "two keys"),
        ({float("nan"): 1}, "the key nan"),
        ("x" * (1 << 20), "1 MiB"),
        ([0] * 500_001, "more than 500000"),
    ],
)
def test_what_json_would_distort_is_refused_with_its_place(value: Any, words: str) -> None:
    with pytest.raises(NotJson, match=words):
        to_json(value)


def test_a_result_that_is_too_deep_or_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotJson, match="deeper than 64"):
        to_json(loop)


class _Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class _Wrong(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]


class _Leaving(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class _Named(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise KeyError("no name")


class _Nameless(Exception, metaclass=_Named):
    __notes__ = 5


@pytest.mark.parametrize("kind", [_Silent, _Wrong, _Leaving])
def test_an_exception_that_cannot_say_its_text_keeps_its_type_and_trace(
    kind: type[Exception],
) -> None:
    with pytest.raises(kind) as caught:
        raise kind("hidden")
    assert exception_text.of(caught.value).startswith(f"{kind.__name__}: (its text cannot be had")
    trace = exception_text.trace(caught.value)
    assert 'raise kind("hidden")' in trace
    assert kind.__name__ in trace


def test_an_exception_of_an_odd_class_is_told_all_the_same() -> None:
    with pytest.raises(_Nameless) as caught:
        raise _Nameless("caf\udce9")
    assert exception_text.of(caught.value) == "_Nameless: caf\ufffd"
    assert 'raise _Nameless("caf' in exception_text.trace(caught.value)


def test_a_long_text_of_an_exception_says_how_much_is_left_out() -> None:
    said = exception_text.of(ValueError("x" * 10_000))
    assert len(said) < 2_100
    assert said.endswith(f"[... {10_000 + len('ValueError: ') - 2_000} more characters]")


def test_the_trace_of_a_chain_is_unicode() -> None:
    try:
        try:
            raise KeyError("\udce9")
        except KeyError as first:
            raise ValueError("caf\udce9") from first
    except ValueError as error:
        trace = exception_text.trace(error)
    assert "KeyError: '\\udce9'" in trace
    assert "ValueError: caf\ufffd" in trace
    assert trace.encode()
