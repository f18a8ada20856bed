"""What the verbs make of words and answers, without a cluster."""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.cli import cures, waiting
from retire_cluster.cli.endpoints import ApiEndpoint, MainEndpoints
from retire_cluster.cli.output import Output, Style
from retire_cluster.cli.payloads import payload_from_words, requirements_from_words, seconds_of
from retire_cluster.cli.retrying import Insisting
from retire_cluster.cli.session import Session
from retire_cluster.cli.target import Target
from retire_cluster.cli.up import command as up
from retire_cluster.cli.up import plan
from retire_cluster.cli.up.announce import Announcement, quoted
from retire_cluster.cli.verbs import config, devices, doctor, explain, submit, tasks, top
from retire_cluster.cli.verbs.explain import explanation_text
from retire_cluster.cli.verbs.status import status_text
from retire_cluster.conf.loading import read_settings
from retire_cluster.conf.machine.addresses import is_loopback
from retire_cluster.schemas.errors import (
    ClusterError,
    ClusterUnavailable,
    DeviceNotFound,
    NotFound,
    QueueFull,
    TaskJustEnded,
    TaskNotFound,
    ValidationError,
)

PLAIN = Style()
TASK = "0190a0a0-0000-7000-8000-000000000001"


class Script:
    """Answers calls in order; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.blobs: list[bytes] = []

    def call(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        timeout_seconds: float | None = None,
    ) -> dict[str, Any]:
        self.calls.append((op, dict(args or {})))
        self.blobs += blobs
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        found: dict[str, Any] = answer
        return found


class Run:
    """A session around a script, with what it printed."""

    def __init__(self, script: Script, *, as_json: bool = False, **args: Any) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        target = Target("127.0.0.1", 8080, "the default", Path())
        output = Output(self.out, self.err, as_json)
        self.session = Session(script, output, target, argparse.Namespace(**{"raw": False, **args}))

    def __call__(self, command: Callable[[Session], int]) -> int:
        return command(self.session)


def result(status: str = "success", **more: Any) -> dict[str, Any]:
    return {
        "task_id": TASK,
        "status": status,
        "result_data": {"echo": {"a": 1}},
        "execution_time_seconds": 0.05,
        "worker_device_id": "pi",
        **more,
    }


@pytest.mark.parametrize(
    ("words", "payload"),
    [
        (["message=Hello World"], {"message": "Hello World"}),
        (["n=3", "f=1.5", "b=true", "z=null"], {"n": 3, "f": 1.5, "b": True, "z": None}),
        (["list=[1, 2]", 'o={"a": 1}'], {"list": [1, 2], "o": {"a": 1}}),
        (['quoted="3"'], {"quoted": "3"}),
        (["a=b=c", "empty="], {"a": "b=c", "empty": ""}),
        (["forced:=[1]"], {"forced": [1]}),
        (["text=NaN"], {"text": "NaN"}),
    ],
)
def test_words_become_a_payload(words: list[str], payload: dict[str, Any]) -> None:
    assert payload_from_words("echo", words) == payload


def test_a_field_that_a_type_declares_as_text_stays_text() -> None:
    assert payload_from_words("python_eval", ["expression=2"]) == {"expression": "2"}
    assert payload_from_words("sleep", ["duration=2"]) == {"duration": 2}


@pytest.mark.parametrize("word", ["noequals", "=value", "a:={", "a:=NaN"])
def test_a_word_that_is_no_field_is_refused(word: str) -> None:
    with pytest.raises(ValidationError):
        payload_from_words("echo", [word])


def test_words_become_requirements() -> None:
    words = ["min_cpu_cores=2", "required_tags=a,b", "required_tags=c", "required_platform=linux"]
    assert requirements_from_words(words) == {
        "min_cpu_cores": 2,
        "required_tags": ["a", "b", "c"],
        "required_platform": "linux",
    }


def test_changes_are_grouped_by_section() -> None:
    words = ["heartbeat.interval=2", "server.max_connections=9", "heartbeat.timeout=60"]
    assert config.changes_by_section(words) == {
        "heartbeat": {"interval": 2, "timeout": 60},
        "server": {"max_connections": 9},
    }
    with pytest.raises(ValidationError, match=r"section\.name=value"):
        config.changes_by_section(["interval=2"])


def test_a_wrong_setting_is_named_with_its_section() -> None:
    def changed(*answers: Any, words: Sequence[str]) -> Exception:
        run = Run(Script(*answers), changes=words)
        with pytest.raises(ClusterError) as caught:
            run(config.change)
        return caught.value

    listed = [
        {"field": "timeout", "reason": "must be a number"},
        {"field": "interval", "reason": "must be a number"},
    ]
    refused = ValidationError("timeout", "must be a number", errors=listed)
    error = changed(refused, words=["heartbeat.timeout=abc", "heartbeat.interval=x"])
    assert str(error) == "heartbeat.timeout: must be a number"
    assert isinstance(error, ValidationError)
    names = [entry["field"] for entry in error.details["errors"]]
    assert names == ["heartbeat.timeout", "heartbeat.interval"]
    limited = ValidationError("section", "must be one of server, heartbeat")
    gone = NotFound("There is no section 'nope'; there are server, heartbeat, api.")
    assert changed(limited, gone, words=["nope.x=1"]) is gone
    error = changed(limited, {}, words=["api.port=1"])
    assert str(error).startswith("api: cannot be changed while the cluster runs")
    assert "must be one of server, heartbeat" in str(error)


def submission(**more: Any) -> dict[str, Any]:
    plain = {
        "task_type": "echo",
        "payload": ["a=1"],
        "priority": "normal",
        "requirement": [],
        "timeout_seconds": None,
        "retries": None,
        "delay": 0.0,
        "metadata": [],
        "wait": False,
        "timeout": None,
    }
    return {**plain, **more}


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


def announcement(**more: Any) -> Announcement:
    plain: dict[str, Any] = {
        "api_host": "127.0.0.1",
        "api_port": 8081,
        "worker_port": 8082,
        "worker_host": "127.0.0.1",
        "lan_address": "192.0.2.7",
    }
    return Announcement(**{**plain, **more})


def test_a_loopback_bus_is_not_offered_to_other_devices() -> None:
    text = announcement().text(windows=False)
    assert "192.0.2.7" not in text
    assert "Other devices cannot join" in text
    assert "http://127.0.0.1:8081/api/v1" in text


def test_an_encrypted_bus_is_offered_by_its_join_line() -> None:
    text = announcement(worker_host="0.0.0.0", join="rc1.abc").text(windows=False)
    assert "retire-cluster-worker --join rc1.abc\n" in text
    assert "retire-cluster token create" in text
    assert "not encrypted" not in text


def test_an_open_bus_is_offered_by_the_lan_address() -> None:
    text = announcement(worker_host="0.0.0.0", insecure=True).text(windows=False)
    assert "retire-cluster-worker --join 192.0.2.7:8082\n" in text
    assert "not encrypted" in text


def test_a_facade_on_every_address_is_called_by_loopback_here() -> None:
    assert announcement(api_host="0.0.0.0").url == "http://127.0.0.1:8081"
    assert announcement(api_host="::").url == "http://[::1]:8081"


def test_the_curl_line_is_quoted_for_the_shell_at_hand() -> None:
    assert """-d '{"task_type""" in announcement().text(windows=False)
    assert """-d "{\\"task_type""" in announcement().text(windows=True)


def test_a_path_is_one_word_for_the_shell_at_hand() -> None:
    assert quoted("C:\\two words\\data", windows=True) == '"C:\\two words\\data"'
    assert quoted("C:\\data", windows=True) == "C:\\data"
    assert quoted("/two words", windows=False) == "'/two words'"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("pi", False)],
)
def test_loopback_is_recognised(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("hostname", "expected"),
    [("old-laptop", "old-laptop"), ("Käthes PC.local", "K-thes-PC"), ("...", "host"), ("", "host")],
)
def test_a_hostname_becomes_the_beginning_of_a_device_id(hostname: str, expected: str) -> None:
    assert plan.local_host_id(hostname) == expected


@pytest.mark.parametrize("workers", ["-1", "257", "x"])
def test_a_number_of_workers_out_of_bounds_is_a_usage_error(
    workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        plan.parser().parse_args(["--workers", workers])
    assert ended.value.code == 2
    assert "--workers" in capsys.readouterr().err


def test_a_wrong_port_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert up.main(["--port", "70000"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


API_KEY = "k-very-secret"


def planned(tmp_path: Path, *flags: str, **environ: str) -> plan.Plan:
    args = plan.parser().parse_args(["--data-dir", str(tmp_path), *flags])
    return plan.Plan(args, read_settings(plan.overrides(args), None, environ), "pc")


def value_of(command: Sequence[str], flag: str) -> str:
    return command[list(command).index(flag) + 1]


MAIN = MainEndpoints(1, 5001, 5002, 5003)


def test_a_restarted_process_gets_the_ports_it_had(tmp_path: Path) -> None:
    made = planned(tmp_path, "--port", "0", "--cluster-port", "0")
    assert value_of(made.broker(None), "--port") == "0"
    assert value_of(made.broker(None), "--worker-port") == "8082"
    assert [
        value_of(made.broker(MAIN), f) for f in ("--port", "--worker-port", "--event-port")
    ] == [
        "5001",
        "5002",
        "5003",
    ]
    assert value_of(made.api(MAIN, None), "--port") == "0"
    assert value_of(made.api(MAIN, ApiEndpoint(2, "127.0.0.1", 5004)), "--port") == "5004"
    assert value_of(made.api(MAIN, None), "--cluster-port") == "5001"


def test_keys_are_in_the_facades_environment_and_in_no_command_line(tmp_path: Path) -> None:
    made = planned(tmp_path, "--api-key", API_KEY, "--api-key", "second")
    commands = [made.broker(None), made.api(MAIN, None), made.worker(1, MAIN)]
    assert API_KEY not in str(commands)
    assert made.api_environ == {"RETIRE_CLUSTER_API_KEY": f"{API_KEY}\nsecond"}
    assert made.other_environ == {"RETIRE_CLUSTER_API_KEY": None}
    assert planned(tmp_path).api_environ == {}


def test_local_workers_have_names_and_folders_of_their_own(tmp_path: Path) -> None:
    made = planned(tmp_path, "--workers", "2", "--slots", "3", "--allow", "command")
    command = made.worker(2, MAIN)
    assert value_of(command, "--join") == "127.0.0.1:5002"
    assert value_of(command, "--device-id") == "pc-local-2"
    assert value_of(command, "--data-dir") == str(tmp_path / "workers" / "2")
    assert value_of(command, "--slots") == "3"
    assert "--allow=command" in command
    assert "--slots" not in planned(tmp_path).worker(1, MAIN)


def test_root_is_told_what_its_workers_do_not_run_and_may_let_them(tmp_path: Path) -> None:
    def kept_back(*flags: str, is_root: bool = True, **environ: str) -> list[str]:
        return planned(tmp_path, *flags, **environ).kept_back(["my.own"], is_root=is_root)

    wanted = ("--allow", "command")
    assert kept_back(*wanted) == ["command", "my.own"]
    assert kept_back() == ["my.own"]  # nobody asked for command
    assert kept_back(*wanted, is_root=False) == []
    assert kept_back(*wanted, "--allow-root") == []
    assert kept_back(*wanted, RETIRE_CLUSTER_ALLOW_ROOT="1") == []
    assert kept_back(*wanted, RETIRE_CLUSTER_POLICY_USER="nobody") == []
    assert kept_back(*wanted, "--workers", "0") == []
    assert "--allow-root" in planned(tmp_path, *wanted, "--allow-root").worker(1, MAIN)
    assert "--allow-root" not in planned(tmp_path, *wanted).worker(1, MAIN)
    told = announcement(kept_back=kept_back(*wanted)).text()
    assert "because this is root: command, my.own\n" in told
    assert 0 < told.index("policy.user") < told.index("--allow-root")
    assert "root" not in announcement().text()


@pytest.mark.parametrize("source", ["flag", "environment"])
def test_an_insecure_bus_listens_everywhere_whoever_said_so(tmp_path: Path, source: str) -> None:
    if source == "flag":
        made = planned(tmp_path, "--insecure")
    else:
        made = planned(tmp_path, RETIRE_CLUSTER_SERVER_INSECURE="true")
    assert value_of(made.broker(None), "--worker-host") == "*"
    assert "--insecure" in made.broker(None)
    assert value_of(made.worker(1, MAIN), "--join") == "127.0.0.1:5002"
    assert "--insecure" not in planned(tmp_path).broker(None)


def test_the_admin_port_may_be_set_by_either_of_its_names(tmp_path: Path) -> None:
    made = planned(tmp_path, RETIRE_CLUSTER_CLUSTER_PORT="7001")
    assert value_of(made.broker(None), "--port") == "7001"
    both = planned(tmp_path, "--cluster-port", "7002", RETIRE_CLUSTER_CLUSTER_PORT="7001")
    assert value_of(both.broker(None), "--port") == "7002"


def test_the_facades_switches_are_passed_on(tmp_path: Path) -> None:
    flags = ("--auth", "--no-rate-limit", "--cors-origin", "https://a.example", "--debug")
    command = planned(tmp_path, *flags).api(MAIN, None)
    for flag in ("--auth", "--no-rate-limit", "--cors-origin=https://a.example", "--debug"):
        assert flag in command
    assert "--no-cors" not in command


def test_local_workers_keep_their_names_when_the_machine_gets_another(tmp_path: Path) -> None:
    known = tmp_path / "workers" / "1"
    known.mkdir(parents=True)
    (known / "device_id").write_text("attic-local-1\n")
    (tmp_path / "workers" / "2").mkdir()
    (tmp_path / "workers" / "2" / "device_id").write_bytes(b"\xff no name")
    made = planned(tmp_path, "--workers", "2")
    assert made.device_ids[1] == "attic-local-1"
    assert made.device_ids[2].endswith("-local-2")


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
    client = Insisting(
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
    client = Insisting(
        Script({}, *[silent, gone] * 5, *[other] * 9, {}), told.append, "host:1",
        clock=lambda: sum(pauses), pause=pauses.append,
    )  # fmt: skip
    client.call("broker.info")
    client.call("task.wait")
    assert len(told) == 3
    assert "does not answer" in told[0]
    assert "is not the main node of this key; waiting" in told[1]


def test_a_main_node_that_was_never_met_is_an_error_at_once() -> None:
    client = Insisting(Script(ClusterUnavailable()), print, "host:1")
    with pytest.raises(ClusterUnavailable):
        client.call("broker.info")


def test_a_full_queue_is_waited_for_and_named_but_not_beyond_the_time_given() -> None:
    script = Script(*[QueueFull("9 tasks wait.", retry_after=5)] * 9)
    told: list[str] = []
    pauses: list[float] = []
    client = Insisting(
        script, told.append, "", timeout_seconds=20, clock=lambda: sum(pauses), pause=pauses.append
    )
    with pytest.raises(QueueFull):
        client.call("task.submit")
    assert sum(pauses) == 20
    assert len(told) == 1
    assert "9 tasks wait." in told[0]


def test_what_is_mistyped_is_named_with_what_was_meant() -> None:
    types = {"supported_types": ["echo", "sleep"]}
    wrong = ValidationError("task.task_type", "no device has ever offered the task type 'ecko'")
    assert cures.of(wrong, Script(types)) == "did you mean echo?"
    strange = ValidationError("task_type", "no device has ever offered the task type 'x'")
    assert cures.of(strange, Script(types)) == "the types: echo, sleep"
    requirement = ValidationError("task.requirements.min_cores", "unknown field")
    assert cures.of(requirement, Script()) == "did you mean min_cpu_cores?"
    assert "tasks ls" in cures.of(TaskNotFound(), Script())
    assert cures.of(ClusterUnavailable(), Script()) == ""


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("5m", 300), ("1h30m", 5_400), ("2d", 172_800), ("1.5", 1.5)]
)
def test_a_time_is_read_as_typed(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5x", "-5", "5 m", "1e9", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        seconds_of(text)


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
