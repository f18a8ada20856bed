"""One process a folder: a lock that the system lets go when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import IO


class FolderLocked(Exception):
    """Another process holds the lock; the text names it and says what to do."""


class FolderLock:
    """A lock on a folder, held inside a `with` block.

    Raises `FolderLocked` on entry, naming the holder, when another process has it.

    :param path: the lock file; it stays, holding the number of its last holder
    :param who: what the holder is called in messages
    """

    def __init__(self, path: Path, who: str) -> None:
        self._path = path
        self._who = who
        self._file: IO[str] | None = None

    def __enter__(self) -> FolderLock:
        file = open(self._path, "a+", encoding="ascii")
        try:
            _lock(file)
        except OSError:
            file.close()
            raise FolderLocked(
                f"`{self._who}` already runs with this data folder{self._holder()}; stop it, or"
                " choose another by --data-dir"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _holder(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return f" (process {int(self._path.read_text('ascii'))})"
        return ""


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 20)  # beyond the text, which others may read meanwhile
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
