"""`system_info`: what the device knows of itself, and how it is doing now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retire_cluster.node.tasks.base import no_strangers
from retire_cluster.schemas.task_types import BUILTIN

INFO = BUILTIN["system_info"]


def check(payload: Mapping[str, Any]) -> None:
    """Refuse a payload that cannot be used: raises `BadPayload`."""
    no_strangers(payload, INFO.payload_schema or {})


def result(capabilities: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the task returns: the capabilities, flat, and the metrics beside them."""
    return {**capabilities, "metrics": dict(metrics)}
