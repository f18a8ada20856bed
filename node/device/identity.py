"""Who this device is, and that only one worker at a time is it.

Both live in the data folder: `device_id`, made once, and `worker.lock`, held as long as the
process lives. The system gives the lock back when a process dies in whatever way.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import sys
import time
from pathlib import Path

from retire_cluster.conf.usage import Unusable
from retire_cluster.schemas.vocabulary import DEVICE_ID_PATTERN, RESERVED_DEVICE_IDS

#: A task process that a killed worker was just starting holds a copy of the lock until it runs.
LOCK_SECONDS = 1.0

_DEVICE_ID = re.compile(rf"{DEVICE_ID_PATTERN}\Z")


class FolderTaken(Exception):
    """Another worker uses this data folder."""


class FolderLock:
    """Keeps every other worker off a data folder."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises `FolderTaken`, or `OSError` when the folder cannot be used."""
        path = folder / "worker.lock"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        taken = not _lock_soon(self._fd)
        if taken:
            os.lseek(self._fd, 1, os.SEEK_SET)
            owner = os.read(self._fd, 20).decode("ascii", "replace")
            os.close(self._fd)
            number = f" (process {owner.strip()})" if owner.strip() else ""
            raise FolderTaken(
                f"another worker{number} uses {folder}; give each worker its own --data-dir"
            )
        # The first byte is what Windows locks, and nobody can read it there.
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.write(self._fd, b"\n" + str(os.getpid()).encode("ascii"))

    def release(self) -> None:
        """Let the next worker in."""
        os.close(self._fd)


def _lock_soon(fd: int) -> bool:
    """Whether the lock was got, at once or within `LOCK_SECONDS`."""
    until = time.monotonic() + LOCK_SECONDS
    try:
        while not _try_lock(fd):
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
    except OSError:
        pass  # a file system without locks (Android's shared storage): go without
    return True


def _try_lock(fd: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def device_id(folder: Path, wanted: str = "") -> str:
    """This device's name: `wanted`, else the folder's, else a new one; it is kept from then on.

    Raises `Unusable` for a name the protocol does not allow, `OSError` when it cannot be kept.
    """
    path = folder / "device_id"
    kept = kept_id(folder)
    check_id(wanted)
    if wanted:
        if wanted != kept:
            _keep(path, wanted)
        return wanted
    if kept:
        return kept
    made = make_device_id(host_name(), secrets.token_hex(3))
    _keep(path, made)
    return made


def check_id(wanted: str) -> None:
    """Refuse a name that the protocol does not allow: raises `Unusable`. Empty: none yet."""
    if wanted and not _DEVICE_ID.match(wanted):
        raise Unusable(
            f"device id {wanted!r:.120}: 1 to 100 of letters, digits and _ . : -, the first one"
            " a letter or digit"
        )
    if wanted in RESERVED_DEVICE_IDS:
        raise Unusable(
            f"device id {wanted!r} is a name of the REST API's own (/devices/{wanted});"
            " choose another"
        )


def kept_id(folder: Path) -> str:
    """The name that this data folder has, empty when it has none that can be used."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        with (folder / "device_id").open(encoding="utf-8") as file:
            name = file.read(1_000).strip()
        return name if _DEVICE_ID.match(name) else ""
    return ""


def make_device_id(hostname: str, suffix: str) -> str:
    """A new name: the host's, as far as it may be used, and a suffix."""
    base = re.sub(r"[^A-Za-z0-9_.\-]+", "-", hostname.partition(".")[0]).strip("-._")[:60]
    return f"{base or 'device'}-{suffix}"


def host_name() -> str:
    """The host's name, or empty."""
    try:
        # Bytes that are no UTF-8 come as lone surrogates, which no message can carry.
        return socket.gethostname().encode("utf-8", "replace").decode("utf-8")[:255]
    except (OSError, UnicodeDecodeError):
        return ""


def _keep(path: Path, name: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(name + "\n", encoding="utf-8")
    os.replace(temporary, path)
