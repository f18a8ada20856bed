"""Waiting for tasks, for a main node that is away, for a full queue."""

from __future__ import annotations

import json

import pytest

from retire_cluster.cli import waiting
from retire_cluster.cli.retrying import ReconnectingClient
from retire_cluster.cli.verbs import submit, tasks
from retire_cluster.schemas.errors import ClusterUnavailable, QueueFull, TaskJustEnded
from tests.unit.cli.kit import TASK, Run, Script, result, submission


def test_waiting_prints_the_result_and_exits_0() -> None:
    script = Script({"task_ids": [TASK]}, {"results": [result()], "unfinished": []})
    run = Run(script, **submission(wait=True))
    assert run(submit.submit) == 0
    assert json.loads(run.out.getvalue()) == {"echo": {"a": 1}}
    assert f"{TASK}: success on pi in 0.05 s" in run.err.getvalue()


@pytest.mark.parametrize("status", ["failed", "timeout", "cancelled"])
def test_waiting_for_a_task_that_does_not_succeed_exits_1(status: str) -> None:
    answer = result(status, result_data=None, error_message="it broke")
    run = Run(Script({"results": [answer], "unfinished": []}), task_ids=[TASK], timeout=None)
    assert run(tasks.wait) == 1
    assert "it broke" in run.err.getvalue()
    assert run.out.getvalue() == ""


def test_waiting_that_takes_too_long_exits_7_and_says_how_to_look_again() -> None:
    run = Run(Script({"results": [], "unfinished": [TASK]}), task_ids=[TASK], timeout=0.0)
    assert run(tasks.wait) == 7
    assert f"retire-cluster tasks wait {TASK}" in run.err.getvalue()


def test_ctrl_c_while_waiting_detaches_and_says_how_to_look_again() -> None:
    run = Run(Script(KeyboardInterrupt()), task_ids=[TASK], timeout=None)
    assert run(tasks.wait) == 130
    assert f"retire-cluster tasks wait {TASK}" in run.err.getvalue()


def test_waiting_outlives_a_restart_of_the_main_node() -> None:
    script = Script(
        ClusterUnavailable(), ClusterUnavailable(), {"results": [result()], "unfinished": []}
    )
    pauses: list[float] = []
    results, unfinished = waiting.wait_for(
        script, [TASK], None, clock=lambda: float(len(pauses)), pause=pauses.append
    )
    assert [r["task_id"] for r in results] == [TASK]
    assert unfinished == []
    assert len(pauses) == 2


def test_results_that_come_in_parts_are_all_told_in_order() -> None:
    other, third = "01234567-89ab-7def-8123-456789abcdef", "01234567-89ab-7def-8123-456789abcde0"
    script = Script(
        {"results": [result(task_id=other)], "unfinished": [third], "omitted": [TASK]},
        {"results": [result()], "unfinished": [third], "omitted": []},
        {"results": [result(task_id=third)], "unfinished": [], "omitted": []},
    )
    results, unfinished = waiting.wait_for(script, [TASK, other, third], None)
    assert [r["task_id"] for r in results] == [TASK, other, third]
    assert unfinished == []
    assert [call[1]["task_ids"] for call in script.calls[1:]] == [[TASK, third], [third]]
    assert [call[1]["timeout_seconds"] > 0 for call in script.calls] == [True, False, True]


def test_who_waits_for_what_nothing_can_run_is_told_why_once() -> None:
    waits = {"results": [], "unfinished": [TASK]}
    stuck = {"queued_reason": {"eligible_devices": 0, "rejected": {"no GPU": 2}}}
    runs = {"queued_reason": None}
    script = Script(
        waits, stuck, waits, stuck, waits, runs, {"results": [result()], "unfinished": []}
    )
    run = Run(script, task_ids=[TASK], timeout=None)
    assert run(tasks.wait) == 0
    told = run.err.getvalue()
    assert told.count("no device can run it now (2 x no GPU)") == 1
    assert f"retire-cluster explain {TASK}" in told
    assert "waits until a device can, or a device's owner allows it" in told
    assert "Ctrl-C leaves it queued, --timeout SECONDS ends" in told
    assert told.count(f"retire-cluster tasks cancel {TASK}") == 1
    assert script.calls[0][1]["timeout_seconds"] <= 2


def test_waiting_ends_when_the_main_node_stays_away() -> None:
    script = Script(*[ClusterUnavailable()] * 100)
    pauses: list[float] = []
    with pytest.raises(ClusterUnavailable):
        waiting.wait_for(
            script, [TASK], None, clock=lambda: float(len(pauses)), pause=pauses.append
        )
    assert 25 <= len(pauses) <= 35


def test_a_task_is_waited_for_by_its_id_in_any_case() -> None:
    run = Run(Script({"results": [result()], "unfinished": []}), task_ids=[TASK.upper()],
              timeout=5.0)  # fmt: skip
    assert run(tasks.wait) == 0
    assert '"echo"' in run.out.getvalue()


def test_a_task_that_ended_this_very_moment_is_retried_a_moment_later() -> None:
    script = Script(TaskJustEnded(), TaskJustEnded(), {"task_id": TASK, "status": "queued"})
    run = Run(script, task_ids=[TASK])
    assert run(tasks.retry) == 0
    assert run.out.getvalue() == f"{TASK}: queued\n"
    assert len(script.calls) == 3


def test_a_main_node_that_was_met_is_waited_for_and_that_is_said_once() -> None:
    away = [ClusterUnavailable()] * 40
    script = Script({}, *away, {"n": 1}, ClusterUnavailable(), {"n": 2})
    told: list[str] = []
    pauses: list[float] = []
    client = ReconnectingClient(
        script, told.append, "host:1", clock=lambda: sum(pauses), pause=pauses.append
    )
    client.call("broker.info")
    assert client.call("task.wait") == {"n": 1}
    assert client.call("task.wait") == {"n": 2}
    assert len(told) == 2
    assert "the main node at host:1 does not answer; waiting for it" in told[0]
    assert told[1] == "going on after 40 s"


def test_a_main_node_that_comes_back_with_other_keys_says_so_to_who_waits() -> None:
    silent = ClusterUnavailable("the main node at host:1 did not answer within 5 s; start it")
    gone = ClusterUnavailable("nothing listens at host:1: no main node runs there; start it")
    other = ClusterUnavailable("what answers at host:1 is not the main node of this key")
    told: list[str] = []
    pauses: list[float] = []
    client = ReconnectingClient(
        Script({}, *[silent, gone] * 5, *[other] * 9, {}), told.append, "host:1",
        clock=lambda: sum(pauses), pause=pauses.append,
    )  # fmt: skip
    client.call("broker.info")
    client.call("task.wait")
    assert len(told) == 3
    assert "does not answer" in told[0]
    assert "is not the main node of this key; waiting" in told[1]


def test_a_main_node_that_was_never_met_is_an_error_at_once() -> None:
    client = ReconnectingClient(Script(ClusterUnavailable()), print, "host:1")
    with pytest.raises(ClusterUnavailable):
        client.call("broker.info")


def test_a_full_queue_is_waited_for_and_named_but_not_beyond_the_time_given() -> None:
    script = Script(*[QueueFull("9 tasks wait.", retry_after=5)] * 9)
    told: list[str] = []
    pauses: list[float] = []
    client = ReconnectingClient(
        script, told.append, "", timeout_seconds=20, clock=lambda: sum(pauses), pause=pauses.append
    )
    with pytest.raises(QueueFull):
        client.call("task.submit")
    assert sum(pauses) == 20
    assert len(told) == 1
    assert "9 tasks wait." in told[0]
