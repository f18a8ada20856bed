"""The folder a task works in: made anew for each, gone with it, whatever the task did to it.

A task may take every permission away, nest thousands of folders, or remove the folder that all
task folders are in. Symbolic links are never followed: they are the task's, and the one who
removes may be root.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import sys
from pathlib import Path

_PREFIX = "task-"


def new_name() -> str:
    """A name for a task's folder that no other has."""
    return _PREFIX + secrets.token_hex(8)


def make(scratch: str, name: str) -> str:
    """An empty folder below `scratch`, made again when a task removed, closed or replaced it.

    Raises `OSError`.
    """
    folder = os.path.join(scratch, name)
    with contextlib.suppress(OSError):
        # Through a link in its place, tasks would work, and leave their folders, elsewhere.
        if stat.S_ISDIR(os.lstat(scratch).st_mode):
            os.mkdir(folder, 0o700)
            return folder
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(scratch).st_mode):
            os.unlink(scratch)
    os.makedirs(scratch, 0o700, exist_ok=True)
    os.chmod(scratch, 0o700)
    os.mkdir(folder, 0o700)
    return folder


def remove(folder: str | Path) -> bool:
    """Removes a folder and all in it; True when it is gone. The task must have ended."""
    path = os.fspath(folder)
    with contextlib.suppress(OSError):
        os.rmdir(path)  # most are empty
        return True
    if sys.platform == "win32":
        shutil.rmtree(path, ignore_errors=True)
        return not os.path.lexists(path)
    with contextlib.suppress(OSError):
        # Opened first: a task may have closed the folder that its own is in.
        os.close(_open_folder(os.path.dirname(path) or ".", None))
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            _empty(path)
            os.rmdir(path)
        else:
            os.unlink(path)  # a task has put something else in its place
    return not os.path.lexists(path)


def _empty(path: str) -> None:
    parent = _open_folder(os.path.dirname(path) or ".", None)
    try:
        top = _open_folder(os.path.basename(path), parent)
    finally:
        os.close(parent)
    try:
        _clear(top, top)
        waiting = os.listdir(top)
        while waiting:
            name = waiting.pop()
            with contextlib.suppress(OSError):
                inner = _open_folder(name, top)
                try:
                    waiting += _clear(inner, top)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def _clear(folder: int, top: int) -> list[str]:
    """Removes files; moves folders up to `top`, so that no path grows long. Their new names."""
    moved = []
    with os.scandir(folder) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in names:
        with contextlib.suppress(OSError):
            if not is_folder:
                os.unlink(name, dir_fd=folder)
            elif folder != top:
                new = secrets.token_hex(8)
                # A folder without permissions cannot be moved by others than root.
                os.close(_open_folder(name, folder))
                os.rename(name, new, src_dir_fd=folder, dst_dir_fd=top)
                moved.append(new)
    return moved


def _open_folder(name: str, parent: int | None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=parent)
    except PermissionError:
        if os.geteuid() == 0:
            raise
        # As the owner, and only then: chmod follows links, which may lead to nobody else's.
        os.chmod(name, 0o700, dir_fd=parent)
        fd = os.open(name, flags, dir_fd=parent)
    if parent is not None:
        with contextlib.suppress(OSError):
            os.fchmod(fd, 0o700)
    return fd
