"""Starts the product's real commands by fork, with all modules loaded: a start costs 20 ms.

A child is a process of its own that runs the command's `main` on its own arguments, folders and
sockets; only the half second of importing is saved. That is what makes hundreds of kills a minute
affordable on two cores. `Zygote` is the handle of it, this file run as a program is the process.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Zygote:
    """The handle: starts children, sends them signals, tells how they ended. Thread-safe."""

    def __init__(self, log: Path) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("RETIRE_CLUSTER_")}
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environ,
                text=True,
            )
        self._lock = threading.Lock()
        self._ask({"do": "hello"})

    def start(self, command: str, argv: Sequence[str], log: Path, failpoint: str = "") -> Child:
        """A new process of `broker`, `worker` or `api`; what it prints goes to `log`."""
        order = {
            "do": "start", "command": command, "argv": list(argv), "log": str(log),
            "failpoint": failpoint,
        }  # fmt: skip
        return Child(self, int(self._ask(order)), command, log)

    def close(self) -> None:
        """Kill every child that is left."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def _ask(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that starts others has died")
        return json.loads(line)


class Child:
    """One process of the product."""

    def __init__(self, zygote: Zygote, pid: int, command: str, log: Path) -> None:
        self._zygote = zygote
        self.pid = pid
        self.command = command
        self.log = log
        #: Exit code, negative for a signal; None while it runs.
        self.code: int | None = None

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text("utf-8", "replace")[-300:].strip()

    def poll(self) -> int | None:
        """How it ended, None while it runs."""
        if self.code is None:
            self.code = self._zygote._ask({"do": "poll", "pid": self.pid})
        return self.code

    def wait(self, timeout_seconds: float) -> int | None:
        """As `poll`, after waiting for the end at most so long."""
        until = time.monotonic() + timeout_seconds
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        return self.code

    def send(self, number: int) -> None:
        """A signal; none when it has ended."""
        if self.poll() is None:
            self._zygote._ask({"do": "signal", "pid": self.pid, "number": int(number)})

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        if self.wait(10) is None:
            raise RuntimeError(f"{self.command} {self.pid} outlived SIGKILL")

    def stop(self, timeout_seconds: float = 15.0) -> int | None:
        """SIGTERM, and wait for the end; the exit code."""
        self.send(signal.SIGTERM)
        return self.wait(timeout_seconds)


# --- the process that forks ----------------------------------------------------------------------


def _serve() -> None:
    # What a start would import, and with it what the commands import only when they run.
    import retire_cluster.api.cli
    import retire_cluster.broker.admin.cluster
    import retire_cluster.broker.admin.devices
    import retire_cluster.broker.admin.tasks
    import retire_cluster.broker.cli
    import retire_cluster.node.cli
    import retire_cluster.node.link.agent
    from retire_cluster.conf import failpoints

    mains = {
        "broker": retire_cluster.broker.cli.main,
        "worker": retire_cluster.node.cli.main,
        "api": retire_cluster.api.cli.main,
    }
    children: set[int] = set()
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        answer: Any = True
        if order["do"] == "start":
            pid = os.fork()
            if pid == 0:
                _become(order, mains[order["command"]], failpoints.arm)
            children.add(pid)
            answer = pid
        elif order["do"] == "poll":
            answer = _poll(children, order["pid"])
        elif order["do"] == "signal" and order["pid"] in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(order["pid"], order["number"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in children:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _poll(children: set[int], pid: int) -> int | None:
    if pid not in children:
        return None
    found, status = os.waitpid(pid, os.WNOHANG)
    if not found:
        return None
    children.discard(pid)
    return os.waitstatus_to_exitcode(status)


def _become(order: dict[str, Any], main: Any, arm: Any) -> None:
    code = 70
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        arm(order["failpoint"])
        code = main(order["argv"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
