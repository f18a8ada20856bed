"""Pieces of which the schemas of answers are made, as JSON Schema (2020-12)."""

from __future__ import annotations

from typing import Any, Final

from retire_cluster.schemas.vocabulary import PRIORITIES, DeviceStatus, TaskStatus

Json = dict[str, Any]


def object_of(required: Json, optional: Json | None = None, description: str = "") -> Json:
    """Describe an object with these fields; further ones are allowed."""
    found: Json = {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }
    return {**found, "description": description} if description else found


def list_of(items: Json) -> Json:
    """Describe a list of these."""
    return {"type": "array", "items": items}


def map_of(values: Json) -> Json:
    """Describe an object whose values are these, under any name."""
    return {"type": "object", "additionalProperties": values}


def or_null(schema: Json) -> Json:
    """Describe the same or null."""
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def ref(name: str) -> Json:
    """Refer to a component by name."""
    return {"$ref": f"#/components/schemas/{name}"}


TEXT: Final[Json] = {"type": "string"}
BOOL: Final[Json] = {"type": "boolean"}
COUNT: Final[Json] = {"type": "integer", "minimum": 0}
NUMBER: Final[Json] = {"type": "number"}
TIME: Final[Json] = {
    "type": "string",
    "format": "date-time",
    "pattern": "Z$",
    "examples": ["2023-01-01T12:00:00Z"],
}
UPTIME: Final[Json] = {"type": "string", "examples": ["2d 4h 30m"]}
ANY_OBJECT: Final[Json] = {"type": "object"}
COUNTS: Final[Json] = map_of(COUNT)
TASK_ID: Final[Json] = {
    "type": "string",
    "format": "uuid",
    "examples": ["550e8400-e29b-41d4-a716-446655440000"],
}
DEVICE_ID: Final[Json] = {"type": "string", "examples": ["laptop-001"]}
STATUS: Final[Json] = {"type": "string", "enum": [str(status) for status in TaskStatus]}
PRIORITY: Final[Json] = {"type": "string", "enum": list(PRIORITIES)}
DEVICE_STATUS: Final[Json] = {"type": "string", "enum": [str(status) for status in DeviceStatus]}
HEALTH_WORD: Final[Json] = {"type": "string", "enum": ["healthy", "degraded", "unhealthy"]}

RESOURCES: Final = object_of({"cpu_cores": COUNT, "memory_gb": NUMBER, "storage_gb": NUMBER})
