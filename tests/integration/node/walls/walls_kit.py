"""A worker as `up` would run it, beside secrets, and a task that looks for them."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.integration.node_kit import Bus

KINDS = ("root", "roots with another user", "unprivileged")
NOBODY = "nobody"

#: Tries everything it is told of; what it reached, and what it needs and could not have.
SPY = """
import json, os, resource, socket, sys, tempfile
told = json.loads(sys.argv[1])
reached, missed = [], []

def attempt(name, function):
    try:
        function()
        reached.append(name)
    except OSError:
        pass

def need(name, function):
    try:
        function()
    except OSError as error:
        missed.append(f"{name}: {error}")

def connect(address):
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(address)

for path in told["secrets"]:
    attempt(path, lambda: open(path).read())
for path in told["folders"]:
    attempt(path, lambda: os.listdir(path))
    attempt(path + "/planted", lambda: open(path + "/planted", "w").close())
attempt("siblings", lambda: os.listdir(".."))
attempt("a file beside", lambda: open("../planted", "w").close())
for what in ("environ", "mem", "fd/0", "root/etc"):
    attempt(what, lambda: os.close(os.open(f"/proc/{told['pid']}/{what}", os.O_RDONLY)))
attempt("signal", lambda: os.kill(told["pid"], 0))
attempt("abstract socket", lambda: connect("\\0" + told["abstract"]))
attempt("socket", lambda: connect(told["socket"]))
for name in ("RLIMIT_DATA", "RLIMIT_CORE"):
    kind = getattr(resource, name)
    def more():
        try:
            resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except ValueError:
            raise OSError from None
    attempt(name, more)

need("its folder", lambda: open("mine", "w").close())
need("temporary", lambda: tempfile.TemporaryFile().close())
need("home", lambda: open(os.path.expanduser("~/mine"), "w").close())
need("null", lambda: open("/dev/null", "r+b", 0).write(b"x"))
need("stdout", lambda: open("/dev/stdout", "w").close())
need("random", lambda: open("/dev/urandom", "rb").read(1))
need("processors", lambda: open("/proc/cpuinfo").read(1))
need("system", lambda: os.listdir("/sys"))
need("names", lambda: open("/etc/hosts").read())
need("resolver", lambda: os.path.exists("/etc/resolv.conf") and open("/etc/resolv.conf").read())
need("programs", lambda: os.listdir("/usr/bin"))
import multiprocessing
need("semaphores", lambda: multiprocessing.get_context("fork").Lock())
print(json.dumps({"reached": reached, "missed": missed, "pid": os.getpid()}))
"""


class Box:
    """A worker as `up` would run it, beside secrets, in folders that every user may enter."""

    def __init__(self, bus: Bus, kind: str, sandbox: str, **policy: str) -> None:
        self.kind = kind
        self.base = Path(tempfile.mkdtemp(prefix="walls-"))
        self.base.chmod(0o755)
        self.up = self.base / "up"
        self.data = self.up / "workers" / "1"
        self.home = self.base / "home"
        for folder in (self.data, self.up / "keys", self.home):
            folder.mkdir(parents=True)
        (self.up / "keys" / "admin.key").write_text("the cluster")
        (self.home / "letters").write_text("mine")
        program, environ = python_of(kind)
        self.policy = {
            "RETIRE_CLUSTER_POLICY_ALLOW": "command",
            "RETIRE_CLUSTER_POLICY_SANDBOX": sandbox,
            **{f"RETIRE_CLUSTER_POLICY_{name}": value for name, value in policy.items()},
        }
        options: dict[str, Any] = {}
        if kind == "root":
            self.policy["RETIRE_CLUSTER_ALLOW_ROOT"] = "1"
        elif kind == "unprivileged":
            entry = pwd.getpwnam(NOBODY)
            options = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            for folder in (self.up, self.up / "workers", self.data, self.up / "keys", self.home):
                os.chown(folder, entry.pw_uid, entry.pw_gid)
        else:
            self.policy["RETIRE_CLUSTER_POLICY_USER"] = NOBODY
        self.python = program
        self.process = subprocess.Popen(
            [program, "-m", "retire_cluster.node", "--join", f"127.0.0.1:{bus.port}",
             "--data-dir", str(self.data), "--slots", "2"],
            cwd=self.base, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "HOME": str(self.home), **environ, **self.policy}, **options,
        )  # fmt: skip
        self.listeners: list[socket.socket] = []

    def listen(self, address: str) -> str:
        """A unix socket of another program of this machine."""
        one = socket.socket(socket.AF_UNIX)
        one.bind(address)
        one.listen()
        self.listeners.append(one)
        if not address.startswith("\0"):
            os.chmod(address, 0o777)
        return address.lstrip("\0")

    def spy(self, bus: Bus) -> dict[str, Any]:
        """What a `command` reaches here."""
        told = {
            "secrets": [
                str(self.up / "keys" / "admin.key"),
                str(self.data / "device_id"),
                str(self.home / "letters"),
            ],
            "folders": [str(self.up), str(self.data), str(self.home), str(self.base)],
            "pid": self.process.pid,
            "abstract": self.listen(f"\0walls-{os.getpid()}-{id(self)}"),
            "socket": self.listen(str(self.base / "socket")),
        }
        done = bus.run("command", {"command": [self.python, "-c", SPY, json.dumps(told)]})
        assert done.item.outcome == "success", (done.item.error_message, done.data)
        found: dict[str, Any] = json.loads(done.data["stdout"])
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        for one in self.listeners:
            one.close()
        shutil.rmtree(self.base)


def python_of(kind: str) -> tuple[str, dict[str, str]]:
    """A Python that the worker and its tasks can run, and its environment."""
    if os.geteuid() != 0:
        if kind != "unprivileged":
            pytest.skip("only root can change users")
        return sys.executable, {}
    if kind == "root":
        return sys.executable, {}
    entry = pwd.getpwnam(NOBODY)
    root = Path(__file__).resolve().parents[4]
    libraries = os.path.dirname(os.path.dirname(zmq.__file__))
    others = {"PYTHONPATH": f"{root / '.typing'}:{libraries}"}
    for program, environ in ((sys.executable, {}), ("/usr/bin/python3", others)):
        with contextlib.suppress(OSError):
            trial = subprocess.run(
                [program, "-c", "import zmq, retire_cluster.node"],
                user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], cwd="/",
                env={**os.environ, **environ}, capture_output=True, check=False,
            )  # fmt: skip
            if not trial.returncode:
                return program, environ
    pytest.skip("nobody can run no Python that has what is needed")


@contextlib.contextmanager
def boxed(bus: Bus, kind: str, sandbox: str, **policy: str) -> Iterator[Box]:
    box = Box(bus, kind, sandbox, **policy)
    try:
        yield box
    finally:
        box.close()
