"""Who task processes run as, and behind which walls.

`policy.user` is another user, `policy.sandbox` what keeps files and processes apart: Landlock,
which a task gets in its own process (enforcement.py), or bubblewrap around each task process, with
Landlock in it where the kernel has it. Both show a task what it needs (reach.py) and nothing else.
Which of them is used is the owner's decision, in this device's settings.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retire_cluster.node.system import process_tree
from retire_cluster.node.system.task_folders import START
from retire_cluster.node.walls import landlock, reach
from retire_cluster.node.walls.enforcement import Walls
from retire_cluster.node.walls.landlock import Rule
from retire_cluster.node.walls.paths import is_below
from retire_cluster.node.walls.reach import Reach

AUTO, BWRAP, LANDLOCK, NONE = "auto", "bwrap", "landlock", "none"
_TRIAL_SECONDS = 30.0


class Unconfined(Exception):
    """Tasks cannot be confined as the owner asks; the text is one line with the cure."""


@dataclass(frozen=True)
class Confinement:
    """How task processes are kept from the worker's own things, and from the owner's."""

    #: User id and group id they run as; None: the worker's.
    user: tuple[int, int] | None = None
    #: `bwrap`, `landlock` or `none`.
    sandbox: str = NONE
    #: Files that they may use in a sandbox.
    reach: Reach = field(default_factory=Reach)
    #: Whether they may use the network.
    network: bool = True
    #: Version of the kernel's Landlock, 0 where it is not used.
    abi: int = 0
    #: Path of bubblewrap.
    program: str = BWRAP
    #: This user's home folder.
    home: str = ""
    #: Name of the user that tasks run as.
    user_name: str = ""

    def command(self, arguments: list[str], folders: tuple[Path, ...]) -> list[str]:
        """The command line of a task process that may write to these folders only."""
        if self.sandbox != BWRAP:
            return arguments
        line = [
            self.program, "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts",
            "--unshare-cgroup-try", "--cap-drop", "ALL",
        ]  # fmt: skip
        line += [] if self.network else ["--unshare-net"]
        # It passes over what is not there, and ends at what is not for its user.
        bound = [path for path in self.reach.read if path != "/proc" and self._may_bind(path)]
        for path in bound:
            line += ["--ro-bind-try", path, path]
        line += ["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
        for path in bound:
            if is_below(path, "/tmp"):
                line += ["--ro-bind-try", path, path]
        for path in self.reach.devices:
            # The others come with /dev, a shared memory of its own too.
            if path.removeprefix("/dev/").startswith(reach.ACCELERATORS):
                line += ["--dev-bind-try", path, path]
        for link, target in self.reach.links:
            if not any(is_below(link, path) for path in (*bound, *self.reach.write)):
                line += ["--symlink", target, link]
        for path in (*filter(self._may_bind, self.reach.write), *map(str, folders)):
            line += ["--bind-try", path, path]
        return [*line, "--", *arguments]

    def _may_bind(self, path: str) -> bool:
        """Whether it is still there, and no task has put a link in its place or on its way."""
        return os.path.realpath(path) == path and self._may_enter(path)

    def _may_enter(self, path: str) -> bool:
        """Whether the user of tasks gets as far as to this file or folder."""
        if self.user is None:
            return os.path.lexists(path)
        for folder in Path(path).parents:
            try:
                found = folder.stat()
            except OSError:
                return False
            shift = {self.user[0]: 6}.get(found.st_uid, 3 if found.st_gid == self.user[1] else 0)
            if not found.st_mode >> shift & 1:
                return False
        return os.path.lexists(path)

    def walls(self) -> Walls:
        """What a task process puts up around its tasks."""
        rules = tuple(self._rules()) if self.abi else ()
        return Walls(rules, self.network, self.files, self.reach.ours)

    @property
    def own_home(self) -> bool:
        """Whether a task's folder is its home: it may not use the worker's.

        It is when the home folder is open as a whole: programs keep their settings right in it.
        """
        opened = self.reach.write
        is_open = bool(self.home) and any(is_below(self.home, path) for path in opened)
        return self.user is not None or (bool(self.files) and not is_open)

    def variables(self) -> dict[str, str]:
        """What tasks' environment has on top: packages that a user installed are in his home.

        Also where this Python leaves them out, as one of a virtual environment: a task starts
        others. Where there are none, what a task installs so goes into its own folder.
        """
        base = site.getuserbase()
        if self.user is not None or not self.own_home or not os.path.isdir(base):
            return {}
        return {"PYTHONUSERBASE": base}

    def _rules(self) -> Iterator[Rule]:
        yield from (Rule(path, landlock.READ) for path in self.reach.read)
        yield Rule("/dev", landlock.LIST)
        for path in self.reach.devices:
            real = os.path.realpath(path)
            yield Rule(real, landlock.WRITE if path == "/dev/shm" else landlock.USE)
        yield from (Rule(path, landlock.WRITE) for path in self.reach.write)

    def options(self) -> dict[str, Any]:
        """What `subprocess.Popen` needs; it changes the user in C, safe beside threads."""
        if self.user is None:
            return {}
        return {"user": self.user[0], "group": self.user[1], "extra_groups": []}

    def try_out(self, python: str, folder: Path, environment: dict[str, str]) -> None:
        """Start a task process's Python once. Raises `Unconfined` when it cannot be."""
        code = (
            "from retire_cluster.node.walls import enforcement;"
            "enforcement.learn(sys.argv[1]); enforcement.enter();"
            "import zmq, retire_cluster.node.process.server, retire_cluster.node.process.perform"
        )
        arguments = [python, "-s", "-c", f"import sys; {code}", str(folder)]
        environment = {**environment, **self.walls().variables()}
        try:
            done = subprocess.run(
                self.command(arguments, (folder,)), cwd=START, env=environment,
                stdin=subprocess.DEVNULL, capture_output=True, timeout=_TRIAL_SECONDS,
                check=False, **self.options(),
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unconfined(self._failed(str(error), python)) from None
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            reason = said[-1] if said else f"exit code {done.returncode}"
            raise Unconfined(self._failed(reason, python))

    def _failed(self, reason: str, python: str) -> str:
        """Why task processes cannot be started, by the settings that may be the reason."""
        names, cures = [], []
        if self.user is not None:
            names.append(self._whom)
            cures.append(
                f"{self.user_name or 'that user'} must be able to run {python:.200} and read its"
                " packages: install them where every user may read (not in a home folder of mode"
                " 700), or name another user"
            )
        if self.sandbox == BWRAP:
            names.append("policy.sandbox = bwrap")
            cures.append("bwrap must be allowed, or leave policy.sandbox out (auto)")
        elif self.user is None:
            names.append(f"policy.sandbox = {self.sandbox}")
            cures.append("leave policy.sandbox out (auto takes what there is)")
        return f"{' with '.join(names)} does not work here: {reason:.300}; {'; '.join(cures)}"

    @property
    def _whom(self) -> str:
        number = f"number {self.user[0]}" if self.user is not None else ""
        return (
            f"policy.user = {self.user_name} ({number})"
            if self.user_name
            else (f"policy.user ({number})")
        )

    @property
    def what(self) -> str:
        """What tasks are kept by, in words: the user and the sandbox."""
        parts = [self._whom] if self.user is not None else []
        parts += [f"policy.sandbox = {self.sandbox}"] if self.sandbox != NONE else []
        return " with ".join(parts) or "the worker's own user"

    @property
    def files(self) -> str:
        """The wall around files, for people; empty: none."""
        parts = [{BWRAP: "bubblewrap", LANDLOCK: ""}.get(self.sandbox, "")]
        parts += ["Landlock"] if self.abi else []
        return " and ".join(filter(None, parts))

    def shown(self) -> tuple[str, ...]:
        """Each kind of wall of this device, `what: which`, in few words."""
        users = "another user" if self.user is not None else ""
        hidden = "own pid namespace" if self.sandbox == BWRAP else ""
        if not hidden and self.abi >= landlock.SCOPE_ABI:
            hidden = "signals by Landlock"
        network = "any"
        if not self.network:
            network = "none" if self.sandbox == BWRAP else "no TCP, by Landlock"
        files = " and ".join(filter(None, (self.files, users)))
        return (
            f"files: {files or 'none'}",
            f"other processes: {hidden or users or 'none'}",
            f"network: {network}",
        )


def find_confinement(
    user: str,
    sandbox: str,
    data_dir: Path,
    *,
    network: bool = True,
    folders: Sequence[str] = (),
    programs: Sequence[str] = (),
    modules: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Confinement:
    """The confinement that settings ask for. Raises `Unconfined`.

    :param folders: those that the owner opens
    :param programs: those that the owner names
    :param modules: where task processes find modules
    """
    ids = _ids(user) if user else None
    chosen, program = _choose(sandbox, network)
    if chosen == NONE:
        return Confinement(ids, user_name=user)
    given = os.environ if environ is None else environ
    return Confinement(
        ids,
        chosen,
        reach.of_this_device(data_dir, folders, programs, modules, given),
        network,
        landlock.abi(),
        program,
        "" if ids is not None else os.path.realpath(given["HOME"]) if given.get("HOME") else "",
        user,
    )


def _choose(sandbox: str, network: bool) -> tuple[str, str]:
    """The sandbox, and where bubblewrap is."""
    program = shutil.which(BWRAP) or ""
    abi = landlock.abi()
    if sandbox == BWRAP and not program:
        raise Unconfined("policy.sandbox: bwrap is not installed (package bubblewrap)")
    if sandbox == LANDLOCK and not abi:
        raise Unconfined(
            "policy.sandbox: this kernel has no Landlock (Linux 5.13 or newer, not switched off);"
            " bwrap does the same with less, none and auto go without"
        )
    if network:
        return (LANDLOCK if abi else NONE) if sandbox == AUTO else sandbox, program
    if sandbox == BWRAP or (sandbox in (AUTO, LANDLOCK) and abi >= landlock.NETWORK_ABI):
        return (LANDLOCK if sandbox == AUTO else sandbox), program
    if sandbox == AUTO and program and process_tree.IS_LINUX:
        return BWRAP, program
    raise Unconfined(
        "policy.network = none: needs policy.sandbox = bwrap, or a kernel whose Landlock knows TCP"
        " (Linux 6.7); deny command and own types instead (policy.deny)"
    )


def _ids(user: str) -> tuple[int, int]:
    if sys.platform == "win32":
        raise Unconfined("policy.user is for POSIX systems; leave it out")
    import pwd

    if os.geteuid() != 0:
        raise Unconfined("policy.user: only a worker run by root can change users")
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise Unconfined(
            f"policy.user: there is no user {user!r:.60} on this device; make one with:"
            f" useradd --system --no-create-home {user:.60}"
        ) from None
    if entry.pw_uid == 0:
        raise Unconfined("policy.user: root is no unprivileged user; name another")
    return (entry.pw_uid, entry.pw_gid)
