"""The durable store: one SQLite file, WAL, `synchronous=FULL`, one connection, one commit a turn.

There is no index beside the primary keys, because lists and counts come from the ledger. Rows of
`tasks`, `outcomes` and `audit` carry a CRC-32 of all that matters in them: SQLite's own check does
not see a flipped byte. Rows of other tables have none; of them only what has the wrong form is
noticed. A row of `tasks` or `outcomes` that does not check out concerns its own task only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.rows import (
    AttemptRow,
    OutcomeRow,
    Snapshot,
    TaskRow,
)
from retire_cluster.broker.store import checksums, sqlite_writes
from retire_cluster.broker.store.base import (
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
from retire_cluster.broker.store.sqlite_loading import CURE, load, unreadable
from retire_cluster.broker.store.sqlite_writes import chunks


class SQLiteStore:
    """See `base.Store` and the module's text.

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
                text = f"the store {path} cannot be used: {error}; {CURE}"
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
                sqlite_writes.perform(self._db, write)
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

    # --- starting --------------------------------------------------------------------------------

    def load(self, begin: Callable[[int], int], inline_bytes: int) -> Snapshot:
        """See `Store.load`."""
        try:
            return load(self._db, self.path, begin, inline_bytes)
        except (sqlite3.Error, ValueError, TypeError) as error:
            self._roll_back()
            raise unreadable(self.path, error) from None

    # --- reading ---------------------------------------------------------------------------------

    def task(self, number: int) -> TaskRow | None:
        """See `Store.task`."""
        rows = self._read("select * from tasks where number = ?", (number,))
        if not rows:
            return None
        if not checksums.is_task_whole(rows[0]):
            raise RowDamaged(number, "task", str(self.path))
        return TaskRow(*rows[0][:8])

    def heads(self, numbers: Iterable[int]) -> dict[int, TaskRow]:
        """See `Store.heads`."""
        found = {}
        for part, marks in chunks(numbers):
            for row in self._read(
                "select number, created_ms, type, priority, timeout_seconds, max_retries, x'', x''"
                f" from tasks where number in ({marks})",
                part,
            ):
                found[row[0]] = checksums.showable(TaskRow(*row))
        return found

    def openings(self, numbers: Iterable[int]) -> dict[int, tuple[bytes, bytes]]:
        """See `Store.openings`."""
        found = {}
        for part, marks in chunks(numbers):
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
        for part, marks in chunks(numbers):
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
            found.read.update((row[0], row[7]) for row in rows if checksums.is_task_whole(row))
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
        for part, marks in chunks(missing):
            for row in self._read(
                "select task, status, device, attempt, assigned_ms, started_ms, completed_ms,"
                f" seconds, cause, error, retries, {blobs} from outcomes where task in ({marks})",
                part,
            ):
                if results and not checksums.is_outcome_whole(row):
                    raise RowDamaged(row[0], "the result of task", str(self.path))
                outcome = OutcomeRow._make((*row[:13], row[14]))
                if not results and outcome.status not in checksums.ENDED:
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
