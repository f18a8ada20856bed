"""Translate a schema of our Cerberus dialect to JSON Schema 2020-12, which OpenAPI publishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from retire_cluster.schemas.rest.dialect import Schema, type_names

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
    """Return the JSON Schema (2020-12) of an object whose fields `schema` describes."""
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
