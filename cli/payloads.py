"""From words typed in a shell to a task: payload, requirements, metadata. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.task_types import BUILTIN

_LIST_REQUIREMENTS = frozenset({"required_tags"})
_TEXT_REQUIREMENTS = frozenset({"required_platform", "required_role"})


def payload_from_words(task_type: str, words: Sequence[str]) -> dict[str, Any]:
    """The payload that `name=value` words describe.

    A value is read as JSON where it is JSON (`3`, `true`, `["a"]`) and as text elsewhere; a field
    that the built-in type declares as text stays text. `name:=JSON` must be JSON.

    Raises `ValidationError` naming the word that is wrong.
    """
    payload: dict[str, Any] = {}
    for word in words:
        name, text = read_pair(word, "payload")
        if name.endswith(":"):
            name = name[:-1]
            payload[name] = read_json(text, f"payload.{name}")
        elif _is_text(task_type, name):
            payload[name] = text
        else:
            payload[name] = read_value(text)
    return payload


def read_pair(text: str, field: str) -> tuple[str, str]:
    """`name=value` split. Raises `ValidationError` naming `field`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValidationError(field, f"{text!r} is not of the form name=value")
    return name, value


def read_value(text: str) -> Any:
    """A value as typed: JSON where it is JSON, the text itself where it is not."""
    try:
        return read_json(text, "")
    except ValidationError:
        return text


def read_json_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object; raises `ValidationError` that says `where` the text came from."""
    value = read_json(text, where)
    if not isinstance(value, dict):
        raise ValidationError(where, "a JSON object is required")
    return value


def read_json(text: str, where: str) -> Any:
    """JSON as the API takes it (no NaN); raises `ValidationError` naming `where`."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValidationError(where, f"is not JSON: {error}") from None


def requirements_from_words(words: Sequence[str]) -> dict[str, Any]:
    """The requirements that `name=value` words describe; `required_tags=a,b` is a list."""
    found: dict[str, Any] = {}
    for word in words:
        name, text = read_pair(word, "requirements")
        if name in _LIST_REQUIREMENTS and not text.startswith("["):
            found[name] = [*found.get(name, []), *filter(None, text.split(","))]
        elif name in _TEXT_REQUIREMENTS:
            found[name] = text
        else:
            found[name] = read_value(text)
    return found


def _is_text(task_type: str, name: str) -> bool:
    info = BUILTIN.get(task_type)
    schema = (info.payload_schema if info else None) or {}
    return bool(schema.get(name, {}).get("type") == "string")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
