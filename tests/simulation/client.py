"""Clients: they submit, wait, ask, cancel, retry and administer, and never trust one answer.

A client keeps a journal (on its disk) of what it submitted and what was acknowledged; it crashes
and comes back with it. A submission with an idempotency key is said again until it is answered.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.text.json_text import dumps
from tests.simulation.network import Dial, Frames

if TYPE_CHECKING:
    from tests.simulation.world import World

TIMEOUT_SECONDS = 2.0
_OWNER = "simulation"


@dataclass
class Submission:
    """One intent to have some tasks run."""

    name: str
    forms: list[dict[str, Any]]
    payloads: list[bytes]
    #: Empty: said once, whatever comes of it.
    key: str = ""
    #: Times it was sent.
    sent: int = 0
    task_ids: list[str] = field(default_factory=list)
    #: The client does not try any more.
    over: bool = False


@dataclass
class Asked:
    """One call on its way."""

    number: int
    op: str
    args: dict[str, Any]
    client: Client
    submission: Submission | None = None


class Client:
    """One client process after another, with one journal."""

    def __init__(self, world: World, name: str, calls: int) -> None:
        self.world = world
        self.name = name
        #: What it may still do by itself.
        self.calls_left = calls
        self.journal: list[Submission] = []
        self.waiting: Asked | None = None
        self.alive = False
        #: Faults are over: only finish what was begun.
        self.calm = False
        self._rng = world.engine.rng
        self._dial: Dial | None = None
        self._linked = False
        self._outgoing: Frames | None = None
        self._names = itertools.count(1)
        self._plans = 0

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """A process starts and reads the journal."""
        if not self.alive:
            self.alive = True
            self._connect()
            self._soon()

    def become_calm(self) -> None:
        """Finish what was begun, start nothing new."""
        self.calm = True
        if self.alive:
            self._soon()
        else:
            self.start()

    def crash(self, back_after: float) -> None:
        """The process dies; it does not know what became of its call."""
        if self.alive:
            self.world.engine.tell("fate", f"{self.name} dies")
            self.alive = False
            self.waiting = None
            if self._dial is not None:
                self._dial.close()
            self.world.engine.after(back_after, self.start)

    def owes(self) -> bool:
        """Whether something is still to be said or heard."""
        return self.waiting is not None or any(
            submission.key and not submission.over for submission in self.journal
        )

    def _connect(self) -> None:
        if self._dial is not None:
            self._dial.close()
        self._linked = False
        self._outgoing = None
        self._dial = Dial(self.world.network, self, lambda: self.world.main.admin)

    # --- transport -------------------------------------------------------------------------------

    def link_news(self, dial: Dial, news: str) -> None:
        """See `Peer`."""
        if dial is self._dial and news == "up" and self._outgoing is not None:
            frames, self._outgoing = self._outgoing, None
            dial.send(frames)

    def receive(self, dial: Dial, frames: Frames) -> None:
        """See `Peer`."""
        if dial is not self._dial:
            return
        message = wire.decode(wire.ADMIN, frames)
        asked = self.waiting
        if asked is None or message.header["id"] != asked.number:
            return  # an answer to a call that was given up
        self.waiting = None
        if message.verb == b"REPLY":
            self._answered(asked, message.header["data"])
        else:
            self._refused(asked, message.header)
        self._soon()

    # --- calls -----------------------------------------------------------------------------------

    def _soon(self) -> None:
        wait = self._rng.uniform(0.1, 0.8) if self.calm else self._rng.expovariate(2.0)
        self._plans += 1
        self.world.engine.after(wait, self._act, self._plans)

    def _act(self, plan: int) -> None:
        if not self.alive or plan != self._plans or self.waiting is not None:
            return
        chore = self.world.next_chore() if self.calm else None
        if chore is not None:
            self._ask(*chore)
            return
        for submission in self.journal:
            if submission.key and not submission.over:
                self._submit(submission)
                return
        if self.calm:
            self._soon()
        elif self.calls_left > 0:
            self.calls_left -= 1
            self._one_of_many()

    def _one_of_many(self) -> None:
        plan, rng = self.world.plan, self._rng
        op = rng.choices(plan.ops, plan.op_weights)[0]
        known = [task_id for submission in self.journal for task_id in submission.task_ids]
        if op != "task.submit" and op.startswith("task.") and not known:
            op = "task.submit"
        if op == "task.submit":
            submission = plan.submission(f"{self.name}.{next(self._names)}")
            self.journal.append(submission)
            self._submit(submission)
        elif op == "task.wait":
            chosen = rng.sample(known, min(len(known), 4))
            args = {"task_ids": chosen, "timeout_seconds": rng.uniform(0.0, 1.8)}
            self._ask(op, args)
        elif op.startswith("task."):
            self._ask(op, {"task_id": rng.choice(known)})
        elif op == "config.update":
            self._ask(op, {"section": "heartbeat", "values": plan.heartbeat()})
        elif op == "config.limit":
            values = {"max_connections": rng.choice((1, 2, 1000))}
            self._ask("config.update", {"section": "server", "values": values})
        elif op == "config.reset":
            self._ask(op, {})
        elif op == "events.poll":
            self._ask(op, {"since": 0, "wait_seconds": rng.uniform(0.0, 1.8)})
        else:
            self._ask(op, {"device_id": rng.choice(plan.device_ids)})

    def _submit(self, submission: Submission) -> None:
        args: dict[str, Any] = {"tasks": submission.forms, "brief": True}
        if submission.key:
            args.update(owner=_OWNER, idempotency_key=submission.key, fingerprint=submission.name)
        submission.sent += 1
        self._ask("task.submit", args, submission.payloads, submission)

    def _ask(
        self,
        op: str,
        args: dict[str, Any],
        blobs: list[bytes] | None = None,
        submission: Submission | None = None,
    ) -> None:
        asked = Asked(self.world.next_call(), op, args, self, submission)
        self.waiting = asked
        self.world.judge.answers.asked(asked)
        header = {"id": asked.number, "op": op, "args": args}
        frames = wire.encode(wire.ADMIN, b"CALL", header, blobs or ())
        if self.world.engine.story is not None:
            self.world.tell_call(self.name, op, args)
        assert self._dial is not None
        if not self._dial.send(frames):
            self._outgoing = frames
        self.world.engine.after(TIMEOUT_SECONDS, self._give_up, asked)

    def _give_up(self, asked: Asked) -> None:
        if self.waiting is asked:
            self.waiting = None
            if asked.submission is not None and not asked.submission.key:
                asked.submission.over = True
            self._connect()
            self._soon()

    def _answered(self, asked: Asked, data: dict[str, Any]) -> None:
        submission = asked.submission
        if submission is not None:
            submission.task_ids = data["task_ids"]
            submission.over = True

    def _refused(self, asked: Asked, error: dict[str, Any]) -> None:
        submission = asked.submission
        if submission is None:
            return
        may_pass = error["code"] in ("CLUSTER_UNAVAILABLE", "QUEUE_FULL", "INTERNAL_ERROR")
        if not submission.key or not may_pass:
            submission.over = True


def payload(name: str, index: int, plan: list[tuple[str, float]]) -> bytes:
    """A task's payload: who wants it, and what happens when it runs."""
    return dumps({"submission": name, "index": index, "do": plan})
