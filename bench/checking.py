"""What the fast path of validation gains over Cerberus, document by document."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from bench.report import Figure, ratios
from retire_cluster.schemas.rest.requests import TASK_FIELDS, TASK_LIST_QUERY, TASK_SUBMISSION
from retire_cluster.schemas.rest.validation import by_cerberus, validate

_SECONDS = 0.3
_FIELDS: dict[str, Any] = {
    "task_type": "echo",
    "requirements": {"min_memory_gb": 2, "required_tags": ["gpu"], "timeout_seconds": 60},
    "metadata": {"name": "nightly"},
}
_DOCUMENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "submission": (TASK_SUBMISSION, {**_FIELDS, "payload": {"message": "Hello World"}}),
    "fields of a task": (TASK_FIELDS, _FIELDS),
    "query of a list": (TASK_LIST_QUERY, {"page": 2, "page_size": 50, "status": "queued"}),
}


def validation(runs: int) -> list[Figure]:
    """Documents/s validated by the fast path, beside the same by Cerberus alone."""
    found = []
    for name, (schema, document) in _DOCUMENTS.items():
        fast, slow = Figure(name, "documents/s"), Figure(f"{name}, Cerberus", "documents/s")
        for _ in range(runs):
            fast.values.append(_rate(functools.partial(validate, schema, document)))
            slow.values.append(_rate(functools.partial(by_cerberus, schema, document)))
        found += [fast, slow, ratios(f"{name}: fast / Cerberus", fast, slow)]
    return found


def _rate(check: Callable[[], object]) -> float:
    check()
    began = time.perf_counter()
    count = 0
    while (passed := time.perf_counter() - began) < _SECONDS:
        check()
        count += 1
    return count / passed
