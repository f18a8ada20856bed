"""The folders that task processes work in: one for each, gone with it, in a root of the worker's.

No two task processes share one. With `policy.user` the root is the worker's and only to be passed
through, so that tasks can neither list it nor put anything into it. A task that runs as the
worker's own user can do anything to it; so it is looked at before each use, made again when it is
gone or closed, and another is taken when that fails. What cannot be removed is told, and tried
again later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from retire_cluster.node.system import task_folders

log = logging.getLogger("retire_cluster.node")

#: What the names of roots in the system's folder for temporary files begin with.
PREFIX = "retire-cluster-"
_NAME = "work"
#: A socket's path has 107 characters; Python's own are this much longer than a task's folder
#: (`/pymp-xxxxxxxx/listener-xxxxxxxx`), which is this much longer than the root.
_SOCKET_LENGTH, _LISTENER_LENGTH, _TASK_LENGTH = 107, 32, 14
#: Folders that could not be removed are tried again so many at a time.
_AGAIN = 4


def root_in(data_dir: Path) -> Path | None:
    """The root in a worker's folder; None for one whose path is too long for a task's sockets."""
    root = Path(os.path.realpath(data_dir / _NAME))
    if sys.platform == "win32":
        return root
    longest = _SOCKET_LENGTH - _LISTENER_LENGTH - _TASK_LENGTH
    made_here = len(os.fsencode(os.path.realpath(tempfile.gettempdir()))) + len(PREFIX) + 14
    length = len(os.fsencode(root))
    return root if length <= max(longest, made_here) else None


class Workplace:
    """Gives each task process its folder, and takes it back. Thread-safe."""

    def __init__(
        self,
        root: Path | None,
        user: tuple[int, int] | None = None,
        note: Callable[[list[str]], None] = lambda roots: None,
    ) -> None:
        """Make the root, and empty it of what an earlier worker left. Raises `OSError`.

        :param root: where they are; None: a new folder in the system's one for temporary files
        :param user: user and group id that tasks have, None: the worker's
        :param note: told of all roots among temporary files, so that a later worker removes them
        """
        self._user = user
        self._note = note
        self._lock = threading.Lock()
        #: Roots among temporary files.
        self._temporary: list[str] = []
        #: What could not be removed.
        self._stuck: list[str] = []
        #: Takes what the device's owner should know. Called from any thread.
        self.tell: Callable[[str], None] = lambda text: None
        if root is None:
            self.root = self._make_temporary()
        else:
            # One spelling, so that a folder in its place is told from a link to elsewhere.
            self.root = Path(os.path.realpath(root))
            self._clear()

    def _clear(self) -> None:
        """Remove what an earlier worker's tasks left."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.root):
                if not task_folders.remove(self.root / name):
                    self._stuck.append(str(self.root / name))
        self._make_root()
        if self._stuck:
            log.warning("%s", self._words())

    def take(self) -> str:
        """A new empty folder, of the tasks' user. Raises `OSError`."""
        name = task_folders.new_name()
        try:
            self._make_root()
            made = self._make(self.root, name)
        except OSError as error:
            # A task has closed or replaced a folder above it.
            with self._lock:
                self.root = self._make_temporary()
            log.warning("tasks work in %s from here on: %s", self.root, error)
            made = self._make(self.root, name)
        return made

    def _make(self, root: Path, name: str) -> str:
        made = task_folders.make(str(root), name)
        if self._user is not None and sys.platform != "win32":
            os.chown(made, *self._user)
        return made

    def give_back(self, folder: str) -> None:
        """Remove a folder, whose tasks have ended, and what could not be removed earlier."""
        gone = task_folders.remove(folder)
        with self._lock:
            # A few in turn: with many of them each task would wait for all.
            again, self._stuck = self._stuck[:_AGAIN], self._stuck[_AGAIN:]
            self._stuck += [path for path in again if not task_folders.remove(path)]
            if gone:
                return
            self._stuck.append(folder)
            words = self._words()
        log.warning("%s", words)
        self.tell(words)

    def close(self) -> None:
        """Remove the roots among temporary files."""
        with self._lock:
            self._temporary = [path for path in self._temporary if not task_folders.remove(path)]
            self._note(list(self._temporary))

    def _words(self) -> str:
        return (
            f"{len(self._stuck)} folder(s) of tasks cannot be removed and take up the disk;"
            f" remove them by hand: {self._stuck[0]}"
        )[:500]

    def _make_root(self) -> None:
        task_folders.open_way(str(self.root))
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.lstat(self.root).st_mode):
                os.unlink(self.root)
        os.makedirs(self.root, 0o700, exist_ok=True)
        if os.path.realpath(self.root) != str(self.root):
            raise OSError(f"{self.root} leads elsewhere")
        if self._user is not None:
            os.chmod(self.root, 0o711)

    def _make_temporary(self) -> Path:
        made = os.path.realpath(tempfile.mkdtemp(prefix=f"{PREFIX}work-"))
        if self._user is not None:
            os.chmod(made, 0o711)
        self._temporary.append(made)
        self._note(list(self._temporary))
        return Path(made)


def remove_earlier(roots: object) -> None:
    """Remove what an earlier worker noted: folders of its own among temporary files."""
    if not isinstance(roots, list):
        return
    for path in roots:
        if not isinstance(path, str) or not os.path.basename(path).startswith(PREFIX):
            continue
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            ours = sys.platform == "win32" or found.st_uid == os.geteuid()
            if stat.S_ISDIR(found.st_mode) and ours:
                task_folders.remove(path)
