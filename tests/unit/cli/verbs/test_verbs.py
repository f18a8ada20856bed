"""Verbs around a script of answers: tasks, devices, explanations, the doctor."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.cli.output import Output
from retire_cluster.cli.session import Session
from retire_cluster.cli.verbs import devices, doctor, explain, submit, tasks, top
from retire_cluster.cli.verbs.explain import explanation_text
from retire_cluster.cli.verbs.status import status_text
from retire_cluster.schemas.errors import DeviceNotFound, TaskNotFound, ValidationError
from tests.unit.cli.kit import PLAIN, TASK, Run, Script, result, submission


def test_submit_prints_the_id_alone_on_standard_output() -> None:
    script = Script({"task_ids": [TASK], "submitted_at": "t"})
    run = Run(script, **submission(requirement=["max_retries=0"], metadata=["by=me"]))
    assert run(submit.submit) == 0
    assert run.out.getvalue() == f"{TASK}\n"
    op, args = script.calls[0]
    assert op == "task.submit"
    assert args["task"] == {
        "task_type": "echo",
        "priority": "normal",
        "requirements": {"max_retries": 0},
        "metadata": {"by": "me"},
    }
    assert json.loads(script.blobs[0]) == {"a": 1}


def test_submit_reads_a_file_and_says_when_it_cannot(tmp_path: Path) -> None:
    path = tmp_path / "payload.json"
    path.write_text('{"b": 2}')
    script = Script({"task_ids": [TASK]})
    assert Run(script, **submission(payload=[f"@{path}"]))(submit.submit) == 0
    assert json.loads(script.blobs[0]) == {"b": 2}
    with pytest.raises(ValidationError, match="cannot be read"):
        Run(Script(), **submission(payload=[f"@{path}.missing"]))(submit.submit)


def test_submit_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("[1]"))
    with pytest.raises(ValidationError, match="a JSON object is required"):
        Run(Script(), **submission(payload=["-"]))(submit.submit)


def test_a_list_of_tasks_follows_the_cursor_up_to_the_limit() -> None:
    def page(n: int, cursor: str | None) -> dict[str, Any]:
        return {"items": [{"task_id": TASK}] * n, "pagination": {"next_cursor": cursor}}

    script = Script(page(100, "c1"), page(50, "c2"))
    args = {"status": None, "type": "echo", "priority": None, "device": None, "limit": 150}
    run = Run(script, as_json=True, **args)
    assert run(tasks.ls) == 0
    assert [call[1] for call in script.calls] == [
        {"task_type": "echo", "page_size": 100},
        {"task_type": "echo", "page_size": 50, "after": "c1"},
    ]
    assert len(json.loads(run.out.getvalue())["data"]) == 150


def test_several_devices_are_all_tried_though_one_is_unknown() -> None:
    script = Script(DeviceNotFound("no device b"), {"device_id": "c"})
    run = Run(script, device_ids=["b", "c"])
    assert run(devices.drain) == 5
    assert run.out.getvalue() == "c: draining\n"
    assert "no device b" in run.err.getvalue()


def test_a_device_that_does_not_answer_its_ping_exits_3() -> None:
    answer = {"device_id": "a", "ping_successful": False, "response_time_ms": None}
    run = Run(Script(answer), device_ids=["a"])
    assert run(devices.ping) == 3
    assert "no answer" in run.out.getvalue()


def test_several_tasks_are_all_cancelled_though_one_is_unknown() -> None:
    script = Script(TaskNotFound(), {"task_id": TASK, "status": "cancelled"})
    run = Run(script, task_ids=["x", TASK])
    assert run(tasks.cancel) == 5
    assert run.out.getvalue() == f"{TASK}: cancelled\n"


def test_the_explanation_counts_the_reasons_and_lists_the_devices() -> None:
    data = {
        "task_id": TASK,
        "status": "queued",
        "queued_reason": {
            "eligible_devices": 0,
            "busy_devices": 0,
            "rejected": {"missing tag gpu": 3},
        },
        "devices": [{"device_id": "pi", "eligible": False, "reasons": ["missing tag gpu"]}],
    }
    text = explanation_text(data, PLAIN)
    assert "3 rejected" in text
    assert "pi      no        missing tag gpu" in text


def test_the_status_reads_well() -> None:
    data = {
        "cluster_stats": {
            "total_devices": 5,
            "online_devices": 4,
            "health_percentage": 80.0,
            "total_resources": {"cpu_cores": 32, "memory_gb": 128, "storage_gb": 2000},
            "by_role": {"compute": 2},
            "by_platform": {},
        },
        "server_info": {"version": "1.0.0", "uptime": "2d 4h 30m"},
        "tasks": {"queued": 1, "running": 2, "by_status": {"success": 7, "failed": 0}},
    }
    text = status_text(data, "127.0.0.1:8080", PLAIN)
    assert "4 of 5 online (80 %)" in text
    assert "127.0.0.1:8080, version 1.0.0, up 2d 4h 30m" in text
    assert "success=7" in text
    assert "failed" not in text


CUT = {"total_bytes": 1_000_004, "kept_bytes": 262_144, "missing": "middle"}
MISSING = "stdout: 737,860 of 1,000,004 bytes are missing in the middle (policy.output_limit_kb)"


def command_result(**more: Any) -> dict[str, Any]:
    data = {"return_code": 1, "stdout": "out\n", "stderr": "oops\n", "command": ["make"]}
    return result("failed", result_data=data, error_message="command exited with code 1", **more)


def test_the_logs_of_a_command_are_what_it_wrote_with_what_is_missing() -> None:
    run = Run(Script(command_result(logs="", truncated={"stdout": CUT})), task_ids=[TASK])
    assert run(tasks.logs) == 0
    assert run.out.getvalue() == "out\nstderr:\noops\n"
    assert run.err.getvalue() == MISSING + "\n"
    run = Run(Script(command_result(logs="")), task_ids=[TASK], as_json=True)
    run(tasks.logs)
    data = json.loads(run.out.getvalue())["data"]
    assert (data["stdout"], data["stderr"], data["truncated"]) == ("out\n", "oops\n", None)
    silent = {"return_code": 0, "stdout": "", "stderr": "", "command": ["true"]}
    run = Run(Script(result(result_data=silent, logs="")), task_ids=[TASK])
    run(tasks.logs)
    assert (run.out.getvalue(), run.err.getvalue()) == ("", "it wrote nothing\n")


def test_a_result_and_a_task_say_in_one_line_what_is_missing() -> None:
    cut = command_result(truncated={"stdout": CUT})
    run = Run(Script(cut), task_ids=[TASK])
    assert run(tasks.result) == 1
    assert run.err.getvalue().splitlines()[-1] == MISSING
    run = Run(Script({"task_id": TASK, "status": "failed", "result": cut}), task_ids=[TASK])
    run(tasks.show)
    assert run.out.getvalue().splitlines()[-1] == MISSING


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


_ONES = dict.fromkeys(("cpu_cores", "memory_gb", "storage_gb"), 1)
NASTY = "\x1b]0;owned\x07\x1b[2J\u202e\x9b"
#: Everything that comes from a device or a task, hostile.
HOSTILE: dict[str, list[Any]] = {
    "logs": [{**result(), "logs": NASTY, "error_message": NASTY, "error_traceback": NASTY}],
    "result": [result("failed", error_message=NASTY, result_data={NASTY: NASTY})],
    "show": [{**result(), "attempts": [{"error_message": NASTY}], "payload": {NASTY: NASTY},
              "metadata": {NASTY: NASTY}, "result": {"logs": NASTY}}],
    "explain": [{"task_id": TASK, "status": "queued",
                 "queued_reason": {"rejected": {NASTY: 1}},
                 "devices": [{"device_id": "pi", "eligible": False, "reasons": [NASTY]}]}],
    "device": [{"device_id": "pi", "hostname": NASTY, "capabilities": {NASTY: NASTY},
                "last_error": NASTY, "tags": [NASTY], "task_types": [NASTY]}],
    "top": [{"cluster_stats": {"total_devices": 1, "online_devices": 1, "offline_devices": 0,
                               "health_percentage": 100.0, "total_resources": _ONES},
             "tasks": {"by_status": {}, "queued": 0, "running": 0},
             "server_info": {"version": NASTY, "uptime": NASTY, "host": NASTY, "port": 1}},
            {"items": [{"device_id": "pi"}], "pagination": {"has_next": False}},
            {"device_id": "pi", "status": NASTY, "running_tasks": [], "slots": NASTY,
             "metrics": {"cpu_percent": NASTY}, "tasks_succeeded": 0, "tasks_failed": 0}],
    "cancel": [TaskNotFound(NASTY), TaskNotFound(NASTY)],
}  # fmt: skip


@pytest.mark.parametrize("verb", HOSTILE)
def test_nothing_from_a_task_or_a_device_steers_the_terminal(verb: str) -> None:
    commands: dict[str, Callable[[Session], int]] = {
        "logs": tasks.logs, "result": tasks.result, "show": tasks.show, "explain": explain.explain,
        "device": devices.show, "cancel": tasks.cancel, "top": _top_once,
    }  # fmt: skip
    run = Run(Script(*HOSTILE[verb]), task_ids=[TASK], task_id=TASK, device_ids=["pi"])
    if verb == "cancel":
        run.session.args.task_ids = [NASTY, TASK]
    out, err = Terminal(), Terminal()
    run.session = Session(run.session.client, Output(out, err), run.session.target,
                          run.session.args)  # fmt: skip
    run(commands[verb])
    shown = out.getvalue() + err.getvalue()
    assert "owned" in shown, "it is told, only not obeyed"
    own = re.sub(r"\x1b\[\d*m", "", shown)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", own), repr(own)


def _top_once(session: Session) -> int:
    found = top.look(session)
    session.output.data(found, top.text(found, "127.0.0.1:8080", session.output.style, 0))
    return 0


def test_the_doctor_names_types_that_devices_leave_out() -> None:
    devices_there = {"items": [{"device_id": "gone"}, {"device_id": "pi"}], "pagination": {}}
    reason = "task type blur (blur:run): its import ended the process"
    script = Script(devices_there, DeviceNotFound("gone"), {"task_types_left_out": [reason]})
    (finding,) = doctor.of_devices(script, "laptop")
    assert (finding.level, finding.what) == ("warn", f"pi: {reason}")


def test_the_doctor_tells_the_walls_of_devices_on_its_own_machine() -> None:
    rows = {"items": [{"device_id": name} for name in ("bare", "far", "walled")]}
    found = doctor.of_devices(
        Script(
            rows,
            {"hostname": "here", "walls": ["files: none", "network: any"]},
            {"hostname": "there", "walls": ["files: none"]},
            {"hostname": "here", "walls": ["files: Landlock", "network: any"]},
        ),
        "here",
    )
    bare, walled = found
    assert (bare.level, "policy.sandbox" in bare.cure) == ("warn", True)
    assert "bare: walls around tasks: files: none; network: any" in bare.what
    assert (walled.level, walled.cure) == ("ok", "")
    assert walled.what == "walled: walls around tasks: files: Landlock; network: any"
