"""A worker's session and the cluster's state talk to each other in memory: no sockets, one clock.

Every message goes through its written form, so each side sees only what the wire carries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.invariants import check_invariants
from retire_cluster.node.core import events, instructions, records
from retire_cluster.node.core.connection import Phase
from retire_cluster.node.core.session import Randomness, Session
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.messages import AttemptKey
from retire_cluster.schemas.text.json_text import dumps, loads
from tests.unit.broker.kit import TYPES, Cluster, MakeCluster, settings_with

STEP_SECONDS = 0.25
Wants = Callable[[Any], bool]


class Node:
    """One worker process: its session, and tasks that just take their time."""

    def __init__(self, world: World, device_id: str, instance: str, slots: int) -> None:
        self.world = world
        self.name = f"{device_id}/{instance}"
        self.exit_code: int | None = None
        self.linked = True
        self.routing = b""
        self.running: dict[AttemptKey, float] = {}
        self.waiting: deque[AttemptKey] = deque()
        self.slots = slots
        #: Attempts that were killed, and why.
        self.killed: dict[AttemptKey, str] = {}
        self.runs: list[AttemptKey] = []
        self.sessions = 0
        self.up = False
        #: The next message it sends for which this is true gets lost.
        self.lose: Wants = lambda message: False
        self.session = Session(
            records.Introduction(
                device_id, instance, "1", "worker", "linux", "h", (), slots, TYPES
            ),
            now=world.cluster.mono,
            randomness=Randomness(lambda: 0.5, self._new_session),
            repeatable=lambda task_type, payload: task_type != "command",
        )
        self.handle(events.Opened())

    def is_in(self, phase: Phase) -> bool:
        """Whether its session is there now."""
        return self.session.phase is phase

    def _new_session(self) -> str:
        self.sessions += 1
        return f"{self.name}/{self.sessions}"

    def handle(self, event: events.Event) -> None:
        """An event of the session, and all that follows from it."""
        for instruction in self.session.handle(event, self.world.cluster.mono):
            if isinstance(instruction, instructions.Connect):
                self.world.dial(self)
            elif isinstance(instruction, instructions.Send):
                self._send(instruction)
            elif isinstance(instruction, instructions.Run):
                self.waiting.extend(attempt.key for attempt in instruction.attempts)
            elif isinstance(instruction, instructions.Kill):
                self._kill(instruction.keys, instruction.reason)
            elif isinstance(instruction, instructions.Exit):
                self.exit_code = instruction.code

    def _send(self, order: instructions.Send) -> None:
        if not self.linked or not self.up:
            return
        if self.lose(order.message):
            self.lose = lambda message: False
            return
        verb, header = order.message.write()
        self.world.to_broker(self, verb, loads(dumps(header)), list(order.blobs))

    def _kill(self, keys: list[AttemptKey], reason: str) -> None:
        self.killed.update(dict.fromkeys(keys, reason))
        for key in keys:
            self.running.pop(key, None)
            if key in self.waiting:
                self.waiting.remove(key)
        words = {
            records.CANCELLED: ("cancelled", None),
            records.TIMEOUT: ("timeout", "timeout"),
            records.RELEASED: ("released", None),
            records.FENCED: ("failed", "worker_lost"),
        }
        if reason in words:
            outcome, cause = words[reason]
            results = [records.Result(k, outcome, 0.1, cause, reason, b"", b"") for k in keys]
            self.world.later(lambda: self.handle(events.Ended(results)))

    def turn(self) -> None:
        """One pass of its loop."""
        if self.exit_code is not None:
            return
        if self.linked and not self.up and self.routing:
            self.up = True
            self.handle(events.LinkUp())
        elif not self.linked and self.up:
            self.up = False
            self.handle(events.LinkDown("cut"))
        now = self.world.cluster.mono
        while self.waiting and len(self.running) < self.slots:
            key = self.waiting.popleft()
            self.running[key] = now + self.world.work_seconds
            self.runs.append(key)
            self.handle(events.Started([key]))
        done = [key for key, until in self.running.items() if until <= now]
        for key in done:
            del self.running[key]
        if done:
            results = [
                records.Result(k, "success", 1.0, None, None, b'{"ok":true}', b"") for k in done
            ]
            self.handle(events.Ended(results))
        self.handle(events.Tick())


class World:
    """A cluster and its workers under one clock."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes: list[Node] = []
        self.work_seconds = 2.0
        self._dialled = 0
        self._later: list[Callable[[], None]] = []

    def node(self, device_id: str = "box", instance: str = "one", slots: int = 2) -> Node:
        """A worker process that begins to dial."""
        self.nodes.append(Node(self, device_id, instance, slots))
        return self.nodes[-1]

    def dial(self, node: Node) -> None:
        """A new connection; the transport is up at the node's next turn."""
        self._dialled += 1
        node.routing, node.up = b"dial%d" % self._dialled, False

    def later(self, action: Callable[[], None]) -> None:
        """In the next step."""
        self._later.append(action)

    def to_broker(self, node: Node, verb: bytes, header: Any, blobs: list[bytes]) -> None:
        """A message arrives at the main node; what it answers goes out."""
        message = msg.read_from_device(verb, header)
        if isinstance(message, msg.Finished):
            self.perform(self.cluster.do(ev.ResultsArrived(node.routing, message, blobs)))
        else:
            self.perform(self.cluster.do(ev.FromDevice(node.routing, message)))

    def perform(self, found: list[ins.Instruction]) -> None:
        """What the main node's shell does with instructions."""
        for one in found:
            if isinstance(one, ins.Send):
                verb, header = one.message.write()
                self._to_node(one.routing, verb, header, [])
            elif isinstance(one, ins.SendAssign):
                items = tuple(
                    msg.AssignItem(
                        task.key, task.created_ms, task.spec.task_type, task.spec.timeout_seconds
                    )
                    for task in one.tasks
                )
                verb, header = msg.Assign.of(one.session, items).write()
                self._to_node(one.routing, verb, header, [b"{}"] * len(items))

    def _to_node(self, routing: bytes, verb: bytes, header: Any, blobs: list[bytes]) -> None:
        for node in self.nodes:
            if node.routing == routing and node.linked and node.up and node.exit_code is None:
                message = msg.read_from_broker(verb, loads(dumps(header)))
                self.later(partial(node.handle, events.Received(message, blobs)))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Time passes, in small steps, until it is over or something is true."""
        end = self.cluster.mono + seconds
        while self.cluster.mono < end and not until():
            self.cluster.pass_time(STEP_SECONDS)
            actions, self._later = self._later, []
            for action in actions:
                action()
            for node in self.nodes:
                node.turn()
            self.perform(self.cluster.tick("deadlines", "liveness", "limits"))
            self.perform(self.cluster.place())
        check_invariants(self.cluster.state)

    def ended(self, *numbers: int) -> bool:
        """Whether these tasks have ended."""
        return not any(number in self.cluster.state.tasks for number in numbers)

    def agree(self, node: Node) -> bool:
        """Whether node and main node think the same of who has what."""
        device = self.cluster.state.devices[node.session.device_id]
        return {task.key for task in device.attempts.values()} == set(node.session.held)


@pytest.fixture
def world(make_cluster: MakeCluster) -> World:
    """Beats every second; a lease of six."""
    quick = {"interval": 1.0, "max_missed": 3, "timeout": 6.0}
    return World(make_cluster(settings_with(heartbeat=quick)))


def test_a_worker_joins_works_and_both_agree(world: World) -> None:
    node = world.node()
    numbers = world.cluster.submit(7)
    world.run(1)
    assert node.is_in(Phase.READY)
    assert world.cluster.state.devices["box"].online
    world.run(20, until=lambda: world.ended(*numbers))
    assert [world.cluster.status(number) for number in numbers] == ["success"] * 7
    world.run(2)
    assert len(node.session.outbox) == 0
    assert world.agree(node)
    assert len(node.runs) == 7


def test_work_goes_on_over_a_restart_of_the_main_node_and_is_not_run_twice(world: World) -> None:
    world.work_seconds = 5.0
    node = world.node()
    numbers = world.cluster.submit(2)
    world.run(2)
    world.cluster.restart()
    world.run(15, until=lambda: world.ended(*numbers))
    assert [world.cluster.status(number) for number in numbers] == ["success"] * 2
    assert len(node.runs) == 2
    assert node.sessions == 2


def test_results_that_wait_for_the_main_node_are_taken_after_its_restart(world: World) -> None:
    node = world.node()
    (number,) = world.cluster.submit()
    world.run(1.5)
    node.linked = False
    world.run(3)
    assert len(node.session.outbox) == 1
    world.cluster.restart()
    node.linked = True
    world.run(20, until=lambda: world.ended(number))
    assert world.cluster.status(number) == "success"
    assert len(node.runs) == 1


def test_a_cut_shorter_than_the_lease_costs_nothing(world: World) -> None:
    world.work_seconds = 8.0
    node = world.node()
    (number,) = world.cluster.submit(max_retries=0, task_type="command")
    world.run(2)
    node.linked = False
    world.run(3.5)
    assert not world.cluster.state.devices["box"].online
    node.linked = True
    world.run(20, until=lambda: world.ended(number))
    assert world.cluster.status(number) == "success"
    assert (len(node.runs), node.killed) == (1, {})


def test_after_a_cut_longer_than_the_lease_another_has_the_work_and_the_first_is_fenced(
    world: World,
) -> None:
    world.work_seconds = 10.0
    first = world.node("first")
    (number,) = world.cluster.submit(task_type="command")
    world.run(2)
    (key,) = first.runs
    second = world.node("second")
    first.linked = False
    world.run(7)
    # The device let go before the main node gave the work away.
    assert first.killed[key] == "fenced"
    world.run(5, until=lambda: bool(second.runs))
    assert second.runs[0][:2] == (number, 2)
    first.linked = True
    world.run(20, until=lambda: world.ended(number))
    outcome = world.cluster.outcome(number)
    assert (outcome.status, outcome.device_id, outcome.attempt) == ("success", "second", 2)
    world.run(3)
    assert world.agree(first)
    assert len(first.session.outbox) == 0


def test_work_that_may_run_twice_is_kept_by_a_fenced_device_but_abandoned_when_it_is_back(
    world: World,
) -> None:
    world.work_seconds = 30.0
    first, second = world.node("first", slots=1), world.node("second", slots=1)
    (number,) = world.cluster.submit()
    world.run(2)
    holder, other = (first, second) if first.runs else (second, first)
    holder.linked = False
    world.run(12, until=lambda: bool(other.runs))
    assert holder.killed == {}
    holder.linked = True
    world.run(10)
    assert list(holder.killed.values()) == ["abandoned"]
    assert world.agree(holder)
    assert world.agree(other)
    assert world.cluster.task(number).attempt == 2


@pytest.mark.parametrize(
    "kind", [msg.Started, msg.Finished, msg.Heartbeat, msg.Hello], ids=lambda kind: kind.__name__
)
def test_one_lost_message_of_a_device_is_made_up_for(world: World, kind: type[Any]) -> None:
    node = world.node()
    node.lose = lambda message: isinstance(message, kind)
    (number,) = world.cluster.submit(max_retries=0)
    world.run(40, until=lambda: world.ended(number))
    assert world.cluster.status(number) == "success"
    assert len(node.runs) == 1


def test_a_cancelled_task_is_killed_and_its_slot_free_again(world: World) -> None:
    world.work_seconds = 60.0
    node = world.node(slots=1)
    (number,) = world.cluster.submit()
    world.run(2)
    world.perform(world.cluster.do(ev.CancelRequested(number)))
    world.run(2)
    assert list(node.killed.values()) == ["cancelled"]
    assert world.agree(node)
    world.work_seconds = 1.0
    (next_,) = world.cluster.submit()
    world.run(10, until=lambda: world.ended(next_))
    assert world.cluster.status(next_) == "success"


def test_a_worker_that_is_stopped_gives_back_what_waits_and_finishes_what_runs(
    world: World,
) -> None:
    node = world.node(slots=2)
    numbers = world.cluster.submit(2)
    world.run(1.25)
    late = world.cluster.submit(1)
    node.handle(events.StopAsked("the owner wants it back"))
    world.run(15, until=lambda: node.exit_code is not None)
    assert node.exit_code == 0
    assert [world.cluster.status(number) for number in numbers] == ["success"] * 2
    assert world.cluster.status(late[0]) == "queued"
    assert not world.cluster.state.devices["box"].online
    assert world.cluster.task(late[0]).retries == 0


def test_a_second_process_with_the_same_id_waits_until_the_first_is_gone(world: World) -> None:
    first = world.node(instance="one")
    world.run(2)
    second = world.node(instance="two")
    world.run(8)
    assert first.is_in(Phase.READY)
    assert second.is_in(Phase.CONNECTING)
    first.linked = False
    first.exit_code = 9  # its machine is gone without a word
    world.run(30, until=lambda: second.is_in(Phase.READY))
    assert second.is_in(Phase.READY)
    assert world.cluster.state.devices["box"].instance == "two"


def test_a_removed_device_leaves_with_its_own_exit_code(world: World) -> None:
    world.work_seconds = 60.0
    node = world.node()
    (number,) = world.cluster.submit()
    world.run(2)
    world.perform(world.cluster.do(ev.DeviceRemoved("box")))
    world.run(2)
    assert node.exit_code == 4
    assert world.cluster.status(number) == "queued"


def test_a_new_configuration_holds_on_both_sides(world: World) -> None:
    node = world.node()
    world.run(2)
    values = {"interval": 2, "timeout": 20}
    world.cluster.call("config.update", {"section": "heartbeat", "values": values})
    world.perform(world.cluster.admin.turn)
    world.run(1)
    assert node.session.config == world.cluster.state.devices["box"].config
    assert node.session.config.timeout == 20


def test_a_drain_and_a_resume_are_seen_on_both_sides(world: World) -> None:
    node = world.node()
    world.run(2)
    world.perform(world.cluster.do(ev.DrainRequested("box", True)))
    world.run(1)
    (number,) = world.cluster.submit()
    world.run(3)
    assert (node.session.accepting, world.cluster.status(number)) == (False, "queued")
    world.perform(world.cluster.do(ev.DrainRequested("box", False)))
    world.run(10, until=lambda: world.ended(number))
    assert node.session.accepting
    assert world.cluster.status(number) == "success"
