"""A broker that starts where its forerunner stopped, from either store."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.invariants import check_invariants
from retire_cluster.broker.core.placement.starvation import BETWEEN
from retire_cluster.broker.store.memory import MemoryStore
from retire_cluster.broker.store.sqlite import SQLiteStore
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.messages import Held
from tests.unit.broker.kit import Cluster, MakeCluster, sent, settings_with, task_spec


@pytest.fixture(params=["memory", "sqlite"])
def kept(request: pytest.FixtureRequest, tmp_path: Path, make_cluster: MakeCluster) -> Cluster:
    """A cluster on each of the stores."""
    if request.param == "memory":
        return make_cluster(store=MemoryStore())
    return make_cluster(store=SQLiteStore(tmp_path / "cluster.db"))


def picture(cluster: Cluster) -> dict[str, Any]:
    """What must be the same after a restart; running attempts are assigned until claimed."""
    state = cluster.state
    tasks = {}
    for number, task in state.tasks.items():
        held = task.dispatch is not None
        tasks[number] = {
            "status": "held" if held else task.status.value,
            "spec": task.spec,
            "payload": task.payload,
            "created_ms": task.created_ms,
            "attempt": task.attempt,
            "retries": (task.retries, task.stored_retries),
            "excluded": dict(task.excluded),
            "killers": task.killers,
            "key": task.key if held else None,
            "device": task.device.device_id if task.device else None,
            "due": round(max(0.0, task.not_before_mono - cluster.mono), 2),
        }
    ended = {
        number: (state.ledger.status(number), state.ledger.ended_s(number))
        for number in range(1, state.next_task)
        if state.ledger.has(number) and number not in tasks
    }
    devices = {
        name: (
            d.registered_ms, d.role, d.tags, d.slots, d.types, d.capabilities, d.drained,
            d.total_heartbeats, d.metrics, d.used_units, set(d.attempts),
        )
        for name, d in state.devices.items()
    }  # fmt: skip
    return {
        "tasks": tasks,
        "ended": ended,
        "devices": devices,
        "tombstones": state.tombstones,
        "submissions": state.submissions,
        "next_task": state.next_task,
        "next_dispatch": state.next_dispatch,
        "settings": state.settings,
        "config_version": state.config_version,
        "by_type": state.ledger.by_type(),
        "by_priority": state.ledger.by_priority(),
        "inline_bytes": state.inline_bytes,
        "advertised": sorted(state.own_types.names),
    }


def eventful(cluster: Cluster) -> None:
    """A bit of everything."""
    member = cluster.device("box", slots=6, tags=("x", "y"))
    member.beat(metrics={"cpu_percent": 3.0})
    other = cluster.device("other", slots=2, role="mobile")
    cluster.submit(5)
    cluster.submit(2, delay=500)
    cluster.submit(1, task_type="command")
    cluster.submit(3, payload=b'"' + b"x" * 9_000 + b'"', priority="low", required_tags=["no"])
    cluster.place()
    keys = member.keys
    member.start(*keys[:2])
    member.finish(keys[0])
    member.fail(keys[1])
    member.finish(keys[2], outcome="released")
    refused = next(k for k in (*member.keys, *other.keys) if k[0] == 8)
    (member if refused in member.keys else other).fail(refused, cause="policy_denied")
    cluster.do(
        ev.TasksSubmitted([task_spec()], [b"{}"], (), [ev.Keyed(0, 1, "me", "key", "print")])
    )
    cluster.call("config.update", {"section": "heartbeat", "values": {"interval": 4}})
    cluster.device("gone")
    cluster.do(ev.DeviceRemoved("gone"))
    cluster.do(ev.DrainRequested("other", True))
    ended = cluster.submit(max_retries=0)[0]
    cluster.do(ev.CancelRequested(ended))
    cluster.retry(ended)
    cluster.do(ev.CancelRequested(cluster.submit()[0]))
    cluster.tick("devices", "upkeep")


def test_the_state_is_the_same_after_a_restart(kept: Cluster) -> None:
    eventful(kept)
    before = picture(kept)
    last = kept.state.log.last
    kept.restart()
    assert kept.warnings == []
    assert picture(kept) == before
    assert kept.state.epoch > last
    assert kept.state.log.last > last
    assert kept.state.online_count == 0
    assert kept.state.devices["box"].succeeded == 1
    kept.restart()
    assert picture(kept) == before


def test_devices_claim_what_they_run_and_go_on(kept: Cluster) -> None:
    member = kept.device(slots=4)
    kept.submit(4)
    kept.place()
    member.start()
    running, finished, forgotten, quiet = member.keys
    kept.restart()
    kept.pass_time(12)
    found = member.join(
        held=(Held(running, True, 20.0), Held(quiet, False, 0.0)), unsent=(finished,)
    )
    (welcome,) = [m for m in sent(found) if isinstance(m, msg.Welcome)]
    assert set(welcome.keep) == {running, quiet, finished}
    assert welcome.epoch == kept.state.epoch
    assert [kept.status(key[0]) for key in (running, finished, forgotten, quiet)] == [
        "running", "assigned", "queued", "assigned",
    ]  # fmt: skip
    member.finish(running, finished, quiet)
    assert kept.status(finished[0]) == "success"
    # The one it had forgotten is given out anew, under the new epoch.
    kept.place()
    ((number, attempt, _, epoch),) = member.keys
    assert (number, attempt, epoch) == (forgotten[0], 2, kept.state.epoch)


def test_unclaimed_attempts_are_lost_after_one_lease_free_of_charge(kept: Cluster) -> None:
    member, key = kept.give(max_retries=0)
    member.start()
    kept.pass_time(1_000)
    kept.restart()
    kept.live_on(30)
    assert kept.status(key[0]) == "assigned"
    kept.live_on(1)
    assert kept.status(key[0]) == "queued"
    assert kept.task(key[0]).killers == frozenset()


def test_a_key_of_an_older_epoch_counts_while_its_attempt_is_current(kept: Cluster) -> None:
    member, key = kept.give()
    kept.restart()
    member.join(held=(Held(key, True, 1.0),))
    member.finish(key)
    assert kept.outcome(key[0]).status == "success"


def test_attempts_of_a_device_that_is_no_more_are_queued(kept: Cluster) -> None:
    _, key = kept.give()
    kept.store.commit([ins.ForgetDevices(("box",))])
    kept.restart()
    assert kept.status(key[0]) == "queued"
    assert kept.state.ended_dispatches == [1]
    assert ins.ForgetDispatches((1,)) in kept.tick("upkeep")


def test_of_several_attempts_of_a_task_the_newest_is_out(kept: Cluster) -> None:
    member, key = kept.give()
    member.finish(outcome="released")
    kept.place()
    (second,) = member.keys
    kept.restart()
    assert kept.task(key[0]).key == second
    # The first batch's row goes: nothing of it is out.
    assert kept.state.ended_dispatches == [1]


def test_waiting_tasks_keep_their_order_priority_and_age(kept: Cluster) -> None:
    old = kept.submit(priority="low")[0]
    kept.pass_time(1_000)
    high = kept.submit(priority="high")[0]
    kept.restart()
    member = kept.device()
    kept.place()
    assert list(member.record.attempts) == [high]
    # The old one's 1000 s still count: it need not wait for `aging_seconds` once more to overtake.
    kept.submit(20, priority="urgent")
    for _ in range(BETWEEN):
        member.finish()
        kept.place()
    assert list(member.record.attempts) == [old]


@pytest.mark.parametrize("hours", [-240, 240])
def test_a_clock_that_jumped_while_down_neither_loses_nor_keeps_a_retry_for_ever(
    kept: Cluster, hours: int
) -> None:
    member, key = kept.give()
    member.start()
    member.fail()
    kept.wall_ms += hours * 3_600_000
    kept.restart()
    wait = kept.task(key[0]).not_before_mono - kept.mono
    assert wait <= 30 * 86_400
    assert (kept.status(key[0]) == "queued") == (hours > 0)


def test_settings_changed_at_run_time_outlive_the_process_and_a_reset_ends_that(
    kept: Cluster,
) -> None:
    kept.call("config.update", {"section": "server", "values": {"max_connections": 7}})
    kept.restart()
    assert kept.state.settings.server.max_connections == 7
    kept.call("config.reset")
    kept.restart()
    assert kept.state.settings.server.max_connections == 1000


@pytest.mark.parametrize(
    "section", [{"heartbeat": {"interval": -5}}, {"heartbeat": {"x": 1}}, {"nonsense": {"a": 1}}]
)
def test_stored_settings_that_no_longer_fit_are_left_out_with_a_warning(
    kept: Cluster, section: dict[str, dict[str, Any]]
) -> None:
    kept.store.commit([ins.StoreConfig(section, 2)])
    kept.restart()
    (warning,) = kept.warnings
    assert f"the stored configuration of {next(iter(section))} is not used" in warning
    assert kept.state.settings == kept.base


def test_large_payloads_are_left_in_the_store_and_small_ones_kept(kept: Cluster) -> None:
    big = b'"' + b"x" * 9_000 + b'"'
    kept.submit(payload=big)
    kept.submit(payload=b"{}")
    kept.restart()
    assert [task.payload for task in kept.state.tasks.values()] == [None, b"{}"]
    assert kept.store.payloads([1]).read == {1: big}


def test_figures_of_the_last_hour_are_kept(kept: Cluster) -> None:
    member, _ = kept.give(3)
    member.finish(seconds=2.0)
    kept.pass_time(60)
    kept.restart()
    assert kept.state.stats.tasks_per_hour(kept.state.clock.age_ms(kept.now)) == 3
    assert kept.state.stats.average_duration() == 2.0


def test_devices_keep_count_of_what_they_did(kept: Cluster) -> None:
    member, _ = kept.give(4, max_retries=0)
    first, second, third, fourth = member.keys
    member.finish(first)
    member.fail(second)
    member.finish(third, outcome="timeout")
    kept.do(ev.CancelRequested(fourth[0]))
    kept.restart()
    device = kept.state.devices["box"]
    assert (device.succeeded, device.failed) == (1, 2)


def test_a_damaged_document_asks_for_nothing_and_the_task_is_not_run(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    path = tmp_path / "cluster.db"
    cluster = make_cluster(store=SQLiteStore(path))
    (number,) = cluster.submit(required_tags=["x"])
    db = sqlite3.connect(path)
    db.execute("update tasks set document = x'7b'")
    db.commit()
    db.close()
    cluster.restart()
    cluster.device()
    cluster.place()
    assert cluster.task(number).payload is None
    assert cluster.store.payloads([number]) == ({}, {})
    cluster.do(ev.TaskDamaged(number))
    assert cluster.status(number) == "failed"


def test_a_restart_in_the_middle_of_work_loses_nothing(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(settings_with(scheduler={"retry_base_seconds": 0.5}), seed=7)
    members = [cluster.device(f"d{number}", slots=2) for number in range(3)]
    numbers = set(cluster.submit(60, max_retries=10))
    rng = cluster.rng
    for _ in range(200):
        cluster.live_on(1.0, *members)
        for member in members:
            if member.record.routing == member.routing and member.keys and rng.random() < 0.7:
                key = rng.choice(member.keys)
                (member.finish if rng.random() < 0.8 else member.fail)(key)
        if rng.random() < 0.1:
            before = {m.device_id: m.keys for m in members}
            cluster.restart()
            for member in members:
                member.join(held=tuple(Held(k, True, 1.0) for k in before[member.device_id]))
    assert not cluster.state.tasks
    words = {cluster.status(number) for number in numbers}
    assert words == {"success"}


def test_only_the_task_that_was_handed_out_comes_back_as_such(cluster: Cluster) -> None:
    cluster.device()
    numbers = cluster.submit(3)
    assert numbers[0] == 1
    cluster.place()
    assert [cluster.status(number) for number in numbers] == ["assigned", "queued", "queued"]
    cluster.restart()
    assert [cluster.status(number) for number in numbers] == ["assigned", "queued", "queued"]
    check_invariants(cluster.state)
