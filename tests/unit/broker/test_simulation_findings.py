"""What the simulation found once, small enough to be read: each test is one story it told."""

from __future__ import annotations

from itertools import count

import pytest

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.rows import OutcomeRow, TaskRow
from retire_cluster.broker.store.memory import MemoryStore
from retire_cluster.conf.sections import Heartbeat
from retire_cluster.conf.spec import Section
from retire_cluster.node.core import events, instructions, records
from retire_cluster.node.core.records import Result
from retire_cluster.node.core.session import Randomness, Session
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.messages import (
    AssignItem,
    AttemptKey,
    HeartbeatConfig,
    Held,
    TypeInfo,
)
from tests.unit.broker.kit import Cluster, MakeCluster, settings_with

DAY_MS = 86_400_000


# --- the main node -------------------------------------------------------------------------------


def test_a_retry_does_not_wait_for_days_after_the_clock_was_set_back(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(settings_with(scheduler={"retry_base_seconds": 100}))
    member, (number, *_) = cluster.give()
    member.start()
    member.fail()
    assert cluster.status(number) == "pending"
    cluster.wall_ms -= 10 * DAY_MS
    cluster.restart()
    cap = cluster.state.settings.scheduler.retry_cap_seconds
    assert cluster.task(number).not_before_mono - cluster.mono <= cap


def test_a_delayed_start_waits_no_longer_than_asked_after_the_clock_was_set_back(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    (number,) = cluster.submit(delay=60.0)
    cluster.wall_ms -= 10 * DAY_MS
    cluster.restart()
    assert cluster.task(number).not_before_mono - cluster.mono == pytest.approx(60.0)


def test_tasks_that_ended_in_one_millisecond_are_read_back_timed_or_not() -> None:
    store = MemoryStore()
    rows = [TaskRow(number, 1, "sleep", 1, 300, 3, b"{}", b"{}") for number in (1, 2)]
    ends = [
        OutcomeRow(number, "failed", None, 1, 1, None, 5, seconds, "error", "", 0)
        for number, seconds in ((1, None), (2, 0.5))
    ]
    store.commit([ins.StoreTasks(rows), ins.StoreOutcomes(ends)])
    assert len(store.load(lambda newest: newest + 1, 4096).recent) == 2


def shorten_the_lease(cluster: Cluster) -> None:
    sections: dict[str, Section] = {"heartbeat": Heartbeat(interval=1, timeout=3, max_missed=2)}
    cluster.do(ev.ConfigChanged(sections, {"heartbeat": {"interval": 1, "timeout": 3}}))


def test_a_shorter_lease_told_in_a_welcome_holds_from_the_devices_next_heartbeat(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(settings_with(heartbeat={"timeout": 30}))
    member, key = cluster.give()
    member.start()
    shorten_the_lease(cluster)
    member.join(held=(Held(key, True, 1.0),))
    assert member.record.config.timeout == 30, "the WELCOME may never arrive"
    member.beat([Held(key, True, 2.0)])
    assert member.record.config.timeout == 3


def test_a_restarted_broker_waits_for_the_lease_that_a_device_knows(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(settings_with(heartbeat={"timeout": 30}))
    member, (number, *_) = cluster.give()
    member.start()
    shorten_the_lease(cluster)
    cluster.restart()
    cluster.live_on(20.0)
    assert cluster.status(number) == "assigned", "its device still relies on 30 seconds"
    cluster.live_on(20.0)
    assert cluster.status(number) != "assigned"


# --- the device ----------------------------------------------------------------------------------


KEY: AttemptKey = (1, 1, 77, 5)


class Device:
    """A session that has joined, and what it sent since it was last asked."""

    def __init__(self, timeout: float = 30.0) -> None:
        numbers = count(1)
        me = records.Introduction(
            "d", "i", "1", "worker", "linux", "h", (), 1, (TypeInfo("once"),)
        )  # fmt: skip
        self.now = 100.0
        self.session = Session(
            me,
            now=self.now,
            randomness=Randomness(lambda: 0.5, lambda: f"s{next(numbers)}"),
            repeatable=lambda task_type, payload: False,
        )
        self.out: list[instructions.Instruction] = []
        self.do(events.Opened())
        self.do(events.LinkUp())
        self.config = HeartbeatConfig(1, 5.0, timeout, 3)
        self.hear(msg.Welcome(self.session.session, 5, (), (), self.config))
        self.pass_time(0.0)

    def do(self, event: events.Event) -> None:
        self.out += self.session.handle(event, self.now)

    def hear(self, message: msg.FromBroker, *blobs: bytes) -> None:
        self.do(events.Received(message, list(blobs)))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.do(events.Tick())

    def sent(self, kind: type) -> list[msg.FromDevice]:
        found = [i.message for i in self.out if isinstance(i, instructions.Send)]
        return [message for message in found if isinstance(message, kind)]

    def assign(self) -> None:
        item = AssignItem(KEY, 0, "once", 60)
        self.hear(msg.Assign.of(self.session.session, (item,)), b"{}")

    def acknowledge(self, beat: int, version: int = 1) -> None:
        self.hear(msg.HeartbeatAck(self.session.session, beat, version))
        self.pass_time(0.0)


def test_a_result_whose_acknowledgement_was_dropped_is_sent_again() -> None:
    device = Device()
    device.assign()
    device.do(events.Ended([Result(KEY, "success", 0.1, None, None, b"{}", b"")]))
    device.pass_time(0.0)
    assert len(device.sent(msg.Finished)) == 1
    device.acknowledge(1)
    assert len(device.sent(msg.Finished)) == 1, "that heartbeat went before the result"
    device.pass_time(5.0)
    device.acknowledge(2)
    assert len(device.sent(msg.Finished)) == 2
    last = device.sent(msg.Finished)[-1]
    assert isinstance(last, msg.Finished)
    device.hear(msg.FinishedAck(device.session.session, last.batch))
    assert not device.session.outbox


def test_a_longer_lease_is_relied_on_once_the_main_node_knows_that_it_was_heard() -> None:
    device = Device(timeout=20.0)
    short = device.session.fence_at
    longer = HeartbeatConfig(2, 5.0, 100.0, 3)
    device.hear(msg.Config(device.session.session, longer))
    assert device.session.fence_at == short
    device.acknowledge(1, version=2)
    assert device.session.fence_at == short, "that heartbeat went before CONFIG_ACK"
    device.acknowledge(2, version=2)
    assert device.session.fence_at == pytest.approx(device.now + 90.0)


def test_a_device_whose_lease_is_over_takes_nothing_that_may_not_run_twice() -> None:
    device = Device(timeout=20.0)
    device.now += 19.0
    device.assign()
    assert not device.session.held
    assert not [i for i in device.out if isinstance(i, instructions.Run)]
    device.pass_time(0.0)
    (finished,) = device.sent(msg.Finished)
    assert isinstance(finished, msg.Finished)
    assert [item.outcome for item in finished.items] == ["released"]
