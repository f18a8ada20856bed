"""Processes that stop and go on: what they say late must change nothing, and nobody is blamed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.chaos.rig import Rig, eventually

#: The lease of the rig's settings.
LEASE_SECONDS = 3.0


def _counting(path: Path, seconds: float) -> dict[str, list[str]]:
    return {"command": ["/bin/sh", "-c", f'echo run >> "{path}"; sleep {seconds}']}


def test_the_late_result_of_a_device_stopped_beyond_its_lease_is_refused(
    cluster: Rig, tmp_path: Path
) -> None:
    zombie = cluster.start_device("zombie")
    cluster.await_online("zombie")
    (task,) = cluster.submit("sleep", {"duration": 0.7})
    eventually(lambda: cluster.status(task) == "running", "the zombie runs it")
    zombie.send(signal.SIGSTOP)
    cluster.start_device("heir")
    (row,) = cluster.finish([task], 20)
    assert (row["status"], row["worker_device_id"]) == ("success", "heir")
    zombie.send(signal.SIGCONT)
    cluster.await_online("zombie")
    time.sleep(0.5)  # any second outcome would have to come now
    assert cluster.finish([task]) == [row]
    (again,) = cluster.finish(cluster.submit("echo", {"who": "zombie or heir"}))
    assert again["status"] == "success"


def test_a_device_stopped_beyond_its_lease_kills_what_may_not_run_twice(
    cluster: Rig, tmp_path: Path
) -> None:
    zombie = cluster.start_device("zombie", "--slots", "1")
    cluster.await_online("zombie")
    effects = cluster.marks / "effects"
    (task,) = cluster.submit("command", _counting(effects, 60))
    eventually(effects.exists, "the zombie runs it")
    zombie.send(signal.SIGSTOP)
    eventually(lambda: cluster.status(task) in ("pending", "queued"), "the lease is over")
    zombie.send(signal.SIGCONT)
    cluster.await_online("zombie")
    # Its only slot is free again, so the first run is gone; the second is the only one.
    eventually(lambda: effects.read_text().count("run") == 2, "it runs again", 20)
    detail = cluster.admin.call("task.get", {"task_id": task})
    assert detail["status"] in ("assigned", "running")
    assert [entry["status"] for entry in detail["attempts"]][:-1] == ["lost"]


@pytest.mark.parametrize("asleep_seconds", [2.0, 4.5])
def test_a_main_node_stopped_for_longer_than_a_lease_blames_no_device(
    cluster: Rig, tmp_path: Path, asleep_seconds: float
) -> None:
    cluster.start_device("steady")
    cluster.await_online("steady")
    (task,) = cluster.submit("sleep", {"duration": asleep_seconds + 2.0})
    eventually(lambda: cluster.status(task) == "running", "it runs")
    assert cluster.broker is not None
    cluster.broker.send(signal.SIGSTOP)
    time.sleep(asleep_seconds)
    cluster.broker.send(signal.SIGCONT)
    (row,) = cluster.finish([task], 20)
    assert row["status"] == "success"
    detail = cluster.admin.call("task.get", {"task_id": task})
    assert len(detail["attempts"]) == 1, detail["attempts"]
    seen = cluster.admin.call("events.poll", {"since": 0, "wait_seconds": 0})["events"]
    assert "device.offline" not in [event["type"] for event in seen]


def test_running_tasks_are_not_run_again_over_a_restart_of_the_main_node(
    cluster: Rig, tmp_path: Path
) -> None:
    cluster.start_device("steady")
    cluster.await_online("steady")
    effects = cluster.marks / "effects"
    tasks = cluster.submit("command", _counting(effects, 2.5), 3)
    eventually(lambda: effects.exists() and effects.read_text().count("run") == 3, "they run")
    assert cluster.broker is not None
    cluster.broker.kill()
    cluster.start_broker()
    rows = cluster.finish(tasks, 20)
    assert [row["status"] for row in rows] == ["success"] * 3
    assert effects.read_text().count("run") == 3
