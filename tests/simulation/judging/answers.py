"""What the main node says: it rests on what is committed, and answers agree with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from retire_cluster.schemas.protocol import wire
from tests.simulation.client import Asked, Submission
from tests.simulation.engine import Violation
from tests.simulation.judging.facts import (
    ENDED,
)
from tests.simulation.network import Frames, Pipe

if TYPE_CHECKING:
    from tests.simulation.judging.judge import Judge

#: Refusals that say nothing about what happened in the turn under way.
_HARMLESS: Final = frozenset(
    {"VALIDATION_ERROR", "NOT_FOUND", "CLUSTER_UNAVAILABLE", "INTERNAL_ERROR"}
)


class Answers:
    """Hears the calls of clients and every message of the main node."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._asked: dict[int, Asked] = {}

    def publishes(self) -> None:
        """The event feed speaks."""
        if self.judge.book.pending:
            self.judge.fail(
                f"events are published before {self.judge.book.pending[0]} is committed"
            )

    def sends(self, pipe: Pipe, frames: Frames, *, bus: bool) -> None:
        """The main node sends a message."""
        if bus:
            if self.judge.book.pending:
                self.judge.fail(
                    f"{frames[1]!r} is sent before {self.judge.book.pending[0]} is committed"
                )
            if self.judge.engine.story is not None:
                self.judge.world.tell_message(f"main>{pipe.dial.peer.name}", "->", frames)
            return
        message = wire.decode(wire.ADMIN, frames)
        header = message.header
        asked = self._asked.get(header["id"])
        if asked is None:
            self.judge.fail(f"an answer to the unknown call {header['id']}")
            return
        if message.verb == b"ERROR":
            if self.judge.book.pending and header["code"] not in _HARMLESS:
                self.judge.fail(f"{asked.op}: {header['code']} rests on what is not committed")
            self.judge.engine.tell("main", f"refuses {asked.op} of {asked.client.name}: {header}")
            return
        if self.judge.book.pending:
            self.judge.fail(
                f"{asked.op} is answered before {self.judge.book.pending[0]} is committed"
            )
        data = header["data"]
        self.judge.engine.tell("main", f"answers {asked.op} of {asked.client.name}: {data}")
        if asked.op == "task.submit":
            assert asked.submission is not None
            self._acknowledged(asked.submission, data["task_ids"])
        elif asked.op == "task.wait":
            for result in data["results"]:
                self._told(result["task_id"], result["status"])
            for task_id in data["unfinished"]:
                self._told(task_id, None)
        elif asked.op in ("task.result", "task.status", "task.cancel"):
            status = data["status"]
            self._told(data["task_id"], status if status in ENDED else None)

    def asked(self, asked: Asked) -> None:
        """A client calls."""
        self._asked[asked.number] = asked

    def _number(self, task_id: str) -> int:
        assert self.judge.state is not None
        read = self.judge.state.ids.read(task_id)
        if read is None or read[0] not in self.judge.book.facts:
            raise Violation(f"{task_id} is no task")
        return read[0]

    def _acknowledged(self, submission: Submission, task_ids: list[str]) -> None:
        numbers = [self._number(task_id) for task_id in task_ids]
        facts = [self.judge.book.facts[number] for number in numbers]
        found = [(fact.submission, fact.index) for fact in facts]
        if found != [(submission.name, index) for index in range(len(submission.payloads))]:
            self.judge.fail(f"{submission.name} is answered with {found}", min(numbers))
        if submission.key and submission.task_ids and submission.task_ids != task_ids:
            self.judge.fail(
                f"{submission.name} was answered {submission.task_ids} before", min(numbers)
            )
        self.judge.acknowledged.update(numbers)

    def _told(self, task_id: str, status: str | None) -> None:
        number = self._number(task_id)
        outcome = self.judge.book.facts[number].outcome
        known = None if outcome is None else outcome.status
        if known != status:
            self.judge.fail(
                f"a client is told that task {number} is {status}, it is {known}", number
            )
