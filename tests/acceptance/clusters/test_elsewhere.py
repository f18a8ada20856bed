"""What one device lacks, refuses or fails goes to another, and the cluster says so."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.kit import Cluster, Rest, naming
from tests.command_kit import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="its programs are shell scripts"),
]
POOR, RICH = "poor", "rich"
ENTRY_POINTS = """[retire_cluster.task_types]
resize = own_types_here:resize
think = own_types_here:think
"""
#: What the package is on one device, and on the other.
ON_POOR = """
def resize(payload, context):
    raise OSError("the disk is full")

def think(payload, context):
    import no_such_package_here
"""
ON_RICH = """
import time

def resize(payload, context):
    time.sleep(0.02)
    return payload["n"]

think = resize
"""


def site(folder: Path, code: str) -> str:
    """A package with own types, as this device has it."""
    info = folder / "own_types_here-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "own_types_here.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-types-here\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return str(folder)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two devices, equal to look at: one lacks a program and has a bad copy of a package."""
    found = Cluster(tmp_path_factory.mktemp("elsewhere"), "--no-rate-limit", "--workers", "0")
    programs = found.folder / "programs"
    programs.mkdir()
    (programs / "rc-special").write_text("#!/bin/sh\nsleep 0.02\necho done $1\n")
    (programs / "rc-special").chmod(0o755)
    flags = ("--slots", "2", "--allow", "command", "--allow-root")
    try:
        done = found.cli("config", "set", "scheduler.retry_base_seconds=0.1")
        assert done.returncode == 0, done.stderr
        found.join(POOR, *flags, PYTHONPATH=site(found.folder / "on-poor", ON_POOR))
        found.join(
            RICH, *flags, PYTHONPATH=site(found.folder / "on-rich", ON_RICH),
            PATH=f"{programs}{os.pathsep}{os.environ['PATH']}",
        )  # fmt: skip
        yield found
    finally:
        assert found.close() == 0
        assert naming(found.folder) == []


def run_all(rest: Rest, task_type: str, payloads: list[Any], retries: int) -> list[Any]:
    """Every task's details once all have ended."""
    limits = {"max_retries": retries, "timeout_seconds": 60}
    ids = rest.batch(
        {"task_type": task_type, "payload": payload, "requirements": limits} for payload in payloads
    )
    for task_id in ids:
        rest.result(task_id, seconds=60)
    return [rest.get(f"/tasks/{task_id}") for task_id in ids]


def visits(tasks: list[Any]) -> Counter[str]:
    """How many attempts each device had."""
    return Counter(one["device_id"] for task in tasks for one in task["attempts"])


def passed_over(rest: Rest, device_id: str = POOR) -> dict[str, Any]:
    """What a device is passed over for, by the need or else the type."""
    found = rest.get(f"/devices/{device_id}")["passed_over"]
    return {entry["needs"] or entry["task_type"]: entry for entry in found}


def test_a_device_without_the_program_takes_no_task_with_it(cluster: Cluster, rest: Rest) -> None:
    payloads = [{"command": ["rc-special", str(n)]} for n in range(200)]
    tasks = run_all(rest, "command", payloads, 0)
    assert Counter(task["status"] for task in tasks) == {"success": 200}
    assert {task["assigned_device_id"] for task in tasks} == {RICH}
    assert [task["result"]["result_data"]["stdout"] for task in tasks] == [
        f"done {n}\n" for n in range(200)
    ]
    assert sum(task["retry_count"] for task in tasks) == 0
    # It was asked by as many as it had slots for, before it answered.
    assert 1 <= visits(tasks)[POOR] <= 4
    (first,) = {e["error_message"] for task in tasks for e in task["error_history"]}
    assert first == "there is no program 'rc-special' on this device"
    entry = passed_over(rest)["program rc-special"]
    assert (entry["task_type"], entry["cause"], entry["message"]) == ("command", "not_here", first)
    assert entry["since"] < entry["until"]
    kinds = [e["data"] for e in rest.events() if e["type"] == "device.passed_over"]
    assert kinds[0]["needs"] == "program rc-special"
    shown = cluster.cli("devices", "show", POOR).stdout
    assert re.search(rf"passed over for +command \(program rc-special\) until \S+: {first}", shown)


def test_explain_says_it_and_when_all_lack_it_the_task_fails_with_every_word(
    cluster: Cluster, rest: Rest
) -> None:
    rest.post(f"/devices/{RICH}/drain")
    task_id = rest.submit("command", {"command": ["rc-special", "x"]})
    found = rest.get(f"/tasks/{task_id}/explanation")["devices"]
    (reason,) = next(row["reasons"] for row in found if row["device_id"] == POOR)
    assert reason.startswith("there is no program 'rc-special' on this device, seen ")
    assert "there is no program 'rc-special' on this device, seen " in (
        cluster.cli("explain", task_id).stdout
    )
    assert rest.status(task_id)["status"] == "queued"
    rest.post(f"/devices/{RICH}/resume")
    assert rest.result(task_id)["status"] == "success"
    nowhere = rest.submit("command", {"command": ["rc-nowhere"]}, max_retries=3)
    result = rest.result(nowhere)
    assert (result["status"], result["cause"]) == ("failed", "not_here")
    for device_id in (POOR, RICH):
        assert f"{device_id}: there is no program 'rc-nowhere'" in result["error_message"]
    assert rest.get(f"/tasks/{nowhere}")["retry_count"] == 0


def test_a_package_that_one_device_lacks_is_no_failure_of_the_task(rest: Rest) -> None:
    tasks = run_all(rest, "think", [{"n": n} for n in range(40)], 0)
    assert [task["result"]["result_data"] for task in tasks] == list(range(40))
    assert sum(task["retry_count"] for task in tasks) == 0
    assert visits(tasks)[POOR] <= 4
    words = "No module named 'no_such_package_here'"
    assert words in passed_over(rest)["think"]["message"]

    def is_found_out() -> bool:
        run_all(rest, "think", [{"n": 1}] * 4, 0)
        return bool(passed_over(rest).get("think", {}).get("cause") == "not_here")

    until(is_found_out, "three that others did well")
    assert words in passed_over(rest)["think"]["message"]


def test_a_retry_goes_to_another_device_and_who_fails_what_others_do_is_left_out(
    rest: Rest,
) -> None:
    tasks = run_all(rest, "resize", [{"n": n} for n in range(100)], 1)
    assert [task["result"]["result_data"] for task in tasks] == list(range(100))
    for task in tasks:
        assert [one["device_id"] for one in task["attempts"]] in ([RICH], [POOR, RICH])
    assert visits(tasks)[POOR] <= 20, "three in a row, and a few while nothing was known of others"
    entry = passed_over(rest)["resize"]
    assert entry["cause"] == "failing"
    assert entry["message"].startswith("it failed ")


def test_what_an_owner_allows_is_told_and_matched_so_that_nothing_bounces(
    cluster: Cluster, rest: Rest
) -> None:
    config = cluster.folder / "strict.toml"
    config.write_text("[policy]\nallow = ['command']\nallow_root = true\ncommands = ['true *']\n")
    cluster.join("strict", "--slots", "4", "--config", str(config))
    python = [sys.executable, "-c", "print(1)"]
    tasks = run_all(rest, "command", [{"command": python}] * 20, 0)
    assert [(task["status"], task["attempts"][-1]["attempt"]) for task in tasks] == [
        ("success", 1)
    ] * 20
    assert visits(tasks)["strict"] == 0
    asked = rest.submit("command", {"command": python}, required_role="storage")
    found = rest.get(f"/tasks/{asked}/explanation")["devices"]
    reasons = next(row["reasons"] for row in found if row["device_id"] == "strict")
    assert reasons[0].startswith("its owner does not allow the program ")
    rest.post(f"/tasks/{asked}/cancel")


def test_a_new_start_of_its_worker_is_a_new_chance(cluster: Cluster, rest: Rest) -> None:
    assert passed_over(rest)
    programs = str(cluster.folder / "programs")
    cluster.join(
        POOR, "--slots", "2", "--allow", "command", "--allow-root",
        PATH=f"{programs}{os.pathsep}{os.environ['PATH']}",
    )  # fmt: skip
    until(lambda: not passed_over(rest), "a new chance")
    rest.post(f"/devices/{RICH}/drain")
    try:
        task_id = rest.submit("command", {"command": ["rc-special", "x"]})
        assert rest.result(task_id)["worker_device_id"] == POOR
    finally:
        rest.post(f"/devices/{RICH}/resume")
