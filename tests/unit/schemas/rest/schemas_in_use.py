"""Every schema of the Cerberus dialect that anything is validated with, found by looking for them.

A schema that is added anywhere is found without being entered here: constants of modules by their
form, those of endpoints, of admin operations and of task types by their tables.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

from retire_cluster import api, broker, schemas
from retire_cluster.broker.admin.table import OPERATIONS
from retire_cluster.schemas.rest.dialect import TYPES, type_names
from retire_cluster.schemas.rest.endpoints import ENDPOINTS
from retire_cluster.schemas.task_types import BUILTIN

RULES = frozenset(
    {
        "type", "required", "nullable", "min", "max", "above", "minlength", "maxlength", "allowed",
        "regex", "max_bytes", "default", "coerce", "schema", "keysrules", "valuesrules", "empty",
        "meta", "anyof", "check_with",
    }
)  # fmt: skip
#: Importing it builds the facade from the environment.
_NOT_IMPORTED = "retire_cluster.api.wsgi"


def schemas_in_use() -> dict[str, dict[str, Any]]:
    """Name → schema; equal ones once."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for name, schema in _all():
        found.setdefault(repr(schema), (name, schema))
    return {name: dict(schema) for name, schema in found.values()}


def _all() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for module_name in _modules():
        module = importlib.import_module(module_name)
        for name, value in vars(module).items():
            if name.isupper() and is_schema(value):
                yield f"{module_name.removeprefix('retire_cluster.')}.{name}", value
    for endpoint in ENDPOINTS.values():
        yield f"{endpoint.operation_id} query", endpoint.query
        if endpoint.body is not None:
            yield f"{endpoint.operation_id} body", endpoint.body
    for operation in OPERATIONS.values():
        if operation.schema is not None:
            yield f"admin {operation.name}", operation.schema
    for info in BUILTIN.values():
        if info.payload_schema is not None:
            yield f"payload of {info.name}", info.payload_schema


def _modules() -> Iterator[str]:
    for package in (schemas, broker, api):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name != _NOT_IMPORTED:
                yield found.name


def is_schema(value: object) -> bool:
    """Tell whether a value has the form of a schema: names to rules of the dialect."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and _is_rules(rules) for name, rules in value.items())
    )


def _is_rules(rules: object) -> bool:
    return (
        isinstance(rules, Mapping)
        and bool({"type", "anyof"} & rules.keys())
        and rules.keys() <= RULES
        and all(name in TYPES for name in type_names(rules))
    )
