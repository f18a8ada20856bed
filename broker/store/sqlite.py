"""The durable store: one SQLite file, WAL, `synchronous=FULL`, one connection, one commit a turn.

Tasks and outcomes are only ever inserted on the usual path (a few multi-row statements a turn);
there is no index beside the primary keys, because lists and counts come from the ledger. Every row
with a blob carries a CRC-32 of all that matters in it: SQLite's own check does not see a flipped
byte. A row that does not check out concerns its own task only; what else is damaged is left out
with a warning, unless nothing could be trusted without it (then the store is refused).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import secrets
import shutil
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, TypeVar

from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.rows import (
    AccessRow,
    AttemptRow,
    DeviceRow,
    IndexRow,
    OutcomeRow,
    Snapshot,
    TaskRow,
)
from retire_cluster.broker.store import checksums as sealed
from retire_cluster.broker.store.base import (
    HOUR_SECONDS,
    Payloads,
    RowDamaged,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreTrouble,
)
from retire_cluster.broker.store.patience import Patience, is_damage
from retire_cluster.broker.store.recent import RecentOutcomes
from retire_cluster.broker.store.schema import migrate
from retire_cluster.schemas.ids import SALT_BITS

#: Rows of one multi-row statement.
_ROWS: Final = 250


_Row = TypeVar("_Row")
_CURE: Final = (
    "restore a backup, start with another --data-dir or --store, or set the damaged file aside "
    "with --set-aside-damaged and begin with an empty one"
)
#: What the salt is stored a second time with.
_SALT_CHECK: Final = 0x2AAAAAAAA
_INDEX: Final = (
    "select number, type, priority, status, device, coalesce(ended_s, 0)"
    " from tasks left join outcomes on task = number order by number"
)


#: What the tasks of one request, and the outcomes of one batch, mostly have in common.
_TASK_FORM: Final = itemgetter(1, 2, 3, 4, 5, 6)
_OUTCOME_FORM: Final = itemgetter(1, 2, 3, 4, 6, 8, 9, 10, 13)


@functools.lru_cache(maxsize=2 * _ROWS)
def _alike(table: str, layout: str, rows: int) -> str:
    """The statement of `SQLiteStore._insert_alike`.

    Its parameters have no numbers: from 3.14 on, Python takes those from a mapping alone.
    """
    common, varying = itertools.count(1), itertools.count(1)
    columns = [
        f"common.column{next(common)}" if letter == "c" else f"own.column{next(varying)}"
        for letter in layout
    ]
    shared, row = (",".join("?" * layout.count(letter)) for letter in "cv")
    return (
        f"insert into {table} with common as (values ({shared})),"
        f" own as (values {','.join([f'({row})'] * rows)})"
        f" select {','.join(columns)} from own cross join common"
    )


def _chunks(numbers: Iterable[int]) -> Iterator[tuple[list[int], str]]:
    rows = list(numbers)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        yield part, ",".join("?" * len(part))


class SQLiteStore:
    """See `store.Store` and the module's text.

    :param path: the database file; its folder must exist
    """

    def __init__(self, path: Path) -> None:
        self.name = f"sqlite:///{path.as_posix()}"
        self.path = path
        self.commits = 0
        self._recent = RecentOutcomes()
        self._patience = Patience()
        try:
            self._db = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, cached_statements=512
            )
            try:
                self._patience.read(self._prepare)
            except BaseException:
                # Windows sets no file aside that is still open.
                self._db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            if is_damage(error):
                text = f"the store {path} cannot be used: {error}; {_CURE}"
                raise StoreDamaged(text) from None
            raise StoreError(
                f"the store {path} cannot be used: {error}; check the folder's permissions and "
                "free space, or start with another --data-dir"
            ) from None

    def _prepare(self) -> None:
        for pragma in (
            "journal_mode=wal",
            "synchronous=full",
            "wal_autocheckpoint=4000",
            "cache_size=-65536",
            "temp_store=memory",
        ):
            self._db.execute(f"pragma {pragma}")
        if os.name == "posix":
            os.chmod(self.path, 0o600)
        migrate(self._db, self.path)

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
        self._remember(writes)

    def _remember(self, writes: Sequence[ins.Write]) -> None:
        for write in writes:
            if isinstance(write, ins.StoreOutcomes):
                self._recent.note(write.rows)
            elif isinstance(write, (ins.ReviveTasks, ins.ForgetTasks)):
                self._recent.forget(write.tasks)

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

    def _insert_alike(
        self, table: str, layout: str, common: Sequence[Any], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Insert rows that have some columns in common: those are bound once a statement.

        `layout`: one letter a column, `c` the next of `common`, `v` the next of the row.
        """
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            statement = _alike(table, layout, len(part))
            self._db.execute(statement, [*common, *chain.from_iterable(part)])

    def _tasks(self, write: ins.StoreTasks) -> None:
        for form, some in groupby(write.rows, _TASK_FORM):
            seal = sealed.form_seal(form[1:])
            rows = [(row[0], row[7], sealed.task_seal(row, seal)) for row in some]
            self._insert_alike("tasks", "vccccccvv", form, rows)
        self._insert("insert or replace into submissions values", 7, write.submissions)

    def _outcomes(self, write: ins.StoreOutcomes) -> None:
        for form, some in groupby(write.rows, _OUTCOME_FORM):
            status, device, attempt, _, _, *rest, _ = form
            seal = sealed.outcome_form_seal((status, device, attempt, *rest))
            rows = [
                (row[0], row[5], row[7], row[11], row[12], sealed.outcome_seal(row, seal))
                for row in some
            ]
            self._insert_alike("outcomes", "vccccvcvcccvvvc", form, rows)
        self._delete("live", "task", write.deviating)

    def _attempts(self, write: ins.StoreAttempts) -> None:
        for gone in write.replaced:
            self._db.execute("delete from attempts where task = ? and number = ?", gone)
        self._insert("insert or replace into attempts values", 13, write.rows)

    def _live(self, write: ins.StoreLive) -> None:
        rows = [(*row[:5], *map(json.dumps, row[5:])) for row in write.rows]
        self._insert("insert or replace into live values", 9, rows)

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

    def _access(self, write: ins.StoreAccess) -> None:
        for row in write.rows:
            if row.document is None:
                self._db.execute("delete from access where kind = ? and name = ?", row[:2])
            else:
                self._insert("insert or replace into access values", 3, [row])

    def _audit(self, write: ins.StoreAudit) -> None:
        rows = [sealed.audit_columns(row, write.denials) for row in write.rows]
        self._insert("insert or replace into audit values", 7, rows)
        gone = (int(write.denials), write.oldest)
        self._db.execute("delete from audit where denial = ? and id < ?", gone)

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
        self._db.execute("delete from submissions where at_s < ?", (write.before_s,))

    def _mark(self, write: ins.StoreMark) -> None:
        self._set("mark", sealed.mark_text(write.mark))

    def _delete(self, table: str, column: str, numbers: Sequence[int]) -> None:
        for part, marks in _chunks(numbers):
            self._db.execute(f"delete from {table} where {column} in ({marks})", part)

    def _set(self, name: str, value: object) -> None:
        self._db.execute("insert or replace into meta values(?, ?)", (name, value))

    # --- starting --------------------------------------------------------------------------------

    def load(self, begin: Callable[[int], int], inline_bytes: int) -> Snapshot:
        """See `Store.load`."""
        try:
            return self._load(begin, inline_bytes)
        except (sqlite3.Error, ValueError, TypeError) as error:
            self._roll_back()
            raise self._unreadable(error) from None

    def _load(self, begin: Callable[[int], int], inline_bytes: int) -> Snapshot:
        db = self._db
        warnings: list[str] = []
        meta = dict(db.execute("select name, value from meta").fetchall())
        salt = self._salt(meta)
        mark = sealed.mark(meta.get("mark"), warnings)
        since_s = (0 if mark is None else mark.age_ms // 1000) - HOUR_SECONDS
        last_event = 0 if mark is None else mark.last_event
        audit = self._sound("audit", sealed.audit_row, warnings)
        last_event = max([last_event, *(row.id for row in audit[-1:])])
        epoch = begin(max(int(meta.get("epoch", 0)), last_event))
        newest = db.execute("select coalesce(max(number), 0) from tasks").fetchone()[0]
        newest = max(newest, int(meta.get("newest_task", 0)))
        dispatch = db.execute("select coalesce(max(number), 0) from dispatches").fetchone()[0]
        dispatch = max(dispatch, int(meta.get("newest_dispatch", 0)))
        db.execute("begin immediate")
        self._set("salt", salt)
        self._set("salt_check", salt ^ _SALT_CHECK)
        self._set("epoch", epoch)
        self._set("newest_task", newest)
        self._set("newest_dispatch", dispatch)
        db.execute("commit")
        live, sizes, damaged = [], {}, []
        seal = functools.lru_cache(maxsize=1024)(sealed.form_seal)
        for row in db.execute(
            "select number, created_ms, type, priority, timeout_seconds, max_retries, document,"
            " iif(length(payload) <= ?, payload, x''), crc, length(payload) from tasks"
            " where number not in (select task from outcomes) order by number",
            (inline_bytes,),
        ):
            found = TaskRow(*row[:8])
            sizes[row[0]] = row[9]
            inline = len(found.payload) == row[9]
            if not sealed.is_sane(row) or (inline and not sealed.is_task_whole(row, seal)):
                # It is not run: it fails as soon as the broker is up.
                damaged.append(row[0])
                found = TaskRow(row[0], row[1], sealed.UNREADABLE, 1, 300, 0, b"{}", b"")
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
            deviations={row.task: row for row in self._sound("live", sealed.live_row, warnings)},
            dispatches=self._sound("dispatches", sealed.dispatch_row, warnings),
            devices=[DeviceRow(*row) for row in db.execute("select * from devices")],
            index=self._index(),
            recent=[
                row
                for row in db.execute(
                    "select ended_s, status, seconds from outcomes where ended_s > ?"
                    " order by ended_s",
                    (since_s,),
                )
                if row[1] in sealed.ENDED
            ],
            submissions=self._sound("submissions", sealed.submission_row, warnings),
            access=[AccessRow(*row) for row in db.execute("select * from access")],
            audit=audit,
            config=dict(self._sound("config", sealed.config_row, warnings)),
            config_version=int(meta.get("config_version", 1)),
            damaged=damaged,
            warnings=warnings,
        )

    def _index(self) -> Iterator[IndexRow]:
        try:
            yield from map(sealed.index_row, self._db.execute(_INDEX))
        except sqlite3.Error as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> StoreError:
        text = f"the store {self.path} cannot be read: {error}"
        if is_damage(error):
            return StoreDamaged(f"{text}; {_CURE}")
        return StoreTrouble(text) if isinstance(error, sqlite3.Error) else StoreError(text)

    def _salt(self, meta: dict[str, Any]) -> int:
        """What makes task ids of task numbers: with a wrong one no id would be found again."""
        salt = meta.get("salt")
        if salt is None:
            return secrets.randbits(SALT_BITS)
        check = meta.get("salt_check")
        if type(salt) is not int or (check is not None and check != salt ^ _SALT_CHECK):
            raise StoreDamaged(f"the store {self.path} is damaged (its salt); {_CURE}")
        return salt

    def _sound(
        self, table: str, read: Callable[[Sequence[Any]], _Row], warnings: list[str]
    ) -> list[_Row]:
        """Rows of a small table; damaged ones are left out."""
        found = []
        for row in self._db.execute(f"select * from {table} order by 1"):
            try:
                found.append(read(row))
            except (ValueError, TypeError, IndexError) as error:
                warnings.append(f"a damaged row of {table} is left out ({row[0]!r:.60}): {error}")
        return found

    # --- reading ---------------------------------------------------------------------------------

    def task(self, number: int) -> TaskRow | None:
        """See `Store.task`."""
        rows = self._read("select * from tasks where number = ?", (number,))
        if not rows:
            return None
        if not sealed.is_task_whole(rows[0]):
            raise RowDamaged(number, "task", str(self.path))
        return TaskRow(*rows[0][:8])

    def heads(self, numbers: Iterable[int]) -> dict[int, TaskRow]:
        """See `Store.heads`."""
        found = {}
        for part, marks in _chunks(numbers):
            for row in self._read(
                "select number, created_ms, type, priority, timeout_seconds, max_retries, x'', x''"
                f" from tasks where number in ({marks})",
                part,
            ):
                found[row[0]] = sealed.showable(TaskRow(*row))
        return found

    def openings(self, numbers: Iterable[int]) -> dict[int, tuple[bytes, bytes]]:
        """See `Store.openings`."""
        found = {}
        for part, marks in _chunks(numbers):
            for number, document, payload in self._read(
                "select number, document, substr(payload, 1, 400) from tasks"
                f" where number in ({marks})",
                part,
            ):
                if isinstance(document, bytes) and isinstance(payload, bytes):
                    found[number] = (document, payload)
        return found

    def payloads(self, numbers: Iterable[int]) -> Payloads:
        """See `Store.payloads`."""
        query = "select * from tasks where number in "
        found = Payloads({}, {})
        for part, marks in _chunks(numbers):
            try:
                rows = self._read(f"{query} ({marks})", part)
            except StoreError:
                rows = []  # a bad page: whatever can still be read, one by one
                for number in part:
                    try:
                        rows += self._read(f"{query} (?)", (number,))
                    except StoreTrouble as error:
                        found.unread[number] = str(error)
                    except StoreError:
                        pass  # damaged
            found.read.update((row[0], row[7]) for row in rows if sealed.is_task_whole(row))
        return found

    def outcomes(self, numbers: Iterable[int], *, results: bool) -> dict[int, OutcomeRow]:
        """See `Store.outcomes`."""
        blobs = "result, details, crc, ended_s" if results else "x'', x'', 0, ended_s"
        found, missing = {}, []
        for number in numbers:
            recent = self._recent.get(number)
            if recent is None:
                missing.append(number)
            else:
                found[number] = recent
        for part, marks in _chunks(missing):
            for row in self._read(
                "select task, status, device, attempt, assigned_ms, started_ms, completed_ms,"
                f" seconds, cause, error, retries, {blobs} from outcomes where task in ({marks})",
                part,
            ):
                if results and not sealed.is_outcome_whole(row):
                    raise RowDamaged(row[0], "the result of task", str(self.path))
                outcome = OutcomeRow._make((*row[:13], row[14]))
                if not results and outcome.status not in sealed.ENDED:
                    outcome = outcome._replace(status="failed")  # as the ledger has it
                found[outcome.task] = outcome
        return found

    def attempts(self, number: int) -> list[AttemptRow]:
        """See `Store.attempts`."""
        rows = self._read("select * from attempts where task = ? order by number", (number,))
        return [AttemptRow(*row) for row in rows]

    def _read(self, query: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self._patience.read(lambda: self._db.execute(query, values).fetchall())
        except sqlite3.Error as error:
            kind = StoreError if is_damage(error) else StoreTrouble
            raise kind(f"the store {self.path} cannot be read: {error}") from None

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
    ins.StoreAccess: SQLiteStore._access,
    ins.ForgetTasks: SQLiteStore._gone_tasks,
    ins.ForgetSubmissions: SQLiteStore._gone_submissions,
    ins.StoreAudit: SQLiteStore._audit,
    ins.StoreMark: SQLiteStore._mark,
}
