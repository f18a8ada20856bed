"""Rows for the tests of stores."""

from __future__ import annotations

from typing import Any

from retire_cluster.broker.core.rows import OutcomeRow, Snapshot, TaskRow
from retire_cluster.broker.store.base import Store
from tests.unit.broker.kit import WALL_MS


def load(store: Store, inline_bytes: int = 100) -> Snapshot:
    found = store.load(lambda newest: newest + 1, inline_bytes)
    found.index = list(found.index)
    return found


def task(number: int, payload: bytes = b'{"a":1}') -> TaskRow:
    return TaskRow(
        number, WALL_MS, "echo", 1, 300, 3, b'{"requirements":{},"metadata":{}}', payload
    )


def outcome(number: int, **fields: Any) -> OutcomeRow:
    row = OutcomeRow(
        number, "failed", "box", 2, 1, 2, WALL_MS, 0.5, "error", "no", 1, b'{"x":1}', b"{}", 9
    )
    return row._replace(**fields)
