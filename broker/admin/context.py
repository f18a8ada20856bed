"""What the admin socket's operations work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from retire_cluster.broker.admin.calls import Call, ParkedPoll, Reply
from retire_cluster.broker.admin.health import Health
from retire_cluster.broker.admin.rate_limit import RequestWindows
from retire_cluster.broker.admin.submission.batch import SubmissionBatch
from retire_cluster.broker.admin.submission.reading import SpecCache
from retire_cluster.broker.admin.submission.strangers import Strangers
from retire_cluster.broker.core import cluster
from retire_cluster.broker.core.events import Event, Now, Ticket
from retire_cluster.broker.core.instructions import Instruction
from retire_cluster.broker.core.rows import OutcomeRow, TaskRow
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.broker.facts import Facts
from retire_cluster.broker.store.base import Store, StoreError
from retire_cluster.conf.settings import Settings
from retire_cluster.schemas.errors import ClusterError, DeviceNotFound, TaskNotFound


@dataclass(frozen=True, repr=False)
class AdminContext:
    """The cluster's state and store, and what operations share from call to call."""

    state: ClusterState
    store: Store
    #: The settings this process was started with; `config.reset` goes back to them.
    base: Settings
    facts: Facts
    health: Health = field(default_factory=Health)
    windows: RequestWindows = field(default_factory=RequestWindows)
    #: Calls of `events.poll` that wait for something to happen.
    polls: list[ParkedPoll] = field(default_factory=list)
    specs: SpecCache = field(default_factory=SpecCache)
    #: Submissions of the turn under way that are still to be made.
    batch: SubmissionBatch = field(default_factory=SubmissionBatch)
    strangers: Strangers = field(default_factory=Strangers)
    #: Instructions of the turn under way.
    turn: list[Instruction] = field(default_factory=list)
    #: Answers of the turn under way, to be sent after its commit.
    answers: list[tuple[Ticket, Reply | ClusterError]] = field(default_factory=list)

    def __repr__(self) -> str:
        return (
            f"<AdminContext: {len(self.state.tasks)} tasks, {len(self.polls)} polls,"
            f" {self.batch.size} tasks to make, {len(self.turn)} instructions,"
            f" {len(self.answers)} answers>"
        )

    def begin_turn(self) -> None:
        """Forget what the turn before has collected."""
        self.turn.clear()
        self.answers.clear()

    def apply(self, event: Event, now: Now) -> list[Instruction]:
        """Apply an event in this turn and return its instructions."""
        found = cluster.handle(self.state, event, now)
        self.turn.extend(found)
        return found

    def forget(self) -> None:
        """Forget everything that would have been answered: the state is loaded anew."""
        self.begin_turn()
        self.polls.clear()
        self.batch.clear()

    def watch_space(self) -> None:
        """Refuse new tasks while the store has too little room, and log when that changes."""
        least = self.state.settings.database.min_free_percent
        reason = ""
        try:
            free = self.store.free_percent()
        except StoreError as error:
            free, reason = least, str(error)
        if free < least:
            reason = (
                f"{free:.1f} % of the main node's disk is free, less than the {least:g} % of "
                "database.min_free_percent: no new tasks until there is room"
            )
        self.health.refuse_tasks(reason)

    # --- finding things --------------------------------------------------------------------------

    def number(self, task_id: str) -> int:
        """Return a present task's number. Raises `TaskNotFound`."""
        return self.numbers((task_id,))[0]

    def numbers(self, task_ids: Sequence[str]) -> list[int]:
        """Return present tasks' numbers. Raises `TaskNotFound` naming the first that is absent."""
        return [number for number, _ in self.references(task_ids)]

    def submission(self, first_id: str, count: int) -> list[tuple[int, int]]:
        """Return tasks that were submitted together, as `references`. Raises `TaskNotFound`."""
        ((first, created_ms),) = self.references((first_id,))
        numbers = range(first, first + count)
        found = [(number, created_ms) for number in numbers]
        live = self.state.tasks
        if all(n in live and live[n].created_ms == created_ms for n in numbers):
            return found
        # Some have ended, or were never part of it.
        return self.references([self.state.ids.public(*one) for one in found])

    def references(self, task_ids: Sequence[str]) -> list[tuple[int, int]]:
        """Return present tasks' numbers and creation times (epoch ms).

        Raises `TaskNotFound` naming the first that is not there.
        """
        read = [self.state.ids.read(task_id) for task_id in task_ids]
        ended = [
            found[0] for found in read if found is not None and found[0] not in self.state.tasks
        ]
        heads = self.store.heads(ended) if ended else {}
        references = []
        for task_id, found in zip(task_ids, read, strict=True):
            number, created_ms = found or (0, 0)
            task = self.state.tasks.get(number) or heads.get(number)
            if task is None or task.created_ms != created_ms or not self.state.ledger.has(number):
                raise TaskNotFound(f"There is no task {task_id[:64]!r}.")
            references.append((number, created_ms))
        return references

    def ended(self, number: int, *, results: bool = False) -> OutcomeRow | None:
        """Return how a task ended; None while it lives. Raises `StoreError`."""
        if number in self.state.tasks:
            return None
        return self.store.outcomes((number,), results=results).get(number)

    def row(self, number: int) -> TaskRow:
        """Return a present task's stored row. Raises `TaskNotFound`, `StoreError`."""
        row = self.store.task(number)
        if row is None:
            raise TaskNotFound
        return row

    def device_id(self, call: Call) -> str:
        """Return the id of the call's registered device. Raises `DeviceNotFound`."""
        device_id: str = call.args["device_id"]
        if device_id not in self.state.devices:
            raise DeviceNotFound(f"There is no device {device_id[:100]!r}.")
        return device_id
