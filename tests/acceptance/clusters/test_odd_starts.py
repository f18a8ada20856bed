"""`up` where its output leads nowhere, where descriptors are closed, where Python leaves parts out.

Nothing that a terminal, a pipe or a disk does to what is printed ends a process or holds it up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.cli.endpoints import read_json
from tests.acceptance.kit import Cluster, Rest, all_gone, naming
from tests.command_kit import ANY_PORTS, COMMAND, plain_environment, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.name == "nt", reason="closes descriptors, sends SIGKILL"),
]


class Blind:
    """An `up` whose output nobody sees: what it is doing is known from its files."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.data_dir = folder / "data"
        environ = plain_environment(**options.pop("environ", {}))
        command = [*options.pop("before", ()), *COMMAND]
        words = ["up", "--data-dir", str(self.data_dir), *ANY_PORTS]
        self.popen = subprocess.Popen([*command, *words], env=environ, **options)
        document = until(lambda: self.endpoints() or self.over(), "endpoints.json", 60)
        assert document is not True, "it has ended"
        self.rest = Rest(f"http://127.0.0.1:{document['api']['port']}")
        until(self.rest.healthy, "the facade to answer")

    def endpoints(self) -> dict[str, Any] | None:
        return read_json(self.data_dir / "endpoints.json")

    def over(self) -> bool:
        return self.popen.poll() is not None

    def works(self) -> None:
        """A task goes through it."""
        until(lambda: self.rest.online(), "its worker to be online")
        assert self.rest.result(self.rest.submit("echo", {"a": 1}))["status"] == "success"

    def kill_facade(self) -> None:
        """SIGKILL the facade; returns once another answers."""
        document = self.endpoints()
        assert document is not None
        before = document["api"]["pid"]
        os.kill(before, signal.SIGKILL)
        until(lambda: (self.endpoints() or document)["api"]["pid"] != before, "another facade")
        until(self.rest.healthy, "the facade to answer again")

    def close(self) -> None:
        """SIGTERM; it ends within ten seconds and leaves nothing."""
        began = time.monotonic()
        self.popen.terminate()
        try:
            assert self.popen.wait(15) == 0
            assert time.monotonic() - began < 10
        finally:
            if not self.over():
                self.popen.kill()
                self.popen.wait()
        until(lambda: not naming(self.data_dir), "the end of its processes")


@contextlib.contextmanager
def running(folder: Path, **options: Any) -> Iterator[Blind]:
    found = Blind(folder, **options)
    try:
        yield found
    finally:
        found.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_log_on_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full, running(tmp_path, stdout=full, stderr=full) as up:
        up.works()
        up.kill_facade()
        up.works()


def test_a_reader_of_the_log_that_goes_takes_nobody_along(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with running(tmp_path, stdout=writing, stderr=writing) as up:
        os.close(writing)
        up.works()
        os.close(reading)
        up.kill_facade()
        up.works()


def test_a_reader_of_the_log_that_stands_still_holds_nobody_up(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"." * 4096)
    os.set_blocking(writing, True)
    try:
        # Debug: every process has a lot to say.
        noisy = {"RETIRE_CLUSTER_LOGGING_DEBUG": "true"}
        with running(tmp_path, stdout=writing, stderr=writing, environ=noisy) as up:
            os.close(writing)
            up.works()
            up.kill_facade()
            up.works()
    finally:
        os.close(reading)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_opened_and_nothing_is_printed_into_a_socket(
    closed: str, tmp_path: Path
) -> None:
    with running(tmp_path, before=["sh", "-c", f'exec "$@" {closed}', "sh"]) as up:
        up.works()
        for number in (0, 1, 2):
            target = os.readlink(f"/proc/{up.popen.pid}/fd/{number}")
            assert not target.startswith("socket:"), (number, target)
            assert str(tmp_path) not in target, (number, target)


@pytest.mark.parametrize("level", ["1", "2"])
def test_python_without_asserts_and_docstrings_runs_it_too(level: str, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, PYTHONOPTIMIZE=level)
    try:
        assert cluster.rest.result(cluster.rest.submit("echo", {"a": 1}))["status"] == "success"
        value = cluster.rest.result(cluster.rest.submit("python_eval", {"expression": "2 ** 10"}))
        assert value["result_data"]["result"] == 1024
        absent = cluster.rest.ask("GET", "/api/v1/tasks/0123456789")
        assert (absent.status, absent.code) == (404, "TASK_NOT_FOUND")
        assert absent.json["message"] == "There is no such task."
        for path in ("/api/v1/openapi.json", "/metrics", "/api/v1/tasks/types", "/"):
            assert cluster.rest.ask("GET", path).status == 200, path
        children = cluster.up.tree()
    finally:
        code = cluster.close()
    assert code == 0
    all_gone(children)
    assert "died" not in cluster.up.log.read_text()


@pytest.mark.parametrize("verb", [["main"], ["api"], ["keys", "ls"]], ids=lambda verb: verb[0])
def test_what_needs_docstrings_says_so_in_one_line_without_them(
    tmp_path: Path, verb: list[str]
) -> None:
    done = subprocess.run(
        [*COMMAND, *verb, "--data-dir", str(tmp_path)],
        env=plain_environment(PYTHONOPTIMIZE="2"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("retire-cluster")
    assert "PYTHONOPTIMIZE=1" in line


WRAPPED = """
import sys
from retire_cluster.cli.up import plan, running
from retire_cluster.conf.loading import read_settings

WAIT = '''
import os, subprocess, sys, time
child = subprocess.Popen(sys.argv[2:])
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
os.unlink(sys.argv[1])
child.terminate()
child.wait()
sys.exit(2)
'''

class Plan(plan.Plan):
    def worker(self, number, main):
        return [sys.executable, "-c", WAIT, sys.argv[1], *super().worker(number, main)]

args = plan.parser().parse_args(sys.argv[2:])
settings = read_settings(plan.overrides(args))
sys.exit(running.Up(Plan(args, settings, "host"), sys.stdout, sys.stderr).run())
"""


def test_a_child_that_has_worked_is_restarted_alone_even_when_it_ends_with_2(
    tmp_path: Path,
) -> None:
    asked = tmp_path / "end-with-2"
    words = [str(asked), "--data-dir", str(tmp_path / "data"), *ANY_PORTS]
    log = tmp_path / "up.log"
    with log.open("wb") as stderr:
        up = subprocess.Popen(
            [sys.executable, "-c", WRAPPED, *words], stdout=subprocess.PIPE, stderr=stderr,
            stdin=subprocess.DEVNULL, env=plain_environment(), text=True,
        )  # fmt: skip
    try:
        assert up.stdout is not None
        ready = up.stdout.readline()
        assert ready.startswith("ready "), log.read_text()
        before = read_json(tmp_path / "data" / "endpoints.json")
        assert before is not None
        asked.touch()

        def again() -> bool:
            assert up.poll() is None, log.read_text()
            found = read_json(tmp_path / "data" / "endpoints.json") or before
            return bool(found["workers"] and found["workers"] != before["workers"])

        until(again, "another worker")
        after = read_json(tmp_path / "data" / "endpoints.json")
        assert after is not None
        assert (after["main"], after["api"]) == (before["main"], before["api"])
        assert "worker-1 died (exit code 2)" in log.read_text()
        rest = Rest(ready.split()[1])
        assert rest.result(rest.submit("echo", {"a": 1}))["status"] == "success"
    finally:
        up.terminate()
        up.communicate(timeout=15)
