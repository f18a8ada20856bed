"""The fast yes against Cerberus: the same verdict and the same document."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.schemas.rest import quick, requests
from retire_cluster.schemas.rest.dialect import StrictValidator, type_names
from retire_cluster.schemas.rest.validation import validate
from retire_cluster.schemas.task_types import BUILTIN

NESTED: dict[str, Any] = {
    "env": {"type": "dict", "keysrules": {"type": "string", "regex": "[A-Z]+"},
            "valuesrules": {"type": "string", "maxlength": 3}},
    "either": {"type": ["string", "strict_int"], "nullable": True, "maxlength": 2, "min": 1},
    "some": {"type": "list", "empty": False, "schema": {"type": "dict", "schema": {
        "n": {"type": "integer", "default": 7}, "b": {"type": "boolean", "required": True}}}},
    "words": {"type": "list", "allowed": ["a", "b"]},
}  # fmt: skip
SCHEMAS: dict[str, dict[str, Any]] = {"nested": NESTED}
SCHEMAS |= {
    name: value
    for name, value in vars(requests).items()
    if name.isupper() and name[0] != "_" and isinstance(value, dict) and name != "SECTIONS"
}
SCHEMAS |= {info.name: info.payload_schema for info in BUILTIN.values() if info.payload_schema}
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, 1, -1, 2**64, 1.5, float("nan"), float("inf"), "", "a", "A", "echo", "high",
     "x" * 300, [], ["a"], ["a", 1], [[]], {}, {"a": 1}, {"A": "b"}, [{}], [{"b": True}]]
)  # fmt: skip


def values(rules: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What often fits a field with these rules."""
    names = type_names(rules)
    found: list[st.SearchStrategy[Any]] = [ODD]
    if "allowed" in rules:
        found.append(st.sampled_from(list(rules["allowed"])))
    inner = rules.get("schema")
    if names == ["dict"] and isinstance(inner, dict):
        found += [documents(inner)] * 3
    elif "anyof" in rules:
        found += [values(each) for each in rules["anyof"]]
    elif names == ["list"] and isinstance(inner, dict):
        found += [st.lists(values(inner), max_size=3)] * 3
    elif "string" in names:
        found.append(st.from_regex(r"[a-z0-9./:-]{1,8}", fullmatch=True))
    elif names:
        found.append(st.integers(0, 100))
    return st.one_of(found)


def documents(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that often fit a schema; required fields are mostly there."""
    needed = {n: values(r) for n, r in schema.items() if r.get("required")}
    others = {n: values(r) for n, r in schema.items() if not r.get("required")}
    return st.one_of(
        st.fixed_dictionaries(needed, optional=others),
        st.fixed_dictionaries({}, optional={**needed, **others, "odd": ODD}),
    )


def by_cerberus(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any] | None:
    validator = StrictValidator(dict(schema))
    if not validator.validate(document, normalize=False):
        return None
    normal = validator.normalized(document)
    return dict(normal) if normal is not None and not validator._errors else None


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_it_says_what_cerberus_says(name: str) -> None:
    schema = SCHEMAS[name]
    check = quick.compiled(schema)
    if check is None:
        pytest.skip("this schema is Cerberus's alone")

    @given(documents(schema))
    def agree(document: dict[str, Any]) -> None:
        before = copy.deepcopy(document)
        fast = quick.accepted(check, document)
        slow = by_cerberus(schema, document)
        assert repr(document) == repr(before)
        # As text, because the order of names is a part of what is stored.
        assert repr(fast) == repr(slow)

    agree()


def test_what_the_busy_ways_validate_is_known() -> None:
    for name in ("TASK_FIELDS", "TASK_SUBMISSION", "TASK_LIST_QUERY", "command", "sleep"):
        assert quick.compiled(SCHEMAS[name]) is not None, name
    assert quick.compiled({}) is not None


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


def test_a_default_is_not_shared() -> None:
    schema: dict[str, Any] = {"a": {"type": "list", "default": []}}
    validate(schema, {})["a"].append(1)
    assert validate(schema, {}) == {"a": []}
