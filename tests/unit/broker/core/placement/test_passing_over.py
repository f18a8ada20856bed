"""What a device lacks, refuses or fails: it is passed over for that kind of task, for a while."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from retire_cluster.broker.core import state
from retire_cluster.broker.core.instructions import StoreDevices
from retire_cluster.broker.core.placement.notes import LONGEST_SECONDS
from retire_cluster.broker.core.placement.passing_over import (
    FIRST_SECONDS,
    MAX_NOTES,
)
from retire_cluster.schemas.protocol.messages import TypeInfo
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text.jsontext import dumps, loads
from retire_cluster.schemas.vocabulary import Cause
from tests.unit.broker.kit import WALL_MS, Cluster, Member, submit

OWN = TypeInfo("resize", repeatable=True, distribution="pictures")
WEB = (BUILTIN["command"], BUILTIN["http_request"], BUILTIN["sleep"])


def program(cluster: Cluster, name: str, count: int = 1, **fields: Any) -> list[int]:
    """Tasks that run a program, submitted as a client does."""
    body = {"task_type": "command", **fields}
    found = submit(cluster, *[body] * count, payload=dumps({"command": [name, "-x"]}))
    return [number(cluster, task_id) for task_id in found["task_ids"]]


def number(cluster: Cluster, task_id: str) -> int:
    read = cluster.state.ids.read(task_id)
    assert read is not None
    return read[0]


def lacks(member: Member, cause: str = "not_here", error: str = "") -> None:
    """Everything that a device has ends for want of something."""
    text = error or "there is no program 'ffmpeg' on this device"
    member.finish(outcome="failed", cause=cause, error=text, result=b"")


def notes(member: Member) -> list[tuple[str, str, str]]:
    found = member.record.notes.items()
    return [(kind.task_type, kind.needs, note.cause) for kind, note in found if note.active]


def explained(cluster: Cluster, task: int, device_id: str) -> list[str]:
    data = cluster.call("task.explain", {"task_id": cluster.public(task, cluster.wall_ms)}).data
    return next(row["reasons"] for row in data["devices"] if row["device_id"] == device_id)


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
        cluster.tick("stranded")
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
    cluster.tick("stranded")
    assert cluster.status(task) == "queued"
    for _ in range(400):
        cluster.pass_time(270)
        member.beat()
        cluster.tick("stranded", "deadlines")
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
            cluster.tick("stranded")
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
        cluster.tick("stranded", "deadlines")
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
        cluster.tick("stranded", "deadlines")
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
    monkeypatch.setattr(state, "MAX_APART", places)
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
    assert len(cluster.state.apart) == places
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
        cluster.tick("stranded", "deadlines")
        cluster.place()
    assert cluster.outcome(last).cause == "not_here"
    assert all(
        f"d{index}: there is no" in str(cluster.outcome(last).error_message) for index in range(6)
    )


@pytest.mark.parametrize("new_process", [True, False])
def test_a_new_process_of_the_device_clears_it_a_new_connection_does_not(
    cluster: Cluster, new_process: bool
) -> None:
    member = cluster.device("member")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    (task,) = program(cluster, "ffmpeg")
    cluster.place()
    lacks(member)
    cluster.restart()
    member.join(**({"instance": "after apt install"} if new_process else {}))
    cluster.place()
    assert bool(notes(member)) is not new_process
    assert [key[0] for key in member.keys] == ([task] if new_process else [])


def test_a_restart_keeps_who_lacks_what_and_whom_a_task_has_visited(cluster: Cluster) -> None:
    member = cluster.device("member")
    (task,) = program(cluster, "ffmpeg")
    cluster.place()
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    lacks(member)
    cluster.restart()
    assert notes(member) == [("command", "program ffmpeg", "not_here")]
    assert cluster.task(task).excluded == {"member": "there is no program 'ffmpeg' on this device"}
    assert cluster.task(task).tried == {"member"}
    member.join()
    cluster.place()
    assert member.keys == []
    assert explained(cluster, task, "member") == [
        "there is no program 'ffmpeg' on this device, seen 0 s ago"
    ]


@pytest.mark.parametrize("rebooted", [True, False])
def test_a_restart_changes_neither_age_nor_length_of_a_note(
    cluster: Cluster, rebooted: bool
) -> None:
    member = cluster.device("member")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    program(cluster, "ffmpeg")
    cluster.place()
    lacks(member)
    cluster.tick("stranded")
    cluster.pass_time(200)
    (before,) = cluster.call("device.get", {"device_id": "member"}).data["passed_over"]
    if rebooted:
        cluster.reboot(60)
    else:
        cluster.pass_time(60)
        cluster.restart()
    (after,) = cluster.call("device.get", {"device_id": "member"}).data["passed_over"]
    assert after == before
    (note,) = member.record.notes.values()
    assert note.seconds == FIRST_SECONDS
    cluster.pass_time(39)
    cluster.tick("stranded")
    assert notes(member)
    cluster.pass_time(2)
    cluster.tick("stranded")
    assert not notes(member)


@pytest.mark.parametrize(
    "stored",
    [
        "no list",
        [["command", "program ffmpeg", "not_here"]],
        [["command", "program ffmpeg", "not_here", "no", 1, 300.0, 1, "more"]],
        [["command", "program ffmpeg", "not_here", "no", 1, float(10**300), 1]],
        [["command", None, "not_here", "no", 1, 300.0, 1], 7],
    ],
)
def test_a_damaged_note_costs_itself_and_neither_its_device_nor_the_start(
    cluster: Cluster, stored: Any
) -> None:
    member = cluster.device("member")
    row = member.record.row()
    document = {**loads(row.document), "notes": stored}
    cluster.store.commit([StoreDevices((row._replace(document=dumps(document)),))])
    cluster.restart()
    assert member.record.slots == 1
    assert not member.record.notes
    assert not cluster.warnings


def test_another_version_of_a_types_package_is_a_new_chance_for_that_type(
    cluster: Cluster,
) -> None:
    types = (replace(OWN, distribution_version="1.0"), BUILTIN["command"])
    poor = cluster.device("poor", task_types=types)
    cluster.device("other", task_types=types)
    cluster.call("device.drain", {"device_id": "other"})
    (task,) = owns(cluster, max_retries=0)
    cluster.place()
    lacks(poor)
    program(cluster, "ffmpeg")
    cluster.place()
    lacks(poor)
    assert notes(poor) == [("command", "program ffmpeg", "not_here")]
    poor.join()
    cluster.place()
    assert not poor.keys
    poor.join(task_types=(replace(OWN, distribution_version="1.1"), BUILTIN["command"]))
    assert not cluster.task(task).excluded
    assert notes(poor) == [("command", "program ffmpeg", "not_here")]
    cluster.place()
    assert [key[0] for key in poor.keys] == [task]


def test_a_retry_by_hand_asks_again(cluster: Cluster) -> None:
    member = cluster.device("member")
    (task,) = program(cluster, "ffmpeg")
    cluster.place()
    lacks(member)
    assert cluster.status(task) == "failed"
    cluster.retry(task)
    cluster.place()
    assert [key[0] for key in member.keys] == [task]


def test_explain_the_device_and_the_events_say_it_in_words(cluster: Cluster) -> None:
    member = cluster.device("pi-kitchen")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    (task,) = program(cluster, "ffmpeg")
    cluster.place()
    lacks(member)
    cluster.pass_time(200)
    text = "there is no program 'ffmpeg' on this device"
    data = cluster.call("task.explain", {"task_id": cluster.public(task, WALL_MS)}).data
    row = next(row for row in data["devices"] if row["device_id"] == "pi-kitchen")
    assert row["reasons"] == [f"{text}, seen 3 min ago"]
    assert data["queued_reason"]["rejected"] == {text: 1, "draining": 1}
    (shown,) = cluster.call("device.get", {"device_id": "pi-kitchen"}).data["passed_over"]
    assert shown == {
        "task_type": "command", "needs": "program ffmpeg", "cause": "not_here",
        "message": text, "since": "2023-11-14T22:13:20Z", "until": "2023-11-14T22:18:20Z",
    }  # fmt: skip
    cluster.pass_time(200)
    cluster.tick("stranded")
    assert [kind for kind, _ in cluster.events("device.")][-2:] == [
        "device.passed_over", "device.eligible_again",
    ]  # fmt: skip
    assert cluster.call("device.get", {"device_id": "pi-kitchen"}).data["passed_over"] == []


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
    cluster.state.check_invariants = lambda: None  # type: ignore[method-assign]
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


def test_the_memory_of_what_a_device_lacks_is_bounded(cluster: Cluster) -> None:
    member = cluster.device("member")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    for index in range(4 * MAX_NOTES):
        program(cluster, f"tool{index}")
        cluster.place()
        assert member.keys, index
        lacks(member)
    assert len(member.record.notes) == MAX_NOTES
    assert cluster.state.noted.entries() <= 3 * MAX_NOTES, "the ends of those that went, too"
    cluster.tick("stranded")
    cluster.restart()
    assert len(member.record.notes) == MAX_NOTES


def test_a_device_that_lacks_many_things_in_a_second_is_stored_once(cluster: Cluster) -> None:
    member = cluster.device("member")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    seen = len(cluster.past)
    for index in range(30):
        program(cluster, f"tool{index}")
        cluster.place()
        lacks(member)
    cluster.pass_time(1)
    cluster.tick("stranded")
    cluster.tick("stranded")
    rows = [one for one in cluster.past[seen:] if isinstance(one, StoreDevices)]
    assert len(rows) == 2, "the first at once, all others together"
    cluster.restart()
    assert len(notes(member)) == 30


def test_all_notes_of_many_devices_are_stored_a_few_devices_a_turn(cluster: Cluster) -> None:
    cluster.state.check_invariants = lambda: None  # type: ignore[method-assign]
    members = [cluster.device(f"d{index:03}") for index in range(100)]
    for name in ("ffmpeg", "sox"):
        (task,) = program(cluster, name, requirements={"max_retries": 0})
        for _ in range(len(members)):
            cluster.place()
            (busy,) = [member for member in members if member.keys]
            lacks(busy)
        assert cluster.outcome(task).cause == "not_here"
    seen = len(cluster.past)
    for _ in range(3):
        cluster.tick("stranded")
    rows = [len(one.rows) for one in cluster.past[seen:] if isinstance(one, StoreDevices)]
    assert rows == [64, 36]
    cluster.restart()
    assert {len(notes(member)) for member in members} == {2}


def test_a_device_that_was_removed_leaves_no_notes(cluster: Cluster) -> None:
    member = cluster.device("member")
    cluster.device("other")
    cluster.call("device.drain", {"device_id": "other"})
    program(cluster, "ffmpeg")
    cluster.place()
    lacks(member)
    assert cluster.state.noted.kinds
    cluster.call("device.remove", {"device_id": "member"})
    assert not cluster.state.noted.kinds
    cluster.pass_time(FIRST_SECONDS)
    cluster.tick("stranded")


def test_a_program_for_every_task_makes_no_class_for_every_task(cluster: Cluster) -> None:
    cluster.device("member")
    for index in range(100):
        program(cluster, f"./job-{index}.sh")
    assert len(cluster.state.waiting) == 1


def owns(cluster: Cluster, count: int = 1, **limits: Any) -> list[int]:
    return cluster.submit(count, task_type="resize", **limits)


def test_one_task_of_an_own_type_that_wants_what_is_nowhere_ends_alone(cluster: Cluster) -> None:
    members = [cluster.device(name) for name in ("first", "second")]
    (odd,) = owns(cluster, max_retries=0)
    rest = owns(cluster, 6, max_retries=0)
    for _ in range(9):
        cluster.place()
        for member in members:
            for key in member.keys:
                if key[0] == odd:
                    lacks(member, error="No module named 'typo'")
                else:
                    member.finish(key)
        cluster.tick("stranded")
    outcome = cluster.outcome(odd)
    assert (outcome.status, outcome.cause, outcome.retry_count) == ("failed", "not_here", 0)
    assert "first: No module named 'typo'" in str(outcome.error_message)
    assert "second: No module named 'typo'" in str(outcome.error_message)
    assert {cluster.status(task) for task in rest} == {"success"}
    assert [data["seconds"] for _, data in cluster.events("device.passed_over")] == [5]
    let_pass(cluster, 5, *members)
    assert not any(notes(member) for member in members)


@pytest.mark.parametrize(("cause", "asked"), [("not_here", 3), ("policy_denied", 1)])
def test_a_device_that_lacks_what_an_own_type_needs_is_passed_over_for_the_type(
    cluster: Cluster, cause: str, asked: int
) -> None:
    poor, rich = cluster.device("poor"), cluster.device("rich")
    tasks = owns(cluster, 60, max_retries=0)
    rounds = 0
    while any(cluster.status(task) != "success" for task in tasks):
        cluster.place()
        if poor.keys:
            rounds += 1
            lacks(poor, cause, "No module named 'torch'")
            cluster.place()
        elif rich.keys:
            rich.finish()
            let_pass(cluster, 1, poor, rich)
        assert rounds <= asked
    assert notes(poor) == [("resize", "", cause)]
    (note,) = poor.record.notes.values()
    assert note.seconds == FIRST_SECONDS


def let_pass(cluster: Cluster, seconds: float, *members: Member) -> None:
    cluster.pass_time(seconds)
    for member in members:
        member.beat()
    cluster.tick("stranded", "deadlines")


def test_tasks_that_no_device_can_run_pass_no_device_over_for_their_type(
    cluster: Cluster,
) -> None:
    """Three with an import of their payload once kept the type from all but one for minutes."""
    members = [cluster.device(f"d{index}", slots=2) for index in range(4)]
    odd = owns(cluster, 9, max_retries=0)
    for _ in range(60):
        cluster.place()
        for member in members:
            lacks(member, error=f"No module named 'typo' on {member.device_id}")
        let_pass(cluster, 1, *members)
    for task in odd:
        outcome = cluster.outcome(task)
        assert (outcome.status, outcome.cause, outcome.retry_count) == ("failed", "not_here", 0)
        for member in members:
            name = member.device_id
            assert f"{name}: No module named 'typo' on {name}" in str(outcome.error_message)
    told = [data["seconds"] for _, data in cluster.events("device.passed_over")]
    assert max(told) <= 5
    let_pass(cluster, 6, *members)
    owns(cluster, 8, max_retries=0)
    cluster.place()
    assert [len(member.keys) for member in members] == [2, 2, 2, 2]


def test_each_devices_word_of_a_task_is_told_after_a_restart_too(cluster: Cluster) -> None:
    members = [cluster.device(f"d{index}") for index in range(3)]
    (task,) = owns(cluster, max_retries=0)
    for turn in range(3):
        cluster.place()
        (busy,) = [member for member in members if member.keys]
        lacks(busy, error=f"{busy.device_id} has no torch")
        if turn < 2:
            cluster.restart()
            for member in members:
                member.join()
    message = str(cluster.outcome(task).error_message)
    assert all(f"d{index}: d{index} has no torch" in message for index in range(3))


def test_what_a_device_refused_before_it_did_one_well_does_not_count_against_it(
    cluster: Cluster,
) -> None:
    first, second = cluster.device("first"), cluster.device("second", slots=8)
    cluster.call("device.drain", {"device_id": "second"})
    refused = owns(cluster, 4, max_retries=0)
    fine = owns(cluster, max_retries=0)
    for _ in refused:
        cluster.place()
        lacks(first)
    cluster.place()
    assert [key[0] for key in first.keys] == fine
    first.finish()
    cluster.call("device.resume", {"device_id": "second"})
    cluster.place()
    assert [key[0] for key in second.keys] == refused
    second.finish()
    assert not first.record.notes
    assert not first.record.records


def test_the_last_device_is_never_passed_over_for_a_whole_type(cluster: Cluster) -> None:
    member = cluster.device("member")
    tasks = owns(cluster, 10, max_retries=0)
    fine = owns(cluster, max_retries=0)[0]
    for _ in tasks:
        cluster.place()
        lacks(member)
        cluster.tick("stranded")
    assert {cluster.status(task) for task in tasks} == {"failed"}
    assert not notes(member)
    cluster.place()
    member.finish()
    assert cluster.status(fine) == "success"


def test_who_is_left_as_the_last_for_a_type_is_asked_again_and_nobody_fails_unasked(
    cluster: Cluster,
) -> None:
    poor = cluster.device("poor")
    cluster.device("other")
    tasks = owns(cluster, 20, max_retries=0)
    while not notes(poor):
        cluster.place()
        lacks(poor)
    cluster.tick("stranded")
    assert notes(poor)
    cluster.call("device.remove", {"device_id": "other"})
    cluster.tick("stranded")
    cluster.place()
    assert poor.keys
    assert not notes(poor)
    assert {cluster.status(task) for task in tasks} == {"queued", "assigned"}


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
        cluster.tick("stranded")
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
