"""Python values as JSON and back: the same value, of the same type, or an error that says where."""

from __future__ import annotations

import binascii
import datetime as dt
import json
import math
import sys
import uuid
import zoneinfo
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retire_cluster.schemas import arrays, plain
from retire_cluster.schemas.text import json_text

ZONES = st.none() | st.timedeltas(
    min_value=dt.timedelta(hours=-23), max_value=dt.timedelta(hours=23)
).map(dt.timezone)
HASHABLE: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.binary(max_size=20),
    # Half characters too.
    st.text(st.characters(), max_size=20),
    st.complex_numbers(allow_nan=False), st.decimals(allow_nan=False), st.fractions(), st.uuids(),
    st.dates(), st.timedeltas(), st.times(), st.datetimes(timezones=ZONES),
    st.just(range(0, 10, 3)), st.integers(2**60, 2**200),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(HASHABLE, st.binary(max_size=9).map(bytearray), st.text(st.characters(codec=None))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
        st.dictionaries(st.just("$py") | st.text(max_size=5), inner, max_size=4),
        st.dictionaries(HASHABLE | st.tuples(HASHABLE), inner, max_size=4),
    ),
    max_leaves=12,
)


def carried(value: Any) -> Any:
    """The value after a way through both of our JSON readers."""
    text = json_text.dumps(plain.encode(value))
    return plain.decode(json.loads(text.decode()))


def typed(value: Any) -> Any:
    """A value with the types of all that is in it, for comparing."""
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return kind, [typed(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(map(repr, map(typed, value)))
    if isinstance(value, dict):
        return kind, [(typed(key), typed(item)) for key, item in value.items()]
    if isinstance(value, (dt.datetime, dt.time)):
        return kind, value.isoformat(), value.fold, value.utcoffset()
    return kind, hex(value) if type(value) is int else repr(value)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    assert typed(carried(value)) == typed(value)


@pytest.mark.parametrize(
    "value",
    [
        math.inf, -math.inf, -0.0, 5e-324, 1e16, 2**63, -(2**63) - 1, "\ud800x", "\0",
        {"$py": "tuple", "value": []}, {1: "a", "1": "b"}, {(1, "x"): {None: []}}, b"", (), set(),
        dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        Decimal("1E+999999"), Decimal("-0.00"), Fraction(-3, 7), uuid.UUID(int=7), bytearray(b"x"),
    ],
)  # fmt: skip
def test_odd_values_come_back_too(value: Any) -> None:
    assert typed(carried(value)) == typed(value)


def test_what_equals_nothing_and_what_is_too_long_to_print_comes_back() -> None:
    assert math.isnan(carried(math.nan))
    assert carried(10**5000) == 10**5000


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.array(3),
        np.zeros((0, 5)), np.array(["ab", "c"]), np.array([True]), np.arange(3, dtype=">i2"),
        np.array(["2026-01-01"], "datetime64[D]"), np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]),
        np.arange(10)[::3], np.array([1 + 2j]), np.array([b"x"]),
    ],
)  # fmt: skip
def test_arrays_come_back_with_type_shape_and_order(array: Any) -> None:
    found = carried({"x": [array]})["x"][0]
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "scalar", [np.float64(0.1), np.int8(-3), np.bool_(True), np.str_("é"), np.datetime64(5, "s")]
)
def test_scalars_of_numpy_keep_their_type(scalar: Any) -> None:
    found = carried((scalar,))[0]
    assert type(found) is type(scalar)
    assert found == scalar


def iter_nothing() -> Iterator[int]:
    yield from ()


class Colour(IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")


class Own:
    pass


@pytest.mark.parametrize(
    ("value", "where", "words"),
    [
        ([1, {"a": (2, Own())}], "result[1]['a'][1]", "Own"),
        (Colour.RED, "result", "int(…)"),
        (Point(1, 2), "result", "tuple(…)"),
        (OrderedDict(a=1), "result", "dict(…)"),
        ({"a": iter_nothing()}, "result['a']", "list(…)"),
        (np.array([Own()]), "result", "Python objects"),
        ({Own: 1}, "result's key", "of type type"),
        (print, "result", "builtin_function"),
        (np.ma.array([1]), "result", "MaskedArray"),
    ],
)
def test_what_cannot_be_written_is_named_with_its_place(value: Any, where: str, words: str) -> None:
    with pytest.raises(plain.NotPlain) as caught:
        plain.encode(value, "result")
    assert str(caught.value).startswith(where)
    assert words in str(caught.value)


def test_what_holds_itself_or_is_too_deep_or_too_large_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(plain.NotPlain, match="nested deeper"):
        plain.encode(loop)
    deep: Any = 1
    for _ in range(18):
        deep = ({1: deep},)
    with pytest.raises(plain.NotPlain, match="nested deeper"):
        plain.encode(deep)
    for large in ("x" * 2000, list(range(2000)), np.zeros(2000), b"x" * 2000, {"a": 10**3000}):
        with pytest.raises(plain.TooLarge):
            plain.encode(large, limit_bytes=1000)


def test_what_was_written_is_never_too_deep_for_a_payload() -> None:
    deep: Any = 1
    while True:
        try:
            written = plain.encode(({1: deep},))
        except plain.NotPlain:
            break
        deep = ({1: deep},)
    assert not json_text.is_deeper({"args": [[plain.encode(deep)]]}, 64)
    assert plain.decode(written) is not None


NAMES = [
    "int", "float", "str", "bytes", "tuple", "set", "frozenset", "dict", "complex", "range", "date",
    "datetime", "time", "timedelta", "Decimal", "Fraction", "UUID", "ndarray", "numpy", "object",
]  # fmt: skip
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from(["k05VTVBZAQB2AHs=", "00:00", "1/0", "0x", "nan", "../../etc/passwd"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    | st.fixed_dictionaries({"$py": st.sampled_from(NAMES) | inner, "value": inner}),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(DOCUMENTS)
def test_whatever_is_read_becomes_a_value_or_the_one_error(document: Any) -> None:
    try:
        plain.decode(document)
    except plain.BadPlain as error:
        assert len(str(error)) < 400  # noqa: PT017 - most documents raise nothing


@given(st.binary(max_size=200), st.integers(0, 60), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_damaged_array_is_the_one_error(noise: bytes, at: int, scalar: bool) -> None:
    good = binascii.a2b_base64(arrays.write(np.arange(4)))
    bad = good[:at] + noise + good[at + len(noise) :]
    text = binascii.b2a_base64(bad).decode()
    try:
        found = plain.decode({"$py": "numpy" if scalar else "ndarray", "value": text})
    except plain.BadPlain:
        return
    assert not found.dtype.hasobject


def header(text: str) -> str:
    """An array of that description, without data."""
    body = text.encode()
    raw = b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body
    return binascii.b2a_base64(raw).decode()


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '|O', 'fortran_order': False, 'shape': ()}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,)}",
        "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (0,)}",
        "__import__('os').system('true')",
        "(" * 5000,
    ],
)
def test_a_hostile_description_of_an_array_makes_nothing(text: str) -> None:
    with pytest.raises(plain.BadPlain):
        plain.decode({"$py": "ndarray", "value": header(text)})


@pytest.mark.parametrize("descr", ["'<U1'", "[('a', '<U1')]"])
def test_an_array_of_what_is_not_unicode_is_refused_and_does_not_fail_where_it_is_used(
    descr: str,
) -> None:
    described = header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,)}}")
    data = binascii.a2b_base64(described) + b"\xff\xff\xff\xff"
    with pytest.raises(plain.BadPlain):
        plain.decode({"$py": "ndarray", "value": binascii.b2a_base64(data).decode()})


@pytest.mark.parametrize("kind", ["set", "frozenset", "dict"])
def test_members_and_keys_that_all_have_one_hash_are_not_compared_each_with_all(kind: str) -> None:
    prime = sys.hash_info.modulus
    same = [{"$py": "int", "value": hex(n * prime)} for n in range(1_001)]
    document = [[each, 0] for each in same] if kind == "dict" else same
    assert len(plain.decode({"$py": kind, "value": document[1:]})) == 1_000
    with pytest.raises(plain.BadPlain, match="one hash"):
        plain.decode({"$py": kind, "value": document})
    odd = {(-n % 3, float(n), str(n)) for n in range(5_000)}
    assert plain.decode(plain.encode(odd)) == odd


def test_arrays_are_read_by_a_numpy_that_has_no_limit_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = np.lib.format.read_array_header_1_0
    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", lambda file: read(file))
    assert plain.decode(plain.encode(np.arange(3))).tolist() == [0, 1, 2]
    long = "{'descr': '<f8', 'fortran_order': False, 'shape': (0,)}" + " " * 10_000
    with pytest.raises(plain.BadPlain, match="a long description"):
        plain.decode({"$py": "ndarray", "value": header(long)})


def test_nesting_without_end_is_refused() -> None:
    document: Any = []
    for _ in range(500):
        document = [document]
    with pytest.raises(plain.BadPlain, match="too deep"):
        plain.decode(document)


def test_without_numpy_an_array_is_named_as_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    document = plain.encode(np.arange(3))
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(plain.NoNumpy):
        plain.decode(document)
    assert plain.encode([1, "x"]) == [1, "x"]
