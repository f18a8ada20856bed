"""What each `Write` is in SQL.

Tasks and outcomes are only ever inserted on the usual path (a few multi-row statements a turn).
"""

from __future__ import annotations

import functools
import itertools
import json
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, Final

from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.store import checksums

#: Rows of one multi-row statement.
_ROWS: Final = 250
#: What the tasks of one request, and the outcomes of one batch, mostly have in common.
_TASK_FORM: Final = itemgetter(1, 2, 3, 4, 5, 6)
_OUTCOME_FORM: Final = itemgetter(1, 2, 3, 4, 6, 8, 9, 10, 13)

Db = sqlite3.Connection


def perform(db: Db, write: ins.Write) -> None:
    """Perform one write within the transaction that is open. Raises `sqlite3.Error`."""
    _WRITERS[type(write)](db, write)


def chunks(numbers: Iterable[int]) -> Iterator[tuple[list[int], str]]:
    """Yield numbers in parts of one statement each, with the parameter marks of each."""
    rows = list(numbers)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        yield part, ",".join("?" * len(part))


@functools.lru_cache(maxsize=2 * _ROWS)
def _alike(table: str, layout: str, rows: int) -> str:
    """Return the statement of `_insert_alike`.

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


def _insert(db: Db, head: str, columns: int, rows: Sequence[Sequence[Any]]) -> None:
    one = "(" + ",".join("?" * columns) + ")"
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        values = [value for row in part for value in row]
        db.execute(head + ",".join([one] * len(part)), values)


def _insert_alike(
    db: Db, table: str, layout: str, common: Sequence[Any], rows: Sequence[Sequence[Any]]
) -> None:
    """Insert rows that have some columns in common: those are bound once a statement.

    `layout`: one letter a column, `c` the next of `common`, `v` the next of the row.
    """
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        statement = _alike(table, layout, len(part))
        db.execute(statement, [*common, *chain.from_iterable(part)])


def _tasks(db: Db, write: ins.StoreTasks) -> None:
    for form, some in groupby(write.rows, _TASK_FORM):
        checksum = checksums.form_checksum(form[1:])
        rows = [(row[0], row[7], checksums.task_checksum(row, checksum)) for row in some]
        _insert_alike(db, "tasks", "vccccccvv", form, rows)
    _insert(db, "insert or replace into submissions values", 7, write.submissions)


def _outcomes(db: Db, write: ins.StoreOutcomes) -> None:
    for form, some in groupby(write.rows, _OUTCOME_FORM):
        status, device, attempt, _, _, *rest, _ = form
        checksum = checksums.outcome_form_checksum((status, device, attempt, *rest))
        rows = [
            (row[0], row[5], row[7], row[11], row[12], checksums.outcome_checksum(row, checksum))
            for row in some
        ]
        _insert_alike(db, "outcomes", "vccccvcvcccvvvc", form, rows)
    _delete(db, "live", "task", write.deviating)


def _attempts(db: Db, write: ins.StoreAttempts) -> None:
    for gone in write.replaced:
        db.execute("delete from attempts where task = ? and number = ?", gone)
    _insert(db, "insert or replace into attempts values", 13, write.rows)


def _live(db: Db, write: ins.StoreLive) -> None:
    rows = [(*row[:5], *map(json.dumps, row[5:])) for row in write.rows]
    _insert(db, "insert or replace into live values", 9, rows)


def _revive(db: Db, write: ins.ReviveTasks) -> None:
    _delete(db, "outcomes", "task", write.tasks)


def _dispatch(db: Db, write: ins.StoreDispatch) -> None:
    row = write.row
    packed = array("q", [number for pair in row.attempts for number in pair]).tobytes()
    _insert(db, "insert into dispatches values", 6, [(*row[:5], packed)])


def _ended_dispatches(db: Db, write: ins.ForgetDispatches) -> None:
    _delete(db, "dispatches", "number", write.numbers)


def _devices(db: Db, write: ins.StoreDevices) -> None:
    _insert(db, "insert or replace into devices values", 4, write.rows)


def _gone_devices(db: Db, write: ins.ForgetDevices) -> None:
    for device_id in write.device_ids:
        db.execute("delete from devices where device = ?", (device_id,))


def _config(db: Db, write: ins.StoreConfig) -> None:
    rows = [(name, json.dumps(values)) for name, values in write.sections.items()]
    _insert(db, "insert or replace into config values", 2, rows)
    put(db, "config_version", write.version)


def _access(db: Db, write: ins.StoreAccess) -> None:
    for row in write.rows:
        if row.document is None:
            db.execute("delete from access where kind = ? and name = ?", row[:2])
        else:
            _insert(db, "insert or replace into access values", 3, [row])


def _audit(db: Db, write: ins.StoreAudit) -> None:
    rows = [checksums.audit_columns(row, write.denials) for row in write.rows]
    _insert(db, "insert or replace into audit values", 7, rows)
    gone = (int(write.denials), write.oldest)
    db.execute("delete from audit where denial = ? and id < ?", gone)


def _gone_tasks(db: Db, write: ins.ForgetTasks) -> None:
    # Numbers are never used twice, also when the newest task is deleted.
    db.execute(
        "insert or replace into meta select 'newest_task', max("
        "coalesce((select max(number) from tasks), 0),"
        "coalesce((select value from meta where name = 'newest_task'), 0))"
    )
    _delete(db, "tasks", "number", write.tasks)
    for table in ("outcomes", "attempts", "live"):
        _delete(db, table, "task", write.tasks)


def _gone_submissions(db: Db, write: ins.ForgetSubmissions) -> None:
    db.execute("delete from submissions where at_s < ?", (write.before_s,))


def _mark(db: Db, write: ins.StoreMark) -> None:
    put(db, "mark", checksums.mark_text(write.mark))


def _delete(db: Db, table: str, column: str, numbers: Sequence[int]) -> None:
    for part, marks in chunks(numbers):
        db.execute(f"delete from {table} where {column} in ({marks})", part)


def put(db: Db, name: str, value: object) -> None:
    """Keep a value of the store's own."""
    db.execute("insert or replace into meta values(?, ?)", (name, value))


_WRITERS: Final[dict[type, Callable[[Db, Any], None]]] = {
    ins.StoreTasks: _tasks,
    ins.StoreOutcomes: _outcomes,
    ins.StoreAttempts: _attempts,
    ins.StoreLive: _live,
    ins.ReviveTasks: _revive,
    ins.StoreDispatch: _dispatch,
    ins.ForgetDispatches: _ended_dispatches,
    ins.StoreDevices: _devices,
    ins.ForgetDevices: _gone_devices,
    ins.StoreConfig: _config,
    ins.StoreAccess: _access,
    ins.ForgetTasks: _gone_tasks,
    ins.ForgetSubmissions: _gone_submissions,
    ins.StoreAudit: _audit,
    ins.StoreMark: _mark,
}
