"""Results on disk until the main node has them, for tasks that may not run twice.

One append-only file. A record is `RCS1`, a kind (`R` result, `F` forget), the sizes of its three
parts, a CRC-32 of kind and parts, and the parts. Results of one turn share one fsync (SD cards
wear). A record that does not check out, such as a torn last one after a power cut, is skipped by
looking for the next `RCS1`. When nothing is left to keep, the file is emptied.

What cannot be read or sent goes with its reason to `results.bad` beside it, one JSON object a line:
it must neither be lost nor keep a worker from starting.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from retire_cluster.conf.machine.oserrors import naming
from retire_cluster.node.core.records import Result
from retire_cluster.schemas.protocol.fields import attempt_key, number
from retire_cluster.schemas.protocol.messages import AttemptKey
from retire_cluster.schemas.protocol.wire import MAX_DETAILS_BYTES, MAX_RESULT_BYTES
from retire_cluster.schemas.text.clean_text import clean
from retire_cluster.schemas.vocabulary import Cause, Outcome

_MAGIC = b"RCS1"
_HEAD = struct.Struct("<cIIII")
_RESULT, _FORGET = b"R", b"F"
_MAX_PART = 64 * 1024 * 1024
#: The file is rewritten without what is forgotten once it is this large.
COMPACT_BYTES = 16 * 1024 * 1024
#: What is set aside beyond this is told and not kept.
_MAX_BAD_BYTES = 16 * 1024 * 1024
_MAX_BAD_PART = 64 * 1024
_OUTCOMES = frozenset(Outcome)
_CAUSES = frozenset(Cause)


class SpoolError(OSError):
    """A result could not be stored: disk full, read-only, broken."""


class Spool:
    """The results that this device still owes, and that must outlive it."""

    def __init__(self, path: Path, *, compact_bytes: int = COMPACT_BYTES) -> None:
        """Open or make the file. Raises `OSError`."""
        self._path = path
        self._compact_bytes = compact_bytes
        self._live: dict[AttemptKey, Result] = {}
        #: Why each damaged place or record was set aside while reading.
        self.reasons: list[str] = []
        self._fd = _open(path)
        self._read()
        self._size = os.lseek(self._fd, 0, os.SEEK_END)
        if not self._live and self._size:
            self._empty()

    def results(self) -> list[Result]:
        """What is kept, in the order it was stored."""
        return list(self._live.values())

    def store(self, results: Iterable[Result]) -> None:
        """Keep results; they are on the disk when this returns.

        Raises `SpoolError`; the results are then kept in memory only.
        """
        rows = list(results)
        for result in rows:
            self._live[result.key] = result
        try:
            self._append(b"".join(_result_record(result) for result in rows))
            _sync(self._fd)
        except OSError as error:
            raise SpoolError(
                error.errno, f"cannot store results: {naming(error, self._path)}"
            ) from None

    def forget(self, keys: Iterable[AttemptKey]) -> None:
        """Drop results. Not synced: forgetting one twice does no harm. Raises `SpoolError`."""
        gone = [key for key in keys if self._live.pop(key, None) is not None]
        if not gone:
            return
        try:
            if not self._live:
                self._empty()
                return
            self._append(_record(_FORGET, json.dumps(gone).encode()))
            if self._size > self._compact_bytes:
                self._compact()
        except OSError as error:
            raise SpoolError(
                error.errno, f"cannot tidy results: {naming(error, self._path)}"
            ) from None

    def set_aside(self, result: Result, reason: str) -> None:
        """Note a result that cannot be sent in `results.bad`. Raises `SpoolError`."""
        self._put_aside(reason, result_row(result), result.data, result.details)

    def close(self) -> None:
        """Give the file back; what is kept stays in it."""
        os.close(self._fd)

    # --- the file -----------------------------------------------------------------------------

    def _append(self, data: bytes) -> None:
        os.lseek(self._fd, self._size, os.SEEK_SET)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._size += len(data)

    def _empty(self) -> None:
        os.ftruncate(self._fd, 0)
        self._size = 0

    def _compact(self) -> None:
        temporary = self._path.with_suffix(".new")
        data = b"".join(_result_record(result) for result in self._live.values())
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            _sync(file.fileno())
        os.close(self._fd)  # Windows cannot replace an open file
        try:
            os.replace(temporary, self._path)
        finally:
            self._fd = _open(self._path)
            self._size = os.lseek(self._fd, 0, os.SEEK_END)

    def _read(self) -> None:
        os.lseek(self._fd, 0, os.SEEK_SET)
        parts = []
        while part := os.read(self._fd, 1 << 20):
            parts.append(part)
        for kind, head, data, details in self._records(b"".join(parts)):
            try:
                content = json.loads(head)
                if kind == _FORGET:
                    for row in content:
                        self._live.pop(_key(row), None)
                else:
                    result = read_result(content, data, details)
                    self._live[result.key] = result
            except (ValueError, TypeError, RecursionError) as error:
                self._leave_out(f"a stored result cannot be used: {error}", head, data, details)

    def _leave_out(self, reason: str, *parts: bytes) -> None:
        self.reasons.append(reason)
        with contextlib.suppress(OSError):
            self._put_aside(reason, *parts)

    def _put_aside(self, reason: str, *parts: bytes) -> None:
        row = {
            "reason": reason,
            "parts": [part[:_MAX_BAD_PART].decode("utf-8", "backslashreplace") for part in parts],
        }
        data = (json.dumps(row) + "\n").encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        bad = self._path.with_suffix(".bad")
        try:
            fd = os.open(bad, flags, 0o600)
            try:
                if os.fstat(fd).st_size + len(data) <= _MAX_BAD_BYTES:
                    os.write(fd, data)
            finally:
                os.close(fd)
        except OSError as error:
            raise SpoolError(
                error.errno, f"cannot set a result aside: {naming(error, bad)}"
            ) from None

    def _records(self, text: bytes) -> Iterator[tuple[bytes, bytes, bytes, bytes]]:
        at = 0
        while at < len(text):
            record, end = _parse(text, at)
            if record is not None:
                yield record
                at = end
                continue
            found = text.find(_MAGIC, at + 1)
            end = found if found >= 0 else len(text)
            self._leave_out(f"{end - at} damaged bytes", text[at:end])
            at = end


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)


def _parse(text: bytes, at: int) -> tuple[tuple[bytes, bytes, bytes, bytes] | None, int]:
    start = at + len(_MAGIC)
    body = start + _HEAD.size
    if body > len(text) or text[at:start] != _MAGIC:
        return None, at
    kind, head_size, data_size, details_size, checksum = _HEAD.unpack_from(text, start)
    end = body + head_size + data_size + details_size
    if max(head_size, data_size, details_size) > _MAX_PART or end > len(text):
        return None, at
    if kind not in (_RESULT, _FORGET) or _checksum(kind, text[body:end]) != checksum:
        return None, at
    middle, last = body + head_size, body + head_size + data_size
    return (kind, text[body:middle], text[middle:last], text[last:end]), end


def _record(kind: bytes, head: bytes, data: bytes = b"", details: bytes = b"") -> bytes:
    body = head + data + details
    sizes = (len(head), len(data), len(details))
    return _MAGIC + _HEAD.pack(kind, *sizes, _checksum(kind, body)) + body


def _result_record(result: Result) -> bytes:
    return _record(_RESULT, result_row(result), result.data, result.details)


def result_row(result: Result) -> bytes:
    """What a record holds of a result beside its texts."""
    return json.dumps([list(result.key), *result[1:5]], default=repr).encode()


def read_result(row: object, data: bytes, details: bytes) -> Result:
    """A result that can be sent. Raises `ValueError` naming what is wrong with it."""
    if not isinstance(row, list) or len(row) != 5:
        raise ValueError("a result has five fields")
    key, outcome, seconds, cause, message = row
    if not isinstance(outcome, str) or outcome not in _OUTCOMES:
        raise ValueError("its outcome is none")
    if cause is not None and (not isinstance(cause, str) or cause not in _CAUSES):
        raise ValueError("its cause is none")
    if message is not None and not isinstance(message, str):
        raise ValueError("its message is not a text")
    if len(data) > MAX_RESULT_BYTES or len(details) > MAX_DETAILS_BYTES:
        raise ValueError("its result or details are too large")
    took = number(seconds, "its duration")
    message = None if message is None else clean(message)
    return Result(attempt_key(key, 4, "its key"), outcome, took, cause, message, data, details)


def _checksum(kind: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(kind))


def _key(row: object) -> AttemptKey:
    if not isinstance(row, list) or len(row) != 4 or not all(type(n) is int for n in row):
        raise ValueError("no key")
    return (row[0], row[1], row[2], row[3])


def _sync(fd: int) -> None:
    getattr(os, "fdatasync", os.fsync)(fd)
