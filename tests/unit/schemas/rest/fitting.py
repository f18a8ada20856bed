"""Documents that fit a schema, made from it, and the same with something changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import strategies as st

from retire_cluster.schemas.rest.dialect import type_names

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, 1, -1, 2**53 + 1, 2**64, -(2**63) - 1, 1.0, 1.5, float("nan"), float("inf"),
     "", "a", "A", "a\n", "echo", "high", "x" * 300, "\ud800", [], ["a"], ["a", 1], [[]], [None],
     {}, {"a": 1}, {"A": "b"}, {"a": {"b": None}}, [{}]]
).map(copy.deepcopy)  # fmt: skip
_MOST_ITEMS = 4
_MOST_CHARACTERS = 12


def fitting(schema: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that fit a schema."""
    values = {name: _value(rules) for name, rules in schema.items()}
    needed = {name: values.pop(name) for name in schema if schema[name].get("required")}
    return st.fixed_dictionaries(needed, optional=values)


@st.composite
def changed(draw: st.DrawFn, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Objects that fit a schema but for one to three changes."""
    document: dict[str, Any] = copy.deepcopy(draw(fitting(schema)))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        holder, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["odd", "json", "without", "more"]))
        if change == "more" or key is None:
            if isinstance(holder, dict):
                holder[draw(st.sampled_from(["odd", "", *schema]))] = draw(ODD)
            else:
                holder.append(draw(ODD))
        elif change == "without":
            del holder[key]
        else:
            holder[key] = draw(ODD if change == "odd" else JSON)
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each object or list with each of its keys, and with None for a place beside them."""
    yield value, None
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


def fields(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rules of each field of a schema, of what is inside it too."""
    for rules in schema.values():
        yield from _rules_in(rules)


def _rules_in(rules: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield rules
    for inner in (rules[rule] for rule in ("keysrules", "valuesrules") if rule in rules):
        yield from _rules_in(inner)
    for inner in rules.get("anyof", ()):
        yield from _rules_in(inner)
    if "schema" in rules:
        inside = rules["schema"]
        yield from _rules_in(inside) if type_names(rules) == ["list"] else fields(inside)


def edges(rules: Mapping[str, Any]) -> list[Any]:
    """Values at the bounds that these rules set, and just beyond."""
    found: list[Any] = [None]
    for bound in (rules[rule] for rule in ("min", "max", "above") if rule in rules):
        found += [bound - 1, bound, bound + 1, float(bound)]
    for length in (rules[rule] for rule in ("minlength", "maxlength") if rule in rules):
        for size in (length - 1, length, length + 1):
            found += ["a" * size, ["a"] * size, {str(each): "a" for each in range(size)}]
    for word in rules.get("allowed", ()):
        found += [word, [word], f"{word} "]
    if "max_bytes" in rules:
        found += [{"a": "b" * (rules["max_bytes"] - around)} for around in (7, 8, 9)]
    return found


def _value(rules: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    found = [_of_type(name, rules) for name in type_names(rules)]
    if "anyof" in rules:
        found += [_value(each) for each in rules["anyof"]]
    if rules.get("nullable"):
        found.append(st.none())
    return st.one_of(found) if found else JSON


def _of_type(name: str, rules: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    least = rules.get("minlength", 1 if rules.get("empty") is False else 0)
    if "allowed" in rules:
        words = st.sampled_from(list(rules["allowed"]))
        return st.lists(words, min_size=least, max_size=_MOST_ITEMS) if name == "list" else words
    if name in ("strict_int", "integer"):
        least = math.ceil(rules.get("min", -100))
        return st.integers(least, min(math.floor(rules.get("max", least + 500)), least + 10**6))
    if name in ("finite", "number", "float"):
        low, above = rules.get("min", rules.get("above", -100)), "above" in rules
        high = rules.get("max", low + 500)
        return st.floats(low, high, exclude_min=above) | st.just(high)
    if name == "boolean":
        return st.booleans()
    if name == "string":
        return _text(rules, least)
    if name == "list":
        inner = _value(rules["schema"]) if "schema" in rules else JSON
        most = min(rules.get("maxlength", _MOST_ITEMS), max(least, _MOST_ITEMS))
        return st.lists(inner, min_size=least, max_size=most)
    if "schema" in rules:
        return fitting(rules["schema"])
    names = _value(rules["keysrules"]) if "keysrules" in rules else st.text(max_size=5)
    values = _value(rules["valuesrules"]) if "valuesrules" in rules else JSON
    return st.dictionaries(names, values, min_size=least, max_size=_MOST_ITEMS)


def _text(rules: Mapping[str, Any], least: int) -> st.SearchStrategy[str]:
    most = min(rules.get("maxlength", _MOST_CHARACTERS), max(least, _MOST_CHARACTERS))
    if "regex" in rules:
        pattern = st.from_regex(rules["regex"], fullmatch=True)
        return pattern.filter(lambda text: len(text) >= least)
    if rules.get("check_with") == "host":
        return st.sampled_from(["nas.lan", "192.168.1.10", "fd00::10"])
    return st.text(min_size=least, max_size=most)
