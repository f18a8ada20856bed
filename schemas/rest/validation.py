"""`validate` a document; turn a schema into JSON Schema; judge a schema that a device sent.

A Cerberus Validator shared by threads gives wrong verdicts, so each thread has its own; normalising
before validating crashes on an object where a list was declared, so it is validated first.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import cerberus
from cerberus import errors as cerberus_errors

from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.rest import quick
from retire_cluster.schemas.rest.dialect import (
    MAX_INT,
    MIN_INT,
    TYPES,
    Schema,
    StrictValidator,
    describe,
    is_finite,
    is_strict_int,
    json_size,
    type_names,
)

__all__ = [
    "MAX_INT",
    "MIN_INT",
    "Schema",
    "field_json_schema",
    "json_schema",
    "safe_schema",
    "validate",
]

#: Compiled validators a thread keeps.
_CACHE_SIZE: Final = 256
#: At most this many offending fields are listed in one error.
_MAX_LISTED: Final = 100


class _Cache(threading.local):
    def __init__(self) -> None:
        self.validators: OrderedDict[int, _Entry] = OrderedDict()


class _Entry(NamedTuple):
    schema: Schema
    check: quick.Check | None
    validator: StrictValidator


_cache = _Cache()


def _known(schema: Schema) -> _Entry:
    known = _cache.validators
    entry = known.get(id(schema))
    # The entry keeps its schema alive, so an id in the cache cannot belong to another one.
    if entry is None:
        entry = _Entry(schema, quick.compiled(schema), StrictValidator(dict(schema)))
        known[id(schema)] = entry
        if len(known) > _CACHE_SIZE:
            known.popitem(last=False)
    else:
        known.move_to_end(id(schema))
    return entry


def validate(schema: Schema, document: object, *, where: str = "") -> dict[str, Any]:
    """`document` with defaults filled in, if it fits `schema` (field name → Cerberus rules).

    `where` is put before the field names of errors. The document itself is left as it is. Raises
    `schemas.errors.ValidationError`: `field` is the first offender in the order of the document,
    `details["errors"]` lists all.
    """
    if not isinstance(document, dict):
        raise ValidationError(where, "must be an object")
    entry = _known(schema)
    if entry.check is not None:
        fits = quick.accepted(entry.check, document)
        if fits is not None:
            return fits
    validator = entry.validator
    if validator.validate(document, normalize=False):
        normal = validator.normalized(document)
        if normal is not None and not validator._errors:
            return dict(normal)
    found = list(_leaves(validator._errors, document))
    found.sort(key=lambda leaf: _position(document, leaf[0]))
    listed = [{"field": _dotted(where, path), "reason": reason} for path, reason in found]
    listed = listed[:_MAX_LISTED] or [{"field": where, "reason": "is not valid"}]
    raise ValidationError(listed[0]["field"], listed[0]["reason"], errors=listed)


_Path = tuple[Any, ...]


def _dotted(where: str, path: _Path) -> str:
    return ".".join([where, *map(str, path)] if where else list(map(str, path)))


def _position(document: object, path: _Path) -> tuple[int, ...]:
    """Where in the document a path is; what is absent comes after all that is present."""
    place: list[int] = []
    for step in path:
        if isinstance(document, dict):
            keys = list(document)
            place.append(keys.index(step) if step in document else len(keys))
            document = document.get(step)
        elif isinstance(document, list) and isinstance(step, int) and step < len(document):
            place.append(step)
            document = document[step]
        else:
            place.append(0)
            document = None
    return tuple(place)


def _leaves(found: Sequence[Any], document: object) -> Iterator[tuple[_Path, str]]:
    for error in found:
        if error.is_logic_error:
            yield from _logic_leaves(error)
        elif error.is_group_error:
            if error.code == cerberus_errors.KEYSRULES.code:
                for child in error.child_errors:
                    yield child.document_path, "this name: " + _reason(child)
            else:
                yield from _leaves(error.child_errors, document)
        else:
            yield error.document_path, _reason(error)


def _logic_leaves(error: Any) -> Iterator[tuple[_Path, str]]:
    """The errors of the one alternative whose type fits, else what the alternatives are."""
    rules = list(error.constraint)
    for index, children in sorted(error.definitions_errors.items()):
        names = type_names(rules[index]) if index < len(rules) else []
        if any(name in TYPES and TYPES[name][0](error.value) for name in names):
            yield from _leaves(children, None)
            return
    yield error.document_path, "must be " + describe({"anyof": rules})


def _reason(error: Any) -> str:
    if error.code == cerberus_errors.CUSTOM.code:
        return str(error.info[0])
    if error.code == cerberus_errors.UNKNOWN_FIELD.code:
        return "unknown field"
    if error.code == cerberus_errors.REQUIRED_FIELD.code:
        return "is required"
    if error.code == cerberus_errors.EMPTY_NOT_ALLOWED.code:
        return "must not be empty"
    return f"does not fit the rule {error.rule}" if error.rule else "is not valid"


# --- the same schema as JSON Schema 2020-12 ------------------------------------------------------

_JSON_TYPES: Final = {
    "strict_int": "integer",
    "integer": "integer",
    "finite": "number",
    "number": "number",
    "float": "number",
    "string": "string",
    "boolean": "boolean",
    "dict": "object",
    "list": "array",
}
_BOUNDS: Final = {"min": "minimum", "max": "maximum", "above": "exclusiveMinimum"}
_LENGTHS: Final = {
    "string": ("minLength", "maxLength"),
    "list": ("minItems", "maxItems"),
    "dict": ("minProperties", "maxProperties"),
}


def json_schema(schema: Schema) -> dict[str, Any]:
    """The JSON Schema (2020-12) of an object whose fields `schema` describes."""
    found: dict[str, Any] = {
        "type": "object",
        "properties": {name: field_json_schema(rules) for name, rules in schema.items()},
        "additionalProperties": False,
    }
    required = [name for name, rules in schema.items() if rules.get("required")]
    if required:
        found["required"] = required
    return found


def field_json_schema(rules: Schema) -> dict[str, Any]:
    """The JSON Schema of one field with these Cerberus rules."""
    names = type_names(rules)
    found: dict[str, Any] = {}
    if names == ["dict"] and "schema" in rules:
        found.update(json_schema(rules["schema"]))
    elif names:
        types = list(dict.fromkeys(_JSON_TYPES[name] for name in names))
        found["type"] = types[0] if len(types) == 1 else types
    if names == ["list"] and "schema" in rules:
        found["items"] = field_json_schema(rules["schema"])
    if "valuesrules" in rules:
        found["additionalProperties"] = field_json_schema(rules["valuesrules"])
    if "keysrules" in rules:
        found["propertyNames"] = field_json_schema(rules["keysrules"])
    if "anyof" in rules:
        found["anyOf"] = [field_json_schema(each) for each in rules["anyof"]]
    if "allowed" in rules:
        target = found.setdefault("items", {}) if names == ["list"] else found
        target["enum"] = list(rules["allowed"])
    found.update({_BOUNDS[rule]: rules[rule] for rule in _BOUNDS if rule in rules})
    for name in names:
        for rule, word in zip(("minlength", "maxlength"), _LENGTHS.get(name, ()), strict=False):
            if rule in rules:
                found[word] = rules[rule]
        if rules.get("empty") is False and name in _LENGTHS:
            found.setdefault(_LENGTHS[name][0], 1)
    if "regex" in rules:
        found["pattern"] = f"^(?:{rules['regex']})$"
    if "default" in rules:
        found["default"] = rules["default"]
    if rules.get("nullable"):
        _allow_null(found)
    meta = rules.get("meta")
    if isinstance(meta, Mapping):
        found.update({key: meta[key] for key in ("description", "examples") if key in meta})
    return found


def _allow_null(found: dict[str, Any]) -> None:
    if "enum" in found:
        found["enum"] = [*found["enum"], None]
    if "type" in found:
        types = found["type"] if isinstance(found["type"], list) else [found["type"]]
        found["type"] = [*types, "null"]
    if "anyOf" in found:
        found["anyOf"] = [*found["anyOf"], {"type": "null"}]


# --- schemas that come from devices --------------------------------------------------------------

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
    """Whether a payload schema that a device advertised can be trusted to do nothing but validate.

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
        return is_strict_int(value) and value >= 0  # type: ignore[operator]
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
