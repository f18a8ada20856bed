"""The Cerberus dialect of this project: strict types, own rules, reasons a person understands.

What Cerberus alone gets wrong (reproduced with 1.3.8) and this mends: `integer` takes True, NaN
passes `min` and `max`, `$` accepts a trailing newline, null takes a field's default.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import cerberus
from cerberus.validator import TypeDefinition

from retire_cluster.schemas.bounds import is_finite, is_whole
from retire_cluster.schemas.text.hosts import HostError, read_host
from retire_cluster.schemas.text.json_text import JSONError, dumps

#: Field name → Cerberus rules.
Schema = Mapping[str, Any]


#: Type name: whether a value is of it, and what it is called.
TYPES: Final[dict[str, tuple[Callable[[object], bool], str]]] = {
    "strict_int": (is_whole, "a whole number"),
    "integer": (is_whole, "a whole number"),
    "finite": (is_finite, "a number"),
    "number": (is_finite, "a number"),
    "float": (is_finite, "a number"),
    "string": (lambda value: isinstance(value, str), "a text"),
    "boolean": (lambda value: isinstance(value, bool), "true or false"),
    "dict": (lambda value: isinstance(value, dict), "an object"),
    "list": (lambda value: isinstance(value, list), "a list"),
}
_NUMERIC: Final = frozenset({"strict_int", "integer", "finite", "number", "float"})


def type_names(rules: Schema) -> list[str]:
    """Return the names under `type`, which Cerberus allows to be one or several."""
    declared = rules.get("type", [])
    return [declared] if isinstance(declared, str) else list(declared)


def describe(rules: Schema) -> str:
    """Say what a field with these rules must be: "a whole number from 1 to 10"."""
    names = type_names(rules)
    if not names and "anyof" in rules:
        return " or ".join(dict.fromkeys(describe(each) for each in rules["anyof"]))
    words = " or ".join(dict.fromkeys(TYPES[name][1] for name in names if name in TYPES))
    text = words or "a value"
    if _NUMERIC.intersection(names):
        low, high, above = rules.get("min"), rules.get("max"), rules.get("above")
        if above is not None:
            text += f" above {above:g}" + (f", at most {high:g}" if high is not None else "")
        elif low is not None and high is not None:
            text += f" from {low:.15g} to {high:.15g}"
        elif low is not None:
            text += f" of at least {low:.15g}"
        elif high is not None:
            text += f" of at most {high:.15g}"
    elif "allowed" in rules and "list" not in names:
        text = "one of " + ", ".join(str(word) for word in rules["allowed"])
    return text + (" or null" if rules.get("nullable") else "")


def _length_words(rules: Schema, value: object) -> str:
    unit = "character" if isinstance(value, str) else "item"
    low, high = rules.get("minlength"), rules.get("maxlength")
    unit += "" if (low if high is None else high) == 1 else "s"
    if low is not None and high is not None:
        return f"must have {low} to {high} {unit}"
    bound = f"at least {low}" if high is None else f"at most {high}"
    return f"must have {bound} {unit}"


#: Errors of one document that are listed; further ones are not.
MAX_ERRORS: Final = 100


class StrictValidator(cerberus.Validator):  # type: ignore[misc]
    """Our dialect: strict types, `above` (exclusive minimum), `max_bytes`, full-match `regex`."""

    def _error(self, *args: Any) -> None:
        """Note what is wrong, as long as there is any use in it.

        Cerberus sorts all it has after each: ten thousand unknown names took two minutes. The count
        is of the whole document; whatever has an error still has one.
        """
        # Children are made with their parent's configuration.
        seen = self._config.setdefault("errors_seen", [0])
        if not self.is_child and not self._errors:
            seen[0] = 0
        seen[0] += 1
        if seen[0] <= MAX_ERRORS or not self._errors:
            super()._error(*args)

    types_mapping: ClassVar[dict[str, Any]] = {
        **cerberus.Validator.types_mapping,
        "strict_int": TypeDefinition("strict_int", (int,), (bool,)),
        "finite": TypeDefinition("finite", (int, float), (bool,)),
    }

    def _rules(self, field: Any) -> Schema:
        rules = self._resolve_rules_set(self.schema.get(field))
        return rules if isinstance(rules, Mapping) else {}

    # Each docstring below is the schema by which Cerberus checks that rule's argument.

    def _validate_type(self, data_type: Any, field: Any, value: object) -> None:
        """{'type': ['string', 'list'], 'check_with': 'type'}"""
        names = [data_type] if isinstance(data_type, str) else list(data_type)
        if not all(name in TYPES for name in names):
            super()._validate_type(data_type, field, value)
        elif not any(TYPES[name][0](value) for name in names):
            self._error(field, f"must be {describe(self._rules(field))}")
            self._drop_remaining_rules()

    def _validate_nullable(self, nullable: bool, field: Any, value: object) -> None:
        """{'type': 'boolean'}"""
        if value is None:
            if not nullable:
                self._error(field, f"must be {describe(self._rules(field))}, not null")
            self._drop_remaining_rules()

    def _validate_min(self, low: Any, field: Any, value: Any) -> None:
        """{'nullable': False }"""
        if is_finite(value) and value < low:
            self._error(field, f"must be {describe(self._rules(field))}")

    def _validate_max(self, high: Any, field: Any, value: Any) -> None:
        """{'nullable': False }"""
        if is_finite(value) and value > high:
            self._error(field, f"must be {describe(self._rules(field))}")

    def _validate_above(self, limit: Any, field: Any, value: Any) -> None:
        """{'type': 'number'}"""
        if is_finite(value) and value <= limit:
            self._error(field, f"must be {describe(self._rules(field))}")

    def _validate_minlength(self, low: int, field: Any, value: Any) -> None:
        """{'type': 'integer'}"""
        if isinstance(value, (str, list, dict)) and len(value) < low:
            self._error(field, _length_words(self._rules(field), value))

    def _validate_maxlength(self, high: int, field: Any, value: Any) -> None:
        """{'type': 'integer'}"""
        if isinstance(value, (str, list, dict)) and len(value) > high:
            self._error(field, _length_words(self._rules(field), value))

    def _validate_allowed(self, allowed: Sequence[Any], field: Any, value: Any) -> None:
        """{'type': 'container'}"""
        found = value if isinstance(value, list) else [value]
        if any(type(each) in (dict, list) or each not in allowed for each in found):
            self._error(field, "must be one of " + ", ".join(str(word) for word in allowed))

    def _validate_regex(self, pattern: str, field: Any, value: Any) -> None:
        """{'type': 'string'}"""
        if isinstance(value, str) and re.fullmatch(pattern, value) is None:
            meta = self._rules(field).get("meta")
            reason = meta.get("reason") if isinstance(meta, Mapping) else None
            self._error(field, reason or f"must match {pattern}")

    def _check_with_host(self, field: Any, value: Any) -> None:
        if isinstance(value, str):
            try:
                read_host(value)
            except HostError as error:
                self._error(field, str(error))

    def _validate_max_bytes(self, limit: int, field: Any, value: Any) -> None:
        """{'type': 'integer'}"""
        if json_size(value) > limit:
            self._error(field, f"must take at most {limit} bytes as JSON")

    def _normalize_coerce_page_size(self, value: int) -> int:
        return min(value, self.page_size_limit)

    #: A `page_size` above this is clamped, not refused (docs/contract.md, Envelope and errors).
    page_size_limit = 100

    def _normalize_default(self, mapping: Any, schema: Any, field: Any) -> None:
        """{'nullable': True}"""
        if field not in mapping:
            mapping[field] = copy.deepcopy(schema[field]["default"])


def json_size(value: object) -> int:
    """Return the bytes of `value` as JSON; for what JSON cannot hold more than any bound."""
    try:
        return len(dumps(value))
    except JSONError:
        return 2**62
