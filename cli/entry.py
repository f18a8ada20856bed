"""The console scripts; one whose extra is not installed says so in one line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final

from retire_cluster.cli import lifeline

#: Import name of what a command may lack → what to hand to pip.
_MAIN_NODE: Final = "retire-cluster[api]"
_INSTALLED_BY: Final = {
    "falcon": _MAIN_NODE,
    "waitress": _MAIN_NODE,
    "orjson": _MAIN_NODE,
    "cerberus": _MAIN_NODE,
    "apscheduler": _MAIN_NODE,
    "limits": _MAIN_NODE,
    "prometheus_client": _MAIN_NODE,
    "wsproto": _MAIN_NODE,
    "psutil": _MAIN_NODE,
    "zmq": "retire-cluster",
    "simpleeval": "retire-cluster",
    "urllib3": "retire-cluster",
    "tomli": "retire-cluster",
}
_USAGE = 2
_INTERRUPTED = 130


def broker() -> int:
    """`retire-cluster-main`"""
    return run_module("retire_cluster.broker.cli", "retire-cluster-main", sys.argv[1:])


def worker() -> int:
    """`retire-cluster-worker`"""
    return run_module("retire_cluster.node.cli", "retire-cluster-worker", sys.argv[1:])


def api() -> int:
    """`retire-cluster-api`"""
    return run_module("retire_cluster.api.cli", "retire-cluster-api", sys.argv[1:])


def status() -> int:
    """`retire-cluster-status`"""
    return run_module("retire_cluster.cli.status", "retire-cluster-status", sys.argv[1:])


def run_module(module: str, program: str, argv: Sequence[str], function: str = "main") -> int:
    """Import `module` and call its `function(argv)`; the exit code.

    A library that is missing becomes one line on standard error that names the extra to install.
    """
    lifeline.watch_from_environment()
    try:
        call: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
        code = call(list(argv))
        sys.stdout.flush()
        return code
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        extra = _INSTALLED_BY.get(missing)
        if extra is None:
            raise
        print(f'{program} needs {missing}: pip install "{extra}"', file=sys.stderr)
        return _USAGE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit as error:  # argparse: help asked for, or flags it does not understand
        return error.code if isinstance(error.code, int) else _USAGE
    except BrokenPipeError:
        # Who read our output has seen enough (`| head`). Python flushes once more at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
