"""Task processes seen from the worker: starting one, talking to it, ending its whole tree."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retire_cluster.node.process import replies
from retire_cluster.node.process.frames import pack
from retire_cluster.node.running.leftovers import Leftovers
from retire_cluster.node.running.pipes import Pipes
from retire_cluster.node.running.workplace import Workplace
from retire_cluster.node.system import process_tree, shared_memory, task_folders
from retire_cluster.node.system.resource_limits import Bounds
from retire_cluster.node.walls.confinement import Confinement
from retire_cluster.node.walls.task_cgroups import Groups

#: Modules come from where the worker's come from and what is installed: never from the folder a
#: process is in, nor from one for the user's own packages, where a task may have left some.
_CODE = (
    "import os, sys\n"
    "told = os.environ.pop('RC_MODULES').split(chr(10))\n"
    "sys.path[:] = [*told, *(p for p in sys.path if p and p not in told)]\n"
    "from retire_cluster.node.process.keeper import main\n"
    "sys.exit(main(*map(int, sys.argv[1:])))"
)
#: A keeper ends its tree within its own patience; then the worker does it for it.
KEEPER_PATIENCE_SECONDS = process_tree.PATIENCE_SECONDS + 1.0
_MAX_STDERR = 2_000


def modules() -> tuple[str, ...]:
    """The folders and archives that this process finds modules in, but for the one it is in."""
    found = sys.path
    if not (getattr(sys.flags, "safe_path", False) or sys.flags.isolated):
        # The folder of the script, or with -m and -c the one that the process was started in.
        found = found[1:]
    return tuple(path for path in found if os.path.isabs(path) and "\n" not in path)


@dataclass
class Plan:
    """How task processes of this worker are started; what is changed holds for later ones."""

    #: Where each of them gets its folder.
    workplace: Workplace
    environment: Mapping[str, str]
    leftovers: Leftovers
    bounds: Bounds = field(default_factory=Bounds)
    confinement: Confinement = field(default_factory=Confinement)
    #: Where each gets a control group, None on systems that hand none over.
    groups: Groups | None = None
    python: str = sys.executable
    #: Where they find modules.
    modules: tuple[str, ...] = field(default_factory=modules)

    def __post_init__(self) -> None:
        self.confine(self.confinement)

    def confine(self, confinement: Confinement) -> None:
        """Put other walls around tasks of processes that start from now on. From any thread."""
        self.confinement = confinement
        #: What each task process puts up around its tasks (enforcement.py).
        self.walls = confinement.walls().variables()


class TaskProcess:
    """One running task process."""

    def __init__(self, plan: Plan, *, own_types: bool = False) -> None:
        """Start it. Raises `OSError` when the system has no room for another process.

        :param own_types: it is to run tasks of own types too
        """
        environment = dict(plan.environment)
        if own_types:
            environment["RC_OWN_TYPES"] = "1"
        environment["RC_WORKER"] = plan.leftovers.mark
        environment["RC_MODULES"] = "\n".join(plan.modules)
        environment.update(plan.walls)
        self._shared = f"{plan.leftovers.shared}{secrets.token_hex(4)}"
        environment["RC_BOUNDS"] = json.dumps(asdict(plan.bounds))
        self._leftovers = plan.leftovers
        self._lock = threading.Lock()
        self._life_fd: int | None = None
        self._job: Any = None
        self._workplace = plan.workplace
        self._force: threading.Timer | None = None
        flags: dict[str, Any] = {}
        arguments = [plan.python, "-s", "-c", _CODE]
        read_fd = -1
        if sys.platform == "win32":
            flags["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            environment["RC_SHARED"] = self._shared
            read_fd, self._life_fd = os.pipe()
            arguments.append(str(read_fd))
            flags.update(pass_fds=(read_fd,), start_new_session=True)
            flags.update(plan.confinement.options())
        self._folder = ""
        try:
            self._folder = environment["RC_SCRATCH"] = plan.workplace.take()
            arguments = plan.confinement.command(arguments, (Path(self._folder),))
            with plan.leftovers.starting() as started:
                self._process = subprocess.Popen(
                    arguments,
                    cwd=task_folders.START,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    **flags,
                )
                started(self._process.pid)
        except BaseException:
            self._close_life()
            if self._folder:
                plan.workplace.give_back(self._folder)
            raise
        finally:
            if read_fd >= 0:
                os.close(read_fd)
        if sys.platform == "win32":
            # Imported where it runs: it loads ctypes and declares Windows' structures.
            from retire_cluster.node.system.windows_job import Job

            with contextlib.suppress(OSError):
                self._job = Job()
                self._job.add(int(self._process._handle))  # type: ignore[attr-defined,unused-ignore]
        self._group = None if plan.groups is None else plan.groups.make(plan.bounds)
        if self._group is not None:
            # Now it runs our code only: the first task is yet to be sent.
            self._group.add(self._process.pid)
        self._pipes = Pipes(self._process)

    @property
    def pid(self) -> int:
        """The process's number; the keeper's on POSIX."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def run(self, header: dict[str, Any], payload: bytes) -> None:
        """Hand it a task. Raises as `send` does."""
        self.send({**header, "folder": task_folders.new_name()}, payload)

    def send(self, header: dict[str, Any], blob: bytes = b"") -> None:
        """Hand it a request. Raises `OSError` when it is gone, `FrameError` for too long a one."""
        self._pipes.write(pack(header, blob))

    def ask_to_stop(self) -> None:
        """Tell it that its task is cancelled; do not wait until it is heard."""
        self._pipes.try_write(pack({"kind": "cancel"}))

    def receive(self) -> replies.Reply | None:
        """Its next answer, or None when it is gone. Raises `FrameError` and `BadReply`."""
        raw = self._pipes.receive()
        return None if raw is None else replies.read(raw)

    def kill(self) -> None:
        """Begin to end the whole tree; returns at once. From any thread, any number of times."""
        with self._lock:
            running = self._life_fd is not None
            self._close_life()
            if running and self._process.returncode is None and sys.platform != "win32":
                with contextlib.suppress(OSError):
                    os.kill(self.pid, signal.SIGCONT)  # a task may have stopped the keeper
            if running and self._force is None:
                self._force = threading.Timer(KEEPER_PATIENCE_SECONDS, self._end_by_force)
                self._force.daemon = True
                self._force.start()
            if self._job is not None:
                self._job.kill()
            elif os.name == "nt":
                with contextlib.suppress(OSError):
                    self._process.kill()

    def _end_by_force(self) -> None:
        # A task may have stopped the keeper; while `wait` has not collected it, its number is its.
        if self._process.returncode is None and not (self._group and self._group.kill()):
            process_tree.kill_tree(self.pid)

    def retire(self) -> None:
        """Let it end by itself: there is no further request."""
        self._pipes.retire()

    def wait(self) -> tuple[int, str]:
        """Wait until the tree is gone, and see to it; exit code and the last words.

        A keeper that does not manage is killed from here, with what is left below it.
        """
        self.retire()
        try:
            code = self._process.wait(KEEPER_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            if self._group is not None:
                self._group.kill()
            process_tree.kill_tree(self.pid)
            with contextlib.suppress(OSError):
                self._process.kill()
            code = self._process.wait()
        if self._group is not None:
            # Nothing that was in it outlives this, wherever it went.
            self._group.close()
        self._leftovers.sweep(self.pid, killed=code < 0)
        with self._lock:
            if self._force is not None:
                self._force.cancel()
            self._close_life()
            if self._job is not None:
                self._job.close()
                self._job = None
        words = self._pipes.close()
        self._leftovers.remove(self.pid)
        shared_memory.remove_marked(self._shared)
        if self._folder:
            self._workplace.give_back(self._folder)
            self._folder = ""
        return code, words[-_MAX_STDERR:].decode("utf-8", "replace").strip()

    def _close_life(self) -> None:
        if self._life_fd is not None:
            os.close(self._life_fd)
            self._life_fd = None
