"""Who task processes run as, and in what: another user, a bubblewrap sandbox, or neither.

Both keep a task from what is the worker's own, above all `device.key`: a task that runs as the
worker's user can read what the worker can. Which of them is used is the owner's decision, in this
device's settings.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retire_cluster.node.folders import START

SANDBOX = "bwrap"
_TRIAL_SECONDS = 30.0


class Unconfined(Exception):
    """Tasks cannot be confined as the owner asks; the text is one line with the cure."""


@dataclass(frozen=True)
class Confinement:
    """How task processes are kept from the worker's own things."""

    #: User id and group id they run as; None: the worker's.
    user: tuple[int, int] | None = None
    #: Whether they run in bubblewrap.
    sandboxed: bool = False
    #: The worker's data folder, hidden from sandboxed ones.
    data_dir: Path | None = None

    def command(self, arguments: list[str], folders: tuple[Path, ...]) -> list[str]:
        """The command line of a task process that may write to these folders only."""
        if not self.sandboxed:
            return arguments
        line = [
            SANDBOX, "--die-with-parent", "--unshare-ipc", "--unshare-uts", "--cap-drop", "ALL",
            "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp",
        ]  # fmt: skip
        for needed in _homes_of_python():
            if needed.startswith("/tmp/"):
                line += ["--ro-bind", needed, needed]
        if self.data_dir is not None:
            line += ["--tmpfs", str(self.data_dir)]
        for folder in folders:
            line += ["--bind", str(folder), str(folder)]
        return [*line, "--", *arguments]

    def options(self) -> dict[str, Any]:
        """What `subprocess.Popen` needs; it changes the user in C, safe beside threads."""
        if self.user is None:
            return {}
        return {"user": self.user[0], "group": self.user[1], "extra_groups": []}

    def try_out(self, python: str, folder: Path, environment: dict[str, str]) -> None:
        """Start a task process's Python once. Raises `Unconfined` when it cannot be."""
        arguments = self.command([python, "-s", "-c", "import retire_cluster.node"], (folder,))
        try:
            done = subprocess.run(
                arguments, cwd=START, env=environment, stdin=subprocess.DEVNULL,
                capture_output=True, timeout=_TRIAL_SECONDS, check=False, **self.options(),
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unconfined(f"{self.what} does not work here: {error}; {_CURE}") from None
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            reason = said[-1] if said else f"exit code {done.returncode}"
            raise Unconfined(f"{self.what} does not work here: {reason:.300}; {_CURE}")

    @property
    def what(self) -> str:
        """For people."""
        parts = [f"policy.user (number {self.user[0]})"] if self.user is not None else []
        parts += [f"policy.sandbox = {SANDBOX}"] if self.sandboxed else []
        return " with ".join(parts) or "the worker's own user"


def _homes_of_python() -> list[str]:
    """Where the interpreter, its libraries and this package are."""
    found = [sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[1])]
    return sorted({os.path.realpath(path) for path in found})


_CURE = "that user must be able to run this Python, and bwrap be allowed; or leave the setting out"


def find(user: str, sandbox: str, data_dir: Path) -> Confinement:
    """The confinement that settings ask for. Raises `Unconfined`."""
    ids = None
    if user:
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
        ids = (entry.pw_uid, entry.pw_gid)
    if sandbox and shutil.which(SANDBOX) is None:
        raise Unconfined("policy.sandbox: bwrap is not installed (package bubblewrap)")
    return Confinement(ids, bool(sandbox), data_dir if sandbox else None)
