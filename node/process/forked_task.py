"""The process of one task of an own type: forked for it, and gone with it.

Whatever the task changes in its process, from a timer to the umask, ends there. The process has
nothing of the server's, not even what was in its memory: only its own output, the pipe of its
answer, and one that says when the task is cancelled. It reads its request by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from retire_cluster.conf.machine.prctl import show_memory
from retire_cluster.node.process import streams
from retire_cluster.node.process.frames import read_frame, write_frame
from retire_cluster.node.process.perform import MIN_PROGRESS_SECONDS, perform
from retire_cluster.node.system import shared_memory
from retire_cluster.node.tasks import own_type
from retire_cluster.node.tasks.base import Limits
from retire_cluster.node.walls import enforcement

#: A write of so much to a pipe is never mixed with another's (POSIX has at least 512; Linux 4096).
_ATOMIC_BYTES = min(getattr(select, "PIPE_BUF", 512), 4096)
_HIGHEST_FD = 4096


class Ends(NamedTuple):
    """File descriptors of the task's process."""

    #: The answer goes here.
    answers: int
    #: What is printed goes here.
    output: int
    #: Readable once the task is cancelled.
    cancel: int
    #: The request comes from here, before anything of the task runs.
    request: int


def run(ends: Ends) -> NoReturn:
    """Become the task's process, in a process just forked; never returns."""
    code = 1
    try:
        request = read_frame(ends.request)
        if request is None:
            raise EOFError("the request did not come")
        header, payload = request
        _settle(ends, header, str(header["folder"]))
        before = shared_memory.names()
        teller = _Teller(ends)
        reply, data = perform(
            header,
            payload,
            tell=teller.tell,
            write_log=streams.write_line,
            is_cancelled=teller.is_cancelled,
        )
        streams.flush()
        shared_memory.remove_of((os.getpid(),), before)
        reply["last"] = False
        reply["import_seconds"] = own_type.import_seconds
        write_frame(ends.answers, reply, data)
        code = 0
    except BaseException:  # the parent's code must not run here
        with contextlib.suppress(BaseException):
            os.write(2, traceback.format_exc()[-4000:].encode("utf-8", "replace"))
    finally:
        os._exit(code)


def close_all_but(kept: tuple[int, ...]) -> None:
    """Close every file descriptor above stderr's but these."""
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, _HIGHEST_FD)


def restore_signals() -> None:
    """Set signals as in a program just started."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _settle(ends: Ends, header: Mapping[str, Any], folder: str) -> None:
    # A signal to its process group must not reach the server.
    os.setsid()
    restore_signals()
    os.dup2(ends.output, 1)
    os.dup2(ends.output, 2)
    close_all_but((ends.answers, ends.cancel))
    show_memory()
    shared_memory.name_segments()
    os.environ["RC_TASK_ID"] = str(header["task_id"])
    os.environ["RC_ATTEMPT"] = str(header["attempt"])
    home = Limits(**header["limits"]).home(folder)
    if home:
        os.environ.update(home)
        tempfile = sys.modules.get("tempfile")
        if tempfile is not None:
            vars(tempfile)["tempdir"] = None  # an import may have looked it up
    os.chdir(folder)
    enforcement.enter(folder)


class _Teller:
    """What the task's context asks for, over the task's own pipes."""

    def __init__(self, ends: Ends) -> None:
        self._answers = ends.answers
        self._cancel = ends.cancel
        self._told_at = 0.0

    def tell(self, percent: float | None, message: str) -> None:
        now = time.monotonic()
        if now - self._told_at < MIN_PROGRESS_SECONDS and percent != 100:
            return
        self._told_at = now
        header = {"kind": "progress", "percent": percent, "message": message}
        # Threads and forked processes may tell at the same time.
        while len(json.dumps(header)) > _ATOMIC_BYTES - 64 and header["message"]:
            message = message[: len(message) // 2]
            header["message"] = message + "…"
        with contextlib.suppress(OSError):
            write_frame(self._answers, header)

    def is_cancelled(self) -> bool:
        poller = select.poll()
        poller.register(self._cancel, select.POLLIN)
        return any(event & (select.POLLIN | select.POLLHUP) for _, event in poller.poll(0))
