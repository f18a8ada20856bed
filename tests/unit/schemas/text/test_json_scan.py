"""What a hostile body may cost: little memory, little time, whatever it says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.rest.payload import parse_json_object
from retire_cluster.schemas.rest.requests import TASK_BATCH, TASK_SUBMISSION
from retire_cluster.schemas.rest.validation import validate
from retire_cluster.schemas.text import json_scan
from retire_cluster.schemas.text.json_scan import check_cost, long_number

MIB = 1024 * 1024
LONG = b"1" * 25
#: Bodies of 16 MiB whose parts are many, with a number beyond 64 bits where one would be looked at.
HOSTILE = {
    "many small numbers and a long one": b'{"tasks":[' + b"1," * (8 * MIB - 30) + LONG + b"]}",
    "many lists": b'{"tasks":[' + b"[]," * (5 * MIB) + LONG + b"]}",
    "many objects": b'{"tasks":[' + b'{"a":1},' * (2 * MIB) + LONG + b"]}",
    "many strings and a long number": b'{"tasks":[' + b'"a",' * (4 * MIB - 30) + LONG + b"]}",
    "one number": b'{"tasks":[' + b"9" * (16 * MIB - 30) + b"]}",
    "a string that does not end": b'{"tasks":["' + LONG + b'\\"' * (8 * MIB - 30),
    "digits after the point": b'{"tasks":[0.' + b"3" * (16 * MIB - 30) + b"]}",
}
_PROGRAM = """
import resource, sys, time
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.rest.payload import parse_json_object
raw = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF)
try:
    parse_json_object(raw, max_depth=200)
    print("taken", end=" ")
except ValidationError as error:
    print("refused", end=" ")
after = resource.getrusage(resource.RUSAGE_SELF)
print((after.ru_maxrss - before.ru_maxrss) // 1024, after.ru_utime - before.ru_utime)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="getrusage")
@pytest.mark.parametrize("name", HOSTILE)
def test_the_largest_body_costs_little_memory_and_time_whatever_is_in_it(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], input=HOSTILE[name], capture_output=True, check=True
    )
    verdict, grown_mib, seconds = done.stdout.decode().split()
    assert verdict == "refused"
    assert int(grown_mib) < 100
    assert float(seconds) < 4


def test_a_number_too_long_is_named_by_its_place() -> None:
    raw = b'{"tasks":[{"payload":{"a,]":"99999999999999999999999","b":[1,{"c":' + LONG + b"}]}}]}"
    with pytest.raises(ValidationError) as caught:
        parse_json_object(raw)
    assert caught.value.field == "tasks.0.payload.b.1.c"
    with pytest.raises(ValidationError, match="5000 digits") as caught:
        parse_json_object(b'{"a":0.' + b"1" * 5000 + b"}")
    assert caught.value.field == "a"
    far = b'{"a":[' + b"1," * 100_000 + LONG + b"]}"
    with pytest.raises(ValidationError, match=f"byte {far.index(LONG)} must be a whole number"):
        parse_json_object(far)


@pytest.mark.parametrize(
    "number",
    ["1.0000000000000000000000001", "0.1234567890123456789012345", "12345678901234567890123.5",
     "1e0000000000000000000000001", "1e-000000000000000000000001", "18446744073709551615",
     "-9223372036854775808", '"99999999999999999999999"', '"a\\"99999999999999999999999"'],
)  # fmt: skip
def test_long_digits_that_are_no_whole_number_beyond_64_bits_are_taken(number: str) -> None:
    raw = f'{{"a":[{number},{number}]}}'.encode()
    assert long_number(raw) is None
    assert parse_json_object(raw)


def test_what_is_written_in_strings_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_scan, "MAX_COST", 1000)
    check_cost(json.dumps({"a": "[{,:" * 5000}).encode())
    check_cost(json.dumps({"a": [1] * 900}).encode())
    with pytest.raises(ValidationError, match="several parts"):
        check_cost(json.dumps({"a": [1] * 1100}).encode())
    with pytest.raises(ValidationError, match="several parts"):
        check_cost(json.dumps({"a": [[]] * 200}).encode())


@given(st.recursive(
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.booleans(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20,
))  # fmt: skip
def test_long_numbers_are_found_as_a_parser_that_keeps_them_finds_them(value: object) -> None:
    def beyond(value: object, path: str = "") -> list[str]:
        if isinstance(value, bool):
            return []
        if isinstance(value, int):
            return [] if -(2**63) <= value < 2**64 else [path]
        pairs: list[tuple[Any, Any]] = list(value.items()) if isinstance(value, dict) else []
        if isinstance(value, list):
            pairs = list(enumerate(value))
        return [each for step, one in pairs for each in beyond(one, f"{path}.{step}".lstrip("."))]

    raw = json.dumps({"v": value}).encode()
    found = long_number(raw)
    expected = beyond(json.loads(raw))
    if any(step == "" or "." in step or step[:1] == "." for step in expected):
        return
    assert (found is None) is (not expected)


def test_a_thousand_wrong_things_are_told_as_quickly_as_one() -> None:
    began = time.process_time()
    for schema, document in (
        (TASK_SUBMISSION, {f"k{number}": 1 for number in range(20_000)}),
        (TASK_BATCH, {"tasks": [{f"k{number}": 1 for number in range(20)}] * 1000}),
    ):
        with pytest.raises(ValidationError, match="unknown field") as caught:
            validate(schema, document)
        assert caught.value.field in ("k0", "tasks.0.k0")
        assert 1 < len(caught.value.details["errors"]) <= 100
    assert time.process_time() - began < 3
