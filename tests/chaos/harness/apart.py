"""Main node, API and worker started one by one, as a service manager does; a task goes through.

    python tests/chaos/harness/apart.py FOLDER      prints `well`, or what went wrong

Run by `machines.py` inside an odd machine; only the standard library is used.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "retire_cluster.cli.main"]
READY_SECONDS, STOP_SECONDS = 40.0, 10.0


class Wrong(Exception):
    """It did not work; the text is what was seen."""


class Apart:
    """The three programs, each with a log of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def use(self) -> None:
        """Start them, run a task, stop them. Raises `Wrong`."""
        try:
            self._start()
            done = self._verb("submit", "echo", "a=1", "--wait", "--data-dir", str(self._data))
            if json.loads(done) != {"echo": {"a": 1}}:
                raise self._wrong(f"submit: {done}")
            for name in ("worker", "api", "main"):
                self._stop(name)
        finally:
            for process in self._running.values():
                process.kill()
                process.wait()

    def _start(self) -> None:
        named = ("--data-dir", str(self._data))
        ports = ("--port", "0", "--worker-port", "0", "--event-port", "0")
        self._run("main", *named, *ports)
        facts = self._await("main", lambda: self._facts("main"))
        self._run("api", *named, "--port", "0", "--cluster-port", str(facts["admin_port"]))
        self._await("api", lambda: self._facts("api"))
        # A worker finds a neighbour by its user's home folder, which may be none here.
        line = self._verb("token", "create", "--host", "127.0.0.1", *named)
        join = re.search(r"--join (\S+)", line)
        if join is None:
            raise self._wrong(f"no join line: {line}")
        self._run("worker", "--join", join[1], "--data-dir", str(self._folder / "w"))
        self._await("worker", lambda: "joined " in self._log("worker"))

    def _run(self, name: str, *words: str) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [*COMMAND, name, *words], cwd=self._folder, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip

    def _facts(self, name: str) -> Any:
        try:
            return json.loads((self._data / "run" / f"{name}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def _await(self, name: str, condition: Callable[[], Any]) -> Any:
        until = time.monotonic() + READY_SECONDS
        while not (found := condition()):
            if self._running[name].poll() is not None or time.monotonic() > until:
                raise self._wrong(f"{name} is not ready")
            time.sleep(0.05)
        return found

    def _verb(self, *words: str) -> str:
        done = subprocess.run(
            [*COMMAND, *words], cwd=self._folder, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, errors="replace", check=False, timeout=60,
        )  # fmt: skip
        if done.returncode:
            raise self._wrong(f"{words[0]}: {done.returncode} {done.stdout} {done.stderr}")
        return done.stdout

    def _stop(self, name: str) -> None:
        process = self._running[name]
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise self._wrong(f"{name} does not stop") from None
        if code or "Traceback" in self._log(name):
            raise self._wrong(f"the end of {name}: exit code {code}")

    def _log(self, name: str) -> str:
        try:
            return (self._folder / f"{name}.log").read_text("utf-8", "replace")
        except OSError:
            return ""

    def _wrong(self, what: str) -> Wrong:
        logs = [f"--- {name}\n{self._log(name)}" for name in self._running]
        return Wrong("\n".join([what, *logs]))


def main(folder: str) -> int:
    """See the module's text."""
    try:
        Apart(Path(folder)).use()
    except Wrong as error:
        print(error)
        return 1
    print("well")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
