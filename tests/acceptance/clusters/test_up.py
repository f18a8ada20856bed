"""`retire-cluster up` as a user meets it: real processes, ephemeral ports."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.cli.endpoints import pid_alive
from retire_cluster.node.system import process_tree
from tests.command_kit import ANY_PORTS, COMMAND, plain_environment, until

pytestmark = pytest.mark.slow

KEY = "a-key-that-no-command-line-shows"


class Running:
    """An `up` that was started and is ready."""

    def __init__(self, data_dir: Path, *flags: str, **environ: str) -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "up", "--data-dir", str(data_dir), *ANY_PORTS, *flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=plain_environment(**environ),
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        match = re.fullmatch(r"ready (http://127\.0\.0\.1:\d+)\n", line)
        if not match:
            self.kill()
            raise AssertionError(f"no ready line but {line!r}\n{self.log.read_text()}")
        self.url = match[1]

    def endpoints(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data_dir / "endpoints.json").read_text())
        return found

    def pids(self) -> list[int]:
        found = self.endpoints()
        parts = [found["main"], found["api"], *found["workers"]]
        return [part["pid"] for part in parts]

    def tree(self) -> list[int]:
        """Every process below this one, those that run tasks included."""
        below = process_tree.descendants(self.process.pid)
        return [process.pid for process in below] or self.pids()

    def call(self, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data)
        request.add_header("Content-Type", "application/json")
        if key:
            request.add_header("X-API-Key", key)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def healthy(self) -> bool:
        try:
            return self.call("/health")[0] == 200
        except OSError:
            return False

    def cli(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*COMMAND, *words, "--data-dir", str(self.data_dir)],
            capture_output=True,
            text=True,
            timeout=60,
            env=plain_environment(),
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout if done.stdout or code == 0 else done.stderr

    def data(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.cli(*words, "--json", code=code))["data"]

    def stop(self) -> tuple[int, str, float]:
        started = time.monotonic()
        self.process.terminate()
        out, _ = self.process.communicate(timeout=15)
        return self.process.returncode, out, time.monotonic() - started

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=15)


def left_over(data_dir: Path) -> list[str]:
    """Command lines of live processes that name this data folder (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if str(data_dir).encode() in command and int(entry.name) != os.getpid():
                found.append(command.replace(b"\0", b" ").decode())
    return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    found = Running(
        tmp_path_factory.mktemp("up") / "data",
        *("--slots", "2", "--allow", "command"),
        RETIRE_CLUSTER_API_KEY=KEY,
        RETIRE_CLUSTER_ALLOW_ROOT="1",  # where tests run as root
    )
    try:
        yield found
    finally:
        found.kill()


def test_endpoints_name_live_processes_and_their_ports(running: Running) -> None:
    found = running.endpoints()
    assert sorted(found) == ["api", "main", "workers"]
    assert sorted(found["main"]) == ["admin_port", "event_port", "pid", "worker_port"]
    assert f"http://{found['api']['host']}:{found['api']['port']}" == running.url
    worker = found["workers"][0]
    assert worker["device_id"].endswith("-local-1")
    assert Path(worker["data_dir"]) == running.data_dir / "workers" / "1"
    assert all(pid_alive(pid) for pid in running.pids())


def test_the_facade_is_healthy_and_the_worker_runs_tasks(running: Running) -> None:
    status, health = running.call("/health")
    assert (status, health["status"]) == (200, "healthy")
    body = {"task_type": "echo", "payload": {"message": "Hello World"}}
    status, answer = running.call("/api/v1/tasks", body)
    assert status == 201
    task_id = answer["data"]["task_id"]
    until(lambda: running.call(f"/api/v1/tasks/{task_id}/result")[0] == 200)
    _, answer = running.call(f"/api/v1/tasks/{task_id}/result")
    assert answer["data"]["result_data"] == {"echo": {"message": "Hello World"}}


def test_the_block_for_newcomers_goes_to_standard_error(running: Running) -> None:
    text = running.log.read_text()
    assert f"{running.url}/ui/" in text
    assert "curl -X POST" in text
    assert "retire-cluster-worker --join 127.0.0.1:" in text
    assert "Stop everything" in text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_command_line_shows_the_key_and_only_the_facade_has_it(running: Running) -> None:
    _, answer = running.call("/api/v1/config", key=KEY)
    assert answer["status"] == "success"
    assert running.call("/api/v1/config")[0] == 401
    for pid in running.pids():
        assert KEY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    found = running.endpoints()
    for pid in (found["main"]["pid"], found["workers"][0]["pid"]):
        with contextlib.suppress(PermissionError):
            assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def test_the_verbs_work_on_a_running_cluster(running: Running) -> None:
    device_id = running.endpoints()["workers"][0]["device_id"]
    assert "1 of 1 online" in running.cli("status", "--devices")
    assert running.data("status")["cluster_stats"]["online_devices"] == 1
    assert [d["device_id"] for d in running.data("devices", "ls")] == [device_id]
    assert running.data("devices", "show", device_id)["slots"] == 2
    assert running.data("devices", "ping", device_id)["ping_successful"] is True
    running.cli("devices", "show", "nobody", code=5)

    printed = running.cli("submit", "python_eval", "expression=6*7", "--wait")
    assert json.loads(printed)["result"] == 42
    command = f"command={json.dumps([sys.executable, '-c', 'print(1); raise SystemExit(3)'])}"
    task_id = running.cli("submit", "command", command, "--require", "max_retries=0").strip()
    running.cli("tasks", "wait", task_id, code=1)
    assert json.loads(running.cli("tasks", "result", task_id, code=1))["return_code"] == 3
    running.cli("submit", "echo", "nonsense", code=6)
    running.cli("submit", "no_such_type", "a=1", code=6)
    assert running.data("tasks", "ls", "--limit", "1")[0]["task_id"] == task_id
    assert running.data("tasks", "show", task_id)["status"] == "failed"


def test_waiting_gives_up_with_7_and_a_cancelled_task_exits_1(running: Running) -> None:
    task_id = running.cli("submit", "sleep", "duration=600").strip()
    running.cli("tasks", "result", task_id, code=5)
    running.cli("tasks", "wait", task_id, "--timeout", "0.2", code=7)
    assert running.data("tasks", "cancel", task_id)["status"] == "cancelled"
    running.cli("tasks", "wait", task_id, code=1)
    running.cli("tasks", "cancel", task_id, code=6)


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_while_waiting_detaches_and_the_task_goes_on(running: Running) -> None:
    with subprocess.Popen(
        [
            *COMMAND,
            "submit",
            "sleep",
            "duration=600",
            "--wait",
            "--data-dir",
            str(running.data_dir),
        ],
        stderr=subprocess.PIPE,
        env=plain_environment(),
        text=True,
    ) as watching:
        assert watching.stderr is not None
        task_id = watching.stderr.readline().split()[-1]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=15) == 130
        assert f"retire-cluster tasks wait {task_id}" in watching.stderr.read()
    assert running.data("tasks", "show", task_id)["completed_at"] is None
    running.cli("tasks", "cancel", task_id)


def test_explain_says_why_a_task_waits(running: Running) -> None:
    task_id = running.cli("submit", "echo", "a=1", "--require", "required_tags=nobody").strip()
    assert "missing tag nobody" in running.cli("explain", task_id)
    running.cli("tasks", "cancel", task_id)


def test_settings_are_read_changed_and_reset(running: Running) -> None:
    assert running.cli("config", "get", "heartbeat.interval").split()[-1] == "5"
    answer = running.data("config", "set", "heartbeat.interval=2")
    assert answer["updated_fields"] == ["interval"]
    assert running.data("config", "get", "heartbeat")["interval"] == 2
    running.cli("config", "set", "heartbeat.interval=0", code=6)
    running.cli("config", "reset")
    assert running.data("config", "get", "heartbeat")["interval"] == 5


def test_the_doctor_finds_nothing_broken(running: Running) -> None:
    found = running.data("doctor")
    assert found["broken"] == 0
    said = [finding["what"] for finding in found["findings"]]
    assert any("walls around tasks: files: " in what for what in said), said


def test_a_second_up_on_the_same_folder_is_refused(running: Running) -> None:
    done = subprocess.run(
        [*COMMAND, "up", "--data-dir", str(running.data_dir), *ANY_PORTS],
        capture_output=True,
        text=True,
        timeout=30,
        env=plain_environment(),
    )
    assert done.returncode == 2
    assert "already runs" in done.stderr
    assert done.stderr.count("\n") == 1
    assert running.healthy()


def test_a_killed_broker_comes_back_on_its_ports_and_work_goes_on(running: Running) -> None:
    before = running.endpoints()
    os.kill(before["main"]["pid"], signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    until(lambda: running.endpoints()["main"]["pid"] != before["main"]["pid"])
    after = running.endpoints()
    assert after["main"] == {**before["main"], "pid": after["main"]["pid"]}
    assert after["api"] == before["api"]
    assert after["workers"] == before["workers"]
    until(running.healthy)
    assert json.loads(running.cli("submit", "echo", "again=1", "--wait", "--timeout", "30"))
    assert running.process.poll() is None


def test_a_killed_worker_and_a_killed_facade_come_back(running: Running) -> None:
    before = running.endpoints()
    for pid in (before["workers"][0]["pid"], before["api"]["pid"]):
        os.kill(pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    until(lambda: not set(running.pids()) & {before["workers"][0]["pid"], before["api"]["pid"]})
    until(running.healthy)
    assert running.endpoints()["api"]["port"] == before["api"]["port"]
    assert json.loads(running.cli("submit", "echo", "again=2", "--wait", "--timeout", "60"))


def test_another_worker_joins_by_the_line_that_was_printed(
    running: Running, tmp_path: Path
) -> None:
    port = running.endpoints()["main"]["worker_port"]
    command = [*COMMAND, "join", f"127.0.0.1:{port}", "--device-id", "second", "--tag", "extra"]
    with subprocess.Popen(
        [*command, "--data-dir", str(tmp_path / "second")],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=plain_environment(),
    ) as worker:
        try:
            until(lambda: len(running.data("devices", "ls", "--status", "online")) == 2)
            words = ("submit", "echo", "a=1", "--require", "required_tags=extra", "--wait")
            assert running.data(*words)["worker_device_id"] == "second"
        finally:
            worker.terminate()
            worker.wait(timeout=15)


def test_a_removed_worker_stays_down_until_it_is_readmitted(running: Running) -> None:
    worker = running.endpoints()["workers"][0]
    running.cli("devices", "rm", worker["device_id"])
    until(lambda: running.endpoints()["workers"] == [])
    assert not pid_alive(worker["pid"])
    until(lambda: "devices readmit" in running.log.read_text())
    running.cli("devices", "readmit", worker["device_id"])
    assert running.healthy()


def test_up_is_ready_without_a_local_worker_that_was_removed(tmp_path: Path) -> None:
    first = Running(tmp_path / "data", "--workers", "2")
    gone, kept = (worker["device_id"] for worker in first.endpoints()["workers"])
    first.cli("devices", "rm", gone)
    first.stop()
    again = Running(tmp_path / "data", "--workers", "2")
    try:
        assert [worker["device_id"] for worker in again.endpoints()["workers"]] == [kept]
        assert f"devices readmit {gone}" in again.log.read_text()
    finally:
        again.stop()


def test_a_task_that_runs_when_everything_stops_is_given_back_and_runs_again(
    tmp_path: Path,
) -> None:
    first = Running(tmp_path / "data", "--slots", "1")
    task_id = first.cli("submit", "sleep", "duration=600").strip()
    until(lambda: first.data("tasks", "show", task_id)["status"] == "running")
    pids = first.tree()
    code, _, seconds = first.stop()
    assert code == 0
    assert seconds < 10
    assert not [pid for pid in pids if pid_alive(pid)]
    assert left_over(tmp_path / "data") == []
    again = Running(tmp_path / "data", "--slots", "2")
    try:
        until(lambda: again.data("tasks", "show", task_id)["status"] == "running", seconds=15)
        assert again.data("tasks", "show", task_id)["retry_count"] == 0
    finally:
        again.stop()


def test_a_signal_to_up_alone_stops_everything_and_prints_nothing_more(running: Running) -> None:
    pids = running.tree()
    code, out, seconds = running.stop()
    assert (code, out) == (0, "")
    assert seconds < 10
    assert not [pid for pid in pids if pid_alive(pid)]
    assert left_over(running.data_dir) == []


def test_everything_ends_when_up_is_killed_outright_and_it_can_start_again(
    tmp_path: Path,
) -> None:
    first = Running(tmp_path / "data", "--workers", "2")
    try:
        assert len(first.pids()) == 4
        for _ in range(2):
            first.cli("submit", "sleep", "duration=600")
        until(lambda: len(first.data("tasks", "ls", "--status", "running")) == 2)
        pids = first.tree()
    finally:
        first.kill()
    again = Running(tmp_path / "data")
    try:
        assert not [pid for pid in pids if pid in again.pids()]
        assert not [pid for pid in pids if pid_alive(pid)]
    finally:
        again.stop()
    assert left_over(tmp_path / "data") == []


def test_without_workers_it_is_ready_too(tmp_path: Path) -> None:
    found = Running(tmp_path / "data", "--workers", "0", "--no-cors", "--no-rate-limit")
    try:
        assert found.endpoints()["workers"] == []
    finally:
        assert found.stop()[0] == 0


@pytest.mark.parametrize("flag", ["--port", "--cluster-port"])
def test_a_port_that_is_taken_is_said_and_exits_2(flag: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [*COMMAND, "up", "--data-dir", str(tmp_path / "data"), *ANY_PORTS]
        done = subprocess.run(
            [*command, flag, str(port)],
            capture_output=True,
            text=True,
            timeout=30,
            env=plain_environment(),
        )
    assert done.returncode == 2
    assert done.stdout == ""
    assert str(port) in done.stderr
    assert left_over(tmp_path / "data") == []


def test_a_data_folder_that_cannot_be_made_is_said_and_exits_2(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [*COMMAND, "up", "--data-dir", str(tmp_path / "file" / "data"), *ANY_PORTS]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30, env=plain_environment()
    )
    assert done.returncode == 2
    assert str(tmp_path / "file") in done.stderr
    assert done.stderr.count("\n") == 1
