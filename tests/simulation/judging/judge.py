"""The judge: hears every event, write, message and answer, and stops the seed at a broken promise.

What is checked after each event: the state's own invariants; that only what the event may touch has
changed (a stale key changes nothing); that every transition is one of the contract's; attempts,
leases, slots, requirements; budgets of retries; one outcome a task. At each message: that
everything it rests on is committed. At each restart: that nothing durable was forgotten.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from retire_cluster.broker.core import cluster
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.invariants import check_invariants
from retire_cluster.broker.core.records.event_log import EventLog
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.messages import AttemptKey
from tests.simulation.engine import Engine, Violation
from tests.simulation.judging.answers import Answers
from tests.simulation.judging.elsewhere import Elsewhere
from tests.simulation.judging.facts import (
    ENDED,
    LEGAL,
    Book,
    Fact,
)
from tests.simulation.judging.order import Order
from tests.simulation.judging.running import Running
from tests.simulation.judging.writes import Writes

if TYPE_CHECKING:
    from tests.simulation.world import World

_NO_TASKS: Final[frozenset[int]] = frozenset()

#: What the judge stands before.
_handle = cluster.handle


class Judge:
    """See the module's text."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.engine: Engine = world.engine
        self.book = Book()
        self.order = Order()
        self.elsewhere = Elsewhere()
        self.writes = Writes(self)
        self.answers = Answers(self)
        self.running = Running(self)
        self.state: ClusterState | None = None
        self.epoch = 0
        #: Each main node's first event number, and its log.
        self._logs: list[tuple[int, EventLog]] = []
        #: A backup was put back; what is of these epochs belongs to a time that never was.
        self.restored = False
        self.void: frozenset[int] = frozenset()
        self._just_restored = False
        #: Tasks whose submission was answered.
        self.acknowledged: set[int] = set()
        #: Devices that were ever removed: their work is given away at once.
        self.removed: set[str] = set()
        #: Device → when the main node last heard it (its monotonic clock).
        self.heard: dict[str, float] = {}
        self._cursor = 0

    def fail(self, text: str, task: int | None = None) -> None:
        """A promise is broken."""
        raise Violation(text, task)

    def inner_error(self, text: str, error: BaseException) -> None:
        """A rule of the main node raised."""
        raise Violation(f"the main node met an error: {text}") from error

    # --- the state -------------------------------------------------------------------------------

    def watch(self, state: ClusterState, now: ev.Now) -> None:
        """A state was read from the store; from now on every event passes through the judge."""
        self._check_restored(state, now)
        self.state = state
        self._cursor = state.log.last

        def handle(handled: ClusterState, event: ev.Event, now: ev.Now) -> list[ins.Instruction]:
            if handled is not state:
                return _handle(handled, event, now)
            allowed = self._allowed(state, event, now)
            out = _handle(state, event, now)
            self._after(state, event, now, out, allowed)
            return out

        setattr(cluster, "handle", handle)  # noqa: B010 - until the next one is watched

    def _check_restored(self, state: ClusterState, now: ev.Now) -> None:
        self.book.roll_back()
        self.elsewhere.roll_back(self.engine.now)
        if state.epoch <= self.epoch and not self._just_restored:
            self.fail(f"the epoch {state.epoch} was used before")
        self._just_restored = False
        self.epoch = state.epoch
        self._check_numbers(state.log)
        self._logs.append((state.log.last, state.log))
        self.order.restarted()
        self.heard = dict.fromkeys(state.devices, now.mono)
        lost = self.acknowledged - self.book.facts.keys()
        if lost:
            self.fail("an acknowledged task is lost", min(lost))
        for number, fact in self.book.facts.items():
            if not state.ledger.has(number):
                self.fail(f"task {number} is lost by a restart", number)
            status = state.ledger.status(number).value
            if fact.outcome is not None:
                if status != fact.outcome.status:
                    self.fail(
                        f"task {number} ended {fact.outcome.status}, and is {status} after a"
                        " restart", number,
                    )  # fmt: skip
                continue
            task = state.tasks.get(number)
            if task is None:
                self.fail(f"task {number} lives and is not there after a restart", number)
                return
            if fact.key is not None:
                if task.dispatch is None or task.key != fact.key or status != "assigned":
                    self.fail(f"task {number} forgot its attempt {fact.key} by a restart", number)
            elif status not in ("queued", "pending"):
                self.fail(f"task {number} is {status} after a restart", number)
            kept: tuple[object, ...] = (
                task.attempt, task.retries, task.stored_retries, task.killers,
                frozenset(task.excluded), task.tried,
                {name: tuple(times) for name, times in task.given_back.items()},
            )  # fmt: skip
            known: tuple[object, ...] = (
                fact.attempt,
                fact.retries,
                fact.stored,
                fact.killers,
                fact.excluded,
                fact.tried,
                fact.given_back,
            )
            if kept != known:
                self.fail(f"task {number} is {kept} after a restart, it was {known}", number)
            fact.status = status
            fact.not_before_mono = 0.0  # it is on a wall clock now, which may be set
        if state.ledger.total != len(self.book.facts):
            self.fail(f"{state.ledger.total} tasks after a restart, {len(self.book.facts)} known")
        check_invariants(state)

    def _check_numbers(self, log: EventLog) -> None:
        """No event has a number that another had: an old cursor would miss it and not know."""
        for first, other in self._logs:
            if other is not log and first <= log.last <= other.last:
                self.fail(f"the event {log.last} has the number of another, of before a restore")

    def back_up(self) -> Book:
        """What is known now, to be put back with the store."""
        found = copy.deepcopy(self.book)
        found.roll_back()
        return found

    def put_back(self, book: Book) -> None:
        """The store is as it was when `book` was made: what came after it is lost."""
        self.restored = self._just_restored = True
        self.void = frozenset(first for first, _ in self._logs)
        self.book = copy.deepcopy(book)
        self.acknowledged &= self.book.facts.keys()

    def committed(self, writes: Sequence[ins.Write]) -> None:
        """These writes are durable now."""
        missing = [write for write in self.book.pending if all(write is not w for w in writes)]
        if missing:
            self.fail(f"a commit leaves out {missing[0]}")
        self.book.commit()
        self.elsewhere.commit()

    def rolled_back(self) -> None:
        """Memory is thrown away; the store is read anew."""
        self.book.roll_back()
        self.elsewhere.roll_back(self.engine.now)

    def main_died(self) -> None:
        """No main node runs."""
        self.book.roll_back()
        self.elsewhere.roll_back(self.engine.now)
        self.state = None

    # --- which tasks an event may change ---------------------------------------------------------

    def _allowed(self, state: ClusterState, event: ev.Event, now: ev.Now) -> frozenset[int] | None:
        """Tasks that the event may change; None: judged otherwise."""
        facts = self.book.facts
        if isinstance(event, (ev.FromDevice, ev.ResultsArrived)):
            return self._allowed_to_device(state, event, now)
        if isinstance(event, (ev.CancelRequested, ev.RetryRequested, ev.TaskDamaged, ev.NotSent)):
            return frozenset({event.task})
        if isinstance(event, ev.DeviceRemoved):
            self.removed.add(event.device_id)
            self.elsewhere.removed(event.device_id)
            return frozenset(fact.number for fact in self.book.on(event.device_id))
        if isinstance(event, ev.Place):
            return frozenset(n for n, fact in facts.items() if fact.status == "queued")
        if isinstance(event, ev.Tick):
            if event.sweep == "deadlines":
                waiting = {n for n, fact in facts.items() if fact.status == "pending"}
                for device_id in state.challenges:
                    waiting.update(fact.number for fact in self.book.on(device_id))
                return frozenset(waiting)
            if event.sweep in ("liveness", "limits"):
                return frozenset(n for n, fact in facts.items() if fact.key is not None)
            return _NO_TASKS
        if isinstance(event, ev.TasksSubmitted):
            return None
        return _NO_TASKS

    def _allowed_to_device(
        self, state: ClusterState, event: ev.FromDevice | ev.ResultsArrived, now: ev.Now
    ) -> frozenset[int]:
        message = event.message
        if isinstance(message, msg.Hello):
            return frozenset(fact.number for fact in self.book.on(message.device_id))
        device = state.connections.get(event.routing)
        if device is None or device.session != message.session:
            return _NO_TASKS
        self.heard[device.device_id] = now.mono
        if isinstance(message, (msg.Heartbeat, msg.Goodbye)):
            return frozenset(fact.number for fact in self.book.on(device.device_id))
        if isinstance(message, msg.Started):
            keys: list[AttemptKey] = list(message.items)
        elif isinstance(message, (msg.Finished, msg.Progress)):
            keys = [item.key for item in message.items]
        else:
            return _NO_TASKS
        facts = self.book.facts
        return frozenset(
            key[0]
            for key in keys
            if key[0] in facts
            and facts[key[0]].key == key
            and facts[key[0]].device == device.device_id
        )

    # --- after an event --------------------------------------------------------------------------

    def _after(
        self,
        state: ClusterState,
        event: ev.Event,
        now: ev.Now,
        out: list[ins.Instruction],
        allowed: frozenset[int] | None,
    ) -> None:
        if isinstance(event, ev.FromDevice) and isinstance(event.message, msg.Hello):
            registered = state.connections.get(event.routing)
            if registered is not None:
                self.heard[registered.device_id] = now.mono
        if isinstance(event, ev.TaskDamaged):
            self.fail(f"task {event.task} counts as damaged; nothing here is", event.task)
        self.elsewhere.look_at(state, self.book.facts.values(), now.mono)
        moved = self._moves(state, event, allowed, now)
        if isinstance(event, ev.NotSent) and event.task in moved:
            self.writes.not_sent(event, moved[event.task])
        if out or moved:
            self.writes.check(state, event, now, out, moved)
        self.elsewhere.check_notes(state)
        try:
            check_invariants(state)
        except AssertionError as error:
            raise Violation(f"after {type(event).__name__}: {error}") from None

    def _moves(
        self, state: ClusterState, event: ev.Event, allowed: frozenset[int] | None, now: ev.Now
    ) -> dict[int, Fact]:
        """Follow the transitions in the event log."""
        if state.log.last == self._cursor:
            return {}
        moved: dict[int, Fact] = {}
        for entry in state.log.after(self._cursor):
            if not entry.task:
                continue
            number, word = entry.task, entry.type[5:]
            if self.engine.story is not None:
                by = f" ({entry.device_id})" if entry.device_id else ""
                self.engine.tell(
                    "state", f"task {number}: {word}{by} {entry.data} by {_named(event)}", [number]
                )
            if allowed is not None and number not in allowed:
                self.fail(f"{_named(event)} changed task {number}, which it may not", number)
            if word == "progress":
                continue
            if word == "queued":
                self.order.queued(number, now.mono)
            before = entry.data["from"]
            if before is None:
                continue  # its row comes with the instructions
            fact = self.book.touch(number)
            if fact.status != before or (before, word) not in LEGAL:
                self.fail(f"task {number} went from {fact.status} to {word} ({before})", number)
            if before in ENDED and not isinstance(event, ev.RetryRequested):
                self.fail(f"task {number} had ended {before} and is {word}", number)
            fact.status = word
            moved[number] = fact
        self._cursor = state.log.last
        self._check_numbers(state.log)
        return moved


def _named(event: ev.Event) -> str:
    if isinstance(event, (ev.FromDevice, ev.ResultsArrived)):
        return type(event.message).__name__
    if isinstance(event, ev.Tick):
        return f"Tick {event.sweep}"
    return type(event).__name__
