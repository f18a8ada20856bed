"""kill -9, at random and at every named point: nothing acknowledged is lost, nothing ends twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from retire_cluster.conf import failpoints
from retire_cluster.schemas.errors import ClusterError
from tests.chaos.kills import BROKER_POINTS, DEVICE_POINTS, FACADE_POINTS, Campaign
from tests.chaos.rig import Rig, eventually

MakeRig = Callable[..., Rig]


def test_two_hundred_kills_lose_nothing_that_was_acknowledged(make_rig: MakeRig) -> None:
    found = Campaign(make_rig(seed=1), seed=1).run(200, longest_seconds=150)
    assert not found.verdict.problems, found
    assert not found.surprises, found
    assert found.total >= 200
    assert found.verdict.acknowledged > 500
    assert set(found.verdict.outcomes) == {"success"}


def _submit(cluster: Rig, effects: Path, promised: list[str]) -> None:
    """Some of each kind; what is not answered is not promised."""
    script = {"command": ["/bin/sh", "-c", f'echo run >> "{effects}"']}
    more = {"max_retries": 10}
    for task_type, payload in (("echo", {"n": 1}), ("sleep", {"duration": 0.05}),
                               ("command", script)):  # fmt: skip
        try:
            promised += cluster.submit(
                task_type, payload, 2, patience_seconds=0.7, requirements=more
            )
        except ClusterError:
            return


@pytest.mark.parametrize("point", BROKER_POINTS)
@pytest.mark.parametrize("times", [1, 3])
def test_a_main_node_that_dies_at_a_named_point_loses_nothing(
    cluster: Rig, tmp_path: Path, point: str, times: int
) -> None:
    cluster.start_device("box")
    cluster.await_online("box")
    assert cluster.broker is not None
    cluster.broker.stop()
    # The first commit of a main node may be a device's HELLO: it may die before it answers.
    child = cluster.start_broker(failpoint=f"{point}:{times}", wait=False)
    promised: list[str] = []
    effects = cluster.marks / "effects"

    def died() -> bool:
        if child.poll() is None:
            _submit(cluster, effects, promised)
        return child.poll() is not None

    eventually(died, f"it dies at {point}", 30)
    assert child.code == -signal.SIGKILL
    cluster.start_broker()
    assert {row["status"] for row in cluster.finish(promised)} <= {"success"}


@pytest.mark.parametrize("point", DEVICE_POINTS)
def test_a_device_that_dies_at_a_named_point_loses_nothing(
    cluster: Rig, tmp_path: Path, point: str
) -> None:
    child = cluster.start_device("box", failpoint=point)
    promised: list[str] = []
    effects = cluster.marks / "effects"
    _submit(cluster, effects, promised)
    assert child.wait(20) == -signal.SIGKILL
    cluster.start_device("box")
    rows = cluster.finish(promised)
    assert {row["status"] for row in rows} == {"success"}
    runs = effects.read_text().count("run")
    if point in ("device-after-spool", "device-after-send", "device-after-ack"):
        # Once a result is on the disk, its task is not run again (the other may have been cut).
        assert 2 <= runs <= 3
    assert runs >= 2


@pytest.mark.parametrize("point", FACADE_POINTS)
def test_a_facade_that_dies_before_it_answers_gives_the_same_task_to_the_retry(
    cluster: Rig, point: str
) -> None:
    cluster.start_device("box")
    child = cluster.start_api(failpoint=point)
    body = {"task_type": "echo", "payload": {"n": 1}}
    headers = {"Idempotency-Key": "once"}

    def post() -> str:
        try:
            status, answer = cluster.http("POST", "/api/v1/tasks", body, headers)
        except OSError:
            return ""
        return str(answer["data"]["task_id"]) if status == 201 else ""

    eventually(lambda: post() == "" and child.poll() is not None, "it dies")
    assert child.code == -signal.SIGKILL
    cluster.start_api()
    task_id = eventually(post, "the retry is answered")
    assert cluster.admin.call("task.statistics")["queue_stats"]["total_tasks"] == 1
    assert cluster.finish([task_id])[0]["status"] == "success"


def test_a_failpoint_is_chosen_by_the_environment_and_unknown_ones_do_nothing(
    tmp_path: Path,
) -> None:
    code = "from retire_cluster.conf.failpoints import reach; reach('a'); print(1); reach('a')"
    for text, printed in (("a", ""), ("a:2", "1\n"), ("b", "1\n"), ("", "1\n")):
        environ = {**os.environ, failpoints.VARIABLE: text}
        run = subprocess.run(
            [sys.executable, "-u", "-c", code], env=environ, capture_output=True, text=True,
            cwd=tmp_path, check=False,
        )  # fmt: skip
        assert (run.stdout, run.returncode) == (printed, -9 if text[:1] == "a" else 0)
