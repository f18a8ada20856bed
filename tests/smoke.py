"""The shortest proof that a Python runs this: `up`, tasks by REST, a worker, the CLI and the SDK.

    PYTHON tests/smoke.py

It needs what `up` needs and no pytest, so that `tests/interpreters.py` can run it on every Python
of a machine. A warning of the standard library about our own code (something that goes in a coming
Python) fails it too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from retire_cluster.cli.endpoints import pid_alive
from retire_cluster.sdk import Cluster, TaskFailed

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "retire_cluster.cli.main"]
ANY_PORTS = ["--port", "0", "--cluster-port", "0", "--worker-port", "0", "--event-port", "0"]
PATIENCE_SECONDS = 60.0
#: An own type: forked from a template, described in its own process, a coroutine among them.
PLUGIN = """
def double(payload, context):
    context.progress(50, "half")
    print("doubling")
    return {"twice": 2 * payload["number"]}

def refuse(payload, context):
    raise ValueError("caf\\udce9")
"""


def until(condition: Callable[[], Any], what: str) -> Any:
    """Return the first true value of a condition; fail when none comes in time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE_SECONDS:g} s: {what}")
        time.sleep(0.05)
    return found


def environment(folder: Path) -> dict[str, str]:
    """Return an environment without the caller's settings, with a plugin and warnings shown."""
    plugin = folder / "plugin"
    metadata = plugin / "smoke_types-1.0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (plugin / "smoke_types.py").write_text(PLUGIN, "utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: smoke-types\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[retire_cluster.task_types]\ndouble = smoke_types:double\nrefuse = smoke_types:refuse\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RETIRE_CLUSTER_", "PYTHON"))}
    return {
        **kept,
        "RETIRE_CLUSTER_SERVER_WORKER_HOST": "127.0.0.1",
        "NO_PROXY": "*",
        "PYTHONPATH": str(plugin),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONWARNINGS": "default::DeprecationWarning,default::PendingDeprecationWarning",
    }


class Running:
    """A cluster with two workers."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self.log = folder / "smoke.log"
        self.environ = environment(folder)
        self._writing = self.log.open("ab")
        words = ["up", "--data-dir", str(self.data_dir), *ANY_PORTS]
        self._processes = [self._start(words, subprocess.PIPE)]
        assert self._processes[0].stdout is not None
        ready = self._processes[0].stdout.readline().decode()
        assert ready.startswith("ready http"), ready or self.text()
        self.url = ready.split()[1]
        line = until(lambda: re.search(r"-worker (--join \S+)", self.text()), "the join line")
        joined = ["worker", *line[1].split(), "--data-dir", str(folder / "second")]
        joined += ["--device-id", "second", "--allow-root", "--allow", "command"]
        self._processes.append(self._start(joined))

    def _start(self, words: list[str], stdout: int | None = None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*COMMAND, *words],
            stdin=subprocess.DEVNULL,
            stdout=stdout or self._writing,
            stderr=self._writing,
            env=self.environ,
        )

    def text(self) -> str:
        """Return what its processes have logged."""
        return self.log.read_text("utf-8", "replace")

    def rest(self, path: str, body: Any = None) -> Any:
        """Return `data` of the answer to a GET, or to a POST of `body`, below /api/v1."""
        sent = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if sent else {}
        asked = urllib.request.Request(f"{self.url}/api/v1{path}", sent, headers)
        with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as answer:
            return json.loads(answer.read())["data"]

    def task(self, task_type: str, payload: Any) -> Any:
        """Return the result of a task, by REST alone."""
        task_id = self.rest("/tasks", {"task_type": task_type, "payload": payload})["task_id"]
        result = self.rest(f"/tasks/{task_id}/result?wait=30")
        assert result["status"] == "success", result
        return result["result_data"]

    def cli(self, *words: str) -> str:
        """Return what a verb of the command line prints."""
        done = subprocess.run(
            [*COMMAND, *words, "--data-dir", str(self.data_dir)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=self.environ,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
        assert "Warning" not in done.stderr, done.stderr
        return done.stdout

    def close(self) -> None:
        """Stop it all; what does not end within its time is a fault."""
        children = [
            int(found)
            for found in re.findall(
                r'"pid": ?(\d+)', (self.data_dir / "endpoints.json").read_text()
            )
        ]
        try:
            for process in reversed(self._processes):
                process.terminate()
                code = process.wait(20)
                assert os.name == "nt" or code == 0, (code, self.text())
            until(lambda: not any(map(pid_alive, children)), "the end of its processes")
        finally:
            self.kill()

    def kill(self) -> None:
        """End what still runs."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self._writing.close()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Running]:
    """Yield a cluster that is stopped in order when all went well."""
    found = Running(folder)
    try:
        yield found
        found.close()
    finally:
        found.kill()


def walk_through(cluster: Running) -> None:
    """Ask for work in each way, once."""
    until(lambda: " as second" in cluster.text(), "the second worker")
    assert cluster.task("echo", {"a": 1}) == {"echo": {"a": 1}}
    value = {"expression": "[str(x * x) + 'é' for x in range(3)] + [True, None, 2 ** 70 > 1]"}
    assert cluster.task("python_eval", value)["result"] == ["0é", "1é", "4é", True, None, True]
    assert cluster.task("command", {"command": [sys.executable, "-c", "print(6 * 7)"]})[
        "stdout"
    ].split() == ["42"]
    listed = json.loads(cluster.cli("devices", "ls", "--json"))["data"]
    assert "second" in {device["device_id"] for device in listed}
    assert json.loads(cluster.cli("submit", "echo", "message=Grüße", "--wait")) == {
        "echo": {"message": "Grüße"}
    }
    cluster.cli("status")
    with Cluster(f"{cluster.url}/api/v1") as sdk:
        echoes = list(sdk.map("echo", [{"number": n} for n in range(20)]))
        assert echoes == [{"echo": {"number": n}} for n in range(20)]
        if sys.flags.isolated:  # an embedded Python finds no plugin by its environment
            print("own types left out: this Python heeds no PYTHONPATH")
            return
        numbers = sdk.map("double", [{"number": n} for n in range(20)])
        assert [found["twice"] for found in numbers] == [2 * n for n in range(20)]
        refused = sdk.submit("refuse", {}, requirements={"max_retries": 0})
        told = refused.exception(PATIENCE_SECONDS)
        assert isinstance(told, TaskFailed), told
        assert "caf\N{REPLACEMENT CHARACTER}" in str(told), told


def own_warnings(text: str) -> list[str]:
    """Return warnings about what goes in a coming Python, raised in this checkout's files."""
    return [
        line
        for line in text.splitlines()
        if "DeprecationWarning" in line and ("retire_cluster" in line or str(ROOT) in line)
    ]


def main() -> int:
    """Run the smoke and return its exit code; the last line says how it went."""
    name = sys.version.split()[0]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(
        prefix="retire-cluster-smoke-", ignore_cleanup_errors=True
    ) as temporary:
        folder = Path(temporary)
        try:
            with running(folder) as cluster:
                walk_through(cluster)
            warned = own_warnings(cluster.text())
            assert not warned, warned
        except BaseException:
            log = folder / "smoke.log"
            lines = log.read_text("utf-8", "replace").splitlines() if log.exists() else []
            for line in lines:
                if "Request processed" not in line:
                    print(line, file=sys.stderr)
            raise
    print(f"Python {name}: works, {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
