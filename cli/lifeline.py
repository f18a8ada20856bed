"""A child's tie to its supervisor: when the supervisor is gone, however it went, the child stops.

The supervisor keeps the writing end of the pipe that is its child's standard input. The system
closes that end even when the supervisor was killed outright, so end-of-file means: nobody looks
after you any more. This works alike on Linux, macOS, Termux and Windows, where a parent-death
signal does not.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, MutableMapping

from retire_cluster.node.system.supervision import SUPERVISED

#: How long the child may take to end by itself before it ends at once.
GRACE_SECONDS = 8.0


def watch_from_environment(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Start watching if this process was started with a lifeline; return whether it was.

    The variable is taken out of the environment and standard input replaced by the null device, so
    that what this process starts does not believe that it holds a lifeline too.
    """
    if environ.pop(SUPERVISED, "") != "stdin":
        return False
    handle = os.dup(0)
    os.set_inheritable(handle, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    watch_parent(handle, stop_this_process)
    return True


def watch_parent(handle: int, gone: Callable[[], None]) -> threading.Thread:
    """Call `gone` from a background thread once the pipe `handle` has no writer any more."""

    def wait() -> None:
        try:
            while os.read(handle, 1024):
                pass
        except OSError:
            pass
        gone()

    thread = threading.Thread(target=wait, name="lifeline", daemon=True)
    thread.start()
    return thread


def stop_this_process() -> None:
    """Ask this process to end as SIGTERM would; end it at once when it does not in time."""
    ask_main_thread_to_stop()
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def ask_main_thread_to_stop() -> None:
    """Deliver SIGTERM to this process, in the way that wakes its main thread on this system."""
    if sys.platform == "win32":
        signal.raise_signal(signal.SIGTERM)  # os.kill would be TerminateProcess
        return
    main = threading.main_thread().ident
    if main is None:
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        signal.pthread_kill(main, signal.SIGTERM)
