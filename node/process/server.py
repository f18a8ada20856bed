"""The half of a task process that sees to tasks: requests in, progress and results out.

It takes what the worker has put into the environment, bounds itself, and becomes one of two
servers: one that forks a process for each task of an own type (forking_server.py), or, where there
is no fork, one that runs them itself (inline_server.py).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile

from retire_cluster.conf.machine.prctl import hide_memory
from retire_cluster.node.system import resource_limits
from retire_cluster.node.walls import enforcement

#: macOS has fork, but its own libraries do not survive it.
FORKS = hasattr(os, "fork") and sys.platform != "darwin"


def serve() -> int:
    """Run what comes in on stdin until it is closed; the exit code."""
    requests_fd, answers_fd = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    bounds = resource_limits.Bounds(**json.loads(os.environ.pop("RC_BOUNDS", "{}")))
    resource_limits.apply(bounds)
    if FORKS:
        # Not to be looked into by tasks: it has the pipes.
        hide_memory()
    scratch = os.environ.get("RC_SCRATCH") or tempfile.gettempdir()
    enforcement.learn(scratch)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # Each system loads the code of its own way to run tasks, and not before the walls are known.
    if not FORKS:
        from retire_cluster.node.process.inline_server import InlineServer

        return InlineServer(requests_fd, answers_fd, scratch).serve()
    os.dup2(nothing, 1)
    # The worker reads these words when this process has ended: nothing may wait until then.
    os.set_blocking(2, False)
    for stream in (sys.stdout, sys.stderr):
        # Unbuffered enough that prints and C output of a task keep their order.
        stream.reconfigure(  # type: ignore[union-attr]
            encoding="utf-8", errors="replace", line_buffering=True
        )
    from retire_cluster.node.process.forking_server import ForkingServer

    return ForkingServer(requests_fd, answers_fd, scratch, bounds.cpu_seconds).serve()
