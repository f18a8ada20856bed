"""`submit` and `tasks` as they are typed: shortcuts, times, and many tasks at once."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.kit import Cluster
from tests.command_kit import COMMAND, plain_environment


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("typed"), "--no-rate-limit")
    try:
        yield found
    finally:
        assert found.close() == 0


def submitted(cluster: Cluster, *words: str) -> str:
    done = cluster.cli("submit", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def shown(cluster: Cluster, task_id: str) -> dict[str, Any]:
    data: dict[str, Any] = cluster.rest.get(f"/tasks/{task_id}")
    return data


def test_shortcuts_say_what_requirements_say(cluster: Cluster) -> None:
    task_id = submitted(cluster, "echo", "--timeout-seconds", "77", "--retries", "1", "n=1")
    requirements = shown(cluster, task_id)["requirements"]
    assert (requirements["timeout_seconds"], requirements["max_retries"]) == (77, 1)
    twice = cluster.cli("submit", "echo", "n=1", "--retries", "1", "--require", "max_retries=2")
    assert twice.returncode == 6
    assert "says the same as --require max_retries" in twice.stderr


@pytest.mark.parametrize("flag", ["--delay", "--in"])
def test_a_delayed_task_says_when_it_is_due_wherever_it_is_looked_at(
    cluster: Cluster, flag: str
) -> None:
    done = cluster.cli("submit", "echo", "n=1", flag, "1h30m")
    task_id = done.stdout.strip()
    due = shown(cluster, task_id)["due_at"]
    assert done.stderr == f"it starts at {due}, not before\n" or due[:15] in done.stderr
    for words in (("explain", task_id), ("tasks", "ls"), ("tasks", "show", task_id)):
        assert due[:15] in cluster.cli(*words).stdout, words
    assert "waits for its time" in cluster.cli("explain", task_id).stdout
    assert cluster.cli("tasks", "cancel", task_id).returncode == 0


def test_a_time_that_is_none_is_refused_before_anything_is_sent(cluster: Cluster) -> None:
    done = cluster.cli("submit", "echo", "n=1", "--in", "tomorrow")
    assert done.returncode == 2
    assert "'tomorrow' is no time; give seconds, or 5m, 2h, 1d" in done.stderr


def test_many_tasks_are_cancelled_by_what_they_have_in_common(cluster: Cluster) -> None:
    cluster.rest.batch({"task_type": "sleep", "payload": {"duration": 600}} for _ in range(250))
    keep = submitted(cluster, "echo", "n=1", "--in", "1d")
    asked = cluster.cli("tasks", "cancel", "--type", "sleep")
    assert asked.returncode == 2
    assert "cancel 250 tasks (" in asked.stderr
    assert "Say so with --yes" in asked.stderr
    running = int(
        cluster.rest.ask("GET", "/api/v1/tasks?status=running&page_size=1").json["pagination"][
            "total_items"
        ]
    )
    queued = cluster.cli("tasks", "cancel", "--type", "sleep", "--status", "queued", "--yes")
    assert queued.returncode == 0, queued.stderr
    rest = cluster.cli("tasks", "cancel", "--type", "sleep", "--yes", "--json")
    counts = json.loads(rest.stdout)["data"]
    assert counts["not_cancelled"] == 0
    assert int(queued.stdout.split()[0]) + counts["cancelled"] == 250
    assert counts["cancelled"] <= running + 8
    assert shown(cluster, keep)["status"] == "pending"
    assert cluster.cli("tasks", "cancel", "--all", "--yes").stdout == "1 tasks cancelled\n"


def test_what_failed_is_retried_all_at_once(cluster: Cluster) -> None:
    ids = cluster.rest.batch(
        {"task_type": "python_eval", "payload": {"expression": text},
         "requirements": {"max_retries": 0}}
        for text in ("1/0", "2+2", "[][1]")
    )  # fmt: skip
    for task_id in ids:
        cluster.rest.result(task_id)
    done = cluster.cli("tasks", "retry", "--type", "python_eval", "--yes")
    assert (done.returncode, done.stdout) == (0, "2 tasks retried\n")
    for task_id in ids:
        cluster.rest.result(task_id)
    assert [len(shown(cluster, task_id)["attempts"]) for task_id in ids] == [2, 1, 2]


def test_nothing_is_done_to_tasks_that_were_not_named(cluster: Cluster) -> None:
    for words in (("cancel",), ("retry",), ("cancel", "--all", "550e8400")):
        done = cluster.cli("tasks", *words)
        assert done.returncode == 2, words
        assert "--all" in done.stderr or "not both" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_at_a_terminal_it_is_asked_first(cluster: Cluster) -> None:
    import pty

    task_id = submitted(cluster, "echo", "n=1", "--in", "1d")
    for answer, status in ((b"\n", "pending"), (b"y\n", "cancelled")):
        here, there = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, "tasks", "cancel", "--status", "pending",
             "--data-dir", str(cluster.data_dir)],
            stdin=there, stdout=there, stderr=there, env=plain_environment(TERM="xterm"),
        )  # fmt: skip
        os.close(there)
        seen = b""
        while b"[y/N]" not in seen:
            seen += os.read(here, 65_536)
        assert b"cancel 1 tasks (1 pending)?" in seen
        os.write(here, answer)
        process.wait(20)
        os.close(here)
        assert shown(cluster, task_id)["status"] == status
