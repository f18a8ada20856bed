"""The fast path against Cerberus: the same verdict and the same document, for every schema."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.rest import quick, requests
from retire_cluster.schemas.rest.device_schemas import safe_schema
from retire_cluster.schemas.rest.dialect import Schema
from retire_cluster.schemas.rest.validation import by_cerberus, validate
from tests.unit.schemas.rest.fitting import changed, edges, fields, fitting
from tests.unit.schemas.rest.schemas_in_use import schemas_in_use

NESTED: dict[str, Any] = {
    "env": {"type": "dict", "keysrules": {"type": "string", "regex": "[A-Z]+"},
            "valuesrules": {"type": "string", "maxlength": 3}},
    "either": {"type": ["string", "strict_int"], "nullable": True, "maxlength": 2, "min": 1},
    "some": {"type": "list", "empty": False, "schema": {"type": "dict", "schema": {
        "n": {"type": "integer", "default": 7}, "b": {"type": "boolean", "required": True}}}},
    "words": {"type": "list", "allowed": ["a", "b"]},
}  # fmt: skip
SCHEMAS: dict[str, dict[str, Any]] = {"nested": NESTED, **schemas_in_use()}
#: Those that have a rule only Cerberus knows: the host of a join token.
CERBERUS_ALONE = {"schemas.rest.requests.JOIN_TOKEN"}


def verdict(schema: Schema, document: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return by_cerberus(schema, document)
    except ValidationError:
        return None


def agree(check: quick.Check, schema: Schema, document: dict[str, Any]) -> dict[str, Any] | None:
    before = copy.deepcopy(document)
    fast = quick.accepted(check, document)
    slow = verdict(schema, document)
    assert repr(document) == repr(before)
    # As text, because the order of names is a part of what is stored, and NaN is not itself.
    assert repr(fast) == repr(slow)
    return fast


@pytest.mark.parametrize("name", sorted(set(SCHEMAS) - CERBERUS_ALONE))
def test_it_says_what_cerberus_says(name: str) -> None:
    schema = SCHEMAS[name]
    check = quick.compiled(schema)
    assert check is not None, "it has a rule that the fast path does not know"

    @settings(max_examples=20)
    @given(fitting(schema))
    def accepts_what_fits(document: dict[str, Any]) -> None:
        agree(check, schema, document)

    @settings(max_examples=40)
    @given(changed(schema))
    def agrees_on_what_was_changed(document: dict[str, Any]) -> None:
        agree(check, schema, document)

    accepts_what_fits()
    agrees_on_what_was_changed()


def test_it_says_what_cerberus_says_at_each_bound_of_each_field() -> None:
    different = {repr(rules): rules for schema in SCHEMAS.values() for rules in fields(schema)}
    bounded = 0
    for rules in different.values():
        schema = {"field": rules}
        check = quick.compiled(schema)
        if check is not None:
            for value in edges(rules):
                agree(check, schema, {"field": value})
                bounded += 1
    assert bounded > 300


def test_what_the_busy_ways_validate_is_known() -> None:
    for name in ("requests.TASK_FIELDS", "requests.TASK_SUBMISSION", "requests.TASK_LIST_QUERY"):
        assert quick.compiled(SCHEMAS[f"schemas.rest.{name}"]) is not None, name
    for name in ("command", "sleep"):
        assert quick.compiled(SCHEMAS[f"payload of {name}"]) is not None, name
    assert quick.compiled({}) is not None


def test_every_boundary_has_its_schemas_among_them() -> None:
    for name in (
        "schemas.rest.requests.TASK_SUBMISSION", "schemas.rest.requests.TASK_LIST_QUERY",
        "api.resources.ui._LOGIN", "broker.admin.submission.strangers.STRANGER",
        "admin events.poll", "payload of http_request",
    ):  # fmt: skip
        assert name in SCHEMAS, name
    assert len(SCHEMAS) >= 35


_LEAF_RULES = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["strict_int", "integer", "finite", "number", "float"])},
        optional={
            "min": st.integers(-3, 3) | st.floats(-3, 3), "max": st.integers(3, 9),
            "nullable": st.booleans(), "required": st.booleans(), "default": st.integers(2, 4),
            "allowed": st.just([1, 2.5]),
        },
    ),
    st.fixed_dictionaries(
        {"type": st.just("string") | st.just(["string", "boolean"])},
        optional={
            "minlength": st.integers(0, 2), "maxlength": st.integers(2, 5),
            "nullable": st.booleans(), "required": st.booleans(), "empty": st.just(False),
            "default": st.sampled_from(["", "ab", "toolong"]), "allowed": st.just(["ab", "", True]),
        },
    ),
)  # fmt: skip


def _containers(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    fields = st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    most = {"maxlength": st.integers(2, 3), "required": st.booleans(), "nullable": st.booleans()}
    return st.one_of(
        st.fixed_dictionaries({"type": st.just("list"), "schema": inner}, optional=most),
        st.fixed_dictionaries({"type": st.just("dict"), "schema": fields}, optional=most),
        st.fixed_dictionaries(
            {"type": st.just("dict")},
            optional={**most, "valuesrules": inner, "default": st.just({})},
        ),
        st.fixed_dictionaries({"anyof": st.lists(inner, min_size=1, max_size=3)}),
    )


DEVICE_SCHEMAS = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(_LEAF_RULES, _containers, max_leaves=4),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150)
@given(st.data())
def test_what_it_accepts_cerberus_accepts_alike_for_any_schema_of_a_device(
    data: st.DataObject,
) -> None:
    schema = data.draw(DEVICE_SCHEMAS)
    assume(safe_schema(schema))
    check = quick.compiled(schema)
    document = data.draw(fitting(schema) | changed(schema))
    fast = None if check is None else quick.accepted(check, document)
    # A default that does not fit its own rules is left to Cerberus, which does not look at it.
    assert fast is None or repr(fast) == repr(verdict(schema, document))


@pytest.mark.parametrize(
    "rules",
    [
        {"type": "string", "check_with": "odd"},
        {"anyof": [{"type": "string"}], "minlength": 1},
        {"type": "binary"},
        {"type": ["dict", "list"], "schema": {}},
        {"min": 1},
        {"type": "string", "empty": True},
    ],
    ids=str,
)
def test_a_rule_that_is_not_known_is_left_to_cerberus(rules: dict[str, Any]) -> None:
    assert quick.compiled({"field": rules}) is None


def test_null_is_refused_where_only_an_alternative_takes_it() -> None:
    schema = {"field": {"anyof": [{"type": "strict_int", "nullable": True}]}}
    with pytest.raises(ValidationError, match="not null"):
        validate(schema, {"field": None})


def test_a_default_is_not_shared() -> None:
    schema: dict[str, Any] = {"a": {"type": "list", "default": []}}
    validate(schema, {})["a"].append(1)
    assert validate(schema, {}) == {"a": []}


def test_what_plainly_fits_is_accepted_without_cerberus(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Cerberus was asked")

    monkeypatch.setattr("retire_cluster.schemas.rest.validation.by_cerberus", refuse)
    assert validate(requests.TASK_LIST_QUERY, {"page": 2})["page_size"] == 20
