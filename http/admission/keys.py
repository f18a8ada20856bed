"""Hold API keys: those of this start, and those kept as hashes in the data folder.

Only SHA-256 digests are held and compared (in constant time), so neither memory dumps of the table
nor the file give a key away. Keys are long and random; a slow hash would add nothing but cost.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retire_cluster.conf.machine.ownership import Foreign, check_owner, mend_key
from retire_cluster.schemas.rights import SCOPES, may

FILE_NAME = "api-keys.json"
_log = logging.getLogger("api")
#: A key given at start, and a generated one, may do everything.
ALL_SCOPES = ("admin",)


class ApiKeyFileError(ValueError):
    """The key file cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class ApiKey:
    """One API key, without the key."""

    #: First 16 characters of the digest: names the key in logs, limits and idempotency.
    key_id: str
    #: SHA-256 of the key, hexadecimal.
    digest: str
    #: Some of `SCOPES`: what the key may do.
    scopes: tuple[str, ...] = ALL_SCOPES
    #: The owner's remark.
    note: str = ""
    #: When it was made, UTC; empty for a key given at start.
    created_at: str = ""

    def may(self, scope: str) -> bool:
        """Tell whether the key may do what needs `scope`."""
        return not scope or may(self.scopes, scope)


def digest_of(key: str) -> str:
    """Return the digest that stands for a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def key_of(
    text: str, *, scopes: Iterable[str] = ALL_SCOPES, note: str = "", at: str = ""
) -> ApiKey:
    """Return the record of a key."""
    digest = digest_of(text)
    return ApiKey(digest[:16], digest, tuple(scopes), note, at)


def generate() -> str:
    """Make a new key: 256 random bits that survive shells, URLs and headers."""
    return "rc_" + secrets.token_urlsafe(32)


class ApiKeyRing:
    """The keys that are accepted.

    :param keys: those of this start
    :param path: file of further ones; a change of it counts from the next request on, in every
        process that reads it
    """

    def __init__(self, keys: Iterable[ApiKey] = (), path: Path | None = None) -> None:
        self._given = tuple(keys)
        self._path = path
        self._kept: tuple[ApiKey, ...] = ()
        self._stamp: tuple[int, ...] | None = None
        self._refresh()

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """Return all keys that count now."""
        self._refresh()
        return self._given + self._kept

    def __bool__(self) -> bool:
        return bool(self.keys)

    def _refresh(self) -> None:
        if self._path is None:
            return
        stamp: tuple[int, ...] = ()
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            pass  # no file: no kept keys
        if stamp == self._stamp:
            return
        try:
            self._kept = tuple(read_keys(self._path))
        except ApiKeyFileError as error:
            # Whoever had a key keeps it; nobody new gets in.
            _log.error("%s; the keys read before go on to count", error)
        self._stamp = stamp

    def find(self, presented: str) -> ApiKey | None:
        """Return the key that was presented, or None, in the same time whichever it is."""
        digest = digest_of(presented)
        found = None
        for key in self.keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found

    def by_id(self, key_id: str) -> ApiKey | None:
        """Return the key of this id, or None."""
        return next((key for key in self.keys if key.key_id == key_id), None)


def read_keys(path: Path) -> list[ApiKey]:
    """Read the keys of a file; none when there is no file. Raises `ApiKeyFileError`."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            check_owner(path, found)
            if os.name == "posix" and found.st_mode & 0o077:
                mend_key(path, found)
            raw = file.read()
    except FileNotFoundError:
        return []
    except Foreign as error:
        raise ApiKeyFileError(str(error)) from None
    except OSError as error:
        raise ApiKeyFileError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return [_read_key(row) for row in json.loads(raw)["keys"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ApiKeyFileError(
            f"{path} is not a key file ({error}); move it away to start without it"
        ) from None


def _read_key(row: Any) -> ApiKey:
    digest = row["digest"]
    if not isinstance(digest, str) or len(bytes.fromhex(digest)) != 32:
        raise ValueError("a digest is not SHA-256")
    scopes = tuple(row.get("scopes", ALL_SCOPES))
    if not set(scopes) <= set(SCOPES):
        raise ValueError(f"scopes are {', '.join(SCOPES)}")
    return ApiKey(
        digest[:16], digest, scopes, str(row.get("note", "")), str(row.get("created_at", ""))
    )


def write_keys(path: Path, keys: Iterable[ApiKey]) -> None:
    """Replace the file by these keys, at once and readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(key) for key in keys]
    # mkstemp makes the file 0600 from the start; there is no moment in which others could read it.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"keys": rows}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
