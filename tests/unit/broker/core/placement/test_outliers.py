"""A device that fails what others do is left out for a while; poison tasks blame nobody."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retire_cluster.broker.core.devices.type_registry import MAX_OWN_TYPES
from retire_cluster.broker.core.placement.outliers import (
    LONGEST_PAUSE_SECONDS,
    MAX_KINDS,
    MAX_RECORDS,
    RECORD_SECONDS,
)
from retire_cluster.schemas.protocol.messages import TypeInfo
from retire_cluster.schemas.vocabulary import FAILING
from tests.unit.broker.kit import Cluster, Member, settings_with

OWN = TypeInfo("own", repeatable=True)


def left_out(member: Member) -> list[str]:
    found = member.record.notes.items()
    return [kind.task_type for kind, note in found if note.active and note.cause == FAILING]


def fail_all(member: Member, cause: str = "error") -> int:
    keys = member.keys
    if keys:
        member.start()
        member.fail(cause=cause)
    return len(keys)


def let_pass(cluster: Cluster, seconds: float, *members: Member) -> None:
    cluster.pass_time(seconds)
    for member in members:
        member.beat()
    cluster.tick("unschedulable", "deadlines")
    cluster.place()


def test_a_device_that_fails_everything_at_once_does_not_eat_the_queue(cluster: Cluster) -> None:
    hole = cluster.device("hole", slots=4)
    fine = [cluster.device(f"fine{index}") for index in range(2)]
    tasks = cluster.submit(200, task_type="resize", max_retries=0)
    eaten = 0
    for _ in range(150):
        cluster.place()
        for _ in range(20):
            eaten += fail_all(hole)
            cluster.place()
        for member in fine:
            if member.keys:
                member.start()
                member.finish()
        let_pass(cluster, 2, hole, *fine)
    done = sum(cluster.status(task) == "success" for task in tasks)
    assert done + eaten == 200
    assert eaten <= 12, "three in a row, and what it already had, a few times"
    assert left_out(hole) == ["resize"]
    assert not any(map(left_out, fine))


def test_without_any_word_of_others_it_is_only_a_short_pause(cluster: Cluster) -> None:
    hole, slow = cluster.device("hole"), cluster.device("slow")
    cluster.submit(30, task_type="resize")
    cluster.place()
    while not left_out(hole):
        assert fail_all(hole) == 1
        cluster.place()
    (note,) = hole.record.notes.values()
    assert note.message == "it failed 3 tasks in a row, and nothing is known of other devices yet"
    assert note.seconds == 5.0
    for _ in range(6):
        while left_out(hole):
            let_pass(cluster, 1, hole, slow)
        fail_all(hole)
        cluster.place()
    assert (
        note.seconds
        <= max(n.seconds for n in hole.record.notes.values())
        <= (LONGEST_PAUSE_SECONDS)
    )


def test_a_kind_that_fails_everywhere_blames_nobody(cluster: Cluster) -> None:
    members = [cluster.device(f"d{index}", slots=2) for index in range(3)]
    tasks = cluster.submit(100, task_type="resize", max_retries=1)
    for _ in range(60):
        for member in members:
            fail_all(member)
        let_pass(cluster, 3, *members)
    assert {cluster.status(task) for task in tasks} == {"failed"}
    assert not any(map(left_out, members))
    blamed = [data for _, data in cluster.events("device.passed_over")]
    assert all(data["seconds"] <= 5 for data in blamed), "a short pause before others had a word"


def test_a_batch_of_poison_after_a_long_good_time_blames_nobody(cluster: Cluster) -> None:
    members = [cluster.device(f"d{index}") for index in range(3)]
    cluster.submit(300, task_type="resize")
    while any(member.keys for member in members) or cluster.state.waiting:
        cluster.place()
        for member in members:
            if member.keys:
                member.start()
                member.finish()
    cluster.submit(60, task_type="resize", max_retries=2)
    for _ in range(80):
        cluster.place()
        for member in members:
            fail_all(member)
        let_pass(cluster, 3, *members)
    assert not cluster.state.tasks
    assert not [d for _, d in cluster.events("device.passed_over") if d["seconds"] > 5]


def test_one_task_that_fails_again_and_again_blames_no_device(cluster: Cluster) -> None:
    member, other = cluster.device("member"), cluster.device("other")
    cluster.submit(1, task_type="resize", max_retries=10)
    cluster.submit(40, task_type="resize")
    for _ in range(60):
        for one in (member, other):
            for key in one.keys:
                one.start(key)
                one.fail(key) if key[0] == 1 else one.finish(key)
        let_pass(cluster, 30, member, other)
    assert not left_out(member)
    assert not left_out(other)


def test_the_only_device_is_never_left_out(cluster: Cluster) -> None:
    member = cluster.device()
    cluster.submit(20, task_type="resize", max_retries=0)
    for _ in range(21):
        fail_all(member)
        cluster.place()
    assert not cluster.state.tasks
    assert not left_out(member)


def test_only_the_kind_that_it_fails_is_kept_from_it(cluster: Cluster) -> None:
    hole, fine = cluster.device("hole"), cluster.device("fine")
    cluster.submit(60, task_type="resize", max_retries=0)
    for _ in range(12):
        cluster.place()
        fail_all(hole)
        if fine.keys:
            fine.finish()
    assert left_out(hole) == ["resize"]
    cluster.submit(4)
    cluster.place()
    assert {task.spec.task_type for task in hole.record.attempts.values()} == {"sleep"}


def test_doing_one_well_lifts_it(cluster: Cluster) -> None:
    hole, fine = cluster.device("hole", slots=8), cluster.device("fine")
    cluster.submit(60, task_type="resize", max_retries=0)
    cluster.place()
    late = hole.keys[-1]
    for key in hole.keys[:-1]:
        hole.start(key)
        hole.fail(key)
        if fine.keys:
            fine.finish()
        cluster.place()
        if left_out(hole):
            break
    assert left_out(hole)
    hole.finish(late)
    assert not left_out(hole)
    assert not hole.record.records


@pytest.mark.parametrize(
    ("task_type", "counted"), [("resize", True), ("python_eval", False), ("command", False)]
)
def test_a_built_in_types_verdict_on_a_payload_is_not_the_devices_fault(
    cluster: Cluster, task_type: str, counted: bool
) -> None:
    types = tuple(TypeInfo(name) for name in ("resize", "python_eval", "command"))
    hole = cluster.device("hole", task_types=types)
    cluster.device("fine", task_types=types)
    cluster.submit(20, task_type=task_type, max_retries=0)
    for _ in range(4):
        cluster.place()
        fail_all(hole, "deterministic")
    assert bool(left_out(hole)) is counted


@pytest.mark.parametrize("cause", ["error", "timeout", "worker_lost", "not_here"])
def test_a_retry_goes_to_another_device_first(cluster: Cluster, cause: str) -> None:
    members = [cluster.device(f"d{index}") for index in range(3)]
    (task,) = cluster.submit(task_type="resize")
    visited = []
    for _ in range(3):
        cluster.place()
        (where,) = [member for member in members if member.keys]
        visited.append(where.device_id)
        where.start()
        where.fail(cause=cause)
        let_pass(cluster, 30, *members)
        if cluster.status(task) == "failed":
            break
    assert len(set(visited)) == len(visited) == 3


def test_a_retry_waits_for_another_device_that_is_busy_and_others_go_before_it(
    cluster: Cluster,
) -> None:
    first, second = cluster.device("first"), cluster.device("second")
    task, blocker, *rest = cluster.submit(6, task_type="resize")
    cluster.place()
    owner = {member.keys[0][0]: member for member in (first, second)}
    owner[task].start()
    owner[task].fail()
    let_pass(cluster, 3, first, second)
    assert [key[0] for key in owner[task].keys] == [rest[0]]
    assert cluster.status(task) == "queued"
    owner[blocker].finish()
    cluster.place()
    assert [key[0] for key in owner[blocker].keys] == [task]


def test_a_retry_waits_for_another_device_no_longer_than_half_a_minute(cluster: Cluster) -> None:
    first, second = cluster.device("first"), cluster.device("second")
    task, _ = cluster.submit(2, task_type="resize")
    cluster.place()
    owner = next(m for m in (first, second) if m.keys[0][0] == task)
    owner.start()
    owner.fail()
    waited = 0
    while cluster.status(task) != "assigned":
        let_pass(cluster, 1, first, second)
        waited += 1
        assert waited < 40
    assert waited >= 30
    assert [key[0] for key in owner.keys] == [task]


def test_a_single_device_gets_the_retry_at_once(cluster: Cluster) -> None:
    member, _ = cluster.give(task_type="resize")
    member.start()
    member.fail()
    let_pass(cluster, 3, member)
    assert member.keys


def test_ten_thousand_retries_that_wait_for_another_device_keep_placing_cheap(
    cluster: Cluster,
) -> None:
    from tests.unit.broker.test_work_counts import calls

    cluster.is_checked = False
    first, second = cluster.device("first"), cluster.device("second")
    tasks = cluster.submit(3_000, task_type="resize")
    for task in tasks:
        cluster.task(task).tried = frozenset({"first"})
    cluster.place()
    assert len(second.keys) == 1
    assert calls(cluster.place) < 4_000
    assert not first.keys


@pytest.mark.no_cover
def test_nothing_is_counted_while_nothing_fails_and_what_is_counted_is_bounded(
    cluster: Cluster,
) -> None:
    member, _ = cluster.give(task_type="resize")
    member.finish()
    assert not cluster.state.tallies
    types = tuple(TypeInfo(f"t{index}") for index in range(MAX_KINDS + 50))
    cluster.call("device.drain", {"device_id": "box"})
    for start in range(0, len(types), MAX_OWN_TYPES):
        some = types[start : start + MAX_OWN_TYPES]
        many = cluster.device(f"many{start}", task_types=some)
        for info in some:
            cluster.submit(task_type=info.name, max_retries=0)
            cluster.place()
            fail_all(many)
        assert len(many.record.records) <= MAX_RECORDS
    assert len(cluster.state.tallies) == MAX_KINDS


def test_what_failed_long_ago_is_counted_no_more(cluster: Cluster) -> None:
    member, other = cluster.device("member"), cluster.device("other")
    cluster.submit(1, task_type="resize", max_retries=0)
    cluster.place()
    fail_all(member)
    fail_all(other)
    assert cluster.state.tallies
    cluster.pass_time(RECORD_SECONDS)
    cluster.tick("devices")
    assert cluster.state.tallies
    cluster.pass_time(1)
    cluster.tick("devices")
    assert not cluster.state.tallies
    assert not member.record.records


@pytest.mark.no_cover
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_devices_that_fail_alike_are_rarely_and_briefly_blamed(seed: int, share: float) -> None:
    rng = random.Random(seed)
    cluster = Cluster(settings_with(), seed=seed)
    members = [cluster.device(f"d{index}", task_types=(OWN,)) for index in range(4)]
    cluster.submit(400, task_type="own", max_retries=0)
    while cluster.state.tasks:
        cluster.place()
        for member in members:
            if member.keys and rng.random() < share:
                fail_all(member)
            elif member.keys:
                member.finish()
        let_pass(cluster, 1, *members)
    long = [d for _, d in cluster.events("device.passed_over") if d["seconds"] > 60]
    assert len(long) <= 3
