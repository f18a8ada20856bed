"""Attacks of a task on what is beside it: keys, homes, processes, limits."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from pathlib import Path
from typing import Any

from retire_cluster.node.walls import landlock, task_cgroups
from tests.chaos.red.attack import Attack, NotHere, Went
from tests.chaos.red.target import Target

#: Runs what it is told, a line of Python each; the names of those that went through.
_TRIES = """
import json, os, resource, signal, socket, sys
went = []
for name, code in json.loads(sys.argv[1]).items():
    try:
        exec(code)
        went.append(name)
    except (OSError, ValueError):
        pass
print(json.dumps(went))
"""


def _tried(target: Target, codes: dict[str, str], **payload: Any) -> list[str]:
    words = [sys.executable, "-c", _TRIES, json.dumps(codes)]
    row = target.outcome(target.submit("command", {"command": words, **payload}))
    if row["status"] != "success":
        raise AssertionError(f"the task did not run: {row}")
    found: list[str] = json.loads(row["result_data"]["stdout"])
    return found


def _hold(went: list[str], otherwise: str) -> str:
    if went:
        raise Went(", ".join(went))
    return otherwise


def _files(target: Target) -> str:
    if not landlock.abi():
        raise NotHere("this kernel has no Landlock")
    letter = target.new_folder("home") / "letter"
    letter.write_text("mine")
    keys = [*(target.data_dir / "keys").iterdir(), *target.data_dir.glob("workers/*/device.key")]
    codes = {str(path): f"open({str(path)!r}).read()" for path in (letter, *keys)}
    for folder in (target.data_dir, target.data_dir / "keys", letter.parent, "/root", "/tmp"):
        codes[f"list {folder}"] = f"os.listdir({str(folder)!r})"
    for folder in (letter.parent, Path("/tmp"), target.data_dir):
        codes[f"write to {folder}"] = f"open({str(folder / 'planted')!r}, 'w')"
    codes["the task beside"] = "os.listdir('../..')"
    return _hold(_tried(target, codes), f"{len(codes)} files and folders, none opened")


def _processes(target: Target) -> str:
    if landlock.abi() < landlock.SCOPE_ABI:
        raise NotHere("this kernel's Landlock does not hold signals")
    codes: dict[str, str] = {}
    for pid in (target.main_pid, target.api_pid, *target.worker_pids):
        codes[f"signal {pid}"] = f"os.kill({pid}, 0)"
        for what in ("environ", "mem", "fd/0"):
            codes[f"{what} of {pid}"] = f"os.open('/proc/{pid}/{what}', os.O_RDONLY)"
    for parent in ("os.getppid()", "int(open(f'/proc/{os.getppid()}/stat').read().split()[3])"):
        codes[f"signal {parent}"] = f"os.kill({parent}, 0)"
    name = f"red-{target.main_pid}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        codes["abstract socket"] = f"socket.socket(socket.AF_UNIX).connect('\\0{name}')"
        return _hold(_tried(target, codes), f"{len(codes)} ways, none open")


def _limits(target: Target) -> str:
    codes = {
        name: f"resource.setrlimit(resource.{name}, (resource.RLIM_INFINITY,) * 2)"
        for name in ("RLIMIT_DATA", "RLIMIT_CORE")
    }
    return _hold(_tried(target, codes), "no limit was raised")


def _folders(target: Target) -> str:
    mine = target.new_folder("music")
    (mine / "out").symlink_to("/etc")
    settings = f'[policy]\nfolders = ["{mine}"]\n'
    flags = ("--allow", "command", "--allow-root")
    with target.another(*flags, settings=settings) as owner:
        for cwd in ("..", "/", f"{mine}/..", f"{mine}/out"):
            task_id = owner.submit("command", {"command": ["pwd"], "cwd": cwd})
            with contextlib.suppress(TimeoutError):  # it waits for a device that lets it
                owner.outcome(task_id, 3)
            if owner.status(task_id) == "success":
                raise Went(f"it ran in {cwd}")
    return "no folder beside the owner's was entered"


def _escape(target: Target) -> str:
    if task_cgroups.find() is None:
        raise NotHere("no control group is handed over to us")
    mark = f"73{target.main_pid}"
    code = (
        "import os, sys\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n"
        f"os.execve('/bin/sleep', ['sleep', '{mark}'], {{}})"
    )
    target.command(sys.executable, "-c", code)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                raise Went("it outlived its task")
        except OSError:
            continue
    return "it ended with its task"


ATTACKS = [
    Attack("S23", "a task reads keys, homes, other tasks' folders", _files),
    Attack("S24", "a task signals and reads what serves it", _processes),
    Attack("S25", "a cwd beside the owner's folders", _folders),
    Attack("S27", "a task raises its limits", _limits),
    Attack("S27", "twice forked, in a session of its own, without environment", _escape),
]
