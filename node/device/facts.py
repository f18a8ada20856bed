"""What a worker says of its device: what it is, and how it is doing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from retire_cluster.node.device import probe

REPROBE_SECONDS = 600.0


class Facts:
    """The capabilities and the metrics of this device.

    :param capabilities: as `probe.capabilities` found them
    :param sample: takes the metrics of now
    """

    def __init__(
        self, capabilities: dict[str, Any], sample: Callable[[], Mapping[str, Any]], now: float
    ) -> None:
        self.capabilities = capabilities
        self.sample = sample
        self._probed_at = now

    def now(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Capabilities and metrics, for `system_info`."""
        return self.capabilities, self.sample()

    def look_again(self, now: float) -> bool:
        """Look for internet again once ten minutes are over; whether that was found out now."""
        if now - self._probed_at < REPROBE_SECONDS:
            return False
        self._probed_at = now
        has_internet = probe.guarded(probe.has_internet)
        if has_internet is None:
            return False
        self.capabilities["has_internet"] = has_internet
        return True
