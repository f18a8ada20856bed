"""Submissions of one turn, to be made together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from retire_cluster.broker.admin.calls import Call
from retire_cluster.broker.core.model import TaskSpec


class Submission(NamedTuple):
    """One `task.submit` as it was read."""

    call: Call
    #: With what their payloads need, once they were checked.
    specs: list[TaskSpec]
    #: Seconds to wait before each may run.
    delays_seconds: Sequence[float]
    #: `(owner, key, fingerprint)` of an Idempotency-Key.
    idempotency: tuple[str, str, str] | None
    #: How long its client waits for the tasks to end; 0: it is answered at once.
    wait_seconds: float
    #: Address of a caller without a right of its own, once it was checked; None for others.
    stranger: str | None = None


class SubmissionBatch:
    """The checked submissions of a turn, in the order they came."""

    def __init__(self) -> None:
        self.submissions: list[Submission] = []
        #: Tasks of all submissions.
        self.size = 0
        self._keys: set[tuple[str, str]] = set()

    def add(self, one: Submission) -> None:
        """Take in a checked submission."""
        self.submissions.append(one)
        self.size += len(one.specs)
        if one.idempotency is not None:
            self._keys.add(one.idempotency[:2])

    def holds(self, owner: str, key: str) -> bool:
        """Whether a submission has this Idempotency-Key."""
        return (owner, key) in self._keys

    def clear(self) -> None:
        """Forget all submissions."""
        self.submissions = []
        self.size = 0
        self._keys.clear()
