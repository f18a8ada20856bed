"""How this device is doing: what goes into a heartbeat. Each figure is found on its own.

On Linux and Android /proc and /sys are read directly, which costs less than psutil; elsewhere, or
where they cannot be read, psutil is asked if it is there. An unknown figure is None.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retire_cluster.node.device import cgroups
from retire_cluster.node.device.probe import guarded, load_psutil, meminfo, windows_memory

MIN_SECONDS = 1.0


class Sampler:
    """Takes samples; processor use is measured between two of them."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        """Take a first sample.

        :param folder: the disk that it is on is the one measured
        :param clock: gives monotonic seconds
        """
        self._folder = folder
        self._clock = clock
        self._busy_before: tuple[float, float] | None = None
        self._taken_at = clock()
        self._last = self._take()

    def sample(self) -> dict[str, Any]:
        """The protocol's `metrics`; percentages 0 to 100, degrees Celsius, load of a minute.

        At most one second old: processor use over a shorter time would say nothing.
        """
        now = self._clock()
        if now - self._taken_at >= MIN_SECONDS:
            self._taken_at = now
            self._last = self._take()
        return self._last

    def _take(self) -> dict[str, Any]:
        battery, plugged = guarded(_battery) or (None, None)
        return {
            "cpu_percent": guarded(self._cpu_percent),
            "memory_percent": guarded(_memory_percent),
            "disk_percent": guarded(self._disk_percent),
            "load_average": guarded(lambda: round(os.getloadavg()[0], 2)),
            "temperature_c": guarded(_temperature),
            "battery_percent": battery,
            "power_plugged": plugged,
        }

    def _cpu_percent(self) -> float | None:
        now: tuple[float, float] | None
        now = guarded(_cpu_times_from_proc) or guarded(_cpu_times_from_psutil)
        before, self._busy_before = self._busy_before, now
        if now is None or before is None or now[1] <= before[1]:
            return None
        share = (now[0] - before[0]) / (now[1] - before[1])
        return round(min(100.0, max(0.0, 100.0 * share)), 1)

    def _disk_percent(self) -> float:
        usage = shutil.disk_usage(self._folder)
        return round(100.0 * usage.used / (usage.used + usage.free), 1)


def _cpu_times_from_proc() -> tuple[float, float]:
    """Busy and total ticks since boot."""
    with open("/proc/stat", "rb") as file:
        ticks = [float(word) for word in file.readline().split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def _cpu_times_from_psutil() -> tuple[float, float]:
    times = load_psutil().cpu_times()
    total = float(sum(times))
    return total - float(times.idle), total


def _memory_percent() -> float | None:
    try:
        facts = meminfo()
        total, available = facts["MemTotal"], facts["MemAvailable"]
    except (OSError, KeyError):
        if sys.platform == "win32":
            total, available = windows_memory()
        else:
            memory = load_psutil().virtual_memory()
            total, available = memory.total, memory.available
    limits = guarded(cgroups.allowance)
    if limits and limits.memory_bytes and limits.memory_bytes < total:
        used = guarded(cgroups.memory_used)
        return None if used is None else round(min(100.0, 100.0 * used / limits.memory_bytes), 1)
    return round(100.0 * (total - available) / total, 1)


def _temperature() -> float | None:
    """The hottest place that has a sensor."""
    found = []
    for pattern in ("thermal/thermal_zone*/temp", "hwmon/hwmon*/temp*_input"):
        for sensor in Path("/sys/class").glob(pattern):
            value = guarded(lambda path=sensor: int(path.read_text()))  # type: ignore[misc]
            # Sensors that are off say zero or nonsense.
            if value is not None and 1_000 < value < 150_000:
                found.append(value / 1000)
    if not found and not sys.platform.startswith("linux"):
        sensors: dict[str, Any] = getattr(load_psutil(), "sensors_temperatures", dict)()
        found = [row.current for rows in sensors.values() for row in rows if row.current > 1]
    return round(max(found), 1) if found else None


def _battery() -> tuple[float | None, bool | None]:
    """Charge in percent and whether it is plugged in; None for what is not known."""
    folder = Path("/sys/class/power_supply")
    if folder.is_dir():
        for supply in sorted(folder.iterdir()):
            if guarded(lambda path=supply: (path / "type").read_text().strip()) == "Battery":  # type: ignore[misc]
                charge = guarded(lambda path=supply: float((path / "capacity").read_text()))  # type: ignore[misc]
                state = guarded(lambda path=supply: (path / "status").read_text().strip())  # type: ignore[misc]
                return charge, None if state is None else state != "Discharging"
        if sys.platform.startswith("linux"):
            return None, None
    if sys.platform == "win32":
        return _windows_battery()
    battery = getattr(load_psutil(), "sensors_battery", lambda: None)()
    if battery is None:
        return None, None
    return round(float(battery.percent), 1), battery.power_plugged


def _windows_battery() -> tuple[float | None, bool | None]:
    if sys.platform != "win32":
        return None, None
    import ctypes

    status = (ctypes.c_ubyte * 12)()
    if not ctypes.windll.kernel32.GetSystemPowerStatus(ctypes.byref(status)):
        return None, None
    line, flag, percent = status[0], status[1], status[2]
    if flag & 128:  # no battery
        return None, None
    return (None if percent > 100 else float(percent)), (None if line > 1 else line == 1)
