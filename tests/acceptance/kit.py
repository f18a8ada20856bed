"""What the acceptance tests share: real clusters, more workers, plain HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from retire_cluster.cli.endpoints import pid_alive
from retire_cluster.node.system import process_tree
from tests.command_kit import (
    ANY_PORTS,
    API,
    COMMAND,
    TERMINAL,
    Answer,
    exchange,
    plain_environment,
    until,
)


class Rest:
    """A facade at an address."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.port = int(url.rpartition(":")[2])

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = 40.0,
    ) -> Answer:
        """One request on a connection of its own; a body that is no bytes is sent as JSON."""
        return exchange(self.port, method, path, body, headers, seconds=timeout_seconds)

    def get(self, path: str) -> Any:
        """`data` of a GET below /api/v1."""
        return self.ask("GET", API + path).data

    def put(self, path: str, values: Any) -> Any:
        """`data` of a PUT below /api/v1."""
        return self.ask("PUT", API + path, values).data

    def post(self, path: str, body: Any = None) -> Any:
        """`data` of a POST below /api/v1."""
        return self.ask("POST", API + path, {} if body is None else body).data

    def submit(self, task_type: str, payload: Any, **fields: Any) -> str:
        """Submit a task; its id. `requirements` may be spread over keywords named like them."""
        body: dict[str, Any] = {"task_type": task_type, "payload": payload}
        body["requirements"] = {"max_retries": 0}
        for name, value in fields.items():
            (body if name in ("priority", "metadata") else body["requirements"])[name] = value
        answer = self.ask("POST", f"{API}/tasks", body)
        assert answer.status == 201, answer.body
        return str(answer.data["task_id"])

    def batch(self, tasks: Iterable[Mapping[str, Any]]) -> list[str]:
        """Submit many; their ids."""
        answer = self.ask("POST", f"{API}/tasks/batch", {"tasks": list(tasks)})
        assert answer.status == 201, answer.body
        return list(answer.data["task_ids"])

    def status(self, task_id: str) -> Any:
        """A task's status."""
        return self.get(f"/tasks/{task_id}/status")

    def await_status(self, task_id: str, *wanted: str, seconds: float = 30.0) -> Any:
        """A task's status once it is one of these."""
        return until(
            lambda: (found := self.status(task_id))["status"] in wanted and found,
            f"task {task_id} to be {' or '.join(wanted)}",
            seconds,
        )

    def result(self, task_id: str, seconds: float = 30.0) -> Any:
        """A task's result once it has ended."""
        self.await_status(task_id, *TERMINAL, seconds=seconds)
        return self.get(f"/tasks/{task_id}/result")

    def online(self) -> set[str]:
        """The ids of the devices that are online."""
        return {d["device_id"] for d in self.get("/devices?status=online&page_size=100")}

    def await_online(self, device_id: str) -> None:
        """Wait until a device is online."""
        until(lambda: device_id in self.online(), f"{device_id} to come online")

    def healthy(self) -> bool:
        """Whether /health says so."""
        try:
            return self.ask("GET", "/health").status == 200
        except OSError:
            return False

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        """All events after a cursor, as far as they are kept."""
        found: list[dict[str, Any]] = []
        while True:
            data = self.get(f"/events?since={since}&wait=0")
            assert not data["gap"]
            if not data["events"]:
                return found
            found += data["events"]
            since = data["next"]

    def cursor(self) -> int:
        """The cursor of now."""
        return int(self.get("/events?wait=0")["next"])


class Process:
    """A command of ours that runs; what it writes to stderr goes to a file."""

    #: All of this run, for what a failed test leaves to be ended (see conftest).
    started: ClassVar[list[Process]] = []

    def __init__(
        self,
        log: Path,
        *words: str,
        command: Sequence[str] = COMMAND,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        with log.open("wb") as stderr:
            self.popen = subprocess.Popen(
                [*command, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=plain_environment(**(environ or {})),
                text=True,
            )
        self.started.append(self)

    @property
    def pid(self) -> int:
        """Its number."""
        return self.popen.pid

    def line(self, pattern: str) -> re.Match[str]:
        """The next line of standard output, which must be like this."""
        assert self.popen.stdout is not None
        text = self.popen.stdout.readline()
        match = re.fullmatch(pattern, text.rstrip("\n"))
        if match is None:
            self.kill()
            raise AssertionError(f"{text!r} is not {pattern!r}\n{self.log.read_text()}")
        return match

    def tree(self) -> list[int]:
        """Every process below this one."""
        return [process.pid for process in process_tree.descendants(self.pid)]

    def stop(self, seconds: float = 15.0) -> int:
        """SIGTERM to this process alone; its exit code."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            self.popen.communicate(timeout=seconds)
        finally:
            self.kill()
        return self.popen.returncode

    def kill(self) -> None:
        """SIGKILL, and its exit."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.communicate(timeout=15)


class Cluster:
    """A running `retire-cluster up`, with what joins it."""

    def __init__(self, folder: Path, *flags: str, **environ: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.data_dir = folder / "data"
        self.workers: dict[str, Process] = {}
        words = ("up", "--data-dir", str(self.data_dir), *ANY_PORTS, *flags)
        self.up = Process(folder / "up.log", *words, environ=environ)
        self.rest = Rest(self.up.line(r"ready (http://127\.0\.0\.1:\d+)")[1])

    def endpoints(self) -> dict[str, Any]:
        """What endpoints.json says."""
        found: dict[str, Any] = json.loads((self.data_dir / "endpoints.json").read_text())
        return found

    @property
    def broker_pid(self) -> int:
        """The main node's process."""
        return int(self.endpoints()["main"]["pid"])

    @property
    def admin_port(self) -> int:
        """The main node's admin port."""
        return int(self.endpoints()["main"]["admin_port"])

    @property
    def local(self) -> str:
        """The first local worker's device id."""
        return str(self.endpoints()["workers"][0]["device_id"])

    def join(self, device_id: str, *flags: str, **environ: str) -> Process:
        """Start one more worker by the line that `up` prints; returns once it is online."""
        printed = until(
            lambda: re.search(r"retire-cluster-worker (--join \S+)", self.up.log.read_text()),
            "the line that joins",
        )
        words = ["worker", *printed[1].split(), "--data-dir", str(self.folder / device_id)]
        log = self.folder / f"{device_id}.log"
        if device_id in self.workers:
            self.workers[device_id].kill()
        worker = Process(log, *words, "--device-id", device_id, *flags, environ=environ)
        self.workers[device_id] = worker
        self.rest.await_online(device_id)
        return worker

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a verb of the command line on this cluster."""
        return run(*words, "--data-dir", str(self.data_dir))

    def kill_broker(self) -> None:
        """SIGKILL the main node; returns once `up` has started another that answers."""
        before = self.broker_pid
        os.kill(before, signal.SIGKILL)
        until(lambda: self.broker_pid != before, "another main node")
        until(self.rest.healthy, "the main node to answer again")

    def close(self) -> int:
        """End all of it; the exit code of `up`."""
        try:
            for worker in self.workers.values():
                worker.stop()
        finally:
            code = self.up.stop()
        return code


def run(*words: str, seconds: float = 60.0, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ours to its end."""
    return subprocess.run(
        [*COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=plain_environment(**environ),
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The line with which a command refused to start."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def all_gone(pids: Iterable[int], seconds: float = 5.0) -> None:
    """Wait until none of these processes lives."""
    known = list(pids)
    until(lambda: not any(map(pid_alive, known)), f"the end of {known}", seconds)


def naming(folder: Path) -> list[str]:
    """Command lines of live processes that name a folder (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if str(folder).encode() in command and int(entry.name) != os.getpid():
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found
