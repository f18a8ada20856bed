"""`command`: a program, its output, its exit code. Off until the device's owner allows it.

A list is run as it is, without a shell, so that no argument is ever interpreted. The program gets
an own session and nothing of the worker's environment but what policy.py lists. Whatever it
started ends with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

from retire_cluster.node.system import process_tree, resource_limits
from retire_cluster.node.tasks import working_folder
from retire_cluster.node.tasks.base import (
    BadPayload,
    Context,
    Denied,
    Hopeless,
    NotHere,
    Success,
    TaskFailed,
    TimedOut,
    as_number,
    as_text,
    as_text_map,
    no_strangers,
)
from retire_cluster.node.tasks.bounded_output import HeadTail, Kept, cuts, fit, json_size
from retire_cluster.node.tasks.program_links import leads_elsewhere
from retire_cluster.node.walls import enforcement
from retire_cluster.schemas.protocol.wire import MAX_RESULT_BYTES
from retire_cluster.schemas.task_types import BUILTIN

INFO = BUILTIN["command"]
MAX_TIMEOUT_SECONDS = 86_400


def check(payload: Mapping[str, Any], *, shell: bool = False) -> None:
    """Refuse a payload that cannot be used: raises `BadPayload`, `Denied` for a refused shell."""
    no_strangers(payload, INFO.payload_schema or {})
    command = payload.get("command")
    if isinstance(command, str):
        if not command.strip() or "\0" in command:
            raise BadPayload("command", "must not be empty or hold a NUL")
        if not shell:
            raise Denied(
                "this device runs no shell: send a list of program and arguments, or let its owner"
                " allow it by --allow command:shell"
            )
    elif not isinstance(command, list) or not command:
        raise BadPayload("command", "must be a list of program and arguments")
    elif not all(isinstance(word, str) and "\0" not in word for word in command):
        raise BadPayload("command", "must be a list of texts without NUL")
    elif not command[0]:
        raise BadPayload("command", "must start with the program's name")
    as_number(payload, "timeout", 0.1, MAX_TIMEOUT_SECONDS)
    if "\0" in (as_text(payload, "cwd") or ""):
        raise BadPayload("cwd", "must not hold a NUL")
    as_text(payload, "stdin")
    for name, value in as_text_map(payload, "env").items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise BadPayload("env", f"{name!r:.80} cannot be set")


def run(payload: Mapping[str, Any], context: Context) -> Success:
    """`{"return_code", "stdout", "stderr", "command"}` of a program that ended with 0.

    Raises `TaskFailed` with that result for another exit code, `TimedOut` with what there was,
    `NotHere` when the program is not on this device, `Hopeless` when it could be started nowhere.
    """
    check(payload, shell=context.limits.shell)
    command = payload["command"]
    own = os.getcwd()
    limits = context.limits
    environment = {
        **limits.environment,
        **limits.home(own),
        **(payload.get("env") or {}),
    }
    environment["RC_TASK_ID"] = context.task_id
    environment["RC_ATTEMPT"] = str(context.attempt)
    if "RC_WORKER" in os.environ:  # by which leftovers.py finds what escaped
        environment["RC_WORKER"] = os.environ["RC_WORKER"]
    text = payload.get("stdin")
    try:
        with working_folder.judged(payload.get("cwd"), limits.folders) as folder:
            process = enforcement.start(
                lambda: _start(command, folder, environment, text is not None), own
            )
    except OSError as error:
        raise _unstarted(error, command, payload, limits.environment.get("PATH", "")) from None
    except (ValueError, UnicodeError) as error:
        raise Hopeless(f"the command cannot be started: {error}") from None
    job = _job_of(process)
    outputs = [_Output(stream, context.limits.output_bytes) for stream in _streams(process)]
    if text is not None:
        _feed(process, text)
    seconds = min(float(payload.get("timeout", MAX_TIMEOUT_SECONDS)), context.timeout_seconds)
    end = time.monotonic() + seconds
    try:
        process.wait(max(0.0, end - time.monotonic()))
        timed_out = False
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        _end_tree(process, job)
    for output in outputs:
        output.join(2.0)
    result = {
        "return_code": None if timed_out else process.returncode,
        "stdout": "",
        "stderr": "",
        "command": command,
    }
    room = MAX_RESULT_BYTES - json_size(result)
    kept = fit({"stdout": outputs[0].take(), "stderr": outputs[1].take()}, room)
    result.update((name, each.text) for name, each in kept.items())
    cut = cuts(kept)
    if timed_out:
        raise TimedOut(f"the command did not end within {seconds:g} s", result=result, cuts=cut)
    code = process.returncode
    if code:
        words = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        said = kept["stderr"].text[-4000:]
        words += enforcement.hint(said, payload.get("cwd") or "") + resource_limits.hint(said)
        raise TaskFailed(f"command {words}", result=result, cuts=cut)
    return Success(result, cut)


def _start(
    command: str | list[str], folder: str | None, environment: Mapping[str, str], feed: bool
) -> subprocess.Popen[bytes]:
    shell = isinstance(command, str)
    flags: dict[str, Any] = {}
    if sys.platform == "win32":
        flags["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
    else:
        flags["start_new_session"] = True
    return subprocess.Popen(
        command,
        shell=shell,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        **flags,
    )


#: What says that the device has no such program, or none that it can run.
_NOT_HERE = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP}
)
#: `ERROR_BAD_EXE_FORMAT`, `ERROR_EXE_MACHINE_TYPE_MISMATCH`.
_NOT_HERE_ON_WINDOWS = frozenset({193, 216})
_HOPELESS = frozenset({errno.E2BIG, errno.ENAMETOOLONG})


def _unstarted(
    error: OSError, command: str | list[str], payload: Mapping[str, Any], search_path: str
) -> TaskFailed:
    """Why a program could not be started.

    That it is not here is said only where it holds for every task that names it so.
    """
    if error.errno in _HOPELESS:
        return Hopeless(f"the command cannot be started: {error}")
    missing = error.errno in _NOT_HERE or getattr(error, "winerror", None) in _NOT_HERE_ON_WINDOWS
    if not missing or isinstance(command, str):
        return TaskFailed(
            f"the command cannot be started: {error}{resource_limits.hint(str(error))}"
        )
    own_path = any(name.upper() == "PATH" for name in payload.get("env") or {})
    leads = "" if own_path else leads_elsewhere(command[0], search_path)
    if error.errno == errno.ENOENT:
        words = f"there is no program {command[0]!r:.200} on this device{leads}"
    elif error.errno in (errno.EACCES, errno.EPERM):
        words = f"{command[0]!r:.200} may not be run on this device"
        words += leads or enforcement.hint(str(error))
    else:
        words = f"{command[0]!r:.200} cannot be run on this device: {error.strerror}"
    in_folder = os.path.dirname(command[0]) != "" and not os.path.isabs(command[0])
    if own_path or in_folder or not _is_folder_open(payload.get("cwd")):
        return TaskFailed(words)
    return NotHere(words)


def _is_folder_open(folder: str | None) -> bool:
    return folder is None or os.access(folder, os.X_OK)


def _streams(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdout, process.stderr


def _feed(process: subprocess.Popen[bytes], text: str) -> None:
    def write() -> None:
        assert process.stdin is not None
        # A program may end, or close its input, before it has read everything.
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(OSError, ValueError):
            process.stdin.close()

    threading.Thread(target=write, name="stdin", daemon=True).start()


def _job_of(process: subprocess.Popen[bytes]) -> Any:
    if sys.platform != "win32":
        return None
    # Imported where it runs: it loads ctypes and declares Windows' structures.
    from retire_cluster.node.system.windows_job import Job

    try:
        job = Job()
        job.add(int(process._handle))  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return None
    return job


def _end_tree(process: subprocess.Popen[bytes], job: Any) -> None:
    """End the program and all it started; a program's background helpers go with it."""
    if job is not None:
        job.close()
    elif os.name == "nt":
        if process.poll() is None:
            process_tree.kill_tree(process.pid)
    else:
        over = process.poll() is not None and process_tree.IS_LINUX
        if not over:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        # Most leave nothing behind; looking through all processes costs more than the program did.
        if not over or process_tree.has_others():
            process_tree.kill_descendants(os.getpid())
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2.0)


class _Output(threading.Thread):
    """Reads a stream to its end and keeps its beginning and its end."""

    def __init__(self, stream: IO[bytes], limit_bytes: int) -> None:
        super().__init__(name="output", daemon=True)
        self._stream = stream
        self._lock = threading.Lock()
        self._kept = HeadTail(limit_bytes)
        self.start()

    def run(self) -> None:
        """Read until nobody holds the other end."""
        with contextlib.suppress(OSError, ValueError):
            while part := self._stream.read(65_536):
                with self._lock:
                    self._kept.add(part)
        with contextlib.suppress(OSError, ValueError):
            self._stream.close()

    def take(self) -> Kept:
        """What there is of it so far."""
        with self._lock:
            return self._kept.take()
