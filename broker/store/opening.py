"""From a store's address to a store: the one place that knows the schemes."""

from __future__ import annotations

import time
from pathlib import Path

from retire_cluster.broker.store.base import Store, StoreError
from retire_cluster.broker.store.memory import MemoryStore
from retire_cluster.broker.store.sqlite import SQLiteStore

_SQLITE = "sqlite:///"


def open_store(url: str) -> Store:
    """Open the store of an address (`sqlite:///FILE`, `memory://`).

    Raises `StoreError` for another scheme, or a file that cannot be used.
    """
    if url.startswith(_SQLITE):
        return SQLiteStore(Path(url[len(_SQLITE) :]))
    if url == "memory://":
        return MemoryStore()
    raise StoreError(f"{url!r} is no store: use sqlite:///FILE or memory://")


def set_aside(url: str) -> Path:
    """Rename a damaged file, with its log, so that a new one can take its place.

    Nothing is deleted: `sqlite3 FILE .recover` may save a part of it. Raises `StoreError`.
    """
    path = Path(url[len(_SQLITE) :])
    kept = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    try:
        for suffix in ("-wal", "-shm", ""):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(kept.with_name(kept.name + suffix))
    except OSError as error:
        raise StoreError(f"{path} cannot be set aside: {error.strerror or error}") from None
    return kept
