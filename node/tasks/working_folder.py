"""The folder that a `command` is told to run in: looked up once, judged, and entered as judged.

A name can mean another folder a moment later, where somebody moves a link. On Linux the folder is
opened first, and what was opened is judged and entered.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from retire_cluster.node.system.process_tree import IS_LINUX
from retire_cluster.node.tasks.base import Denied, TaskFailed


@contextlib.contextmanager
def judged(folder: str | None, allowed: Sequence[str]) -> Iterator[str | None]:
    """A name for the folder that stays its own while the block runs; None for the task's.

    A relative one begins in the task's folder, which is allowed with all below it.

    Raises `TaskFailed` when it is not there, `Denied` when it is in none of the `allowed` ones;
    those are whole paths, none of them allow every folder.
    """
    if folder is None:
        yield None
        return
    if not IS_LINUX or not os.path.isdir("/proc/self/fd"):
        if not os.path.isdir(folder):
            raise _missing(folder)
        real = os.path.realpath(folder)
        _judge(folder, real, allowed)
        yield real
        return
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise _missing(folder) from None
    try:
        opened = f"/proc/self/fd/{fd}"
        _judge(folder, os.readlink(opened), allowed)
        yield opened
    finally:
        os.close(fd)


def _judge(folder: str, real: str, allowed: Sequence[str]) -> None:
    if not allowed:
        return
    for name in (*map(os.path.realpath, allowed), os.path.realpath(os.curdir)):
        if real == name or real.startswith(name.rstrip(os.sep) + os.sep):
            return
    raise Denied(f"this device's owner has not allowed the folder {folder!r:.200} (policy.folders)")


def _missing(folder: str) -> TaskFailed:
    # Another device may have it: a retry goes there first.
    return TaskFailed(f"payload.cwd: there is no folder {folder!r:.200} on this device")
