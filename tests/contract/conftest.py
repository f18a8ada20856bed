"""A real cluster for the contract tests: `retire-cluster up`, and facades beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
import requests

from tests import ports

_READY_SECONDS = 120.0


@dataclass
class Process:
    """A command of ours that runs, and what it printed."""

    popen: subprocess.Popen[str]
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)

    def wait_for(self, start: str, timeout_seconds: float = _READY_SECONDS) -> str:
        """The first line on standard output that begins so."""
        until = time.monotonic() + timeout_seconds
        while time.monotonic() < until:
            for line in self.out:
                if line.startswith(start):
                    return line
            if self.popen.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no line {start!r}; printed {self.out} {self.err[-20:]}")

    def stop(self, timeout_seconds: float = 15.0) -> int:
        """Ask it to end; its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise


def launch(module: str, *flags: str, **environment: str) -> Process:
    """Start `python -m module flags` with none of the caller's settings."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RETIRE_CLUSTER_")}
    # What tests start listens on this machine only.
    environ["RETIRE_CLUSTER_SERVER_WORKER_HOST"] = "127.0.0.1"
    popen = subprocess.Popen(
        [sys.executable, "-m", module, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environ, **environment},
    )
    found = Process(popen)

    def collect(stream: Any, lines: list[str]) -> None:
        with stream:
            lines.extend(line.rstrip("\n") for line in stream)

    for stream, lines in ((popen.stdout, found.out), (popen.stderr, found.err)):
        threading.Thread(target=collect, args=(stream, lines), daemon=True).start()
    return found


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.text)

    @property
    def data(self) -> Any:
        """`data` of a success envelope."""
        document = self.json
        assert document["status"] == "success", document
        return document["data"]

    @property
    def code(self) -> str:
        """The error code of an error envelope."""
        document = self.json
        assert document["status"] == "error", document
        return str(document["error_code"])


class Api:
    """A facade at an address."""

    def __init__(self, url: str, process: Process | None = None) -> None:
        self.url = url
        self.process = process
        self._session = requests.Session()
        self._session.trust_env = False

    def ask(self, method: str, path: str, **options: Any) -> Reply:
        """One request; `key` is sent as X-API-Key."""
        headers = dict(options.pop("headers", {}))
        if key := options.pop("key", None):
            headers["X-API-Key"] = key
        found = self._session.request(
            method, self.url + path, headers=headers, timeout=40, **options
        )
        return Reply(found.status_code, found.headers, found.text)

    def get(self, path: str, **options: Any) -> Reply:
        """GET."""
        return self.ask("GET", path, **options)

    def post(self, path: str, document: Any = None, **options: Any) -> Reply:
        """POST a JSON document; None: an empty body with a JSON content type."""
        if document is None:
            headers = {"Content-Type": "application/json", **options.pop("headers", {})}
            return self.ask("POST", path, data=b"", headers=headers, **options)
        return self.ask("POST", path, json=document, **options)

    def submit(self, task_type: str, payload: Any, **fields: Any) -> str:
        """Submit a task; its id."""
        key = fields.pop("key", None)
        document = {"task_type": task_type, "payload": payload, **fields}
        found = self.post("/api/v1/tasks", document, key=key)
        assert found.status == 201, found.text
        return str(found.data["task_id"])

    def finished(self, task_id: str, timeout_seconds: float = 30.0) -> Any:
        """The result of a task once it has ended."""
        until = time.monotonic() + timeout_seconds
        while time.monotonic() < until:
            found = self.get(f"/api/v1/tasks/{task_id}/result")
            if found.status == 200:
                return found.data
            time.sleep(0.02)
        raise AssertionError(f"task {task_id} has not ended: {self.status(task_id)}")

    def status(self, task_id: str) -> Any:
        """`data` of the task's status."""
        return self.get(f"/api/v1/tasks/{task_id}/status").data

    def close(self) -> None:
        """Close connections and end the process, if it is ours."""
        self._session.close()
        if self.process is not None:
            self.process.stop()


@dataclass(frozen=True)
class Cluster:
    """A running `retire-cluster up`."""

    api: Api
    data_dir: Path
    endpoints: dict[str, Any]
    process: Process

    @property
    def admin_port(self) -> int:
        """Where facades find the main node."""
        return int(self.endpoints["main"]["admin_port"])

    @property
    def device_id(self) -> str:
        """The local worker."""
        return str(self.endpoints["workers"][0]["device_id"])


class StartApi(Protocol):
    """Starts one more facade on the cluster's main node."""

    def __call__(self, *flags: str, **environment: str) -> Api: ...


def start_cluster(data_dir: Path, *flags: str) -> Cluster:
    """`retire-cluster up` on ports that the system picks, ready to work."""
    ports = [f"--{name}=0" for name in ("port", "cluster-port", "worker-port", "event-port")]
    process = launch("retire_cluster.cli.main", "up", *ports, "--data-dir", str(data_dir), *flags)
    try:
        url = process.wait_for("ready ").removeprefix("ready ").strip()
    except AssertionError:
        process.stop()
        raise
    endpoints = json.loads((data_dir / "endpoints.json").read_text("utf-8"))
    return Cluster(Api(url), data_dir, endpoints, process)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster with one local worker for all contract tests, without limits and keys."""
    found = start_cluster(tmp_path_factory.mktemp("cluster"), "--no-rate-limit")
    yield found
    found.api.close()
    assert found.process.stop() == 0


@pytest.fixture(scope="session")
def api(cluster: Cluster) -> Api:
    """Its facade."""
    return cluster.api


@pytest.fixture(scope="module")
def start_api(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartApi]:
    """Starts facades with flags of their own; ends them with the module."""
    started: list[Api] = []

    def start(*flags: str, **environment: str) -> Api:
        folder = tmp_path_factory.mktemp("api")
        process = launch(
            "retire_cluster.api.cli",
            *("--port", "0", "--cluster-port", str(cluster.admin_port)),
            *("--data-dir", str(folder), *flags),
            **environment,
        )
        url = process.wait_for("retire-cluster-api on ").rpartition(" ")[2]
        started.append(Api(url, process))
        return started[-1]

    yield start
    for found in started:
        found.close()


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """The first true value of a condition, looked at for 30 s."""

    def wait(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 30
        while True:
            found = condition()
            if found:
                return found
            assert time.monotonic() < deadline, "still waiting after 30 s"
            time.sleep(0.02)

    return wait


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on now, for a server that cannot be given port 0."""
    return ports.free_port()


class Start(Protocol):
    """Starts `python -m module flags`; ended with the test."""

    def __call__(self, module: str, *flags: str, **environment: str) -> Process: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts commands."""
    started: list[Process] = []

    def run(module: str, *flags: str, **environment: str) -> Process:
        started.append(launch(module, *flags, **environment))
        return started[-1]

    yield run
    for process in started:
        process.stop()


@pytest.fixture
def at() -> Iterator[Callable[[str], Api]]:
    """A client for the facade at an address."""
    made: list[Api] = []

    def make(url: str) -> Api:
        made.append(Api(url))
        return made[-1]

    yield make
    for found in made:
        found.close()
