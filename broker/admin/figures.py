"""Figures of many devices together, as answers of several operations have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from retire_cluster.broker.core.model import SLOT_UNITS, Device
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.schemas.vocabulary import DeviceStatus

#: No device has more of anything; what claims to is nonsense, and sums of it no longer are numbers.
_MOST_CAPABLE: Final = 1e9


def capability(device: Device, name: str) -> float:
    """Return a numeric capability, 0 when unknown or not believable."""
    value = device.capabilities.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0
    return value if 0 <= value <= _MOST_CAPABLE else 0


def resource_totals(devices: Sequence[Device]) -> dict[str, Any]:
    """Sum up cores, memory (GB) and storage (GB) of devices."""
    return {
        "cpu_cores": int(sum(capability(device, "cpu_count") for device in devices)),
        "memory_gb": round(sum(capability(device, "memory_total_gb") for device in devices), 2),
        "storage_gb": round(sum(capability(device, "storage_total_gb") for device in devices), 2),
    }


def slot_figures(state: ClusterState) -> tuple[float, int]:
    """Return used slots (instant attempts are fractions) and all slots of online devices."""
    online = [device for device in state.devices.values() if device.online]
    used = sum(device.used_units for device in online) / SLOT_UNITS
    return used, sum(device.slots for device in online)


def breakdown(devices: Sequence[Device]) -> dict[str, Any]:
    """Count devices by role, platform and status."""
    statuses = dict.fromkeys((word.value for word in DeviceStatus), 0)
    statuses.update(Counter(device.status.value for device in devices))
    return {
        "by_role": dict(Counter(device.role for device in devices)),
        "by_platform": dict(Counter(device.platform for device in devices)),
        "by_status": statuses,
    }
