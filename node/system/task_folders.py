"""The folder a task works in: made anew for each, gone with it, whatever the task did to it.

A task may take every permission away, nest thousands of folders, or remove, close or replace the
folder that its own is in. Symbolic links are never followed: they are the task's, and the one who
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
from typing import Any

#: Of names of folders: paths of sockets have 107 characters, and tasks make theirs below.
_NAME_LENGTH = 6
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
#: Where task processes are while they have no task: no task can put anything there, or remove it.
START = "/" if os.name == "posix" else os.path.dirname(os.path.abspath(sys.executable))
#: ioctl(2)'s for the attributes of chattr(1), and those that keep a file from being removed.
_GET_FLAGS, _SET_FLAGS, _FIXED = 0x80086601, 0x40086602, 0x10 | 0x20


def new_name() -> str:
    """A short name for a folder, that no other has."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_NAME_LENGTH))


def make(scratch: str, name: str) -> str:
    """An empty folder below `scratch`, made again when a task removed, closed or replaced it.

    Raises `OSError`, also when a folder above it leads elsewhere now.

    :param scratch: a path without symbolic links
    """
    folder = os.path.join(scratch, name)
    with contextlib.suppress(OSError):
        # Through a link in its place, tasks would work, and leave their folders, elsewhere.
        if os.path.realpath(scratch) == scratch:
            os.mkdir(folder, 0o700)
            return folder
    open_way(scratch)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(scratch).st_mode):
            os.unlink(scratch)
    os.makedirs(scratch, 0o700, exist_ok=True)
    if os.path.realpath(scratch) != scratch:
        raise NotADirectoryError(f"{scratch} leads elsewhere")
    os.mkdir(folder, 0o700)
    return folder


def open_way(path: str) -> None:
    """Give this user's folders on the way to `path`, and itself, their owner's permissions back.

    A task of the same user may have taken them. As far as that goes: what is not there or another's
    is left alone.
    """
    if os.name != "posix":
        return
    way = [path]
    while os.path.dirname(way[-1]) != way[-1]:
        way.append(os.path.dirname(way[-1]))
    for folder in reversed(way):
        with contextlib.suppress(OSError):
            needed = os.R_OK | os.W_OK | os.X_OK if folder == path else os.X_OK
            if os.access(folder, needed, follow_symlinks=False) or folder == os.sep:
                continue
            found = os.lstat(folder)
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                os.chmod(folder, stat.S_IMODE(found.st_mode) | stat.S_IRWXU)


def remove(folder: str | Path) -> bool:
    """Remove a folder and all in it; True when it is gone. The task must have ended."""
    path = os.fspath(folder)
    with contextlib.suppress(OSError):
        os.rmdir(path)  # most are empty
        return True
    if sys.platform == "win32":
        if sys.version_info >= (3, 12):
            shutil.rmtree(path, onexc=_remove_read_only)
        else:
            shutil.rmtree(path, onerror=_remove_read_only)
        return not os.path.lexists(path)
    open_way(os.path.dirname(os.path.abspath(path)))
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            _empty(path)
            os.rmdir(path)
        else:
            os.unlink(path)  # a task has put something else in its place
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def _remove_read_only(function: Any, path: str, _: Any) -> None:
    """What Windows does not remove is most often marked as read-only."""
    with contextlib.suppress(OSError):
        os.chmod(path, stat.S_IWRITE)
        function(path)


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
    """Remove files; move folders up to `top`, so that no path grows long. Their new names."""
    moved = []
    with os.scandir(folder) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in names:
        with contextlib.suppress(OSError):
            if not is_folder:
                _unlink(name, folder)
            elif folder != top:
                new = secrets.token_hex(8)
                # A folder without permissions cannot be moved by others than root.
                os.close(_open_folder(name, folder))
                os.rename(name, new, src_dir_fd=folder, dst_dir_fd=top)
                moved.append(new)
    return moved


def _unlink(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except PermissionError:
        with contextlib.suppress(OSError):
            # Not a pipe or a device: those wait for someone, or do something.
            if stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
                fd = os.open(name, flags, dir_fd=folder)
                try:
                    _unfix(fd)
                finally:
                    os.close(fd)
        os.unlink(name, dir_fd=folder)


def _unfix(fd: int) -> None:
    """Take away the attributes that keep even the owner, or root, from removing a file."""
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            import fcntl

            word = fcntl.ioctl(fd, _GET_FLAGS, bytes(8))
            flags = int.from_bytes(word, sys.byteorder)
            if flags & _FIXED:
                fcntl.ioctl(fd, _SET_FLAGS, (flags & ~_FIXED).to_bytes(8, sys.byteorder))
        elif hasattr(os, "chflags"):
            os.chflags(fd, 0)


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
        if os.geteuid() == 0 or hasattr(os, "chflags"):  # others cannot set them on Linux
            _unfix(fd)
        with contextlib.suppress(OSError):
            os.fchmod(fd, 0o700)
    return fd
