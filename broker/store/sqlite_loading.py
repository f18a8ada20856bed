"""Everything that a starting main node reads from its SQLite file.

A damaged row concerns its own task only, or is left out with a warning, unless nothing could be
trusted without it: then the store is refused.
"""

from __future__ import annotations

import functools
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from retire_cluster.broker.core.rows import AccessRow, DeviceRow, IndexRow, Snapshot, TaskRow
from retire_cluster.broker.store import checksums
from retire_cluster.broker.store.base import HOUR_SECONDS, StoreDamaged, StoreError, StoreTrouble
from retire_cluster.broker.store.patience import is_damage
from retire_cluster.broker.store.sqlite_writes import put
from retire_cluster.schemas.ids import SALT_BITS

Db = sqlite3.Connection
_Row = TypeVar("_Row")
CURE: Final = (
    "restore a backup, start with another --data-dir or --store, or set the damaged file aside "
    "with --set-aside-damaged and begin with an empty one"
)
#: What the salt is stored a second time with.
_SALT_CHECK: Final = 0x2AAAAAAAA
_INDEX: Final = (
    "select number, type, priority, status, device, coalesce(ended_s, 0)"
    " from tasks left join outcomes on task = number order by number"
)


def load(db: Db, path: Path, begin: Callable[[int], int], inline_bytes: int) -> Snapshot:
    """See `Store.load`. Raises `sqlite3.Error`, and `StoreDamaged`, `ValueError`, `TypeError`."""
    warnings: list[str] = []
    meta = dict(db.execute("select name, value from meta").fetchall())
    salt = _salt(meta, path)
    mark = checksums.mark(meta.get("mark"), warnings)
    since_s = (0 if mark is None else mark.age_ms // 1000) - HOUR_SECONDS
    last_event = 0 if mark is None else mark.last_event
    audit = _sound(db, "audit", checksums.audit_row, warnings)
    last_event = max([last_event, *(row.id for row in audit[-1:])])
    epoch = begin(max(int(meta.get("epoch", 0)), last_event))
    newest = db.execute("select coalesce(max(number), 0) from tasks").fetchone()[0]
    newest = max(newest, int(meta.get("newest_task", 0)))
    dispatch = db.execute("select coalesce(max(number), 0) from dispatches").fetchone()[0]
    dispatch = max(dispatch, int(meta.get("newest_dispatch", 0)))
    db.execute("begin immediate")
    put(db, "salt", salt)
    put(db, "salt_check", salt ^ _SALT_CHECK)
    put(db, "epoch", epoch)
    put(db, "newest_task", newest)
    put(db, "newest_dispatch", dispatch)
    db.execute("commit")
    live, sizes, damaged = [], {}, []
    checksum = functools.lru_cache(maxsize=1024)(checksums.form_checksum)
    for row in db.execute(
        "select number, created_ms, type, priority, timeout_seconds, max_retries, document,"
        " iif(length(payload) <= ?, payload, x''), crc, length(payload) from tasks"
        " where number not in (select task from outcomes) order by number",
        (inline_bytes,),
    ):
        found = TaskRow(*row[:8])
        sizes[row[0]] = row[9]
        inline = len(found.payload) == row[9]
        if not checksums.is_sane(row) or (inline and not checksums.is_task_whole(row, checksum)):
            # It is not run: it fails as soon as the broker is up.
            damaged.append(row[0])
            found = TaskRow(row[0], row[1], checksums.UNREADABLE, 1, 300, 0, b"{}", b"")
            sizes[row[0]] = max(1, len(row[6]) if isinstance(row[6], bytes) else 1)
        live.append(found)
    return Snapshot(
        salt=salt,
        epoch=epoch,
        next_task=newest + 1,
        next_dispatch=dispatch + 1,
        live=live,
        mark=mark,
        live_payload_bytes=sizes,
        deviations={row.task: row for row in _sound(db, "live", checksums.live_row, warnings)},
        dispatches=_sound(db, "dispatches", checksums.dispatch_row, warnings),
        devices=[DeviceRow(*row) for row in db.execute("select * from devices")],
        index=_index(db, path),
        recent=[
            row
            for row in db.execute(
                "select ended_s, status, seconds from outcomes where ended_s > ? order by ended_s",
                (since_s,),
            )
            if row[1] in checksums.ENDED
        ],
        submissions=_sound(db, "submissions", checksums.submission_row, warnings),
        access=[AccessRow(*row) for row in db.execute("select * from access")],
        audit=audit,
        config=dict(_sound(db, "config", checksums.config_row, warnings)),
        config_version=int(meta.get("config_version", 1)),
        damaged=damaged,
        warnings=warnings,
    )


def _index(db: Db, path: Path) -> Iterator[IndexRow]:
    try:
        yield from map(checksums.index_row, db.execute(_INDEX))
    except sqlite3.Error as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> StoreError:
    """Return the error of ours for what a read of the whole store failed by."""
    text = f"the store {path} cannot be read: {error}"
    if is_damage(error):
        return StoreDamaged(f"{text}; {CURE}")
    return StoreTrouble(text) if isinstance(error, sqlite3.Error) else StoreError(text)


def _salt(meta: dict[str, Any], path: Path) -> int:
    """Return what makes task ids of numbers: with a wrong one no id would be found again."""
    salt = meta.get("salt")
    if salt is None:
        return secrets.randbits(SALT_BITS)
    check = meta.get("salt_check")
    if type(salt) is not int or (check is not None and check != salt ^ _SALT_CHECK):
        raise StoreDamaged(f"the store {path} is damaged (its salt); {CURE}")
    return salt


def _sound(
    db: Db, table: str, read: Callable[[Sequence[Any]], _Row], warnings: list[str]
) -> list[_Row]:
    """Return the rows of a small table without damaged ones."""
    found = []
    for row in db.execute(f"select * from {table} order by 1"):
        try:
            found.append(read(row))
        except (ValueError, TypeError, IndexError) as error:
            warnings.append(f"a damaged row of {table} is left out ({row[0]!r:.60}): {error}")
    return found
