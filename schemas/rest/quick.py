"""Accept what plainly fits a schema without Cerberus, which takes a hundred times as long.

`python -m bench validation` measures how much. Whatever does not fit, and every schema with a rule
that is not known here, is left to Cerberus, whose verdict and words are the ones that count.
tests/unit/schemas/rest/test_quick.py holds the two together for every schema in use: the same
documents are accepted, with the same defaults in the same order.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from retire_cluster.schemas.bounds import is_finite
from retire_cluster.schemas.rest.dialect import (
    TYPES,
    Schema,
    StrictValidator,
    json_size,
    type_names,
)


class _No(Exception):
    """The document does not plainly fit."""


class _Unknown(Exception):
    """The schema has a rule that is not known here."""


#: Value → the value with defaults filled in; raises `_No`.
Check = Callable[[Any], Any]
_SIZED: Final = (str, list, dict)
_KNOWN: Final = frozenset(
    {
        "type", "required", "nullable", "min", "max", "above", "minlength", "maxlength", "allowed",
        "regex", "max_bytes", "default", "coerce", "schema", "keysrules", "valuesrules", "empty",
        "meta", "anyof",
    }
)  # fmt: skip
_BESIDE_ANYOF: Final = frozenset({"anyof", "required", "nullable", "default", "meta"})


def compiled(schema: Schema) -> Check | None:
    """Compile a check of objects with these fields; None when Cerberus has to be asked."""
    try:
        return _object(schema)
    except _Unknown:
        return None


def accepted(check: Check, document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the document with defaults filled in if it plainly fits, else None."""
    try:
        found: dict[str, Any] = check(document)
    except _No:
        return None
    return found


def _object(schema: Schema) -> Check:
    checks: dict[str, Check] = {}
    absent: dict[str, tuple[Any, Check]] = {}
    required = []
    for name, rules in schema.items():
        checks[name] = _field(rules)
        if "default" in rules:
            absent[name] = (rules["default"], checks[name])
        elif rules.get("required"):
            required.append(name)

    def check(value: Any) -> dict[str, Any]:
        found = {}
        for name, inner in value.items():
            one = checks.get(name)
            if one is None:
                raise _No
            found[name] = one(inner)
        for name in required:
            if name not in found:
                raise _No
        for name, (default, one) in absent.items():
            if name not in found:
                found[name] = one(copy.deepcopy(default))
        return found

    return check


def _field(rules: Schema) -> Check:
    if not isinstance(rules, Mapping) or not set(rules) <= _KNOWN:
        raise _Unknown
    names = type_names(rules)
    if "anyof" in rules:
        if not set(rules) <= _BESIDE_ANYOF:
            raise _Unknown
        return _one_of([_field(each) for each in rules["anyof"]], bool(rules.get("nullable")))
    if not names or not all(name in TYPES for name in names):
        raise _Unknown
    if rules.get("empty", False) is not False or rules.get("coerce", "page_size") != "page_size":
        raise _Unknown
    tests = [TYPES[name][0] for name in names]
    test = tests[0] if len(tests) == 1 else lambda value: any(each(value) for each in tests)
    bounds = _bounds(rules)
    inner = _inner(rules, names)
    nullable, clamp = bool(rules.get("nullable")), "coerce" in rules

    def check(value: Any) -> Any:
        if value is None and nullable:
            return None
        if not test(value):
            raise _No
        for bound in bounds:
            if not bound(value):
                raise _No
        if inner is not None:
            value = inner(value)
        return min(value, StrictValidator.page_size_limit) if clamp else value

    return check


def _one_of(alternatives: list[Check], nullable: bool) -> Check:
    def check(value: Any) -> Any:
        if value is None:  # what the alternatives say of null does not count
            if nullable:
                return None
            raise _No
        for each in alternatives:
            try:
                each(value)
            except _No:
                continue
            return value
        raise _No

    return check


def _bounds(rules: Schema) -> list[Callable[[Any], bool]]:
    low, high, above = rules.get("min"), rules.get("max"), rules.get("above")
    fewest, most, allowed = rules.get("minlength"), rules.get("maxlength"), rules.get("allowed")
    limit = rules.get("max_bytes")
    found: list[Callable[[Any], bool]] = []
    if low is not None:
        found.append(lambda value: not (is_finite(value) and value < low))
    if high is not None:
        found.append(lambda value: not (is_finite(value) and value > high))
    if above is not None:
        found.append(lambda value: not (is_finite(value) and value <= above))
    if fewest is not None or rules.get("empty") is False:
        least = max(fewest or 0, 1 if rules.get("empty") is False else 0)
        found.append(lambda value: not isinstance(value, _SIZED) or len(value) >= least)
    if most is not None:
        found.append(lambda value: not isinstance(value, _SIZED) or len(value) <= most)
    if allowed is not None:
        found.append(lambda value: _is_allowed(value, allowed))
    if "regex" in rules:
        pattern = re.compile(rules["regex"])
        found.append(lambda value: not isinstance(value, str) or bool(pattern.fullmatch(value)))
    if limit is not None:
        found.append(lambda value: json_size(value) <= limit)
    return found


def _is_allowed(value: Any, allowed: Any) -> bool:
    given = value if isinstance(value, list) else [value]
    return all(type(each) not in (dict, list) and each in allowed for each in given)


def _inner(rules: Schema, names: list[str]) -> Check | None:
    """Compile the check of what is inside an object or a list; None: nothing to check."""
    keys, values = rules.get("keysrules"), rules.get("valuesrules")
    if "schema" not in rules and keys is None and values is None:
        return None
    if len(names) != 1 or names[0] not in ("dict", "list"):
        raise _Unknown
    if names[0] == "list":
        if keys is not None or values is not None:
            raise _Unknown
        item = _field(rules["schema"])
        return lambda value: [item(each) for each in value]
    if "schema" in rules:
        if keys is not None or values is not None:
            raise _Unknown
        return _object(rules["schema"])
    key = _field(keys) if keys is not None else _same
    inside = _field(values) if values is not None else _same
    return lambda value: {key(name): inside(each) for name, each in value.items()}


def _same(value: Any) -> Any:
    return value
