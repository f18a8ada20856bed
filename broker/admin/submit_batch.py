"""Submissions of one turn that were found good and will be made together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from retire_cluster.broker.admin.calls import Call
from retire_cluster.broker.core.model import TaskSpec


class Gathered(NamedTuple):
    """One of them."""

    call: Call
    specs: Sequence[TaskSpec]
    #: Seconds to wait before each may run.
    delays_seconds: Sequence[float]
    #: `(owner, key, fingerprint)` of an Idempotency-Key.
    idempotency: tuple[str, str, str] | None
    #: How long its client waits for the tasks to end.
    wait_seconds: float


class Gathering:
    """All of them, in the order they came."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """They have been made, or never will be."""
        self.submissions: list[Gathered] = []
        #: Tasks of them all.
        self.size = 0
        self._keys: set[tuple[str, str]] = set()

    def add(self, one: Gathered) -> None:
        """One more."""
        self.submissions.append(one)
        self.size += len(one.specs)
        if one.idempotency is not None:
            self._keys.add(one.idempotency[:2])

    def holds(self, owner: str, key: str) -> bool:
        """Whether one has this Idempotency-Key."""
        return (owner, key) in self._keys
