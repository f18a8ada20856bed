"""What a `map` has submitted: a file for each run, by which it goes on later.

Lines are known by what they say, not by where they stand, so that a list may change between two
runs. Before a submission what it sends is put aside; a run that was killed in the middle makes the
very same submission again, which the main node does once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, TextIO

from retire_cluster.conf.machine.locks import FolderLock, FolderLocked
from retire_cluster.schemas.errors import ValidationError

#: A file nobody has touched for so long is of tasks that are kept no longer.
_OLD_SECONDS: Final = 60 * 86_400.0
_VERSION: Final = 1


class BatchSubmission(NamedTuple):
    """Tasks that are submitted with one call."""

    #: By which the main node makes it once, however often it is sent.
    idempotency_key: str
    #: Their common fields, as `task.submit` takes them.
    task: dict[str, Any]
    payloads: list[bytes]

    @property
    def lines(self) -> list[str]:
        """The digest of each of its lines, in order."""
        return [digest(self.task["task_type"], payload) for payload in self.payloads]


def digest(task_type: str, payload: bytes) -> str:
    """Return a digest of a line's type and payload, 24 hexadecimal characters."""
    return hashlib.sha256(task_type.encode() + b"\0" + payload).hexdigest()[:24]


class Journal:
    """One run's file, held by one process. Enter it to use it.

    Raises `ValidationError` on entry when it cannot be held, kept or understood.

    :param flag: by which the name was given; errors name it
    """

    def __init__(self, folder: Path, name: str, flag: str = "--resume") -> None:
        shown = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:40]
        self.name = name
        self._flag = flag
        self._path = folder / f"{shown}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.jsonl"
        self._aside = self._path.with_suffix(".sending")
        self._lock = FolderLock(self._path.with_suffix(".lock"), f"map --resume {name}")
        #: Ids of tasks by what their lines say, oldest first.
        self._known: defaultdict[str, deque[str]] = defaultdict(deque)
        self._size = 0
        self._last_sent = ""

    def __enter__(self) -> Journal:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _tidy(self._path.parent)
            self._lock.__enter__()
            self._read()
            with self._path.open("a"):  # whether it can be written
                pass
        except FolderLocked as error:
            held = re.search(r" \(process \d+\)", str(error))
            raise ValidationError(
                self._flag, f"{self.name!r} runs already{held[0] if held else ''}; stop it first"
            ) from None
        except OSError as error:
            self._lock.__exit__(None, None, None)
            raise ValidationError(self._flag, f"{self._path} cannot be kept: {error}") from None
        except ValidationError:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.__exit__(kind, error, trace)

    @property
    def task_ids(self) -> list[str]:
        """Ids of the known tasks that no line has taken yet."""
        return [task_id for ids in self._known.values() for task_id in ids]

    def take(self, line: str) -> str | None:
        """Return the task of a line with this digest, None for a new one; each is given once."""
        ids = self._known.get(line)
        return ids.popleft() if ids else None

    def interrupted(self) -> BatchSubmission | None:
        """Return the submission of which it is not known whether it was made, or None.

        Raises `ValidationError` when it cannot be read.
        """
        try:
            text = self._aside.read_text("utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ValidationError(self._flag, f"{self._aside} cannot be read: {error}") from None
        try:
            sent, task, payloads = json.loads(text)
            found = BatchSubmission(
                str(sent), dict(task), [str(each).encode() for each in payloads]
            )
        except (ValueError, TypeError):  # not ours: it is put there whole
            return None
        return None if found.idempotency_key == self._last_sent else found

    def sending(self, what: BatchSubmission) -> None:
        """Keep what is submitted next. Raises `OSError`."""
        whole = [what.idempotency_key, what.task, [payload.decode() for payload in what.payloads]]
        partial = self._aside.with_suffix(".part")
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(whole))
            _to_disk(file)
        os.replace(partial, self._aside)

    def sent(self, what: BatchSubmission, ids: Sequence[str]) -> None:
        """Keep the ids of what was submitted. Raises `OSError`."""
        row = json.dumps({"key": what.idempotency_key, "lines": what.lines, "ids": list(ids)})
        with self._path.open("a", encoding="ascii") as file:
            # A half line of a process that was killed stays a line of its own.
            file.write(("" if self._size else json.dumps({"map": _VERSION}) + "\n") + row + "\n")
            # What was put aside goes only when this is on the disk: a power cut between the two
            # would leave neither, and the tasks would be submitted once more.
            _to_disk(file)
        self._size += 1
        self._aside.unlink(missing_ok=True)

    def learn(self, what: BatchSubmission, ids: Sequence[str]) -> None:
        """Keep the ids as `sent` does, of tasks that lines are still to take. Raises `OSError`."""
        self.sent(what, ids)
        for line, task_id in zip(what.lines, ids, strict=True):
            self._known[line].append(task_id)

    def refused(self) -> None:
        """Forget what was sent last: it is not valid, and no task of it was made."""
        self._aside.unlink(missing_ok=True)

    def forget(self, task_ids: Sequence[str]) -> None:
        """Forget tasks that the main node keeps no more. Raises `OSError`."""
        with self._path.open("a", encoding="ascii") as file:
            file.write(json.dumps({"gone": list(task_ids)}) + "\n")

    def remove(self) -> None:
        """Remove the files: nobody goes on with this run."""
        for path in (self._path, self._aside):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _read(self) -> None:
        if not self._path.exists():
            return
        gone: set[str] = set()
        found: list[tuple[str, str]] = []
        with self._path.open(encoding="ascii", errors="replace") as file:
            for text in file:
                with contextlib.suppress(ValueError, TypeError, AttributeError):
                    row = json.loads(text)
                    if row.get("map", _VERSION) != _VERSION:
                        raise ValidationError(self._flag, f"{self._path} is of another version")
                    self._last_sent = str(row.get("key", self._last_sent))
                    gone.update(map(str, row.get("gone", ())))
                    ids = map(str, row.get("ids", ()))
                    found += zip(map(str, row.get("lines", ())), ids, strict=True)
                self._size += 1
        if self._size:  # a half line at the end is ended
            with self._path.open("a", encoding="ascii") as file:
                file.write("\n")
        for line, task_id in found:
            if task_id not in gone:
                self._known[line].append(task_id)


def _to_disk(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _tidy(folder: Path) -> None:
    """Remove the files of runs that nobody has gone on with for a long time."""
    limit = time.time() - _OLD_SECONDS
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < limit:
                path.unlink()
