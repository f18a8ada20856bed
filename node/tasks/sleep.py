"""`sleep`: takes a slot for a while; a timer of the runner, no thread and no process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retire_cluster.node.tasks.base import as_number, no_strangers
from retire_cluster.schemas.task_types import BUILTIN, MAX_SLEEP_SECONDS

INFO = BUILTIN["sleep"]
DEFAULT_SECONDS = 1


def duration_seconds(payload: Mapping[str, Any]) -> float | int:
    """How long to sleep, as the payload gives it; raises `BadPayload`."""
    no_strangers(payload, INFO.payload_schema or {})
    value = as_number(payload, "duration", 0, MAX_SLEEP_SECONDS)
    return DEFAULT_SECONDS if value is None else value


def check(payload: Mapping[str, Any]) -> None:
    """Refuse a payload that cannot be used: raises `BadPayload`."""
    duration_seconds(payload)


def result(duration: float | int) -> dict[str, Any]:
    """What the task returns: the duration that was asked for."""
    return {"slept_for": duration}
