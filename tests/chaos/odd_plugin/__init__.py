"""Own task types of the odd-task campaign, installed on a real device: `odd` and `witness`.

`odd` does what its payload names, from the table of deeds. `witness` is the innocent one: it says
what it finds of its process, which must always be the same.
"""

# A stranger's code, which nobody has typed.
# mypy: ignore-errors

from __future__ import annotations

import faulthandler
import locale
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

from . import around, of_itself
from .deeds import DEEDS, SLOW

__all__ = ["DEEDS", "SLOW", "around", "is_inside", "odd", "of_itself", "witness"]


def odd(payload, context):
    """Does odd things."""
    found = None
    home = os.getcwd()
    # Whoever leaves his folder does so last: what comes after would be done to the machine.
    for name in sorted(payload["deeds"], key=lambda name: name == "env_folder"):
        if not is_inside(home):
            raise RuntimeError(f"{name} would be done to the machine")
        found = DEEDS[name](context)
    return found


def is_inside(home):
    """Whether this process is still in its folder."""
    try:
        where = os.getcwd()
    except OSError:  # removed, or too deep to be named: both are below it
        return True
    return where == home or where.startswith(f"{home}/")


def witness(payload, context):
    """Says what it finds."""
    print(f"witness {payload['n']}")
    with open("mine", "w") as file:
        file.write(str(payload["n"]))
    umask = os.umask(0o022)
    os.umask(umask)
    drawn = [random.random() for _ in range(2)]
    command = [sys.executable, "-I", "-S", "-c", "print(6*7)"]
    child = subprocess.run(command, capture_output=True, text=True)
    return {
        "n": payload["n"],
        "drawn": drawn,
        "state": {
            "files": sorted(os.listdir(".")),
            "mine": open("mine").read() == str(payload["n"]),
            "child": child.stdout.strip(),
            "umask": umask,
            "handlers": [str(signal.getsignal(s)) for s in (2, 14, 15, 17, 18)],
            "mask": sorted(int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            "timers": [signal.getitimer(which)[0] for which in range(3)],
            "alarm": signal.alarm(0),
            "faulthandler": faulthandler.is_enabled(),
            "recursion": sys.getrecursionlimit(),
            "timeout": socket.getdefaulttimeout(),
            "locale": locale.setlocale(locale.LC_ALL),
            "tz": [os.environ.get("TZ"), list(time.tzname)],
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "cpus": sorted(os.sched_getaffinity(0)),
            "path": list(sys.path),
            "environ": sorted(set(os.environ) - {"RC_TASK_ID"}),
            "limits": [resource.getrlimit(kind) for kind in range(16)],
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "children": [] if not multiprocessing.active_children() else ["some"],
            "streams": [sys.stdout.encoding, sys.stderr.encoding],
        },
    }
