"""The console scripts; one whose extra is not installed says so in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final, TextIO

from retire_cluster.cli import lifeline, streams
from retire_cluster.schemas.text.clean_text import escaped_lines

#: Import name of what a command may lack → what to hand to pip.
_MAIN_NODE: Final = "retire-cluster[api]"
_INSTALLED_BY: Final = {
    "falcon": _MAIN_NODE,
    "waitress": _MAIN_NODE,
    "orjson": _MAIN_NODE,
    "cerberus": _MAIN_NODE,
    "apscheduler": _MAIN_NODE,
    "prometheus_client": _MAIN_NODE,
    "wsproto": _MAIN_NODE,
    "psutil": _MAIN_NODE,
    "zmq": "retire-cluster",
    "simpleeval": "retire-cluster",
    "urllib3": "retire-cluster",
    "tomli": "retire-cluster",
}
#: A disk that is full, a quota or limit that is reached, a device that is gone.
_NO_ROOM: Final = frozenset(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO") if hasattr(errno, name)
)
#: Python's level of optimisation at which libraries that need their docstrings are not imported.
_WITHOUT_DOCSTRINGS: Final = 2
_USAGE = 2
_INTERRUPTED = 130


def broker() -> int:
    """Run `retire-cluster-main`; return its exit code."""
    return run_module("retire_cluster.broker.cli", "retire-cluster-main", sys.argv[1:])


def worker() -> int:
    """Run `retire-cluster-worker`; return its exit code."""
    hide_join_line()
    return run_module("retire_cluster.node.cli", "retire-cluster-worker", sys.argv[1:])


def hide_join_line() -> None:
    """Start this process again where others would read a join line in its command line."""
    # Imported here: `--help` is quick.
    from retire_cluster.node.link import join_line

    join_line.hide()


def api() -> int:
    """Run `retire-cluster-api`; return its exit code."""
    return run_module("retire_cluster.api.cli", "retire-cluster-api", sys.argv[1:])


def status() -> int:
    """Run `retire-cluster-status`; return its exit code."""
    return run_module("retire_cluster.cli.verbs.status", "retire-cluster-status", sys.argv[1:])


def run_module(module: str, program: str, argv: Sequence[str], function: str = "main") -> int:
    """Import `module`, call its `function(argv)` and return the exit code.

    A library that is missing becomes one line on standard error that names the extra to install,
    and so does one that refuses this interpreter's level of optimisation.
    """

    def found() -> int:
        lifeline.watch_from_environment()
        try:
            call: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
        except RuntimeError as error:
            if sys.flags.optimize < _WITHOUT_DOCSTRINGS:
                raise
            say(f"{program}: {error} Set PYTHONOPTIMIZE=1, or leave -OO out.")
            return _USAGE
        return call(list(argv))

    return guarded(program, found)


def guarded(program: str, call: Callable[[], int]) -> int:
    """Run `call`; return its exit code, or the one for what ended it.

    Ctrl-C, a closed pipe, a full disk and a library that is missing have one, with a line to read;
    any other error is raised. Standard error that takes nothing more changes no exit code.
    """
    streams.settle()
    try:
        return _code_of(program, call)
    finally:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            # Python's own flush at exit would fail once more, and end with 120.
            _give_up(sys.stderr)


def _code_of(program: str, call: Callable[[], int]) -> int:
    try:
        try:
            code = call()
        except SystemExit as error:  # argparse: help asked for, or flags it does not understand
            code = error.code if isinstance(error.code, int) else _USAGE
        sys.stdout.flush()
        return code
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        extra = _INSTALLED_BY.get(missing)
        if extra is None:
            raise
        say(f'{program} needs {missing}: pip install "{extra}"')
        return _USAGE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Who read our output has seen enough (`| head`).
        _give_up(sys.stdout)
        return 0
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        _give_up(sys.stdout)
        say(f"{program}: the output cannot be written: {error.strerror}")
        return _USAGE


def say(text: str) -> None:
    """Print a line on standard error, if that takes one."""
    with contextlib.suppress(OSError, ValueError):
        print(escaped_lines(text), file=sys.stderr, flush=True)


def _give_up(stream: TextIO) -> None:
    """Let go of what a stream still holds: Python flushes once more at exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
