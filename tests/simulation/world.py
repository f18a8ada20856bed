"""One seed: the cluster, a time of faults, a time of calm in which everything must end."""

from __future__ import annotations

import contextlib
import logging
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retire_cluster.broker import loading, server
from retire_cluster.broker.core import state as state_module
from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.placement.outliers import IN_A_ROW
from retire_cluster.broker.core.restore import restore
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.node.running import runner
from retire_cluster.schemas.protocol import wire
from tests.simulation.client import Client
from tests.simulation.device import Machine
from tests.simulation.engine import Engine, Story, Violation
from tests.simulation.fate import Fate
from tests.simulation.judging.judge import Judge
from tests.simulation.main_node import LogWatch, MainNode
from tests.simulation.network import Frames, Network
from tests.simulation.plan import Plan
from tests.simulation.slots import SimulatedSlot
from tests.simulation.storage import Disk, MemoryDisk, SQLiteDisk

#: Virtual seconds after the last fault within which everything must have ended.
CALM_SECONDS = 600.0
#: Seeds that are about a device which gives everything back; by a generator of their own, so that
#: all others stay as they are.
_BOOMERANGS = 0.04
_LOG = logging.getLogger("broker")


@dataclass(frozen=True)
class Summary:
    """What a seed that kept all promises did."""

    events: int
    tasks: int
    ended: dict[str, int]
    seconds: float


class _NoCollector:
    """The part of `gc` that a starting main node uses."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given: None


@contextlib.contextmanager
def swapped(where: Any, name: str, value: Any) -> Iterator[None]:
    """Another value for an attribute, for a while."""
    before = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)


class World:
    """All parties and what lies between them.

    :param seed: decides everything
    :param story: collects what happens, or None to run at full speed
    :param folder: for SQLite files
    :param disk: in place of the plan's
    """

    def __init__(
        self, seed: int, folder: Path, story: Story | None = None, disk: Disk | None = None
    ) -> None:
        self.engine = Engine(seed, story)
        self.plan = Plan(self.engine.rng)
        if not self.plan.black_hole and random.Random(seed).random() < _BOOMERANGS:
            self.plan.be_about_a_boomerang()
        self.judge = Judge(self)
        self.network = Network(self.engine, self.plan.weather)
        if disk is None:
            path = folder / f"seed-{seed}.db"
            disk = SQLiteDisk(path, seed) if self.plan.sqlite else MemoryDisk()
        self.main = MainNode(self, self.plan.settings, disk)
        self.main.shuffles = self.plan.shuffles
        self.machines = [
            Machine(self, profile.device_id, profile) for profile in self.plan.profiles
        ]
        self.clones: list[Machine] = []
        self.clients = [
            Client(self, f"c{number}", self.plan.calls) for number in range(self.plan.clients)
        ]
        self._calls = 0

    def next_call(self) -> int:
        """A number for a call, never used before."""
        self._calls += 1
        return self._calls

    # --- the run ---------------------------------------------------------------------------------

    def run(self) -> Summary:
        """Play the seed; raises `Violation`."""
        with self._wired():
            rng, engine = self.engine.rng, self.engine
            self.main.start()
            for machine in self.machines:
                engine.after(rng.uniform(0.0, 0.5), machine.start)
            for client in self.clients:
                engine.after(rng.uniform(0.5, 1.5), client.start)
            fate = Fate(self)
            engine.run(self.plan.chaos_seconds)
            fate.end()
            calm_from = engine.now
            while True:
                if not engine.run(calm_from + CALM_SECONDS, self._is_quiet):
                    self._blame()
                # What a sweep tidies gets its time; something old may arrive only now.
                engine.run(engine.now + 2.5)
                if self._is_quiet():
                    break
            self.main.retain()
            engine.run(engine.now + 1.0)
            self._check_end()
            self.main.stop()
            self.main.start()
            self._check_end()
            self.main.die("at the end")
        by_status: dict[str, int] = {}
        for fact in self.judge.book.facts.values():
            by_status[str(fact.status)] = by_status.get(str(fact.status), 0) + 1
        return Summary(engine.events, len(self.judge.book.facts), by_status, engine.now - calm_from)

    @contextlib.contextmanager
    def _wired(self) -> Iterator[None]:
        def watched(*given: Any) -> tuple[ClusterState, list[str]]:
            state, warnings = restore(*given)
            now: Now = given[3]
            self.judge.watch(state, now)
            return state, warnings

        watch = LogWatch(self)
        kept_bytes = 0 if self.plan.lean else state_module.INLINE_PAYLOAD_BYTES
        before = _LOG.level, _LOG.propagate
        _LOG.setLevel(logging.ERROR)
        _LOG.propagate = False
        _LOG.addHandler(watch)
        try:
            with (
                swapped(loading, "restore", watched),
                swapped(server, "version", lambda name: "1"),
                # What is frozen is never collected, and here brokers come by the thousand.
                swapped(loading, "gc", _NoCollector()),
                swapped(runner, "Slot", SimulatedSlot),
                swapped(loading, "INLINE_PAYLOAD_BYTES", kept_bytes),
                swapped(state_module, "INLINE_PAYLOAD_BYTES", kept_bytes),
            ):
                yield
        finally:
            _LOG.removeHandler(watch)
            _LOG.level, _LOG.propagate = before[0], before[1]
            self.main.disk.lose()

    # --- the end ---------------------------------------------------------------------------------

    def next_chore(self) -> tuple[str, dict[str, Any]] | None:
        """What an administrator does before he calls everything well."""
        state = self.judge.state
        if state is None:
            return None
        if state.settings.server.max_connections < len(self.machines):
            return "config.reset", {}
        for device_id in state.tombstones:
            return "device.readmit", {"device_id": device_id}
        for device in state.devices.values():
            if device.drained:
                return "device.resume", {"device_id": device.device_id}
        return None

    def _is_quiet(self) -> bool:
        state = self.judge.state
        if state is None or state.tasks or any(client.owes() for client in self.clients):
            return False
        if len(state.devices) < len(self.machines) or state.tombstones or state.challenges:
            return False
        for machine in self.machines:
            worker = machine.worker
            device = state.devices.get(machine.profile.device_id)
            if worker is None or device is None or device.session != worker.session.session:
                return False
            if worker.session.held or worker.session.outbox:
                return False
        return all(device.ready for device in state.devices.values())

    def _blame(self) -> None:
        state = self.judge.state
        if state is None:
            raise Violation("the main node does not come back")
        for task in state.tasks.values():
            raise Violation(
                f"task {task.number} is still {task.status.value} {CALM_SECONDS:.0f} s after the"
                f" last fault (attempt {task.attempt}, on"
                f" {task.device.device_id if task.device else 'no device'})", task.number,
            )  # fmt: skip
        for client in self.clients:
            if client.owes():
                raise Violation(f"{client.name} is not answered")
        for machine in self.machines:
            worker = machine.worker
            if worker is None:
                raise Violation(f"{machine.name} does not come back")
            for key in (*worker.session.held, *worker.session.outbox.keys()):
                raise Violation(f"{machine.name} does not get rid of {key}", key[0])
        unready = [device.device_id for device in state.devices.values() if not device.ready]
        raise Violation(f"the cluster does not get well: {unready or 'devices are missing'}")

    def _check_end(self) -> None:
        """Nothing is left over when everything has ended."""
        judge, state = self.judge, self.judge.state
        if state is None:
            raise Violation("the main node died in good weather")
        left: dict[str, Any] = {
            "pings": state.pings, "challenges": state.challenges, "waits": state.waits.by_task,
            "all_waits": state.waits.all, "running": state.running, "tasks": state.tasks,
            "inline_bytes": state.inline_bytes,
            "queued": sum(cls.lanes.size for cls in state.classes.values()),
        }  # fmt: skip
        for name, value in left.items():
            if value:
                raise Violation(f"left over in the end: {name} = {value!r}")
        lost = judge.acknowledged - judge.book.facts.keys()
        if lost:
            raise Violation("an acknowledged task is lost", min(lost))
        store = self.main.store
        assert store is not None
        found = store.outcomes(judge.book.facts, results=True)
        for number, fact in judge.book.facts.items():
            if found.get(number) != fact.outcome:
                raise Violation(f"task {number} ended {fact.outcome}, stored {found.get(number)}")
        self._check_black_hole()
        self._check_submissions()

    def _check_black_hole(self) -> None:
        """A device that fails everything at once takes only a few tasks with it."""
        name = self.plan.black_hole
        if not name:
            return
        slots = self.machines[0].profile.slots
        lost = len(self.judge.writes.failed_on.get(name, ()))
        # A row of three, what it had beside, and as much after each pause; pauses double.
        most = IN_A_ROW + 4 * slots
        if lost > most:
            raise Violation(f"{name} failed {lost} tasks, it may fail {most}")

    def _check_submissions(self) -> None:
        """All or nothing, and once for all where there is an idempotency key."""
        made: dict[str, list[int]] = {}
        for fact in self.judge.book.facts.values():
            made.setdefault(fact.submission, []).append(fact.number)
        for client in self.clients:
            for submission in client.journal:
                numbers = made.get(submission.name, [])
                size = len(submission.payloads)
                most = size if submission.key or not self.plan.weather.harsh else len(numbers)
                if len(numbers) % size or len(numbers) > most:
                    raise Violation(
                        f"{submission.name} asked for {size} tasks and made {numbers}",
                        numbers[0],
                    )
                if submission.task_ids and not numbers and not self.judge.restored:
                    raise Violation(f"{submission.name} was answered and made no task")

    # --- for the story ---------------------------------------------------------------------------

    def tell_message(self, who: str, arrow: str, frames: Frames) -> None:
        """A message of the bus, for people."""
        message = wire.decode(wire.BUS, frames)
        header = {name: value for name, value in message.header.items() if name not in _DULL}
        text = f"{arrow} {message.verb.decode()} {header}"
        self.engine.tell(who, text, _tasks_in(message.header))

    def tell_call(self, who: str, op: str, args: dict[str, Any]) -> None:
        """A call, for people."""
        tasks = []
        if self.judge.state is not None:
            for task_id in (args.get("task_id"), *args.get("task_ids", ())):
                read = self.judge.state.ids.read(task_id) if task_id else None
                if read is not None:
                    tasks.append(read[0])
        self.engine.tell(who, f"calls {op} {args}", tasks)


_DULL = frozenset({"capabilities", "task_types", "metrics", "protocol", "version", "hostname"})


def _tasks_in(header: dict[str, Any]) -> set[int]:
    rows = [
        row
        for name in ("items", "held", "unsent", "keep", "abandon")
        for row in header.get(name) or ()
    ]
    return {row[0] for row in rows if row and isinstance(row[0], int)}


def play(seed: int, folder: Path | None = None, disk: Disk | None = None) -> Summary:
    """Play a seed at full speed; raises `Violation`."""
    if folder is not None:
        return World(seed, folder, disk=disk).run()
    with tempfile.TemporaryDirectory() as name:
        return World(seed, Path(name), disk=disk).run()


def replay(
    seed: int, folder: Path, story: Story, disk: Disk | None = None
) -> tuple[Summary | None, Violation | None]:
    """Play a seed again and keep its story."""
    try:
        return World(seed, folder, story, disk).run(), None
    except Violation as violation:
        return None, violation
