"""What the examples of the REST document are compared by."""

from __future__ import annotations

import re
import uuid
from typing import Any

UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
UPTIME = re.compile(r"(\d+d )?(\d+h )?\d+m|\d+d( \d+h)?|\d+h")
API = "/api/v1"


def shape(example: Any, found: Any, path: str = "") -> None:
    """Every field of the example is there, of the example's type."""
    if isinstance(example, dict):
        assert isinstance(found, dict), path
        for name, value in example.items():
            assert name in found, f"{path}.{name} is missing"
            shape(value, found[name], f"{path}.{name}")
    elif isinstance(example, (bool, str)):
        assert type(found) is type(example), path
    elif isinstance(example, (int, float)):
        assert isinstance(found, (int, float)), path
        assert not isinstance(found, bool), path
    elif isinstance(example, list) and example:
        assert isinstance(found, list), path
        for item in found:
            shape(example[0], item, f"{path}[]")


def enveloped(reply: Any) -> dict[str, Any]:
    document: dict[str, Any] = reply.json
    assert document["status"] == "success"
    assert UTC.fullmatch(document["timestamp"])
    uuid.UUID(document["request_id"])
    assert reply.headers["X-Request-ID"] == document["request_id"]
    assert reply.headers["Content-Type"] == "application/json"
    return document
