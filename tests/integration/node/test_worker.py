"""A real worker process joins, leaves, reconnects and reports."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retire_cluster.conf.curve import TOKEN_BYTES, Invitation, new_pair, write_join
from retire_cluster.schemas.protocol import messages
from retire_cluster.schemas.protocol.messages import AssignItem, HeartbeatConfig
from tests.integration.node_kit import (
    COMMAND,
    PATIENCE_SECONDS,
    Bus,
    Start,
    alive_with,
    linux_only,
    posix_only,
    python,
    wait_until,
)

# --- joining and leaving --------------------------------------------------------------------------


def test_a_worker_joins_within_a_second_and_says_what_it_is(bus: Bus, start: Start) -> None:
    began = time.monotonic()
    start("--tag", "kitchen", "--role", "storage")
    hello = bus.welcome()
    bus.expect(messages.Heartbeat)
    assert time.monotonic() - began < 5.0  # a second, on a machine that is not busy testing
    assert (hello.role, hello.slots, hello.accepting) == ("storage", 2, True)
    assert hello.tags[:2] == ("kitchen", hello.platform)
    assert hello.capabilities["cpu_count"] >= 1
    names = {info.name for info in hello.task_types}
    assert names == {"echo", "sleep", "system_info", "python_eval", "http_request"}


def test_its_name_stays_the_same_over_restarts(bus: Bus, start: Start) -> None:
    first = start()
    name = bus.welcome().device_id
    first.kill()
    first.wait()
    start()
    assert bus.welcome().device_id == name


def test_two_workers_on_one_folder_are_refused_in_one_clear_line(bus: Bus, start: Start) -> None:
    first = start()
    bus.welcome()
    second = start()
    _, errors = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 2
    assert errors.count("\n") == 1
    assert f"process {first.pid}" in errors
    assert "--data-dir" in errors


#: Errors of ours, put where a start comes by.
FAULTS = {
    "find": "import retire_cluster.node.link.credentials as place\nplace.find = wrong\n",
    "settle": "from retire_cluster.node.link.credentials import Credentials as place\n"
    "place.settle = wrong\n",
    "check_id": "import retire_cluster.node.device.identity as place\nplace.check_id = wrong\n",
    "device_id": "import retire_cluster.node.device.identity as place\nplace.device_id = wrong\n",
    "capabilities": "import retire_cluster.node.device.probe as place\n"
    "place.capabilities = wrong\n",
}


@pytest.mark.parametrize("where", FAULTS)
def test_an_error_of_its_own_while_starting_is_no_mistake_of_whoever_started_it(
    start: Start, tmp_path: Path, where: str
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    wrong = "def wrong(*args, **more):\n    raise ValueError('not the user')\n"
    # The interpreter itself imports it, in the task processes too.
    (site / "sitecustomize.py").write_text(wrong + FAULTS[where])
    invitation = Invitation("127.0.0.1", 9, new_pair().public, b"t" * TOKEN_BYTES)
    flags = ("--join", write_join(invitation)) if where == "settle" else ()
    process = start(*flags, environ={"PYTHONPATH": str(site)})
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1, errors
    assert "met an error of its own" in errors
    assert "ValueError: not the user" in errors


def test_bad_flags_are_refused_with_their_cure(start: Start) -> None:
    process = start("--join", "http://x/")
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert "HOST:PORT" in errors
    for flags, words in (
        (("--tag", "two words"), "tag 'two words'"),
        (("--device-id", "-x y"), "device id"),
        (("--slots", "2000"), "worker.slots"),
        (("--drain-seconds", "-1"), "--drain-seconds"),
        (("--config", "no-such-file.toml"), "--config"),
    ):
        process = start(*flags)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 2
        assert words in errors


def test_a_removed_device_exits_4(bus: Bus, start: Start) -> None:
    process = start()
    hello = bus.expect(messages.Hello)
    bus.send(messages.Reject(hello.session, "removed", "by the owner"))
    assert process.wait(PATIENCE_SECONDS) == 4


def test_frames_that_are_not_of_the_protocol_are_dropped(bus: Bus, start: Start) -> None:
    start()
    bus.welcome()
    junk: list[list[bytes]] = [
        [b""],
        [b"RCW1", b"ASSIGN", b"{"],
        [b"RCW9", b"PING", b"{}"],
        [b"RCW1", b"NOPE", b"{}"],
        [b"RCW1", b"ASSIGN", b'{"session":"%s","items":[]}' % bus.session.encode(), b"a", b""],
        [b"x"] * 9,
    ]
    for frames in junk:
        bus.socket.send_multipart([bus.peer, *frames])
    bus.send(messages.Assign.of(bus.session, (AssignItem((9, 1, 1, 1), 0, "echo", 5),)))
    assert bus.run("echo", {"still": "here"}).data == {"echo": {"still": "here"}}


@posix_only
def test_sigterm_lets_running_work_finish_and_gives_the_rest_back(bus: Bus, start: Start) -> None:
    process = start("--slots", "1")
    bus.welcome()
    first, second = bus.assign_all([("sleep", {"duration": 1}), ("sleep", {"duration": 1})])
    bus.started(first)
    process.send_signal(signal.SIGTERM)
    bus.expect(messages.Drain)
    assert bus.result(second).item.outcome == "released"
    assert bus.result(first).item.outcome == "success"
    bus.expect(messages.Goodbye)
    assert process.wait(PATIENCE_SECONDS) == 0


@posix_only
def test_a_second_signal_stops_at_once(bus: Bus, start: Start) -> None:
    process = start(*COMMAND)
    bus.welcome()
    key = bus.assign("command", {"command": ["sleep", "600"]})
    bus.started(key)
    process.send_signal(signal.SIGINT)
    bus.expect(messages.Drain)
    process.send_signal(signal.SIGINT)
    assert bus.result(key).item.outcome == "released"
    bus.expect(messages.Goodbye)
    assert process.wait(PATIENCE_SECONDS) == 130


# --- reconnecting ---------------------------------------------------------------------------------


def test_it_comes_back_to_a_restarted_main_node_with_what_it_holds(bus: Bus, start: Start) -> None:
    start()
    bus.welcome()
    bus.acknowledge = False
    quick = bus.assign("echo", {"n": 1})
    slow = bus.assign("sleep", {"duration": 600})
    bus.started(slow)
    bus.result(quick)
    bus.close()
    bus.bind()
    bus.epoch += 1
    bus.ended.clear()
    bus.acknowledge = True
    hello = bus.welcome()
    assert [row.key for row in hello.held] == [slow]
    assert hello.held[0].started
    assert hello.unsent == (quick,)
    assert bus.result(quick).data == {"echo": {"n": 1}}


def test_an_unknown_session_registers_again_at_once(bus: Bus, start: Start) -> None:
    start()
    first = bus.welcome()
    bus.expect(messages.Heartbeat)
    bus.send(messages.Reject(first.session, "register", "unknown session"))
    assert bus.welcome().session != first.session


def test_a_worker_waits_for_a_main_node_that_is_not_there_yet(
    bus: Bus, start: Start, tmp_path: Path
) -> None:
    bus.close()
    process = start()
    assert process.stderr is not None
    lines = [process.stderr.readline(), process.stderr.readline()]
    assert "dials" in lines[0]
    assert f"no connection to 127.0.0.1:{bus.port}" in lines[1]
    bus.bind()
    bus.welcome()


@posix_only
def test_results_of_commands_survive_a_killed_worker(
    bus: Bus, start: Start, tmp_path: Path
) -> None:
    process = start(*COMMAND)
    bus.welcome()
    bus.acknowledge = False
    key = bus.assign("command", {"command": ["echo", "once"]})
    bus.result(key)
    process.kill()
    process.wait()
    bus.ended.clear()
    bus.acknowledge = True
    start(*COMMAND)
    assert bus.welcome().unsent == (key,)
    assert bus.result(key).data["stdout"].strip() == "once"
    bus.run("echo", {})
    spool = tmp_path / "w" / "results.spool"
    bus.until(lambda: spool.stat().st_size == 0, "an empty spool")


def test_a_drained_worker_gives_work_back_until_it_is_resumed(bus: Bus, start: Start) -> None:
    start()
    bus.welcome()
    bus.send(messages.Drain(bus.session, "maintenance"))
    beat = bus.until(
        lambda: next(
            (m for m in bus.seen if isinstance(m, messages.Heartbeat) and not m.accepting), 0
        )
    )
    assert beat.not_accepting_reason == "maintenance"
    assert bus.run("echo", {}).item.outcome == "released"
    bus.send(messages.Resume(bus.session))
    assert bus.run("echo", {}).item.outcome == "success"


def test_a_new_configuration_takes_hold_at_once(bus: Bus, start: Start) -> None:
    start()
    bus.welcome()
    bus.send(
        messages.Config(bus.session, HeartbeatConfig(7, interval=0.1, timeout=5, max_missed=9))
    )
    assert bus.expect(messages.ConfigAck).version == 7
    assert bus.expect(messages.Heartbeat).config_version == 7
    before = len(bus.beats)
    bus.until(lambda: len(bus.beats) >= before + 3, "faster heartbeats")


def test_a_ping_is_answered(bus: Bus, start: Start) -> None:
    start()
    bus.welcome()
    bus.send(messages.Ping(bus.session, 42))
    assert bus.expect(messages.Pong).nonce == 42


@linux_only
def test_a_worker_that_lost_its_lease_stops_only_what_may_not_run_twice(
    start: Start, bus: Bus
) -> None:
    bus.config = HeartbeatConfig(version=1, interval=0.2, timeout=2.0, max_missed=5)
    start("--slots", "2", *COMMAND)
    bus.welcome()
    mark = secrets.token_hex(8)
    command = bus.assign("command", {"command": [*python("import time", "time.sleep(600)"), mark]})
    harmless = bus.assign("sleep", {"duration": 600})
    bus.started(command)
    bus.until(lambda: alive_with(mark), "the command")
    bus.close()
    wait_until(lambda: not alive_with(mark))
    bus.bind()
    hello = bus.welcome()
    assert harmless in {row.key for row in hello.held}
    ended = bus.result(command)
    assert (ended.item.outcome, ended.item.cause) == ("failed", "worker_lost")
    assert "on_lease_loss" in (ended.item.error_message or "")
    bus.send(messages.Cancel(bus.session, (harmless,), "cancelled"))
    assert bus.result(harmless).item.outcome == "cancelled"


@linux_only
def test_an_abandoned_task_is_killed_and_not_spoken_of(bus: Bus, start: Start) -> None:
    worker = start("--slots", "1", *COMMAND)
    bus.welcome()
    mark = secrets.token_hex(8)
    key = bus.assign("command", {"command": [*python("import time", "time.sleep(600)"), mark]})
    bus.until(lambda: alive_with(mark), "the command")
    bus.send(messages.Abandon(bus.session, (key,)))
    assert bus.run("command", {"command": ["echo", "next"]}).item.outcome == "success"
    assert alive_with(mark) == []
    assert key[0] not in bus.ended
    assert worker.poll() is None


def test_a_waiting_task_is_cancelled_without_ever_starting(bus: Bus, start: Start) -> None:
    start("--slots", "1")
    bus.welcome()
    running, waiting = bus.assign_all([("sleep", {"duration": 600}), ("sleep", {"duration": 600})])
    bus.started(running)
    bus.send(messages.Cancel(bus.session, (waiting, running), "cancelled"))
    assert bus.result(waiting).item.outcome == "cancelled"
    assert bus.result(running).item.outcome == "cancelled"
    assert not any(isinstance(m, messages.Started) and waiting in m.items for m in bus.seen)


# --- a small device -------------------------------------------------------------------------------


def test_a_worker_without_optional_libraries_runs_all_the_same(
    bus: Bus, start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "without"
    folder.mkdir()
    for name in ("orjson", "psutil", "cerberus", "falcon", "apscheduler", "waitress"):
        (folder / f"{name}.py").write_text(f"raise ImportError('no {name} here')")
    start(*COMMAND, environ={"PYTHONPATH": str(folder)})
    hello = bus.welcome()
    assert hello.capabilities["cpu_count"] >= 1
    assert bus.run("echo", {"ä": [1, 2.5, None]}).data == {"echo": {"ä": [1, 2.5, None]}}
    assert bus.run("system_info", {}).data["python_version"] == hello.capabilities["python_version"]
    assert bus.run("python_eval", {"expression": "math.floor(2.5)"}).data["result"] == 2
    if os.name == "posix":
        assert bus.run("command", {"command": ["echo", "x"]}).data["stdout"] == "x\n"


def test_the_worker_itself_loads_nothing_that_only_tasks_need() -> None:
    code = (
        "import sys, retire_cluster.node.cli, retire_cluster.node.link.agent;"
        "print([m for m in ('urllib3', 'simpleeval', 'psutil', 'multiprocessing', 'asyncio',"
        " 'cerberus', 'falcon', 'retire_cluster.broker') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


# --- --test ---------------------------------------------------------------------------------------


def test_test_reports_what_the_device_offers_and_that_it_is_welcome(bus: Bus, start: Start) -> None:
    process = start("--test")
    hello = bus.welcome()
    assert hello.trial
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert hello.device_id in output
    assert "welcomes this device" in output


def test_test_runs_a_function_where_its_owner_allows_them(bus: Bus, start: Start) -> None:
    process = start("--test", "--allow", "python_call", "--allow-root")
    bus.welcome()
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert re.search(r"python_call\b.* ran in \d", output), output


def test_test_says_when_the_main_node_refuses_or_does_not_answer(bus: Bus, start: Start) -> None:
    process = start("--test")
    hello = bus.expect(messages.Hello)
    bus.send(messages.Reject(hello.session, "wrong_port", "this is the admin port; use 8082"))
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert "use 8082" in output
    bus.close()
    process = start("--test")
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 3
    assert "does not answer" in output
    assert "firewall" in errors
    bus.bind()
