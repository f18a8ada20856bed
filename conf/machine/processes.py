"""Whether another process of this machine is there, and is still the one that was meant.

Numbers of processes are used again, after a reboot from the start. So a file that names a process
also says when that began, as the system counts it: together they name one process, once.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path


def pid_exists(pid: int) -> bool:
    """Tell whether there is such a process, also one that has ended and waits to be collected."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        return _exists_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _exists_on_windows(pid: int) -> bool:  # pragma: no cover - Windows only
    if sys.platform != "win32":
        return False
    import ctypes

    query_limited, still_active = 0x1000, 259
    kernel = ctypes.windll.kernel32
    handle = kernel.OpenProcess(query_limited, False, pid)
    if not handle:
        return False
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == still_active


def started(pid: int) -> str:
    """Return when a process began, as text to compare; empty: it is gone, or that is not known."""
    if sys.platform == "win32":
        return _started_on_windows(pid)
    if sys.platform in ("linux", "android"):
        return _started_by_proc(pid)
    return _started_by_ps(pid)


def is_same(pid: int, began: object) -> bool:
    """Tell whether process `pid` is there and began when `began`, noted from `started`, says.

    Where nothing was noted, or nothing can be known now, the number alone decides.
    """
    if not pid_exists(pid):
        return False
    if not isinstance(began, str) or not began:
        return True
    now = started(pid)
    return not now or now == began


def _started_by_proc(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        # The name in parentheses may hold anything, also spaces and parentheses.
        ticks = text[text.rfind(b")") + 2 :].split()[19].decode("ascii")
    except (OSError, IndexError, ValueError):
        return ""
    boot = ""
    with contextlib.suppress(OSError, ValueError):
        # Ticks count from the boot: another boot has the same ones.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return f"{boot} {ticks}"


def _started_by_ps(pid: int) -> str:
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    environ = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=5, check=False, env=environ)
    except (OSError, subprocess.SubprocessError):
        return ""
    return " ".join(done.stdout.decode("utf-8", "replace").split())


def _started_on_windows(pid: int) -> str:  # pragma: no cover - Windows only
    if sys.platform != "win32":
        return ""
    import ctypes

    query_limited = 0x1000
    kernel = ctypes.windll.kernel32
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(query_limited, False, pid)
    if not handle:
        return ""
    times = (ctypes.c_ulonglong * 4)()
    each = [ctypes.byref(times, 8 * index) for index in range(4)]
    known = kernel.GetProcessTimes(ctypes.c_void_p(handle), *each)
    kernel.CloseHandle(ctypes.c_void_p(handle))
    return str(times[0]) if known else ""
