"""The strict Cerberus dialect: verdicts, reasons, defaults, JSON Schema, devices' schemas."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.rest.device_schemas import safe_schema
from retire_cluster.schemas.rest.json_schema import json_schema
from retire_cluster.schemas.rest.requests import TASK_BATCH, TASK_SUBMISSION
from retire_cluster.schemas.rest.validation import validate
from retire_cluster.schemas.task_types import BUILTIN

SCHEMA: dict[str, Any] = {
    "count": {"type": "strict_int", "min": 1, "max": 10, "default": 3},
    "name": {"type": "string", "required": True, "regex": "[a-z]+"},
    "tags": {"type": "list", "schema": {"type": "string", "minlength": 1}},
    "size": {"type": "dict", "schema": {"gb": {"type": "finite", "above": 0}}},
    "env": {"type": "dict", "keysrules": {"type": "string"}, "valuesrules": {"type": "string"}},
}


def refusal(schema: dict[str, Any], document: object, **options: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        validate(schema, document, **options)
    return caught.value


def test_defaults_are_filled_in_and_the_document_is_left_alone() -> None:
    document = {"name": "a"}
    assert validate(SCHEMA, document) == {"name": "a", "count": 3}
    assert document == {"name": "a"}


def test_a_default_of_one_answer_is_not_shared_with_the_next() -> None:
    first = validate(TASK_SUBMISSION, {"task_type": "echo", "payload": {}})
    first["metadata"]["mine"] = 1
    assert validate(TASK_SUBMISSION, {"task_type": "echo", "payload": {}})["metadata"] == {}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (True, "must be a whole number from 1 to 10"),
        (1.0, "must be a whole number from 1 to 10"),
        ("5", "must be a whole number from 1 to 10"),
        (0, "must be a whole number from 1 to 10"),
        (11, "must be a whole number from 1 to 10"),
        (None, "must be a whole number from 1 to 10, not null"),
    ],
)
def test_a_whole_number_is_neither_true_nor_text_nor_null(value: object, reason: str) -> None:
    error = refusal(SCHEMA, {"name": "a", "count": value})
    assert (error.field, error.reason) == ("count", reason)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, 2**64, -(2**63) - 1, 0, "1"])
def test_a_number_is_finite_and_fits_64_bits(value: object) -> None:
    assert refusal(SCHEMA, {"name": "a", "size": {"gb": value}}).field == "size.gb"


def test_a_pattern_must_match_the_whole_text() -> None:
    assert refusal(SCHEMA, {"name": "a\n"}).field == "name"


def test_unknown_fields_are_errors_and_all_errors_are_listed_in_document_order() -> None:
    error = refusal(SCHEMA, {"zebra": 1, "tags": ["a", ""], "count": 99})
    assert [each["field"] for each in error.details["errors"]] == [
        *("zebra", "tags.1", "count", "name")
    ]
    assert error.field == "zebra"
    assert error.reason == "unknown field"


def test_an_object_where_a_list_belongs_is_refused_and_does_not_raise() -> None:
    error = refusal(SCHEMA, {"name": "a", "tags": {"type": 1}})
    assert error.details["errors"] == [{"field": "tags", "reason": "must be a list"}]


@pytest.mark.parametrize("document", [None, [], "text", 5])
def test_only_an_object_is_a_document(document: object) -> None:
    assert refusal(SCHEMA, document, where="body").field == "body"


def test_errors_of_an_alternative_are_those_of_the_one_whose_type_fits() -> None:
    schema = BUILTIN["command"].payload_schema or {}
    assert refusal(schema, {"command": ["ls", 1]}, where="payload").field == "payload.command.1"
    assert refusal(schema, {"command": 5}).reason == "must be a text or a list"


def test_metadata_is_bounded_in_bytes() -> None:
    document = {"task_type": "echo", "payload": {}, "metadata": {"a": "x" * 17_000}}
    assert refusal(TASK_SUBMISSION, document).field == "metadata"


def test_threads_do_not_disturb_each_other() -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        for _ in range(200):
            try:
                validate(SCHEMA, {"name": "a" if number % 2 else "A"})
                verdict = True
            except ValidationError:
                verdict = False
            if verdict != bool(number % 2):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_json_schema_says_the_same_as_the_rules() -> None:
    found = json_schema(SCHEMA)
    assert found["required"] == ["name"]
    assert found["additionalProperties"] is False
    assert found["properties"]["count"] == {
        "type": "integer", "minimum": 1, "maximum": 10, "default": 3,
    }  # fmt: skip
    assert found["properties"]["size"]["properties"]["gb"] == {
        "type": "number", "exclusiveMinimum": 0,
    }  # fmt: skip
    assert found["properties"]["env"]["additionalProperties"] == {"type": "string"}


def test_built_in_schemas_use_only_what_devices_may_use() -> None:
    for info in BUILTIN.values():
        assert info.payload_schema is None or safe_schema(info.payload_schema), info.name


@pytest.mark.parametrize(
    "schema",
    [
        None,
        [],
        {"a": {"check_with": "x"}},
        {"a": {"coerce": "page_size"}},
        {"a": {"type": "string", "regex": "(a+)+"}},
        {"a": {"schema": {"type": "string"}}},
        {"a": {"type": "list", "schema": "registry"}},
        {"a": "registry"},
        {"a": {"type": ["string", 1]}},
        {"a": {"type": 5}},
        {"a": {"type": "date"}},
        {"a": {"min": "a"}},
        {"a": {"allowed": [{}]}},
        {"a": {"meta": {"text": "x" * 100_000}}},
        {1: {"type": "string"}},
        {f"field{number}": {"type": "string"} for number in range(501)},
    ],
)
def test_a_devices_schema_that_could_do_more_than_validate_is_refused(schema: object) -> None:
    assert not safe_schema(schema)


def test_a_devices_schema_may_not_nest_without_end() -> None:
    schema: dict[str, Any] = {"a": {"type": "string"}}
    for _ in range(20):
        schema = {"a": {"type": "dict", "schema": schema}}
    assert not safe_schema(schema)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_FIELDS = st.sampled_from(
    [*TASK_SUBMISSION, "tasks", "min_cpu_cores", "required_tags", "type", "other"]
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_FIELDS, _JSON | st.dictionaries(_FIELDS, _JSON, max_size=4), max_size=6))
def test_any_document_is_accepted_or_refused_and_nothing_else(document: dict[str, Any]) -> None:
    for schema in (TASK_SUBMISSION, TASK_BATCH, BUILTIN["http_request"].payload_schema or {}):
        try:
            validate(schema, document)
        except ValidationError:
            continue


_RULES = st.dictionaries(
    st.sampled_from(
        [*("type", "min", "max", "minlength", "allowed", "schema", "anyof", "valuesrules")]
    ),
    st.sampled_from(
        [
            *("string", "dict", "list", "finite", 1, -1, True, None, [], ["string", "dict"]),
            *([{"type": "string"}], {"type": "string"}, {"a": {"type": "list"}}, {}),
        ]
    ),
    max_size=3,
)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from("ab"), _RULES, max_size=2), _JSON)
def test_a_schema_called_safe_never_raises_anything_but_a_refusal(
    schema: dict[str, Any], value: object
) -> None:
    if safe_schema(schema):
        try:
            validate(schema, {"a": value, "b": value})
        except ValidationError:
            return
