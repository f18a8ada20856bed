"""A real worker process against a loopback ROUTER that speaks the protocol."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import zmq

from retire_cluster.node import proctree
from retire_cluster.schemas import messages, wire
from retire_cluster.schemas.messages import AssignItem, FinishedItem, HeartbeatConfig, Key

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and /proc")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
PATIENCE_SECONDS = 15.0
M = TypeVar("M")


class Ended(NamedTuple):
    item: FinishedItem
    #: `result_data`, decoded, or None.
    data: Any
    details: dict[str, Any]


class Bus:
    """The main node's side of the worker bus; answers heartbeats by itself."""

    def __init__(self, config: HeartbeatConfig | None = None) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.config = config or HeartbeatConfig(version=1, interval=0.5, timeout=20, max_missed=6)
        self.socket: zmq.Socket[bytes]
        self.port = 0
        self.bind()
        self.peer = b""
        self.session = ""
        self.epoch = 1
        self.acknowledge = True
        self.beats: list[float] = []
        self.seen: list[messages.FromDevice] = []
        self.ended: dict[int, Ended] = {}
        self.last = 0

    def bind(self) -> None:
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(f"tcp://127.0.0.1:{self.port or '*'}")
        endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.port = int(endpoint.rpartition(":")[2])

    def close(self) -> None:
        self.socket.close(linger=0)

    def send(self, message: Any, *blobs: bytes) -> None:
        verb, header = message.write()
        self.socket.send_multipart([self.peer, *wire.encode(wire.BUS, verb, header, blobs)])

    def step(self, timeout_ms: int = 100) -> messages.FromDevice | None:
        """One message of the device, if there is one; the answers that always follow are sent."""
        if not self.socket.poll(timeout_ms):
            return None
        peer, *frames = self.socket.recv_multipart()
        decoded = wire.decode(wire.BUS, frames)
        message = messages.read_from_device(decoded.verb, decoded.header)
        self.peer = peer
        self.seen.append(message)
        if isinstance(message, messages.Heartbeat):
            self.beats.append(time.monotonic())
            self.send(messages.HeartbeatAck(message.session, message.beat, self.config.version))
        elif isinstance(message, messages.Finished):
            for index, item in enumerate(message.items):
                data, details = decoded.blobs[2 * index : 2 * index + 2]
                self.ended[item.key[0]] = Ended(
                    item, json.loads(data) if data else None, json.loads(details or b"{}")
                )
            if self.acknowledge:
                self.send(messages.FinishedAck(message.session, message.batch))
        return message

    def until(self, condition: Callable[[], Any], what: str = "the condition") -> Any:
        end = time.monotonic() + PATIENCE_SECONDS
        while not (found := condition()):
            assert time.monotonic() < end, f"waited in vain for {what}; seen: {self.seen[-5:]}"
            self.step(50)
        return found

    def expect(self, kind: type[M]) -> M:
        """The next message of a kind."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            message = self.step(100)
            if isinstance(message, kind):
                return message
        raise AssertionError(f"no {kind.__name__}; seen: {self.seen[-5:]}")

    def welcome(self) -> messages.Hello:
        """Takes a HELLO and welcomes whatever it has."""
        hello = self.expect(messages.Hello)
        self.session = hello.session
        keep = (*(row.key for row in hello.held), *hello.unsent)
        self.send(messages.Welcome(hello.session, self.epoch, keep, (), self.config))
        return hello

    def assign(self, task_type: str, payload: Any, timeout_seconds: int = 30) -> Key:
        return self.assign_all([(task_type, payload)], timeout_seconds)[0]

    def assign_all(self, tasks: list[tuple[str, Any]], timeout_seconds: int = 30) -> list[Key]:
        items, blobs = [], []
        for task_type, payload in tasks:
            self.last += 1
            key = (self.last, 1, self.last + 1000, self.epoch)
            items.append(AssignItem(key, f"task-{self.last}", task_type, timeout_seconds))
            blobs.append(json.dumps(payload).encode())
        self.send(messages.Assign(self.session, tuple(items)), *blobs)
        return [item.key for item in items]

    def result(self, key: Key) -> Ended:
        self.until(lambda: key[0] in self.ended, f"the result of {key}")
        return self.ended[key[0]]

    def run(self, task_type: str, payload: Any, timeout_seconds: int = 30) -> Ended:
        return self.result(self.assign(task_type, payload, timeout_seconds))

    def started(self, key: Key) -> None:
        self.until(
            lambda: any(isinstance(m, messages.Started) and key in m.items for m in self.seen),
            f"the start of {key}",
        )


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def bus() -> Iterator[Bus]:
    bus = Bus()
    yield bus
    bus.close()
    bus.context.term()


@pytest.fixture
def start(bus: Bus, tmp_path: Path) -> Iterator[Start]:
    processes = []

    def start_worker(
        *flags: str, environ: dict[str, str] | None = None, folder: str = "w"
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "retire_cluster.node"]
        command += ["--join", f"127.0.0.1:{bus.port}", "--data-dir", str(tmp_path / folder)]
        process = subprocess.Popen(
            [*command, "--slots", "2", *flags],
            cwd=tmp_path,
            env={**os.environ, **(environ or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start_worker
    for process in processes:
        process.kill()
        process.communicate()


COMMAND = ("--allow", "command", "--allow-root")


def python(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(lines)]


def alive_with(mark: str) -> list[int]:
    """Processes whose command line holds a mark."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and mark.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(int(entry))
    return found


def children_of(pid: int) -> list[int]:
    """Task processes of a worker, at any depth."""
    return [process.pid for process in proctree.descendants(pid)]


def is_running(pid: int) -> bool:
    process = proctree.find(pid)
    return process is not None and process.state not in ("Z", "X")


def wait_until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# --- joining and leaving ----------------------------------------------------------------------


def test_a_worker_joins_within_a_second_and_says_what_it_is(bus: Bus, start: Start) -> None:
    began = time.monotonic()
    start("--tag", "kitchen", "--role", "storage")
    hello = bus.welcome()
    bus.expect(messages.Heartbeat)
    assert time.monotonic() - began < 3.0  # a second, on a machine that is not busy testing
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
    bus.send(messages.Assign(bus.session, (AssignItem((9, 1, 1, 1), "t", "echo", 5),)))
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


# --- reconnecting -----------------------------------------------------------------------------


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
    harmless = bus.assign("sleep", {"duration": 3})
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
    assert bus.result(harmless).item.outcome == "success"


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


# --- a small device ---------------------------------------------------------------------------


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
        "import sys, retire_cluster.node.cli, retire_cluster.node.agent;"
        "print([m for m in ('urllib3', 'simpleeval', 'psutil', 'multiprocessing', 'asyncio',"
        " 'cerberus', 'falcon', 'retire_cluster.broker') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


# --- the task types ---------------------------------------------------------------------------


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
    assert "RC_TASK_ID=task-2" in ended.data["stdout"]
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
def test_a_command_reads_its_input_and_works_in_a_folder_of_its_own(bus: Bus, start: Start) -> None:
    start(*COMMAND)
    bus.welcome()
    ended = bus.run("command", {"command": ["cat"], "stdin": "grüße"})
    assert ended.data["stdout"] == "grüße"
    first = bus.run("command", {"command": ["sh", "-c", "pwd; touch here"]}).data["stdout"].strip()
    assert "task-work" in first
    assert not Path(first).exists()
    item = bus.run("command", {"command": ["pwd"], "cwd": "/no/such/folder"}).item
    assert (item.cause, "payload.cwd" in (item.error_message or "")) == ("deterministic", True)
    item = bus.run("command", {"command": ["no-such-program-here"]}).item
    assert item.cause == "deterministic"


@posix_only
def test_output_beyond_its_cap_is_drained_and_cut(bus: Bus, start: Start) -> None:
    start(*COMMAND)
    bus.welcome()
    script = python("import sys", "for i in range(160): sys.stdout.write('\\x01' * 65536)")
    ended = bus.run("command", {"command": script})
    assert ended.item.outcome == "success"
    assert ended.details["truncated"] is True
    assert 0 < len(ended.data["stdout"]) <= 256 * 1024


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


# --- nothing survives its task ----------------------------------------------------------------


@linux_only
def test_cancel_kills_a_grandchild_that_left_its_session(bus: Bus, start: Start) -> None:
    start(*COMMAND)
    bus.welcome()
    mark = secrets.token_hex(8)
    script = python(
        "import os, subprocess, sys, time",
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', sys.argv[1]],",
        "                 start_new_session=True, env={}, stdout=subprocess.DEVNULL)",
        "time.sleep(600)",
    )
    key = bus.assign("command", {"command": [*script, mark]})
    bus.until(lambda: len(alive_with(mark)) >= 2, "the grandchild")
    bus.send(messages.Cancel(bus.session, (key,), "cancelled"))
    assert bus.result(key).item.outcome == "cancelled"
    assert alive_with(mark) == []


@linux_only
def test_what_a_command_leaves_in_the_background_ends_with_it(bus: Bus, start: Start) -> None:
    start(*COMMAND)
    bus.welcome()
    mark = secrets.token_hex(8)
    inner = f"import time; time.sleep(600) # {mark}"
    script = f"setsid {sys.executable} -c '{inner}' & echo started"
    ended = bus.run("command", {"command": ["sh", "-c", script]})
    assert ended.item.outcome == "success"
    assert alive_with(mark) == []


@linux_only
def test_many_forked_processes_are_ended_and_heartbeats_go_on(bus: Bus, start: Start) -> None:
    start(*COMMAND)
    bus.welcome()
    mark = secrets.token_hex(8)
    script = python(
        "import os, sys, time",
        "for i in range(60):",
        "    if os.fork() == 0:",
        "        if i % 2: os.setsid()",
        "        time.sleep(600)",
        "time.sleep(600)",
    )
    began = time.monotonic()
    key = bus.assign("command", {"command": [*script, mark]}, timeout_seconds=1)
    assert bus.result(key).item.outcome == "timeout"
    assert alive_with(mark) == []
    gaps = [b - a for a, b in zip(bus.beats, bus.beats[1:], strict=False) if b > began]
    assert max(gaps, default=0) < 2.0


@linux_only
def test_a_task_that_kills_its_own_process_fails_with_the_reason(bus: Bus, start: Start) -> None:
    start(*COMMAND)
    bus.welcome()
    script = python("import os, signal", "os.kill(os.getppid(), signal.SIGKILL)")
    item = bus.run("command", {"command": script}).item
    assert (item.outcome, item.cause) == ("failed", "error")
    assert "signal 9" in (item.error_message or "")
    assert bus.run("command", {"command": ["echo", "next"]}).item.outcome == "success"


@linux_only
def test_a_killed_worker_leaves_no_process_behind(bus: Bus, start: Start) -> None:
    worker = start(*COMMAND)
    bus.welcome()
    mark = secrets.token_hex(8)
    key = bus.assign(
        "command", {"command": ["sh", "-c", f"setsid sleep 600 & sleep 600; : {mark}"]}
    )
    bus.started(key)
    bus.until(lambda: alive_with(mark), "the command")
    tree = children_of(worker.pid)
    assert len(tree) >= 3
    worker.kill()
    worker.wait()
    wait_until(lambda: not any(is_running(pid) for pid in tree), 2.0)


@linux_only
def test_a_new_worker_ends_what_was_left_when_all_of_an_earlier_one_was_killed(
    bus: Bus, start: Start
) -> None:
    worker = start(*COMMAND)
    bus.welcome()
    mark = secrets.token_hex(8)
    script = python("import time", "time.sleep(600)")
    key = bus.assign("command", {"command": [*script, mark]})
    bus.started(key)
    bus.until(lambda: alive_with(mark), "the command")
    keeper, executor = children_of(worker.pid)[:2]
    for pid in (worker.pid, keeper, executor):
        os.kill(pid, signal.SIGSTOP)
    for pid in (keeper, worker.pid, executor):
        os.kill(pid, signal.SIGKILL)
    worker.wait()
    assert alive_with(mark)
    start(*COMMAND)
    bus.welcome()
    assert alive_with(mark) == []


# --- own task types ---------------------------------------------------------------------------

OWN_TYPES = '''
import logging, subprocess, sys, time

def double(payload, context):
    """Doubles a number."""
    print("from print")
    logging.getLogger("mine").warning("from logging")
    subprocess.run([sys.executable, "-c", "print('from a process')"], check=True)
    context.progress(50, "half way")
    context.log(f"{context.task_id} attempt {context.attempt}")
    return {"doubled": payload["n"] * 2}

double.repeatable = True
double.payload_schema = {"n": {"type": "integer", "required": True}}
double.deterministic_errors = (KeyError,)

class Patient:
    name = "be.patient"
    description = "Waits until it is cancelled"

    def run(self, payload, context):
        while not context.cancelled:
            time.sleep(0.01)
        open(payload["file"], "w").close()

def huge(payload, context):
    return "x" * (1 << 21)

def odd(payload, context):
    return {"value": float("nan")}

def dies(payload, context):
    import os
    os._exit(7)
'''
ENTRY_POINTS = """[retire_cluster.task_types]
double = own_types_of_test:double
patient = own_types_of_test:Patient
huge = own_types_of_test:huge
odd = own_types_of_test:odd
dies = own_types_of_test:dies
broken = own_types_of_test:missing
Bad Name = own_types_of_test:huge
"""


@pytest.fixture
def own_types(tmp_path: Path) -> dict[str, str]:
    site = tmp_path / "site"
    info = site / "own_types_of_test-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "own_types_of_test.py").write_text(OWN_TYPES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-types-of-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return {"PYTHONPATH": str(site)}


def test_own_task_types_are_offered_and_run(
    bus: Bus, start: Start, own_types: dict[str, str]
) -> None:
    start("--allow-root", environ=own_types)
    offered = {info.name: info for info in bus.welcome().task_types}
    assert {"double", "be.patient", "huge", "odd", "dies"} <= offered.keys()
    assert "broken" not in offered
    assert offered["double"].repeatable
    assert not offered["huge"].repeatable
    assert offered["double"].description == "Doubles a number."
    assert offered["double"].payload_schema == {"n": {"type": "integer", "required": True}}
    key = bus.assign("double", {"n": 21})
    progress = bus.expect(messages.Progress)
    assert [(i.percent, i.message) for i in progress.items] == [(50, "half way")]
    ended = bus.result(key)
    assert ended.data == {"doubled": 42}
    assert ended.details["logs"].splitlines() == [
        "from print",
        "WARNING mine: from logging",
        "from a process",
        "task-1 attempt 1",
    ]


def test_errors_of_own_types_are_told_apart_and_traced(
    bus: Bus, start: Start, own_types: dict[str, str]
) -> None:
    start("--allow-root", environ=own_types)
    bus.welcome()
    ended = bus.run("double", {"m": 1})
    assert (ended.item.outcome, ended.item.cause) == ("failed", "deterministic")
    assert "KeyError: 'n'" in (ended.item.error_message or "")
    assert 'payload["n"]' in ended.details["error_traceback"]
    ended = bus.run("double", {"n": None})
    assert (ended.item.outcome, ended.item.cause) == ("failed", "error")
    ended = bus.run("huge", {})
    assert ended.item.cause == "deterministic"
    assert "1 MiB" in (ended.item.error_message or "")
    assert "nan" in (bus.run("odd", {}).item.error_message or "")
    ended = bus.run("dies", {})
    assert ended.item.cause == "error"
    assert "exit code 7" in (ended.item.error_message or "")


def test_a_cancelled_own_type_is_told_before_it_is_killed(
    bus: Bus, start: Start, own_types: dict[str, str], tmp_path: Path
) -> None:
    start("--allow-root", environ=own_types)
    bus.welcome()
    key = bus.assign("be.patient", {"file": str(tmp_path / "told")})
    bus.started(key)
    bus.send(messages.Cancel(bus.session, (key,), "cancelled"))
    assert bus.result(key).item.outcome == "cancelled"
    assert (tmp_path / "told").exists()


# --- --test -----------------------------------------------------------------------------------


def test_test_reports_what_the_device_offers_and_that_it_is_welcome(bus: Bus, start: Start) -> None:
    process = start("--test")
    hello = bus.welcome()
    assert not hello.accepting
    bus.expect(messages.Goodbye)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert hello.device_id in output
    assert "welcomes this device" in output


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
