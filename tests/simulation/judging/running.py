"""What really runs on devices: what may not run twice does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retire_cluster.node.core.records import Attempt
from retire_cluster.schemas.protocol.messages import AttemptKey

if TYPE_CHECKING:
    from tests.simulation.device import Worker
    from tests.simulation.judging.judge import Judge


class Running:
    """Hears what devices are given, start and end."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        #: Attempts that were given to a device's process.
        self.delivered: set[AttemptKey] = set()
        #: Task → times it was really started anywhere.
        self._starts: dict[int, int] = {}
        #: What really runs now: key → where.
        self._running: dict[AttemptKey, Worker] = {}

    def received(self, worker: Worker, attempts: Sequence[Attempt]) -> None:
        """A worker takes attempts."""
        for attempt in attempts:
            self.delivered.add(attempt.key)
            self.judge.engine.tell(worker.name, f"takes attempt {attempt.key}", [attempt.key[0]])

    def started(self, key: AttemptKey, worker: Worker, task_type: str) -> int:
        """An attempt really starts; the number of times its task was started so far."""
        count = self._starts[key[0]] = self._starts.get(key[0], 0) + 1
        self.judge.engine.tell(worker.name, f"starts attempt {key}, start number {count}", [key[0]])
        if task_type in self.judge.world.plan.once_types:
            self._check_alone(key, worker)
        self._running[key] = worker
        return count

    def stopped(self, key: AttemptKey, worker: Worker) -> None:
        """An attempt does not run any more."""
        self.judge.engine.tell(worker.name, f"attempt {key} runs no more", [key[0]])
        self._running.pop(key, None)

    def _check_alone(self, key: AttemptKey, worker: Worker) -> None:
        """What may not run twice does not run in two places, as far as devices can promise it."""
        fact = self.judge.book.facts.get(key[0])
        if (
            fact is None
            or fact.generation
            or fact.outcome is not None
            or self.judge.world.plan.excuses
        ):
            return  # a cancelled task may go on until its device hears of it
        if self._excused(worker):
            return
        for other, where in self._running.items():
            if other[3] in self.judge.void:
                continue  # its task was lost with what came after the backup, or given out anew
            if other[0] == key[0] and not self._excused(where):
                self.judge.fail(
                    f"task {key[0]} runs as {key} on {worker.name} and {where.name}", key[0]
                )

    def _excused(self, worker: Worker) -> bool:
        """Whether a worker cannot be held to stopping in time."""
        return (
            worker.was_frozen
            or not worker.alive
            or not worker.kills_on_lease_loss
            or worker.device_id in self.judge.removed
            # Whoever says HELLO with an id takes over what the other one had.
            or any(clone.profile.device_id == worker.device_id for clone in self.judge.world.clones)
        )
