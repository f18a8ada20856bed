"""What each built-in task type does on a real worker."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.schemas.ids import TaskIds
from retire_cluster.schemas.protocol import messages
from tests.integration.node_kit import (
    COMMAND,
    Bus,
    Start,
    children_of,
    posix_only,
    python,
    task_root,
)


def test_five_hundred_echoes_come_back_in_one_message(bus: Bus, start: Start) -> None:
    start()
    bus.welcome()
    keys = bus.assign_all([("echo", {"n": n, "text": "ä"}) for n in range(500)])
    finished = bus.expect(messages.Finished)
    assert len(finished.items) == 500
    assert bus.ended[keys[7][0]].data == {"echo": {"n": 7, "text": "ä"}}


def test_sleep_returns_the_duration_as_it_was_given(bus: Bus, start: Start) -> None:
    start()
    bus.welcome()
    ended = bus.run("sleep", {"duration": 0.1})
    assert ended.data == {"slept_for": 0.1}
    assert 0.1 <= ended.item.execution_seconds < 2
    assert bus.run("sleep", {}).data == {"slept_for": 1}
    late = bus.run("sleep", {"duration": 600}, timeout_seconds=1)
    assert (late.item.outcome, late.item.cause) == ("timeout", "timeout")


def test_system_info_tells_capabilities_and_metrics(bus: Bus, start: Start) -> None:
    start()
    hello = bus.welcome()
    data = bus.run("system_info", {}).data
    assert data["cpu_count"] == hello.capabilities["cpu_count"]
    assert 0 < data["metrics"]["memory_percent"] <= 100


@pytest.mark.parametrize(
    ("task_type", "payload", "field"),
    [
        ("sleep", {"duration": -1}, "duration"),
        ("sleep", {"duraton": 1}, "duraton"),
        ("python_eval", {}, "expression"),
        ("http_request", {"url": "ftp://x/"}, "url"),
        ("http_request", {"url": "http://x/", "method": "TRACE"}, "method"),
        ("system_info", {"x": 1}, "x"),
    ],
)
def test_a_payload_that_cannot_work_fails_for_good_and_names_the_field(
    bus: Bus, start: Start, task_type: str, payload: Any, field: str
) -> None:
    start()
    bus.welcome()
    item = bus.run(task_type, payload).item
    assert (item.outcome, item.cause) == ("failed", "deterministic")
    assert item.error_message is not None
    assert f"payload.{field}" in item.error_message


def test_an_expression_is_evaluated_in_a_process_that_is_used_again(bus: Bus, start: Start) -> None:
    worker = start()
    bus.welcome()
    ended = bus.run("python_eval", {"expression": "a + 1", "variables": {"a": 1}})
    assert ended.data == {"result": 2, "expression": "a + 1"}
    before = children_of(worker.pid) if sys.platform.startswith("linux") else []
    assert bus.run("python_eval", {"expression": "9**9**9**9"}).item.cause == "deterministic"
    if before:
        assert children_of(worker.pid) == before


@posix_only
def test_an_expression_that_computes_forever_is_ended(bus: Bus, start: Start) -> None:
    start()
    bus.welcome()
    endless = "[sum([len(str(i ** 90)) for i in range(9999)]) for k in range(9999)]"
    item = bus.run("python_eval", {"expression": endless}, timeout_seconds=1).item
    assert item.outcome in ("timeout", "failed")
    assert item.cause in ("timeout", "deterministic")
    assert bus.run("python_eval", {"expression": "1"}).data["result"] == 1


def test_command_is_neither_offered_nor_run_unless_allowed(bus: Bus, start: Start) -> None:
    worker = start()
    bus.welcome()
    ended = bus.run("command", {"command": ["echo", "x"]})
    assert (ended.item.outcome, ended.item.cause) == ("failed", "policy_denied")
    if sys.platform.startswith("linux"):
        assert children_of(worker.pid) == []


@posix_only
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_root_does_not_run_commands_unless_told(bus: Bus, start: Start) -> None:
    start("--allow", "command", environ={"RETIRE_CLUSTER_ALLOW_ROOT": "0"})
    assert "command" not in {info.name for info in bus.welcome().task_types}
    item = bus.run("command", {"command": ["echo"]}).item
    assert item.cause == "policy_denied"
    assert item.error_message is not None
    assert "--allow-root" in item.error_message


@posix_only
def test_a_command_gets_no_shell_and_nothing_of_the_workers_secrets(
    bus: Bus, start: Start, tmp_path: Path
) -> None:
    start(
        *COMMAND,
        environ={"RETIRE_CLUSTER_API_KEY": "canary", "AWS_SECRET_ACCESS_KEY": "canary"},
    )
    bus.welcome()
    ended = bus.run("command", {"command": ["echo", f"; touch {tmp_path}/x"]})
    assert ended.data["stdout"] == f"; touch {tmp_path}/x\n"
    assert not (tmp_path / "x").exists()
    ended = bus.run("command", {"command": ["env"], "env": {"MINE": "1"}})
    assert "canary" not in ended.data["stdout"]
    assert "MINE=1" in ended.data["stdout"]
    assert f"RC_TASK_ID={TaskIds(0).public(2, 2)}" in ended.data["stdout"]
    item = bus.run("command", {"command": "echo $HOME"}).item
    assert item.cause == "policy_denied"


@posix_only
def test_a_shell_runs_where_the_owner_allowed_one(bus: Bus, start: Start) -> None:
    start("--allow", "command:shell", "--allow-root")
    bus.welcome()
    ended = bus.run("command", {"command": "echo out; echo err >&2; exit 3"})
    assert (ended.item.outcome, ended.item.cause) == ("failed", "error")
    assert ended.item.error_message == "command exited with code 3"
    assert ended.data == {
        "return_code": 3,
        "stdout": "out\n",
        "stderr": "err\n",
        "command": "echo out; echo err >&2; exit 3",
    }


@posix_only
def test_a_command_reads_its_input_and_works_in_a_folder_of_its_own(
    bus: Bus, start: Start, tmp_path: Path
) -> None:
    start(*COMMAND)
    bus.welcome()
    ended = bus.run("command", {"command": ["cat"], "stdin": "grüße"})
    assert ended.data["stdout"] == "grüße"
    first = bus.run("command", {"command": ["sh", "-c", "pwd; touch here"]}).data["stdout"].strip()
    assert Path(first).parent.parent == task_root(tmp_path / "w")
    assert not Path(first).exists()
    item = bus.run("command", {"command": ["pwd"], "cwd": "/no/such/folder"}).item
    # Another device may have the folder: a retry goes there first.
    assert (item.cause, "payload.cwd" in (item.error_message or "")) == ("error", True)
    item = bus.run("command", {"command": ["no-such-program-here"]}).item
    assert item.cause == "not_here"


@posix_only
def test_what_is_not_here_for_all_tasks_is_told_from_what_is_one_tasks_own_doing(
    bus: Bus, start: Start, tmp_path: Path
) -> None:
    foreign, plain = tmp_path / "foreign", tmp_path / "plain"
    foreign.write_bytes(b"\x00of another processor")
    foreign.chmod(0o755)
    plain.write_text("not to be run")
    start(*COMMAND)
    bus.welcome()
    for payload, cause in (
        ({"command": [str(tmp_path / "missing")]}, "not_here"),
        ({"command": [str(foreign)]}, "not_here"),
        ({"command": [str(plain)]}, "not_here"),
        ({"command": [str(plain / "inside")]}, "not_here"),
        # Where it was looked for is this task's own choice.
        ({"command": ["ls"], "env": {"PATH": str(tmp_path)}}, "error"),
        ({"command": ["./missing"], "cwd": str(tmp_path)}, "error"),
        ({"command": ["x" * 5000]}, "deterministic"),
    ):
        item = bus.run("command", payload).item
        assert (item.outcome, item.cause) == ("failed", cause), (payload, item.error_message)


@posix_only
def test_output_beyond_its_cap_is_drained_and_cut(bus: Bus, start: Start) -> None:
    start(*COMMAND)
    bus.welcome()
    loop = "for i in range(160): sys.stdout.write('\\x01' * 65536)"
    script = python("import sys", "print('BEGIN')", loop, "print('END')")
    ended = bus.run("command", {"command": script})
    assert ended.item.outcome == "success"
    stdout = ended.data["stdout"]
    kept = len(re.sub(r"\n\[\.\.\. \d+ of \d+ bytes are missing here \.\.\.\]\n", "", stdout))
    assert ended.details["truncated"] == {
        "stdout": {"total_bytes": 160 * 65536 + 10, "kept_bytes": kept, "missing": "middle"}
    }
    assert 100_000 < len(stdout) <= 256 * 1024
    assert stdout.startswith("BEGIN\n\x01")
    assert stdout.endswith("\x01END\n")
    assert f"of {160 * 65536 + 10} bytes are missing here ...]" in stdout


@posix_only
def test_a_command_past_its_own_time_is_ended_with_the_output_so_far(
    bus: Bus, start: Start
) -> None:
    start(*COMMAND)
    bus.welcome()
    ended = bus.run("command", {"command": ["sh", "-c", "echo first; sleep 600"], "timeout": 0.5})
    assert (ended.item.outcome, ended.item.cause) == ("timeout", "timeout")
    assert ended.data["stdout"] == "first\n"
    ended = bus.run("command", {"command": ["sh", "-c", "echo a; sleep 600"]}, timeout_seconds=1)
    assert (ended.item.outcome, ended.data["stdout"]) == ("timeout", "a\n")
