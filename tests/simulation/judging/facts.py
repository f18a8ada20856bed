"""What must be true of each task, kept beside the main node and independent of it.

`Book` learns only from what the state tells the store and the event log. It can be rolled back to
what is durable: a turn that is not committed never happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.model import Device
from retire_cluster.broker.core.rows import OutcomeRow, TaskRow
from retire_cluster.schemas.protocol.messages import AttemptKey
from retire_cluster.schemas.text.json_text import loads
from tests.simulation.engine import Violation

#: The contract's state machine: (before, after); None: does not exist yet.
LEGAL: Final = frozenset(
    {
        (None, "queued"), (None, "pending"),
        ("pending", "queued"), ("pending", "cancelled"),
        ("queued", "assigned"), ("queued", "cancelled"),
        ("assigned", "running"), ("assigned", "pending"), ("assigned", "cancelled"),
        ("assigned", "failed"),
        ("running", "success"), ("running", "failed"), ("running", "timeout"),
        ("running", "cancelled"), ("running", "pending"),
        ("failed", "queued"), ("timeout", "queued"), ("cancelled", "queued"),
    }
)  # fmt: skip
ENDED: Final = frozenset({"success", "failed", "timeout", "cancelled"})
HELD: Final = frozenset({"assigned", "running"})


@dataclass
class Fact:
    """One task."""

    number: int
    task_type: str
    priority: int
    max_retries: int
    requirements: dict[str, Any]
    #: Who wanted it: a submission's name and the place in it.
    submission: str
    index: int
    status: str | None = None
    attempt: int = 0
    #: The current attempt, and the device that has it.
    key: AttemptKey | None = None
    device: str = ""
    #: Retries used in this generation, and in those before.
    retries: int = 0
    stored: int = 0
    killers: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    tried: frozenset[str] = frozenset()
    #: Device → how often it gave the task back free of charge, and its attempt of the newest row.
    given_back: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Attempts of these that the store has a row of.
    free_rows: frozenset[int] = frozenset()
    #: Monotonic time before which it may not be placed again, while the main node lives.
    not_before_mono: float = 0.0
    #: The last attempt's device had said before that it cannot run this task.
    said_before: bool = False
    outcome: OutcomeRow | None = None
    #: Times a client had it run again.
    generation: int = 0


@dataclass
class Book:
    """All facts: those that are durable, and those of the turn under way."""

    facts: dict[int, Fact] = field(default_factory=dict)
    #: Task → its fact before this turn (None: it did not exist).
    _before: dict[int, Fact | None] = field(default_factory=dict)
    #: Writes that are not committed yet.
    pending: list[ins.Write] = field(default_factory=list)
    _documents: dict[bytes, dict[str, Any]] = field(default_factory=dict)

    def touch(self, number: int) -> Fact:
        """A fact, to be changed."""
        fact = self.facts.get(number)
        if fact is None:
            raise Violation(f"task {number} is unknown", number)
        if number not in self._before:
            self._before[number] = fact
            fact = self.facts[number] = replace(fact)
        return fact

    def add(self, row: TaskRow) -> Fact:
        """A new task."""
        if row.number in self.facts:
            raise Violation(f"the number {row.number} is given to a second task", row.number)
        document = self._documents.get(row.document)
        if document is None:
            document = self._documents[row.document] = loads(row.document)["requirements"] or {}
        wish = loads(row.payload)
        self._before[row.number] = None
        fact = self.facts[row.number] = Fact(
            row.number, row.task_type, row.priority, row.max_retries, document,
            wish["submission"], wish["index"],
        )  # fmt: skip
        return fact

    def commit(self) -> None:
        """The turn is durable."""
        self._before.clear()
        self.pending.clear()

    def roll_back(self) -> None:
        """The turn never happened."""
        for number, fact in self._before.items():
            if fact is None:
                del self.facts[number]
            else:
                self.facts[number] = fact
        self.commit()

    def on(self, device_id: str) -> Iterator[Fact]:
        """Tasks that are on a device."""
        return (fact for fact in self.facts.values() if fact.key and fact.device == device_id)


def misfits(fact: Fact, device: Device) -> list[str]:
    """Why a device can never run a task."""
    need, has = fact.requirements, device.capabilities
    wrong = []
    if fact.task_type not in device.types:
        wrong.append("it does not offer the type")
    for name, fact_name in (
        ("min_cpu_cores", "cpu_count"),
        ("min_memory_gb", "memory_total_gb"),
        ("min_storage_gb", "storage_total_gb"),
    ):
        if name in need and not has.get(fact_name, 0) >= need[name]:
            wrong.append(name)
    if need.get("required_platform") not in (None, device.platform):
        wrong.append("required_platform")
    if need.get("required_role") not in (None, device.role):
        wrong.append("required_role")
    if not set(need.get("required_tags") or ()) <= set(device.tags):
        wrong.append("required_tags")
    if need.get("gpu_required") and has.get("has_gpu") is not True:
        wrong.append("gpu_required")
    if need.get("internet_required") and has.get("has_internet") is not True:
        wrong.append("internet_required")
    return wrong


def check_device(fact: Fact, device: Device) -> None:
    """Raises `Violation` when a device was given a task that it does not fit."""
    wrong = misfits(fact, device)
    if not device.online or not device.accepting or device.drained:
        wrong.append("it takes no work now")
    if wrong:
        raise Violation(
            f"task {fact.number} was given to {device.device_id}: {', '.join(wrong)}", fact.number
        )


def check_slots(facts: Iterable[Fact], device: Device) -> None:
    """Raises `Violation` when more was placed on a device than its slots hold."""
    whole = instant = 0
    for fact in facts:
        info = device.types.get(fact.task_type)
        if info is not None and info.instant:
            instant += 1
        else:
            whole += 1
    if whole + -(-instant // 512) > device.slots:
        raise Violation(
            f"{device.device_id} has {device.slots} slots and {whole} + {instant} instant attempts"
        )
