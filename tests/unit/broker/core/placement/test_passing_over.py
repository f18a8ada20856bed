"""A device that lacks a program is passed over for it, and others are asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from retire_cluster.broker.core.placement import matching
from retire_cluster.broker.core.placement.notes import LONGEST_SECONDS
from retire_cluster.broker.core.placement.passing_over import FIRST_SECONDS
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text.json_text import dumps
from retire_cluster.schemas.vocabulary import Cause
from tests.unit.broker.core.placement.kit import WEB, explained, lacks, notes, number, program
from tests.unit.broker.kit import Cluster


@pytest.mark.parametrize("cause", [Cause.NOT_HERE, Cause.POLICY_DENIED])
def test_a_missing_program_is_looked_for_elsewhere_without_a_retry(
    cluster: Cluster, cause: Cause
) -> None:
    first = cluster.device("first")
    (task,) = program(cluster, "ffmpeg", requirements={"max_retries": 0})
    cluster.place()
    second = cluster.device("second")
    lacks(first, cause)
    cluster.place()
    assert [key[0] for key in second.keys] == [task]
    second.finish()
    outcome = cluster.outcome(task)
    assert (outcome.status, outcome.retry_count, outcome.device_id) == ("success", 0, "second")


def test_a_device_without_the_program_does_not_eat_the_queue(cluster: Cluster) -> None:
    quick, slow = cluster.device("quick"), cluster.device("slow")
    tasks = program(cluster, "ffmpeg", 200, requirements={"max_retries": 0})
    rounds = 0
    while any(cluster.status(task) != "success" for task in tasks):
        cluster.place()
        for _ in range(20):  # it answers at once, twenty times while the other works
            if quick.keys:
                rounds += 1
                lacks(quick)
                cluster.place()
        if slow.keys:
            slow.finish()
        cluster.pass_time(1)
        quick.beat()
        slow.beat()
        assert rounds < 5
    assert rounds == 1, "it was asked once"


def test_it_still_gets_what_it_can_run(cluster: Cluster) -> None:
    member, other = cluster.device("member"), cluster.device("other")
    program(cluster, "ffmpeg")
    cluster.place()
    (who,) = [one for one in (member, other) if one.keys]
    lacks(who)
    cluster.place()
    (fine,) = program(cluster, "convert")
    (plain,) = cluster.submit()
    cluster.place()
    assert who.keys
    assert who.keys[0][0] in (fine, plain)
    assert notes(who) == [("command", "program ffmpeg", "not_here")]


def test_tasks_queued_before_are_told_apart_when_their_turn_comes(cluster: Cluster) -> None:
    member = cluster.device("member")
    tasks = program(cluster, "ffmpeg", 3) + program(cluster, "convert", 2)
    cluster.device("other", slots=2)
    cluster.call("device.drain", {"device_id": "other"})
    cluster.place()
    lacks(member)
    cluster.place()
    assert [key[0] for key in member.keys] == tasks[3:4], "it goes on with what it has"
    member.finish()
    cluster.place()
    assert [key[0] for key in member.keys] == tasks[4:]
    assert [cluster.status(task) for task in tasks[:3]] == ["queued"] * 3


def test_when_every_device_has_said_so_all_fail_at_once_with_all_reasons(
    cluster: Cluster,
) -> None:
    members = [cluster.device(name) for name in ("attic", "pi")]
    tasks = program(cluster, "ffmpeg", 50)
    fine = program(cluster, "convert", 1)
    cluster.place()
    for member in members:
        lacks(member, error=f"there is no program 'ffmpeg' on {member.device_id}")
    for _ in range(4):
        cluster.place()
        cluster.tick("unschedulable")
        cluster.pass_time(1)
    assert {cluster.status(task) for task in tasks} == {"failed"}
    for task in (tasks[0], tasks[-1]):
        outcome = cluster.outcome(task)
        assert (outcome.cause, outcome.retry_count) == ("not_here", 0)
        assert outcome.error_message is not None
        assert "attic: there is no program 'ffmpeg' on attic, seen" in outcome.error_message
        assert "pi: there is no program 'ffmpeg' on pi, seen" in outcome.error_message
    assert cluster.status(fine[0]) == "assigned"


def test_a_newcomer_gets_what_the_others_lack(cluster: Cluster) -> None:
    member = cluster.device("member")
    cluster.device("away")
    cluster.call("device.drain", {"device_id": "away"})
    (task,) = program(cluster, "ffmpeg")
    cluster.place()
    lacks(member)
    assert cluster.status(task) == "queued", "a drained device may have it"
    newcomer = cluster.device("newcomer")
    cluster.place()
    assert [key[0] for key in newcomer.keys] == [task]


def test_a_device_that_is_away_is_waited_for_until_it_is_removed(cluster: Cluster) -> None:
    cluster.device("gone")
    cluster.pass_time(60)
    member = cluster.device("member")
    cluster.tick("liveness")
    cluster.tick("liveness")
    assert not cluster.state.devices["gone"].online
    (task,) = program(cluster, "ffmpeg")
    cluster.place()
    lacks(member)
    cluster.tick("unschedulable")
    assert cluster.status(task) == "queued"
    for _ in range(400):
        cluster.pass_time(270)
        member.beat()
        cluster.tick("unschedulable", "deadlines")
        cluster.place()
        assert not member.keys, "it would only say so again"
    assert cluster.status(task) == "queued"
    cluster.call("device.remove", {"device_id": "gone"})
    cluster.place()
    lacks(member)
    assert cluster.status(task) == "failed"


def test_it_is_asked_again_after_a_while_each_time_later(cluster: Cluster) -> None:
    member = cluster.device("member")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    waits = []
    for _ in range(6):
        program(cluster, "ffmpeg", requirements={"max_retries": 10})
        cluster.place()
        assert member.keys
        lacks(member)
        began = cluster.mono
        while notes(member):
            cluster.pass_time(50)
            member.beat()
            cluster.tick("unschedulable")
        waits.append(cluster.mono - began)
    assert waits == [min(FIRST_SECONDS * 2**n, LONGEST_SECONDS) for n in range(6)]


@pytest.mark.parametrize("unable", [8, 9, 12])
def test_a_task_waits_for_the_one_who_may_run_it_however_many_cannot(
    cluster: Cluster, unable: int
) -> None:
    able = cluster.device("able")
    cluster.submit(1, task_type="sleep")
    cluster.place()
    members = [cluster.device(f"d{index:02}") for index in range(unable)]
    (task,) = cluster.submit(1, task_type="resize", max_retries=0)
    asked = []
    for _ in range(unable + 5):
        cluster.place()
        for member in members:
            if member.keys:
                asked.append(member.record.device_id)
                lacks(member)
        cluster.pass_time(0.5)
        for member in (*members, able):
            member.beat()
        cluster.tick("unschedulable", "deadlines")
    assert sorted(asked) == [member.record.device_id for member in members], "each once"
    able.start()
    able.finish()
    cluster.place()
    assert [key[0] for key in able.keys] == [task]
    able.finish()
    assert cluster.outcome(task).status == "success"


def test_no_task_goes_round_for_ever(cluster: Cluster) -> None:
    member = cluster.device("member")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    (task,) = program(cluster, "ffmpeg", requirements={"max_retries": 1})
    cluster.place()
    lacks(member)
    for _ in range(10):
        cluster.pass_time(LONGEST_SECONDS)
        member.beat()
        cluster.tick("unschedulable", "deadlines")
        cluster.place()
        assert not member.keys, "the other one may come back"
    assert cluster.task(task).attempt == 1
    cluster.call("device.remove", {"device_id": "other"})
    cluster.place()
    lacks(member)
    outcome = cluster.outcome(task)
    assert (outcome.cause, outcome.attempt) == ("not_here", 2)


def test_more_programs_than_are_told_apart_keep_nobody_waiting(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All places taken, the 17th program more that a device lacked stopped it for good."""
    places = 20
    monkeypatch.setattr(matching, "MAX_APART", places)
    members = [cluster.device(f"d{index}") for index in range(6)]
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    count = places + 60
    for index in range(count):
        program(cluster, f"tool{index}")
        for _ in range(8):
            cluster.place()
            for member in members:
                lacks(member) if member.keys else None
    assert len(cluster.state.classes.apart) == places
    (fine,) = program(cluster, "convert")
    for _ in range(count // 16 + 1):
        cluster.place()
    assert cluster.status(fine) == "assigned"
    cluster.call("device.remove", {"device_id": "other"})
    last = fine - 1
    for _ in range(40):
        for member in members:
            member.beat()
            for key in member.keys:
                member.finish(key) if key[0] == fine else lacks(member)
        cluster.pass_time(1)
        cluster.tick("unschedulable", "deadlines")
        cluster.place()
    assert cluster.outcome(last).cause == "not_here"
    assert all(
        f"d{index}: there is no" in str(cluster.outcome(last).error_message) for index in range(6)
    )


def test_what_an_owner_told_is_matched_and_nothing_bounces(cluster: Cluster) -> None:
    told = (
        _allowing("command", shell=False, programs=["ffmpeg", "con*"]),
        _allowing("http_request", private_addresses=False),
    )
    strict = cluster.device("strict", task_types=told, slots=4)
    free = cluster.device("free", task_types=WEB, slots=1)
    urls = ("http://192.168.1.4/x", "http://[::1]/", "http://localhost:80/", "http://nas/")
    bodies = [dumps({"command": "echo $HOME"}), *(dumps({"url": url}) for url in urls)]
    kinds = ["command", *["http_request"] * 4]
    tasks = [
        {"task_type": kind, "priority": "high" if kind == "command" else "normal"} for kind in kinds
    ]
    ids = cluster.call("task.submit", {"tasks": tasks}, bodies).data["task_ids"]
    shell, *private, public = [number(cluster, task_id) for task_id in ids]
    (converts,) = program(cluster, "convert")
    (other,) = program(cluster, "rm")
    cluster.place()
    assert {key[0] for key in strict.keys} == {public, converts}
    done = []
    while free.keys:
        done += [key[0] for key in free.keys]
        free.finish()
        cluster.place()
    assert done == [shell, *private, other]


def _allowing(task_type: str, **allows: Any) -> Any:
    return replace(BUILTIN[task_type], allows=allows)


def test_a_hundred_thousand_tasks_of_a_program_nobody_allows_delay_nothing(
    cluster: Cluster,
) -> None:
    cluster.is_checked = False
    blocked = program(cluster, "ffmpeg", 1_000)
    for _ in range(3):
        program(cluster, "ffmpeg", 1_000)
    (fine,) = program(cluster, "convert")
    told = (_allowing("command", shell=False, programs=["convert"]),)
    member = cluster.device("member", task_types=told)
    passes = 0
    while not member.keys:
        cluster.place()
        passes += 1
        assert passes < 20
    assert [key[0] for key in member.keys] == [fine]
    assert cluster.status(blocked[0]) == "queued"
    assert "does not allow the program ffmpeg" in explained(cluster, blocked[0], "member")[0]


def test_what_an_owner_refuses_of_an_allowed_program_holds_for_that_task_alone(
    cluster: Cluster,
) -> None:
    told = (_allowing("command", shell=False, programs=["git"]),)
    strict = cluster.device("strict", task_types=told)
    (push,) = program(cluster, "git", requirements={"max_retries": 0})
    pulls = program(cluster, "git", 3, requirements={"max_retries": 0})
    cluster.place()
    lacks(strict, "policy_denied", "this device's owner has not allowed 'git' so")
    assert cluster.outcome(push).cause == "policy_denied"
    for task in pulls:
        cluster.tick("unschedulable")
        cluster.place()
        strict.finish()
        assert cluster.status(task) == "success"
    assert not notes(strict)


def test_a_refused_task_waits_for_another_device_as_long_as_it_is_busy(cluster: Cluster) -> None:
    told = (_allowing("command", shell=False, programs=["git"]),)
    strict = cluster.device("strict", task_types=told)
    (push,) = program(cluster, "git", requirements={"max_retries": 0})
    cluster.place()
    free = cluster.device("free", task_types=WEB)
    program(cluster, "convert")
    cluster.place()
    assert free.keys
    lacks(strict, "policy_denied")
    for _ in range(20):
        cluster.pass_time(10)
        strict.beat()
        free.beat()
        cluster.place()
    assert cluster.status(push) == "queued"
    free.finish()
    cluster.place()
    assert [key[0] for key in free.keys] == [push]
