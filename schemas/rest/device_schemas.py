"""Judge a payload schema that a device sent before anything is validated with it."""

from __future__ import annotations

import copy
from typing import Final

import cerberus

from retire_cluster.schemas.bounds import is_finite, is_whole
from retire_cluster.schemas.rest.dialect import TYPES, StrictValidator, json_size, type_names

#: The rules a device may use in a payload schema (docs/protocol.md, From the device).
DEVICE_RULES: Final = frozenset(
    (
        *("type", "required", "allowed", "min", "max", "minlength", "maxlength", "nullable"),
        *("empty", "default", "schema", "valuesrules", "keysrules", "meta", "anyof"),
    )
)
_MAX_DEPTH: Final = 8
_MAX_NODES: Final = 500


def safe_schema(schema: object) -> bool:
    """Tell whether a device's payload schema can be trusted to do nothing but validate.

    Only the rules of docs/protocol.md with plain values, of bounded depth and size: nothing that
    names code (`check_with`, `coerce`, …), no registry references, no patterns (a device could
    choose one that never ends).
    """
    budget = [_MAX_NODES]
    if not _safe_fields(schema, 1, budget):
        return False
    try:
        StrictValidator(copy.deepcopy(schema))
    except (cerberus.SchemaError, TypeError, ValueError, RecursionError):
        return False
    finally:
        # Cerberus remembers the hash of every schema it ever checked, for ever.
        StrictValidator.clear_caches()
    return True


def _safe_fields(schema: object, depth: int, budget: list[int]) -> bool:
    return (
        isinstance(schema, dict)
        and depth <= _MAX_DEPTH
        and all(
            isinstance(name, str) and len(name) <= 200 and _safe_rules(rules, depth, budget)
            for name, rules in schema.items()
        )
    )


def _safe_rules(rules: object, depth: int, budget: list[int]) -> bool:
    budget[0] -= 1
    if budget[0] < 0 or depth > _MAX_DEPTH or not isinstance(rules, dict):
        return False
    if not rules.keys() <= DEVICE_RULES:
        return False
    try:
        names = type_names(rules)
    except TypeError:
        return False
    if not all(isinstance(name, str) and name in TYPES for name in names):
        return False
    for rule, value in rules.items():
        if rule == "schema":
            # Without one certain type Cerberus would guess, from the value, which of the two it is.
            inner = _safe_fields if names == ["dict"] else _safe_rules
            if names not in (["dict"], ["list"]) or not inner(value, depth + 1, budget):
                return False
        elif rule in ("valuesrules", "keysrules"):
            if names != ["dict"] or not _safe_rules(value, depth + 1, budget):
                return False
        elif rule == "anyof":
            if not isinstance(value, list) or not value:
                return False
            if not all(_safe_rules(each, depth + 1, budget) for each in value):
                return False
        elif not _safe_value(rule, value, budget):
            return False
    return True


def _safe_value(rule: str, value: object, budget: list[int]) -> bool:
    if rule in ("min", "max"):
        return is_finite(value)
    if rule in ("minlength", "maxlength"):
        return is_whole(value, 0)
    if rule in ("required", "nullable", "empty"):
        return isinstance(value, bool)
    if rule == "allowed":
        return (
            isinstance(value, list)
            and len(value) <= 200
            and all(isinstance(each, (str, bool)) or is_finite(each) for each in value)
        )
    if rule in ("default", "meta"):
        budget[0] -= json_size(value) // 100
        return budget[0] >= 0
    return rule == "type"
