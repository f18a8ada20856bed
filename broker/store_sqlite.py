"""The durable store: one SQLite file, WAL, `synchronous=FULL`, one connection, one commit a turn.

Tasks and outcomes are only ever inserted on the usual path (a few multi-row statements a turn);
there is no index beside the primary keys, because lists and counts come from the ledger. Every row
with a blob carries a CRC-32 of it: SQLite's own check does not see a flipped payload byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import sqlite3
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from retire_cluster.broker import instructions as ins
from retire_cluster.broker.ids import SALT_BITS
from retire_cluster.broker.rows import (
    AttemptRow,
    DeviceRow,
    DispatchRow,
    LiveRow,
    OutcomeRow,
    Snapshot,
    SubmissionRow,
    TaskRow,
)
from retire_cluster.broker.store import HOUR_MS, StoreError, StoreFull

#: Schema changes in order; `user_version` counts those applied.
MIGRATIONS: Final = (
    """
    create table meta(name text primary key, value) without rowid;
    create table tasks(
        number integer primary key, created_ms int, type text, priority int,
        timeout_seconds int, max_retries int, document blob, payload blob, crc int);
    create table outcomes(
        task integer primary key, status text, device text, attempt int, assigned_ms int,
        started_ms int, completed_ms int, seconds real, cause text, error text, retries int,
        result blob, details blob, crc int);
    create table attempts(
        task int, number int, device text, outcome text, cause text, error text, assigned_ms int,
        started_ms int, ended_ms int, seconds real, result blob, details blob,
        primary key(task, number)) without rowid;
    create table live(
        task integer primary key, attempt int, retries int, stored_retries int,
        not_before_ms int, excluded text, killers text);
    create table dispatches(
        number integer primary key, epoch int, token int, device text, at_ms int, attempts blob);
    create table devices(
        device text primary key, registered_ms int, removed_ms int, document blob) without rowid;
    create table submissions(
        owner text, key text, fingerprint text, first int, count int, at_ms int,
        primary key(owner, key)) without rowid;
    create table config(section text primary key, document text) without rowid;
    """,
)
#: Rows of one multi-row statement.
_ROWS: Final = 250


def _crc(*texts: bytes) -> int:
    value = 0
    for text in texts:
        value = zlib.crc32(text, value)
    return value


def _chunks(numbers: Iterable[int]) -> Iterator[tuple[list[int], str]]:
    rows = list(numbers)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        yield part, ",".join("?" * len(part))


def _live_row(row: Sequence[Any]) -> LiveRow:
    excluded, killers = tuple(json.loads(row[5])), tuple(json.loads(row[6]))
    return LiveRow(row[0], row[1], row[2], row[3], row[4], excluded, killers)


class SQLiteStore:
    """See `store.Store` and the module's text.

    :param path: the database file; its folder must exist
    """

    def __init__(self, path: Path) -> None:
        self.name = f"sqlite:///{path.as_posix()}"
        self.path = path
        self.commits = 0
        try:
            self._db = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, cached_statements=512
            )
            for pragma in (
                "journal_mode=wal",
                "synchronous=full",
                "wal_autocheckpoint=4000",
                "cache_size=-65536",
                "temp_store=memory",
            ):
                self._db.execute(f"pragma {pragma}")
            if os.name == "posix":
                os.chmod(path, 0o600)
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"the store {path} cannot be used: {error}; check the folder's permissions and "
                "free space, or start with another --data-dir"
            ) from None

    def _migrate(self) -> None:
        (version,) = self._db.execute("pragma user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StoreError(
                f"the store {self.path} was made by a newer version (schema {version}, this one "
                f"knows {len(MIGRATIONS)}): update retire-cluster or use another --data-dir"
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            self._db.executescript(
                f"begin immediate; {script}; pragma user_version={number}; commit;"
            )

    # --- writing ---------------------------------------------------------------------------------

    def commit(self, writes: Sequence[ins.Write]) -> None:
        """See `Store.commit`."""
        try:
            self._db.execute("begin immediate")
            for write in writes:
                _WRITERS[type(write)](self, write)
            self._db.execute("commit")
        except (sqlite3.Error, OSError) as error:
            self._roll_back()
            text = f"the store {self.path} refused a write: {error}"
            if "full" in str(error) or "disk I/O" in str(error):
                raise StoreFull(text) from None
            raise StoreError(text) from None
        self.commits += 1

    def _roll_back(self) -> None:
        # SQLite rolls back by itself after some errors; what it cannot undo now, it does at the
        # next opening.
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("rollback")

    def _insert(self, head: str, columns: int, rows: Sequence[Sequence[Any]]) -> None:
        one = "(" + ",".join("?" * columns) + ")"
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            values = [value for row in part for value in row]
            self._db.execute(head + ",".join([one] * len(part)), values)

    def _tasks(self, write: ins.StoreTasks) -> None:
        rows = [(*row, _crc(row.document, row.payload)) for row in write.rows]
        self._insert("insert into tasks values", 9, rows)
        if write.submission is not None:
            self._insert("insert or replace into submissions values", 6, [write.submission])

    def _outcomes(self, write: ins.StoreOutcomes) -> None:
        rows = [(*row, _crc(row.result, row.details)) for row in write.rows]
        self._insert("insert into outcomes values", 14, rows)
        self._delete("live", "task", write.deviating)

    def _attempts(self, write: ins.StoreAttempts) -> None:
        self._insert("insert or replace into attempts values", 12, write.rows)

    def _live(self, write: ins.StoreLive) -> None:
        rows = [(*row[:5], json.dumps(row.excluded), json.dumps(row.killers)) for row in write.rows]
        self._insert("insert or replace into live values", 7, rows)

    def _revive(self, write: ins.ReviveTasks) -> None:
        self._delete("outcomes", "task", write.tasks)

    def _dispatch(self, write: ins.StoreDispatch) -> None:
        row = write.row
        packed = array("q", [number for pair in row.attempts for number in pair]).tobytes()
        self._insert("insert into dispatches values", 6, [(*row[:5], packed)])

    def _ended_dispatches(self, write: ins.ForgetDispatches) -> None:
        self._delete("dispatches", "number", write.numbers)

    def _devices(self, write: ins.StoreDevices) -> None:
        self._insert("insert or replace into devices values", 4, write.rows)

    def _gone_devices(self, write: ins.ForgetDevices) -> None:
        for device_id in write.device_ids:
            self._db.execute("delete from devices where device = ?", (device_id,))

    def _config(self, write: ins.StoreConfig) -> None:
        rows = [(name, json.dumps(values)) for name, values in write.sections.items()]
        self._insert("insert or replace into config values", 2, rows)
        self._set("config_version", write.version)

    def _gone_tasks(self, write: ins.ForgetTasks) -> None:
        # Numbers are never used twice, also when the newest task is deleted.
        self._db.execute(
            "insert or replace into meta select 'newest_task', max("
            "coalesce((select max(number) from tasks), 0),"
            "coalesce((select value from meta where name = 'newest_task'), 0))"
        )
        self._delete("tasks", "number", write.tasks)
        for table in ("outcomes", "attempts", "live"):
            self._delete(table, "task", write.tasks)

    def _gone_submissions(self, write: ins.ForgetSubmissions) -> None:
        self._db.execute("delete from submissions where at_ms < ?", (write.before_ms,))

    def _delete(self, table: str, column: str, numbers: Sequence[int]) -> None:
        for part, marks in _chunks(numbers):
            self._db.execute(f"delete from {table} where {column} in ({marks})", part)

    def _set(self, name: str, value: object) -> None:
        self._db.execute("insert or replace into meta values(?, ?)", (name, value))

    # --- starting --------------------------------------------------------------------------------

    def load(self, wall_ms: int, inline_bytes: int) -> Snapshot:
        """See `Store.load`."""
        try:
            return self._load(wall_ms, inline_bytes)
        except (sqlite3.Error, ValueError, TypeError) as error:
            self._roll_back()
            raise StoreError(f"the store {self.path} cannot be read: {error}") from None

    def _load(self, wall_ms: int, inline_bytes: int) -> Snapshot:
        db = self._db
        meta = dict(db.execute("select name, value from meta").fetchall())
        salt = meta.get("salt", secrets.randbits(SALT_BITS))
        epoch = meta.get("epoch", 0) + 1
        newest = db.execute("select coalesce(max(number), 0) from tasks").fetchone()[0]
        newest = max(newest, meta.get("newest_task", 0))
        dispatch = db.execute("select coalesce(max(number), 0) from dispatches").fetchone()[0]
        dispatch = max(dispatch, meta.get("newest_dispatch", 0))
        db.execute("begin immediate")
        self._set("salt", salt)
        self._set("epoch", epoch)
        self._set("newest_task", newest)
        self._set("newest_dispatch", dispatch)
        db.execute("commit")
        live, sizes = [], {}
        for row in db.execute(
            "select number, created_ms, type, priority, timeout_seconds, max_retries, document,"
            " iif(length(payload) <= ?, payload, x''), length(payload), crc from tasks"
            " where number not in (select task from outcomes) order by number",
            (inline_bytes,),
        ):
            found = TaskRow(*row[:8])
            if len(found.payload) == row[8] and _crc(found.document, found.payload) != row[9]:
                # Left out, it is looked for (and found damaged) when the task is to be run.
                found = found._replace(payload=b"")
            live.append(found)
            sizes[row[0]] = row[8]
        dispatches = []
        for row in db.execute("select * from dispatches order by number"):
            numbers = array("q")
            numbers.frombytes(row[5])
            pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
            dispatches.append(DispatchRow(row[0], row[1], row[2], row[3], row[4], pairs))
        return Snapshot(
            salt=salt,
            epoch=epoch,
            next_task=newest + 1,
            next_dispatch=dispatch + 1,
            live=live,
            live_payload_bytes=sizes,
            deviations={row[0]: _live_row(row) for row in db.execute("select * from live")},
            dispatches=dispatches,
            devices=[DeviceRow(*row) for row in db.execute("select * from devices")],
            index=db.execute(
                "select number, type, priority, status, device, coalesce(completed_ms / 1000, 0)"
                " from tasks left join outcomes on task = number order by number"
            ),
            recent=db.execute(
                "select completed_ms, status, seconds from outcomes where completed_ms > ?"
                " order by completed_ms",
                (wall_ms - HOUR_MS,),
            ).fetchall(),
            submissions=[SubmissionRow(*row) for row in db.execute("select * from submissions")],
            config={
                name: json.loads(text)
                for name, text in db.execute("select section, document from config")
            },
            config_version=meta.get("config_version", 1),
        )

    # --- reading ---------------------------------------------------------------------------------

    def task(self, number: int) -> TaskRow | None:
        """See `Store.task`. Raises `StoreError` for a row whose bytes changed on disk."""
        rows = self._read("select * from tasks where number = ?", (number,))
        if not rows:
            return None
        row = rows[0]
        found = TaskRow(*row[:8])
        if _crc(found.document, found.payload) != row[8]:
            raise StoreError(f"task {number} is damaged in the store {self.path}")
        return found

    def heads(self, numbers: Iterable[int]) -> dict[int, TaskRow]:
        """See `Store.heads`."""
        found = {}
        for part, marks in _chunks(numbers):
            for row in self._read(
                "select number, created_ms, type, priority, timeout_seconds, max_retries, x'', x''"
                f" from tasks where number in ({marks})",
                part,
            ):
                found[row[0]] = TaskRow(*row)
        return found

    def payloads(self, numbers: Iterable[int]) -> dict[int, bytes]:
        """See `Store.payloads`. Damaged ones are left out."""
        query = "select number, document, payload, crc from tasks where number in "
        found = {}
        for part, marks in _chunks(numbers):
            try:
                rows = self._read(f"{query} ({marks})", part)
            except StoreError:
                rows = []  # a damaged page: whatever can still be read, one by one
                for number in part:
                    with contextlib.suppress(StoreError):
                        rows += self._read(f"{query} (?)", (number,))
            for number, document, payload, crc in rows:
                if _crc(document, payload) == crc:
                    found[number] = payload  # noqa: PERF403 - the check reads better here
        return found

    def outcomes(self, numbers: Iterable[int], *, results: bool) -> dict[int, OutcomeRow]:
        """See `Store.outcomes`. Raises `StoreError` for a row whose bytes changed on disk."""
        blobs = "result, details, crc" if results else "x'', x'', 0"
        found = {}
        for part, marks in _chunks(numbers):
            for row in self._read(
                "select task, status, device, attempt, assigned_ms, started_ms, completed_ms,"
                f" seconds, cause, error, retries, {blobs} from outcomes where task in ({marks})",
                part,
            ):
                outcome = OutcomeRow(*row[:13])
                if results and _crc(outcome.result, outcome.details) != row[13]:
                    raise StoreError(
                        f"the result of task {outcome.task} is damaged in the store {self.path}"
                    )
                found[outcome.task] = outcome
        return found

    def attempts(self, number: int) -> list[AttemptRow]:
        """See `Store.attempts`."""
        rows = self._read("select * from attempts where task = ? order by number", (number,))
        return [AttemptRow(*row) for row in rows]

    def _read(self, query: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"the store {self.path} cannot be read: {error}") from None

    def free_percent(self) -> float:
        """See `Store.free_percent`."""
        try:
            usage = shutil.disk_usage(self.path.parent)
        except OSError as error:
            raise StoreError(f"the store {self.path} cannot be reached: {error}") from None
        return 100.0 * usage.free / usage.total

    def close(self) -> None:
        """See `Store.close`."""
        self._db.close()


_WRITERS: Final[dict[type, Callable[[SQLiteStore, Any], None]]] = {
    ins.StoreTasks: SQLiteStore._tasks,
    ins.StoreOutcomes: SQLiteStore._outcomes,
    ins.StoreAttempts: SQLiteStore._attempts,
    ins.StoreLive: SQLiteStore._live,
    ins.ReviveTasks: SQLiteStore._revive,
    ins.StoreDispatch: SQLiteStore._dispatch,
    ins.ForgetDispatches: SQLiteStore._ended_dispatches,
    ins.StoreDevices: SQLiteStore._devices,
    ins.ForgetDevices: SQLiteStore._gone_devices,
    ins.StoreConfig: SQLiteStore._config,
    ins.ForgetTasks: SQLiteStore._gone_tasks,
    ins.ForgetSubmissions: SQLiteStore._gone_submissions,
}
