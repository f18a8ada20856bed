"""Python's resource trackers: the processes that remove the shared memory a program did not.

A program tells its tracker the names, by a pipe; once all who hold the pipe's other end are gone,
the tracker removes what is left, and goes. Nobody else knows these names. So it is the last of a
task's processes to be killed, and what it had no time to read is read in its place.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable

#: For the trackers of a task to do their duty.
PATIENCE_SECONDS = 1.0
_FOLDER = "/dev/shm"
#: More than a pipe holds.
_MAX_BYTES = 1 << 20
_MAX_NAME = 255
_PIPE = re.compile(rb"resource_tracker import main;\s*main\((\d{1,6})")


def let_clean(look: Callable[[], list[int]], kill: Callable[[Iterable[int]], None]) -> bool:
    """End all that `look` finds but the trackers, and wait for these.

    True when there was one. Those that are late are killed, and what they have not read is done.
    """
    found = look()
    waiting = _trackers(found)
    if not waiting:
        return False
    end = time.monotonic() + PATIENCE_SECONDS
    while waiting and time.monotonic() < end:
        kill(pid for pid in found if pid not in waiting)
        for pid in waiting:  # the task may have stopped it
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        time.sleep(0.005)
        found = look()
        waiting = _trackers(found)
    for pid in waiting:
        _take_over(pid, kill)
    return True


def _trackers(pids: Iterable[int]) -> set[int]:
    return {pid for pid in pids if _may_be_tracker(pid)}


def _may_be_tracker(pid: int) -> bool:
    line = _command_line(pid)
    # A program that is just being loaded has no command line yet, and the task goes on meanwhile.
    return line == b"" or (line is not None and b"multiprocessing.resource_tracker" in line)


def _command_line(pid: int) -> bytes | None:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096)
    except OSError:
        return None


def _take_over(pid: int, kill: Callable[[Iterable[int]], None]) -> None:
    """Kill a tracker and remove what its pipe still tells."""
    fd = -1
    with contextlib.suppress(OSError):
        fd = _open_pipe(pid)
    owner = _owner(pid)
    kill([pid])
    if fd < 0:
        return
    try:
        for name in names_told(_read(fd)):
            path = os.path.join(_FOLDER, name)
            with contextlib.suppress(OSError):
                # No more than the tracker itself could have removed.
                if os.lstat(path).st_uid == owner:
                    os.unlink(path)
    finally:
        os.close(fd)


def _open_pipe(pid: int) -> int:
    match = _PIPE.search(_command_line(pid) or b"")
    if match is None:
        return -1
    path = f"/proc/{pid}/fd/{int(match[1])}"
    if not os.readlink(path).startswith("pipe:"):
        return -1
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _owner(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"Uid:"):
                return int(line.split()[2])
    return -1


def _read(fd: int) -> bytes:
    told = bytearray()
    with contextlib.suppress(OSError):
        while len(told) < _MAX_BYTES and (part := os.read(fd, 65_536)):
            told += part
    return bytes(told)


def names_told(text: bytes) -> set[str]:
    """The segments that these lines of a program to its tracker leave registered."""
    names: set[str] = set()
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            command, name = _parse(line)
            name = name.removeprefix("/")
            if not name or "/" in name or "\0" in name or len(name) > _MAX_NAME:
                continue
            if name in (".", ".."):
                continue
            if command == "REGISTER":
                names.add(name)
            elif command == "UNREGISTER":
                names.discard(name)
    return names


def _parse(line: bytes) -> tuple[str, str]:
    """Command and name of a line about shared memory. Raises `ValueError` for any other."""
    if line.startswith(b"{"):  # as of Python 3.15, and the last of 3.13 and 3.14
        told = json.loads(line)
        command, kind = told["cmd"], told["rtype"]
        name = binascii.a2b_base64(told["base64_name"]).decode("ascii")
    else:
        command, name, kind = line.decode("ascii").split(":")
    if kind != "shared_memory":
        raise ValueError("another kind")
    return str(command), name
