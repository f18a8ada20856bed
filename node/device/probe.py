"""What this device is: processors, memory, storage, platform. Each fact is found on its own.

A fact that cannot be found is left out, never guessed; a probe that raises (psutil does, under
Termux) costs only its own fact. Nothing here starts a process or sends anything.
"""

from __future__ import annotations

import os
import platform as platform_module
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from retire_cluster.node.device import cgroups
from retire_cluster.schemas.vocabulary import Platform, Role

GIB = 1024**3
LOW_MEMORY_GB = 2
HIGH_MEMORY_GB = 8
HIGH_CPU_COUNT = 8
_GPU_VENDORS = {"0x10de", "0x1002"}
_GPU_NAMES = ("nvidia", "radeon", "amd ", "geforce", "quadro", "intel(r) arc")
#: An address of the documentation range: a route to it is a default route, and connecting a
#: datagram socket sends nothing.
_ROUTE_TESTS = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def detect_platform(
    system: str = sys.platform, environ: Mapping[str, str] | None = None
) -> Platform:
    """The operating system's family; Termux is Android, whatever `sys.platform` says there."""
    environ = os.environ if environ is None else environ
    if system == "win32" or system.startswith("cygwin"):
        return Platform.WINDOWS
    if system == "darwin":
        return Platform.DARWIN
    termux = "com.termux" in environ.get("PREFIX", "")
    if system == "android" or termux or "ANDROID_ROOT" in environ:
        return Platform.ANDROID
    return Platform.LINUX


def detect_role(platform: Platform) -> Role:
    """What the device is for when its owner does not say."""
    return Role.MOBILE if platform is Platform.ANDROID else Role.WORKER


def capabilities(folder: Path) -> dict[str, Any]:
    """Everything this device knows of itself; `storage` is that of `folder`."""
    probes: dict[str, Callable[[], Any]] = {
        "cpu_count": cpu_count,
        "memory_total_gb": memory_total_gb,
        "storage_total_gb": lambda: _gb(shutil.disk_usage(folder).total),
        "has_gpu": has_gpu,
        "has_internet": has_internet,
        "architecture": architecture,
        "python_version": platform_module.python_version,
        "os_release": os_release,
        "cpu_model": cpu_model,
    }
    return {name: value for name, probe in probes.items() if (value := guarded(probe)) is not None}


def guarded(probe: Callable[[], Any]) -> Any:
    """A probe's answer, or None when it fails in whatever way."""
    try:
        return probe()
    except Exception:  # a probe meets every oddity of every device
        return None


def automatic_tags(platform: str, facts: Mapping[str, Any]) -> list[str]:
    """The tags a device gets by what it is."""
    tags = [platform]
    if facts.get("architecture"):
        tags.append(str(facts["architecture"]))
    if facts.get("has_gpu"):
        tags.append("gpu-capable")
    memory = facts.get("memory_total_gb")
    if isinstance(memory, (int, float)):
        if memory < LOW_MEMORY_GB:
            tags.append("low-memory")
        if memory > HIGH_MEMORY_GB:
            tags.append("high-memory")
    cores = facts.get("cpu_count")
    if isinstance(cores, int) and cores >= HIGH_CPU_COUNT:
        tags.append("high-cpu")
    return tags


def all_tags(own: Iterable[str], automatic: Iterable[str]) -> tuple[str, ...]:
    """The owner's tags, then the automatic ones, each once."""
    return tuple(dict.fromkeys([*own, *automatic]))


def cpu_count() -> int | None:
    """Whole processors this process may use: by affinity, and by its container's limits."""
    found = [os.cpu_count()]
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is not None:
        found.append(guarded(lambda: len(affinity(0))))
    limits = guarded(cgroups.allowance) or cgroups.Allowance()
    found.append(limits.cpus)
    if limits.processors is not None:
        found.append(max(1, int(limits.processors)))  # half a processor still runs one task
    return min(filter(None, found), default=None)


def memory_total_gb() -> float | None:
    """Memory of the device, or of the container where that is less, in GiB."""
    total = next((v for probe in _MEMORY_PROBES if (v := guarded(probe))), None)
    if total is None:
        return None
    limits = guarded(cgroups.allowance)
    limit = limits.memory_bytes if limits else None
    return _gb(min(total, limit) if limit else total)


def _memory_from_proc() -> int | None:
    return meminfo().get("MemTotal")


def _memory_from_psutil() -> int | None:
    return int(load_psutil().virtual_memory().total)


def _memory_from_sysconf() -> int | None:
    if sys.platform == "win32":
        return windows_memory()[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


_MEMORY_PROBES = (_memory_from_proc, _memory_from_psutil, _memory_from_sysconf)


def load_psutil() -> Any:
    """The psutil module. Raises `OSError` on a device that has none."""
    try:
        import psutil
    except ImportError:
        raise OSError("psutil is not installed") from None
    return psutil


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes. Raises `OSError` where there is none."""
    found = {}
    with open("/proc/meminfo", encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, rest = line.partition(":")
            words = rest.split()
            if words and words[0].isdigit():
                found[name] = int(words[0]) * 1024
    return found


def windows_memory() -> tuple[int, int]:
    """Total and available bytes by GlobalMemoryStatusEx. Raises `OSError` elsewhere."""
    if sys.platform != "win32":
        raise OSError("this is not Windows")
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((f"value{index}", ctypes.c_ulonglong) for index in range(7)),
        )

    status = Status()
    status.length = ctypes.sizeof(Status)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise ctypes.WinError()
    return int(status.value0), int(status.value1)


def architecture() -> str | None:
    """The processor's architecture by its usual name."""
    machine = platform_module.machine().lower()
    names = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64", "i386": "i686"}
    return names.get(machine, machine) or None


def os_release() -> str | None:
    """The system's name and version, for people."""
    if sys.platform == "win32":
        return f"Windows {platform_module.release()}"
    if sys.platform == "darwin":
        return f"macOS {platform_module.mac_ver()[0]}"
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        text = guarded(lambda path=path: Path(path).read_text(encoding="utf-8"))  # type: ignore[misc]
        for line in (text or "").splitlines():
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip("\"'") or None
    return f"{platform_module.system()} {platform_module.release()}".strip() or None


def cpu_model() -> str | None:
    """The processor's name, where /proc tells it."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Hardware", "Model") and value.strip():
                return value.strip()[:200]
    return None


def has_gpu() -> bool:
    """Whether there is a graphics processor that can compute; integrated Intel does not count."""
    if sys.platform == "win32":
        return any(any(g in name.lower() for g in _GPU_NAMES) for name in _windows_displays())
    if sys.platform == "darwin":
        return platform_module.machine() == "arm64"
    if any(os.path.exists(node) for node in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd")):
        return True
    for vendor in Path("/sys/class/drm").glob("card*/device/vendor"):
        if guarded(lambda path=vendor: path.read_text().strip()) in _GPU_VENDORS:  # type: ignore[misc]
            return True
    return False


def _windows_displays() -> list[str]:
    if sys.platform != "win32":
        return []
    import winreg

    found = []
    folder = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
    for index in range(16):
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, rf"{folder}\{index:04d}") as key:
                found.append(str(winreg.QueryValueEx(key, "DriverDesc")[0]))
        except OSError:
            continue
    return found


def has_internet() -> bool:
    """Whether there is a route out of the local network.

    Asks the routing table only, by connecting a datagram socket: nothing is sent, to nobody.
    """
    for family, address in _ROUTE_TESTS:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))
                if not probe.getsockname()[0].startswith(("127.", "::1", "0.0.0.0")):
                    return True
        except OSError:
            continue
    return False


def _gb(total_bytes: int) -> float:
    return round(total_bytes / GIB, 2)
