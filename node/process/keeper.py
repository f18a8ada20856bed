"""A task process, as the worker starts it: `main(LIFE_FD)`.

On POSIX it is two processes. The *keeper* does nothing but wait, so nothing a task does can keep
it from its duty: when the worker closes the life pipe, or dies and so closes it, the keeper kills
everything below it, also what called setsid, and goes. The *server* sees to the tasks
(server.py). On Windows there is only the server; the Job Object around it does the keeper's work.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from retire_cluster.conf.machine.prctl import hide_memory
from retire_cluster.node.system import process_tree, shared_memory

#: Added to the number of the signal that ended the server, as shells do.
SIGNAL_BASE = 128


def main(life_fd: int = -1) -> int:
    """Run until stdin or the life pipe is closed."""
    if sys.platform == "win32":
        # Imported where it runs: the keeper on POSIX must stay small, and does not need it.
        from retire_cluster.node.process.server import serve

        return serve()
    return _keep(life_fd)


def _keep(life_fd: int) -> int:
    process_tree.become_subreaper()
    shared_memory.mark = os.environ.pop("RC_SHARED", "")
    # Forked before there is any thread, and before the task's modules are loaded.
    pid = os.fork()
    if pid == 0:
        os.close(life_fd)
        os._exit(_execute())
    # A task must not hold the life pipe open, nor write to it, through /proc.
    hide_memory()
    # A task of the same user may have stopped it; what it watches over would stay for good.
    process_tree.go_on_without_parent()
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    shared = shared_memory.names()
    threading.Thread(target=_watch, args=(life_fd, shared), daemon=True).start()
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            break
    _end_all(shared, reap=True)
    if os.WIFSIGNALED(status):
        return SIGNAL_BASE + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)


def _watch(life_fd: int, shared: frozenset[str]) -> None:
    while os.read(life_fd, 1):
        pass
    _end_all(shared)
    os._exit(SIGNAL_BASE + signal.SIGKILL)


def _end_all(shared: frozenset[str], *, reap: bool = False) -> None:
    me = os.getpid()
    shared_memory.remove_of([process.pid for process in process_tree.descendants(me)], shared)
    process_tree.kill_descendants(me, reap=reap)
    shared_memory.remove_marked(shared_memory.mark)


def _execute() -> int:
    process_tree.die_with_parent()
    process_tree.become_subreaper()
    os.setpgid(0, 0)
    try:
        from retire_cluster.node.process.server import serve

        return serve()
    except BaseException as error:  # a forked process must not run its parent's code
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        return 1
