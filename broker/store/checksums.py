"""Rows as the durable store reads them back: is each one what was written?

Rows of `tasks`, `outcomes` and `audit`, and the mark of the cluster's age, have a CRC-32 over what
matters in them; other rows have none. That of tasks and outcomes is kept cheap: rows of one batch
mostly have the same form (type, limits, status, device), whose part is made once.
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from retire_cluster.broker.core.rows import (
    AuditRow,
    DispatchRow,
    IndexRow,
    LiveRow,
    Mark,
    SubmissionRow,
    TaskRow,
)
from retire_cluster.schemas.vocabulary import TERMINAL

ENDED: Final = frozenset(status.value for status in TERMINAL)
#: What a damaged task type is shown as.
UNREADABLE: Final = "unreadable"
_MASK: Final = 0xFFFFFFFF

# --- checksums of tasks and outcomes -------------------------------------------------------------


def form_checksum(form: Sequence[Any]) -> int:
    """Return the checksum of `(type, priority, timeout, retries, document)`."""
    head = f"{form[0]} {form[1]} {form[2]} {form[3]}".encode("utf-8", "replace")
    return zlib.crc32(form[4], zlib.crc32(head))


def task_checksum(row: Sequence[Any], form: int) -> int:
    """Return the checksum of a row of `tasks`, from that of its form."""
    return int(zlib.crc32(row[7], form) ^ (row[0] & _MASK) ^ (row[1] & _MASK))


def outcome_form_checksum(form: Sequence[Any]) -> int:
    """Return the checksum of `(status, device, attempt, cause, error, retries)`."""
    return zlib.crc32(" ".join(map(str, form)).encode("utf-8", "replace"))


def outcome_checksum(row: Sequence[Any], form: int) -> int:
    """Return the checksum of a row of `outcomes`, from that of its form."""
    checksum = zlib.crc32(row[12], zlib.crc32(row[11], form))
    return int(checksum ^ (row[0] & _MASK) ^ (row[6] & _MASK))


def is_task_whole(
    row: Sequence[Any], checksum: Callable[[Sequence[Any]], int] = form_checksum
) -> bool:
    """Tell whether a row of `tasks` is what was written; its ninth column is the checksum.

    `checksum`: `form_checksum`, or one that remembers, for rows whose columns have the right types.
    """
    try:
        return bool(task_checksum(row, checksum(row[2:7])) == row[8])
    except (TypeError, ValueError):  # a column became another type
        return False


def is_outcome_whole(row: Sequence[Any]) -> bool:
    """Tell whether a row of `outcomes` is what was written; `row[13]` is the checksum."""
    try:
        form = outcome_form_checksum((*row[1:4], *row[8:11]))
        return bool(outcome_checksum(row, form) == row[13])
    except (TypeError, ValueError):
        return False


# --- rows of the other tables: usable, or a ValueError or TypeError ------------------------------


def _whole_numbers(values: Iterable[object]) -> None:
    if not all(type(value) is int for value in values):
        raise ValueError("a whole number is something else")


def _counts(values: Sequence[object]) -> tuple[int, int]:
    _whole_numbers(values)
    times, attempt = values
    return times, attempt  # type: ignore[return-value]


def live_row(row: Sequence[Any]) -> LiveRow:
    """Read a row of `live`."""
    _whole_numbers(row[:5])
    excluded = tuple((str(name), str(word)) for name, word in json.loads(row[5]))
    killers = tuple(json.loads(row[6]))
    tried = tuple(json.loads(row[7]))
    given_back = tuple((str(name), *_counts(times)) for name, *times in json.loads(row[8]))
    return LiveRow(row[0], row[1], row[2], row[3], row[4], excluded, killers, tried, given_back)


def dispatch_row(row: Sequence[Any]) -> DispatchRow:
    """Read a row of `dispatches`."""
    _whole_numbers((*row[:3], row[4]))
    numbers = array("q")
    numbers.frombytes(row[5])
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return DispatchRow(row[0], row[1], row[2], row[3], row[4], pairs)


def submission_row(row: Sequence[Any]) -> SubmissionRow:
    """Read a row of `submissions`."""
    _whole_numbers(row[3:7])
    return SubmissionRow(*row)


def config_row(row: Sequence[Any]) -> tuple[str, dict[str, Any]]:
    """Read a row of `config`: section and values."""
    document = json.loads(row[1])
    if not isinstance(document, dict):
        raise ValueError("it is no object")
    return row[0], document


def audit_columns(row: AuditRow, denial: bool) -> tuple[Any, ...]:
    """Return the columns of a row of `audit`, the last one its checksum."""
    columns = (row.id, int(denial), *row[1:4], json.dumps(row.data))
    return (*columns, _audit_checksum(columns))


def audit_row(row: Sequence[Any]) -> AuditRow:
    """Read a row of `audit`. Raises `ValueError` when it is not what was written."""
    if _audit_checksum(row[:6]) != row[6]:
        raise ValueError("it is not what was written")
    return AuditRow(row[0], row[2], row[3], row[4], json.loads(row[5]))


def _audit_checksum(columns: Sequence[Any]) -> int:
    return zlib.crc32(json.dumps(columns).encode())


def mark_text(mark: Mark) -> str:
    """Write a mark of the cluster's age with a checksum: a wrong one would make all old."""
    text = json.dumps(mark)
    return f"{zlib.crc32(text.encode()):08x} {text}"


def mark(kept: object, warnings: list[str]) -> Mark | None:
    """Read the stored mark; None, with a warning, for a damaged one."""
    if kept is None:
        return None
    checksum, _, text = str(kept).partition(" ")
    if checksum != f"{zlib.crc32(text.encode()):08x}":
        warnings.append("the mark of the cluster's age is damaged: everything is new from now on")
        return None
    return Mark(*json.loads(text))


_LIVE_KINDS: Final = (int, int, str, int, int, int, bytes)


def is_sane(row: Sequence[Any]) -> bool:
    """Tell whether what is used of a live task before its payload is read can be used."""
    return 0 <= row[3] <= 3 if all(map(isinstance, row, _LIVE_KINDS)) else False


def showable(head: TaskRow) -> TaskRow:
    """Return a task's head as lists can show it, whatever happened to it."""
    if type(head.task_type) is str and head.priority in (0, 1, 2, 3):
        return head
    kind = head.task_type if type(head.task_type) is str else UNREADABLE
    return head._replace(task_type=kind, priority=1)


def index_row(row: Sequence[Any]) -> IndexRow:
    """Return one task for the ledger, as far as the ledger can hold it.

    A status that is none counts as `failed`; content is checked when a task is looked at.
    """
    number, kind, priority, status, device, ended_s = row
    if (
        type(kind) is str
        and priority in (0, 1, 2, 3)
        and (status is None or status in ENDED)
        and type(ended_s) is int
        and 0 <= ended_s <= _MASK
        and (device is None or type(device) is str)
    ):
        return number, kind, priority, status, device, ended_s
    return (
        number,
        kind if type(kind) is str else UNREADABLE,
        priority if priority in (0, 1, 2, 3) else 1,
        None if status is None else (status if status in ENDED else "failed"),
        device if type(device) is str else None,
        ended_s if type(ended_s) is int and 0 <= ended_s <= _MASK else 0,
    )
