"""`map` through changes of its list, failures, Ctrl-C and a main node that is away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.kit import Cluster, Process, run
from tests.command_kit import COMMAND, plain_environment, until
from tests.ports import free_port

posix = pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to one process")
LONG = [json.dumps({"duration": 600})] * 300


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("goes-on"), "--no-rate-limit")
    try:
        yield found
    finally:
        assert found.close() == 0


def count(cluster: Cluster, status: str = "", task_type: str = "") -> int:
    """How many tasks there are."""
    query = f"page_size=1{status and f'&status={status}'}{task_type and f'&task_type={task_type}'}"
    found = cluster.rest.ask("GET", f"/api/v1/tasks?{query}").json
    return int(found["pagination"]["total_items"])


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def rows_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def test_only_lines_that_are_new_or_changed_are_submitted_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    rows = [{"message": n} for n in range(450)]
    first = cluster.cli("map", "echo", written(path, rows), "--resume", "changed")
    before = count(cluster)
    changed = [{"message": "new at the front"}, *rows[:17], {"message": "other"}, *rows[18:], {}]
    again = cluster.cli("map", "echo", written(path, changed), "--resume", "changed")
    assert (first.returncode, again.returncode) == (0, 0), again.stderr
    assert count(cluster) == before + 3
    assert [row["result_data"]["echo"] for row in rows_of(again)] == changed
    ids = {row["task_id"] for row in rows_of(first)}
    assert sum(row["task_id"] in ids for row in rows_of(again)) == 449
    assert "3 of 452 lines are new or changed" in again.stderr
    assert "line 1 is the first" in again.stderr
    assert "1 tasks of the earlier run belong to no line any more" in again.stderr


def test_two_lines_that_say_the_same_are_two_tasks(cluster: Cluster, tmp_path: Path) -> None:
    name = written(tmp_path / "in.jsonl", [{"message": 1}, {"message": 1}, {"message": 2}])
    first = cluster.cli("map", "echo", name, "--resume", "twins")
    again = cluster.cli("map", "echo", name, "--resume", "twins")
    assert first.stdout == again.stdout
    assert len({row["task_id"] for row in rows_of(first)}) == 3


def test_only_what_failed_is_run_again_where_that_is_asked_for(
    cluster: Cluster, tmp_path: Path
) -> None:
    words = ["python_eval", "--retries", "0", "--resume", "failures"]
    texts = ["6*7", "1/0", "2+2", "[][1]"]
    name = written(tmp_path / "in.jsonl", [{"expression": text} for text in texts])
    first = cluster.cli("map", *words, name)
    assert first.returncode == 1
    assert "the same command with --resume failures --retry-failed" in first.stderr
    plain = cluster.cli("map", *words, name)
    assert (plain.returncode, plain.stdout) == (1, first.stdout)
    before = count(cluster)
    again = cluster.cli("map", *words, name, "--retry-failed")
    assert again.returncode == 1
    assert count(cluster) == before
    tries = [
        len(cluster.rest.get(f"/tasks/{row['task_id']}")["attempts"]) for row in rows_of(again)
    ]
    assert tries == [1, 2, 1, 2]


def test_a_line_may_hold_what_unicode_calls_the_end_of_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"message": "a\u2028b\x85c"}\n', encoding="utf-8")
    done = cluster.cli("map", "echo", str(path))
    assert done.returncode == 0, done.stderr
    assert rows_of(done)[0]["result_data"]["echo"]["message"] == "a\u2028b\x85c"


def test_unordered_results_do_not_wait_for_a_slow_first_line(
    cluster: Cluster, tmp_path: Path
) -> None:
    name = written(tmp_path / "in.jsonl", [{"duration": n} for n in (5, 0, 0.01)])
    done = cluster.cli("map", "sleep", name, "--unordered")
    assert done.returncode == 0, done.stderr
    assert [row["line"] for row in rows_of(done)] == [2, 3, 1]


def test_a_run_that_is_under_way_is_not_gone_on_with(cluster: Cluster, tmp_path: Path) -> None:
    with mapping(cluster, tmp_path, "--resume", "twice") as process:
        again = cluster.cli("map", "--cancel", "twice")
        assert again.returncode == 6
        assert f"--cancel: 'twice' runs already (process {process.pid})" in again.stderr
        process.popen.kill()
        process.popen.wait(10)
        done = cluster.cli("map", "--cancel", "twice")
        assert (done.returncode, done.stdout) == (0, "300 cancelled\n")


@contextmanager
def mapping(cluster: Cluster, tmp_path: Path, *flags: str) -> Iterator[Process]:
    """A `map` of 300 long tasks, all of them submitted, and known to it as such."""
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(LONG))
    before = count(cluster, task_type="sleep")
    words = ("map", "sleep", str(path), *flags, "--data-dir", str(cluster.data_dir))
    process = Process(tmp_path / "map.log", *words)
    try:
        until(lambda: count(cluster, task_type="sleep") == before + 300, "300 tasks")
        notes = cluster.data_dir / "map"
        until(lambda: not list(notes.glob("*.sending")), "the answer to the last submission")
        yield process
    finally:
        process.kill()


@posix
def test_who_interrupts_is_told_what_runs_on_and_how_to_go_on_or_cancel(
    cluster: Cluster, tmp_path: Path
) -> None:
    with mapping(cluster, tmp_path) as process:
        process.popen.send_signal(signal.SIGINT)
        assert process.popen.wait(10) == 130
    told = process.log.read_text()
    assert "stopped; 300 submitted tasks run on" in told
    name = told.partition("--resume ")[2].split()[0]
    assert f"retire-cluster map --cancel {name}" in told
    done = cluster.cli("map", "--cancel", name)
    assert (done.returncode, done.stdout) == (0, "300 cancelled\n")
    # What was cancelled has not been done: going on does it.
    before = count(cluster, "cancelled")
    with mapping_on(cluster, tmp_path, name) as process:
        until(lambda: count(cluster, "cancelled") == before - 300, "300 that run again")
        process.popen.send_signal(signal.SIGINT)
        assert process.popen.wait(10) == 130
    assert "300 cancelled" in process.log.read_text()


@contextmanager
def mapping_on(cluster: Cluster, tmp_path: Path, name: str) -> Iterator[Process]:
    words = ["map", "sleep", str(tmp_path / "long.jsonl"), "--resume", name]
    words += ["--cancel-on-interrupt", "--data-dir", str(cluster.data_dir)]
    process = Process(tmp_path / "map-2.log", *words)
    try:
        yield process
    finally:
        process.kill()


@posix
def test_a_second_interrupt_ends_it_at_once(cluster: Cluster, tmp_path: Path) -> None:
    with mapping(cluster, tmp_path, "--cancel-on-interrupt", "--resume", "second") as process:
        os.kill(cluster.broker_pid, signal.SIGSTOP)
        try:
            process.popen.send_signal(signal.SIGINT)
            until(lambda: "cancelling 300" in process.log.read_text(), "the first to be heard")
            process.popen.send_signal(signal.SIGINT)
            assert process.popen.wait(5) == 130
        finally:
            os.kill(cluster.broker_pid, signal.SIGCONT)
    assert "Traceback" not in process.log.read_text()
    assert cluster.cli("map", "--cancel", "second").returncode == 0


@posix
def test_at_a_terminal_it_is_asked_whether_to_cancel(cluster: Cluster, tmp_path: Path) -> None:
    import pty

    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(LONG))
    before, ended = count(cluster, task_type="sleep"), count(cluster, "cancelled")
    here, there = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "map", "sleep", str(path), "--data-dir", str(cluster.data_dir)],
        stdin=there, stdout=there, stderr=there, env=plain_environment(TERM="xterm"),
    )  # fmt: skip
    try:
        until(lambda: count(cluster, task_type="sleep") == before + 300, "300 tasks")
        process.send_signal(signal.SIGINT)
        seen = b""
        while b"Cancel them? [y/N]" not in seen:
            seen += os.read(here, 65_536)
        os.write(here, b"y\n")
        assert process.wait(20) == 130
        assert count(cluster, "cancelled") == ended + 300
    finally:
        process.kill()
        process.wait(10)
        os.close(there)
        os.close(here)


@posix
def test_a_main_node_that_is_away_is_waited_for_and_that_is_said_once(tmp_path: Path) -> None:
    data, port = tmp_path / "main", free_port()
    main = (
        "main", "--data-dir", str(data), "--host", "127.0.0.1", "--port", str(port),
        "--worker-port", "0", "--event-port", "0",
    )  # fmt: skip
    path = tmp_path / "in.jsonl"
    path.write_text('{"message": 1}\n')
    node = Process(tmp_path / "main-1.log", *main)
    where = ("--data-dir", str(data), "--cluster-port", str(port))
    started = []
    try:
        until(lambda: run("tasks", "ls", *where).returncode == 0, "the main node")
        mapper = Process(tmp_path / "map.log", "map", "echo", str(path), *where)
        started.append(mapper)
        until(lambda: "echo" in run("tasks", "ls", *where).stdout, "the task")
        node.kill()
        until(lambda: "does not answer; waiting for it" in mapper.log.read_text(), "the notice", 40)
        node = Process(tmp_path / "main-2.log", *main)
        task_id = until(
            lambda: json.loads(run("tasks", "ls", "--json", *where).stdout).get("data"), "a task"
        )[0]["task_id"]
        assert run("tasks", "cancel", task_id, *where).returncode == 0
        output, _ = mapper.popen.communicate(timeout=40)
        assert json.loads(output)["status"] == "cancelled"
        told = mapper.log.read_text()
        assert told.count("does not answer") == 1
        assert "going on after" in told
    finally:
        for process in (node, *started):
            process.kill()


def test_a_line_that_is_refused_is_named_and_once_it_is_right_the_run_goes_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    rows: list[Any] = [{"duration": 0} for _ in range(230)]
    wrong = [*rows[:219], {"duration": "long"}, *rows[220:]]
    refused = cluster.cli("map", "sleep", written(path, wrong), "--resume", "refused")
    assert refused.returncode == 6
    assert "error: line 220: payload.duration: must be a number" in refused.stderr
    again = cluster.cli("map", "sleep", written(path, rows), "--resume", "refused")
    assert again.returncode == 0, again.stderr
    assert [row["line"] for row in rows_of(again)] == list(range(1, 231))
    assert cluster.cli("map", "--cancel", "refused").returncode == 0
