"""From a store's address to a store: the one place that knows the schemes."""

from __future__ import annotations

from pathlib import Path

from retire_cluster.broker.store import MemoryStore, Store, StoreError
from retire_cluster.broker.store_sqlite import SQLiteStore

_SQLITE = "sqlite:///"


def open_store(url: str) -> Store:
    """The store of an address (`sqlite:///FILE`, `memory://`).

    Raises `StoreError` for another scheme, or a file that cannot be used.
    """
    if url.startswith(_SQLITE):
        return SQLiteStore(Path(url[len(_SQLITE) :]))
    if url == "memory://":
        return MemoryStore()
    raise StoreError(f"{url!r} is no store: use sqlite:///FILE or memory://")
