"""What `health` tells of this main node."""

from __future__ import annotations

import logging
from typing import Final

from retire_cluster.broker.store.trouble import ReadTrouble

log = logging.getLogger("broker")

#: Seconds without a tick after which the scheduler counts as unhealthy.
TICK_SILENCE_SECONDS: Final = 10.0


class Health:
    """Whether ticks come, new tasks are taken and the store can be read.

    :param started_mono: monotonic time (s) of the start, which counts as a tick
    """

    def __init__(self, started_mono: float = 0.0) -> None:
        #: Why new tasks are refused (no disk space left), or empty.
        self.refusing = ""
        self.reads = ReadTrouble()
        self._ticked_mono = started_mono

    def ticked(self, mono: float) -> None:
        """Note a tick of the scheduler."""
        self._ticked_mono = mono

    def refuse_tasks(self, reason: str) -> None:
        """Refuse new tasks for a reason; empty: take them again. Changes are logged."""
        if reason and not self.refusing:
            log.warning(reason)
        elif self.refusing and not reason:
            log.info("disk space is back: new tasks are taken again")
        self.refusing = reason

    def components(self, mono: float) -> dict[str, str]:
        """Return `healthy`, `degraded` or `unhealthy` by component."""
        if mono - self._ticked_mono > TICK_SILENCE_SECONDS:
            scheduler = "unhealthy"
        else:
            scheduler = "degraded" if self.refusing else "healthy"
        server = "degraded" if self.reads.look(mono) else "healthy"
        return {"cluster_server": server, "task_scheduler": scheduler}
