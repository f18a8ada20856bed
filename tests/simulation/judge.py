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
from retire_cluster.broker.core.rows import AttemptRow, LiveRow, OutcomeRow
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.node.core.records import Attempt
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import AttemptKey
from retire_cluster.schemas.text.cleantext import clean
from retire_cluster.schemas.text.jsontext import JSONError, dumps, loads
from tests.simulation.client import Asked, Submission
from tests.simulation.elsewhere import CAUSES, Elsewhere
from tests.simulation.engine import Engine, Violation
from tests.simulation.facts import (
    ENDED,
    HELD,
    LEGAL,
    Book,
    Fact,
    check_device,
    check_slots,
)
from tests.simulation.network import Frames, Pipe
from tests.simulation.order import Order

if TYPE_CHECKING:
    from tests.simulation.device import Worker
    from tests.simulation.world import World

#: Refusals that say nothing about what happened in the turn under way.
_HARMLESS: Final = frozenset(
    {"VALIDATION_ERROR", "NOT_FOUND", "CLUSTER_UNAVAILABLE", "INTERNAL_ERROR"}
)
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
        #: Device → different tasks that failed on it for a cause of its own.
        self.failed_on: dict[str, set[int]] = {}
        self.state: ClusterState | None = None
        self.epoch = 0
        #: Each main node's first event number, and its log.
        self._logs: list[tuple[int, EventLog]] = []
        #: A backup was put back; what is of these epochs belongs to a time that never was.
        self.restored = False
        self._void: frozenset[int] = frozenset()
        self._just_restored = False
        #: Tasks whose submission was answered.
        self.acknowledged: set[int] = set()
        self.asked_by_number: dict[int, Asked] = {}
        #: Task → times it was really started anywhere.
        self._starts: dict[int, int] = {}
        #: What really runs now: key → where.
        self._running: dict[AttemptKey, Worker] = {}
        #: Attempts that were given to a device's process.
        self._delivered: set[AttemptKey] = set()
        #: Devices that were ever removed: their work is given away at once.
        self._removed: set[str] = set()
        #: Device → when the main node last heard it (its monotonic clock).
        self._heard: dict[str, float] = {}
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
        self._heard = dict.fromkeys(state.devices, now.mono)
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
        self._void = frozenset(first for first, _ in self._logs)
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
        if isinstance(event, (ev.CancelAsked, ev.RetryAsked, ev.TaskDamaged, ev.NotSent)):
            return frozenset({event.task})
        if isinstance(event, ev.DeviceRemoved):
            self._removed.add(event.device_id)
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
        self._heard[device.device_id] = now.mono
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
                self._heard[registered.device_id] = now.mono
        if isinstance(event, ev.TaskDamaged):
            self.fail(f"task {event.task} counts as damaged; nothing here is", event.task)
        self.elsewhere.look_at(state, self.book.facts.values(), now.mono)
        moved = self._moves(state, event, allowed, now)
        if isinstance(event, ev.NotSent) and event.task in moved:
            self._not_sent(event, moved[event.task])
        if out or moved:
            self._writes(state, event, now, out, moved)
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
            if before in ENDED and not isinstance(event, ev.RetryAsked):
                self.fail(f"task {number} had ended {before} and is {word}", number)
            fact.status = word
            moved[number] = fact
        self._cursor = state.log.last
        self._check_numbers(state.log)
        return moved

    def _writes(
        self,
        state: ClusterState,
        event: ev.Event,
        now: ev.Now,
        out: list[ins.Instruction],
        moved: dict[int, Fact],
    ) -> None:
        ended: set[int] = set()
        lost: dict[int, AttemptRow] = {}
        placed: set[str] = set()
        for instruction in out:
            if not isinstance(instruction, ins.WRITES):
                continue
            self.book.pending.append(instruction)
            if isinstance(instruction, ins.StoreTasks):
                for row in instruction.rows:
                    fact = self.book.add(row)
                    fact.status = state.ledger.status(row.number).value
                    self.engine.tell("state", f"task {row.number}: new, {fact}", [row.number])
            elif isinstance(instruction, ins.StoreDispatch):
                self._dispatched(state, instruction, now)
                placed.add(instruction.row.device_id)
            elif isinstance(instruction, ins.StoreAttempts):
                for task, gone in instruction.replaced:
                    self.book.touch(task).free_rows -= {gone}
                for attempt in instruction.rows:
                    lost[attempt.task] = attempt
                    if not isinstance(event, ev.RetryAsked):
                        self._attempt_over(state, event, now, attempt)
            elif isinstance(instruction, ins.StoreLive):
                for live in instruction.rows:
                    self._live(state, event, now, live, lost.get(live.task))
            elif isinstance(instruction, ins.StoreOutcomes):
                for outcome in instruction.rows:
                    self._ended(state, event, outcome)
                    ended.add(outcome.task)
            elif isinstance(instruction, ins.ReviveTasks):
                self._revived(event, instruction)
            elif isinstance(instruction, ins.ForgetTasks):
                self.fail(f"tasks {instruction.tasks} are deleted, none is old enough")
            elif isinstance(instruction, ins.ForgetSubmissions):
                self.fail("idempotency keys are forgotten, none is old enough")
        if ended != {n for n, fact in moved.items() if fact.status in ENDED}:
            self.fail(f"stored outcomes {ended} are not what ended: {sorted(moved)}")
        for number, fact in moved.items():
            if (fact.status in HELD) != (fact.key is not None):
                self.fail(f"task {number} is {fact.status} with the attempt {fact.key}", number)
        for device_id in placed:
            check_slots(list(self.book.on(device_id)), state.devices[device_id])
        if placed:
            chosen = [fact for fact in moved.values() if fact.status == "assigned"]
            self.order.placed(state, self.book.facts.values(), chosen, now.mono)
            for fact in chosen:
                self.elsewhere.check_given(state, fact, self.engine.now)

    def _not_sent(self, event: ev.NotSent, fact: Fact) -> None:
        key = fact.key
        if key is None or key[2] != event.token or key in self._delivered:
            self.fail(f"attempt {key} of task {event.task} was sent after all", event.task)
        fact.key = None

    def _dispatched(self, state: ClusterState, write: ins.StoreDispatch, now: ev.Now) -> None:
        row = write.row
        device = state.devices[row.device_id]
        for number, attempt in row.attempts:
            fact = self.book.touch(number)
            if fact.key is not None:
                self.fail(f"task {number} is placed while {fact.key} is on {fact.device}", number)
            if attempt != fact.attempt + 1:
                self.fail(f"attempt {attempt} of task {number} follows {fact.attempt}", number)
            if now.mono < fact.not_before_mono - 1e-6:
                self.fail(f"task {number} was given back so often, and goes at once", number)
            check_device(fact, device)
            fact.attempt = attempt
            fact.key = (number, attempt, row.token, row.epoch)
            fact.device = row.device_id

    def _attempt_over(
        self, state: ClusterState, event: ev.Event, now: ev.Now, row: AttemptRow
    ) -> None:
        fact = self.book.touch(row.task)
        if fact.key is None or row.number != fact.attempt or row.device_id != fact.device:
            self.fail(f"attempt {row.number} of task {row.task} ended, it is not current", row.task)
        if isinstance(event, ev.Tick) and event.sweep == "liveness":
            silent = now.mono - self._heard[fact.device]
            if silent <= state.devices[fact.device].config.timeout:
                self.fail(f"{fact.device} lost task {row.task} after {silent:.1f} s", row.task)
        self._note(state, fact, row.outcome, row.cause)
        fact.key = None
        free = isinstance(event, ev.DeviceRemoved) or _is_goodbye(event)
        if row.outcome == "lost":
            if row.started_ms is not None and not free:
                fact.killers |= {fact.device}
                fact.tried |= {fact.device}
        elif row.cause == "worker_lost":
            fact.killers |= {fact.device}
        elif row.cause in CAUSES:
            fact.said_before = fact.device in fact.excluded
            fact.excluded |= {fact.device}
        if row.outcome in ("failed", "timeout"):
            fact.tried |= {fact.device}
        if row.cause == "worker_lost" and fact.killers:
            self._check_poison(state, fact)
        if not self._charge(event, row, fact):
            self._given_back(state, now, row, fact)

    def _given_back(self, state: ClusterState, now: ev.Now, row: AttemptRow, fact: Fact) -> None:
        """It cost nothing: it is counted, waits, goes elsewhere, and is few rows."""
        times = fact.given_back.get(fact.device, (0, 0))[0] + 1
        fact.given_back = {**fact.given_back, fact.device: (times, row.number)}
        fact.free_rows |= {row.number}
        if times > 1:
            fact.tried |= {fact.device}
        further = times - 1
        if row.cause not in CAUSES:
            further = max(further, sum(one for one, _ in fact.given_back.values()) - 3)
        if further > 0:
            scheduler = state.settings.scheduler
            base = max(0.5, scheduler.retry_base_seconds)
            wait = min(scheduler.retry_cap_seconds, base * 2 ** (further - 1))
            fact.not_before_mono = now.mono + wait
        if row.times != max(1, times - 3):
            self.fail(f"the row of attempt {row.number} stands for {row.times}", row.task)
        if len(fact.free_rows) > 4 * len(fact.given_back):
            self.fail(f"task {row.task} has {len(fact.free_rows)} rows of no charge", row.task)

    def _note(self, state: ClusterState, fact: Fact, outcome: str, cause: str | None) -> None:
        """What an attempt says of its device."""
        if cause in CAUSES:
            self.elsewhere.said(state, fact, cause == "policy_denied", self.engine.now)
        elif outcome == "failed" and cause == "error":
            self.failed_on.setdefault(fact.device, set()).add(fact.number)

    def _check_poison(self, state: ClusterState, fact: Fact) -> None:
        if len(fact.killers) >= state.settings.scheduler.poison_devices:
            self.fail(
                f"task {fact.number} goes on after killing {sorted(fact.killers)}", fact.number
            )

    def _live(
        self,
        state: ClusterState,
        event: ev.Event,
        now: ev.Now,
        row: LiveRow,
        attempt: AttemptRow | None,
    ) -> None:
        fact = self.book.touch(row.task)
        if attempt is not None and not isinstance(event, ev.RetryAsked):
            charge = row.retries - fact.retries
            expected = self._charge(event, attempt, fact)
            if charge != expected:
                self.fail(
                    f"task {row.task}: {attempt.outcome}/{attempt.cause} (started:"
                    f" {attempt.started_ms is not None}) cost {charge} retries, not {expected}",
                    row.task,
                )
            fact.retries = row.retries
            scheduler = state.settings.scheduler
            if row.not_before_ms > now.wall_ms + 1000 * scheduler.retry_cap_seconds + 1:
                self.fail(f"task {row.task} waits longer than a retry may", row.task)
        if fact.retries > fact.max_retries:
            self.fail(f"task {row.task} has used {fact.retries} retries", row.task)
        kept = (row.attempt, row.retries, row.stored_retries)
        if kept != (fact.attempt, fact.retries, fact.stored):
            self.fail(f"task {row.task} is stored as {row}, it is {fact}", row.task)
        said = frozenset(name for name, _ in row.excluded)
        gone = fact.excluded - said
        if attempt is None and all(self.elsewhere.is_new(state, device) for device in gone):
            fact.excluded -= gone
        visited = (frozenset(row.killers), said, frozenset(row.tried))
        returned = {name: tuple(times) for name, *times in row.given_back}
        if (*visited, returned) != (fact.killers, fact.excluded, fact.tried, fact.given_back):
            self.fail(f"task {row.task} is stored as {row}, it is {fact}", row.task)

    @staticmethod
    def _charge(event: ev.Event, row: AttemptRow, fact: Fact) -> int:
        """What an attempt that ended may cost (trust.md, Semantics)."""
        if row.outcome == "released":
            return 0
        if row.cause in CAUSES:
            return int(fact.said_before)
        if row.outcome == "lost":
            free = isinstance(event, ev.DeviceRemoved) or _is_goodbye(event)
            return 0 if free or row.started_ms is None else 1
        return 1

    def _ended(self, state: ClusterState, event: ev.Event, row: OutcomeRow) -> None:
        fact = self.book.touch(row.task)
        if fact.outcome is not None:
            self.fail(
                f"task {row.task} ended {fact.outcome.status} and again {row.status}", row.task
            )
        if odd := _unsendable(row):
            self.fail(f"task {row.task} {odd}", row.task)
        retries, most = fact.retries, fact.max_retries
        if fact.key is not None:
            self._note(state, fact, row.status, row.cause)
        if row.attempt != fact.attempt or row.retry_count != fact.stored + retries:
            self.fail(f"the outcome {row} is not of {fact}", row.task)
        wrong = ""
        if row.status == "success":
            if not isinstance(event, ev.ResultsArrived) or fact.key is None:
                wrong = "succeeded without a result"
            else:
                self.elsewhere.did_well(state, fact, self.engine.now)
            if wrong or fact.task_type == "echo":
                pass
            elif tuple(loads(row.result)["key"]) != fact.key:
                wrong = f"succeeded with the result {row.result!r} of another attempt"
        elif row.status == "cancelled":
            if not isinstance(event, ev.CancelAsked):
                wrong = "was cancelled by nobody"
        elif row.status == "timeout" or row.cause == "error":
            if retries != most:
                wrong = f"ended with {retries} of {most} retries used"
        elif row.cause == "worker_lost":
            killers = fact.killers | {fact.device}
            if retries != most and len(killers) < state.settings.scheduler.poison_devices:
                wrong = f"was given up after {retries} of {most} retries, killing {killers}"
        elif row.cause in CAUSES:
            if retries != most or fact.device not in fact.excluded:
                self.elsewhere.check_given_up(state, fact)
        elif row.cause != "deterministic":
            wrong = f"ended {row.status} for no known cause"
        if wrong:
            self.fail(f"task {row.task} {wrong}", row.task)
        fact.key = None
        fact.outcome = row

    def _revived(self, event: ev.Event, write: ins.ReviveTasks) -> None:
        for number in write.tasks:
            fact = self.book.touch(number)
            if fact.outcome is None or not isinstance(event, ev.RetryAsked):
                self.fail(f"task {number} lives again, nobody asked for it", number)
                return
            if fact.outcome.cause in CAUSES:
                self.elsewhere.asked_again(fact)
            fact.outcome = None
            fact.generation += 1
            fact.stored += fact.retries
            fact.retries = 0
            fact.killers = fact.excluded = fact.tried = frozenset()
            fact.given_back, fact.free_rows = {}, frozenset()
            fact.not_before_mono = 0.0

    # --- messages --------------------------------------------------------------------------------

    def publishes(self) -> None:
        """The event feed speaks."""
        if self.book.pending:
            self.fail(f"events are published before {self.book.pending[0]} is committed")

    def sends(self, pipe: Pipe, frames: Frames, *, bus: bool) -> None:
        """The main node sends a message."""
        if bus:
            if self.book.pending:
                self.fail(f"{frames[1]!r} is sent before {self.book.pending[0]} is committed")
            if self.engine.story is not None:
                self.world.tell_message(f"main>{pipe.dial.peer.name}", "->", frames)
            return
        message = wire.decode(wire.ADMIN, frames)
        header = message.header
        asked = self.asked_by_number.get(header["id"])
        if asked is None:
            self.fail(f"an answer to the unknown call {header['id']}")
            return
        if message.verb == b"ERROR":
            if self.book.pending and header["code"] not in _HARMLESS:
                self.fail(f"{asked.op}: {header['code']} rests on what is not committed")
            self.engine.tell("main", f"refuses {asked.op} of {asked.client.name}: {header}")
            return
        if self.book.pending:
            self.fail(f"{asked.op} is answered before {self.book.pending[0]} is committed")
        data = header["data"]
        self.engine.tell("main", f"answers {asked.op} of {asked.client.name}: {data}")
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
        self.asked_by_number[asked.number] = asked

    def _number(self, task_id: str) -> int:
        assert self.state is not None
        read = self.state.ids.read(task_id)
        if read is None or read[0] not in self.book.facts:
            raise Violation(f"{task_id} is no task")
        return read[0]

    def _acknowledged(self, submission: Submission, task_ids: list[str]) -> None:
        numbers = [self._number(task_id) for task_id in task_ids]
        facts = [self.book.facts[number] for number in numbers]
        found = [(fact.submission, fact.index) for fact in facts]
        if found != [(submission.name, index) for index in range(len(submission.payloads))]:
            self.fail(f"{submission.name} is answered with {found}", min(numbers))
        if submission.key and submission.task_ids and submission.task_ids != task_ids:
            self.fail(f"{submission.name} was answered {submission.task_ids} before", min(numbers))
        self.acknowledged.update(numbers)

    def _told(self, task_id: str, status: str | None) -> None:
        number = self._number(task_id)
        outcome = self.book.facts[number].outcome
        known = None if outcome is None else outcome.status
        if known != status:
            self.fail(f"a client is told that task {number} is {status}, it is {known}", number)

    # --- what really happens on devices ----------------------------------------------------------

    def received(self, worker: Worker, attempts: Sequence[Attempt]) -> None:
        """A worker takes attempts."""
        for attempt in attempts:
            self._delivered.add(attempt.key)
            self.engine.tell(worker.name, f"takes attempt {attempt.key}", [attempt.key[0]])

    def started(self, key: AttemptKey, worker: Worker, task_type: str) -> int:
        """An attempt really starts; the number of times its task was started so far."""
        count = self._starts[key[0]] = self._starts.get(key[0], 0) + 1
        self.engine.tell(worker.name, f"starts attempt {key}, start number {count}", [key[0]])
        if task_type in self.world.plan.once_types:
            self._check_alone(key, worker)
        self._running[key] = worker
        return count

    def stopped(self, key: AttemptKey, worker: Worker) -> None:
        """An attempt does not run any more."""
        self.engine.tell(worker.name, f"attempt {key} runs no more", [key[0]])
        self._running.pop(key, None)

    def _check_alone(self, key: AttemptKey, worker: Worker) -> None:
        """What may not run twice does not run in two places, as far as devices can promise it."""
        fact = self.book.facts.get(key[0])
        if fact is None or fact.generation or fact.outcome is not None or self.world.plan.excuses:
            return  # a cancelled task may go on until its device hears of it
        if self._excused(worker):
            return
        for other, where in self._running.items():
            if other[3] in self._void:
                continue  # its task was lost with what came after the backup, or given out anew
            if other[0] == key[0] and not self._excused(where):
                self.fail(f"task {key[0]} runs as {key} on {worker.name} and {where.name}", key[0])

    def _excused(self, worker: Worker) -> bool:
        """Whether a worker cannot be held to stopping in time."""
        return (
            worker.was_frozen
            or not worker.alive
            or not worker.kills_on_lease_loss
            or worker.device_id in self._removed
            # Whoever says HELLO with an id takes over what the other one had.
            or any(clone.profile.device_id == worker.device_id for clone in self.world.clones)
        )


def _unsendable(row: OutcomeRow) -> str:
    """What of an outcome no answer could carry."""
    message = row.error_message
    if message is not None and (not isinstance(message, str) or clean(message) != message):
        return f"ended with a message that is no text: {message!r}"
    for name, text in (("result", row.result), ("details", row.details)):
        try:
            if text:
                dumps(loads(text))
        except JSONError as error:
            return f"ended with {name} that are no JSON: {error}"
    return ""


def _is_goodbye(event: ev.Event) -> bool:
    return isinstance(event, ev.FromDevice) and isinstance(event.message, msg.Goodbye)


def _named(event: ev.Event) -> str:
    if isinstance(event, (ev.FromDevice, ev.ResultsArrived)):
        return type(event.message).__name__
    if isinstance(event, ev.Tick):
        return f"Tick {event.sweep}"
    return type(event).__name__
