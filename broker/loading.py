"""The cluster's state as the store has it, at the start and after a store failed."""

from __future__ import annotations

import gc
import logging
import random
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.records.event_log import fresh_epoch
from retire_cluster.broker.core.restore import restore
from retire_cluster.broker.core.state import INLINE_PAYLOAD_BYTES, ClusterState
from retire_cluster.broker.store.base import Store, StoreTrouble
from retire_cluster.conf.settings import Settings

log = logging.getLogger("broker")

#: Tries of reading the whole store before it counts as unreadable, and the seconds between them.
_LOADS: Final = 3
_LOAD_PAUSE_SECONDS: Final = 0.1


class Loaded(NamedTuple):
    """What was loaded."""

    state: ClusterState
    #: When that was.
    at: ev.Now
    #: Numbers of live tasks that are damaged in the store.
    damaged: list[int]


class Loader:
    """Loads the state.

    :param settings: what the main node was started with
    :param now: gives the time
    :param boot: tells one start of this machine from others
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        rng: random.Random,
        now: Callable[[], ev.Now],
        boot: str,
    ) -> None:
        self._store, self._settings = store, settings
        self._rng, self._now, self._boot = rng, now, boot

    def load(self) -> Loaded:
        """Load the state, trying again after trouble that may pass. Raises `StoreError`."""
        for _ in range(_LOADS - 1):
            try:
                return self._load()
            except StoreTrouble as error:
                log.warning("%s; trying again", error)
            time.sleep(_LOAD_PAUSE_SECONDS)
        return self._load()

    def _load(self) -> Loaded:
        now = self._now()
        # A million tasks are made in one go and none of them is garbage: looking for cycles among
        # them would take longer than everything else here, now and at every later collection.
        gc.disable()
        try:
            snapshot = self._store.load(
                lambda newest: fresh_epoch(newest, now, self._rng), INLINE_PAYLOAD_BYTES
            )
            state, warnings = restore(snapshot, self._settings, self._rng, now, self._boot)
        finally:
            gc.enable()
        gc.freeze()
        for warning in warnings:
            log.warning(warning)
        return Loaded(state, now, list(snapshot.damaged))
