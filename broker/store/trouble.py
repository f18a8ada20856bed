"""Report a store that cannot be read now and then: two log lines, and health."""

from __future__ import annotations

import logging
from typing import Final

log = logging.getLogger("broker")

#: Health is degraded for so long after a read that failed; a task that waits for one is tried
#: again sooner.
DEGRADED_SECONDS: Final = 60.0


class ReadTrouble:
    """When a read failed last, after several tries."""

    def __init__(self) -> None:
        self._last_mono: float | None = None

    def note(self, reason: str, mono: float) -> None:
        """Note that a read failed."""
        if self._last_mono is None:
            log.warning(
                "%s; whoever asked is told to ask again, tasks that need it wait and are tried"
                " again. Look at the disk, card or file system",
                reason,
            )
        self._last_mono = mono

    def look(self, mono: float) -> bool:
        """Tell whether a read failed of late, and log when that is over."""
        if self._last_mono is not None and mono - self._last_mono > DEGRADED_SECONDS:
            log.info("the store is read without errors again")
            self._last_mono = None
        return self._last_mono is not None
