"""Main nodes of this user on this machine, by port: how local tooling finds its CURVE keys.

A running main node leaves `mains/ADMIN_PORT.json` in this user's usual data folder, whatever folder
it works in itself. Only its own user can read its key, so this lets nobody in who could not get in.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from retire_cluster.conf.curve import ADMIN_KEY, ClientKeys, KeyFileError, client_keys
from retire_cluster.conf.loading import default_data_dir
from retire_cluster.conf.machine.addresses import is_loopback
from retire_cluster.conf.machine.processes import is_same, started


def _folder() -> Path | None:
    usual = default_data_dir(sys.platform, os.environ)
    return usual and usual / "mains"


def announce(
    data_dir: Path, *, pid: int, admin_port: int, worker_port: int, encrypted: bool
) -> Path | None:
    """Write a file that says where a main node works; return it, to be removed at its end.

    Returns None where it cannot be written, for it is a convenience only.
    """
    folder = _folder()
    if folder is None:
        return None
    document = {
        "pid": pid,
        "started": started(pid),
        "admin_port": admin_port,
        "worker_port": worker_port,
        "encrypted": encrypted,
        "data_dir": str(data_dir.absolute()),
    }
    path = folder / f"{admin_port}.json"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in folder.glob("*.json"):
            if _read(other) is None:
                other.unlink(missing_ok=True)
        draft = folder / f".{admin_port}.{pid}"
        draft.write_text(json.dumps(document), "utf-8")
        os.replace(draft, path)
    except OSError:
        return None
    return path


def find(host: str, port: int, kind: str) -> dict[str, Any] | None:
    """Return what the main node that listens on this machine's `port` has written, or None.

    :param kind: which of its ports is meant, `admin_port` or `worker_port`
    """
    folder = _folder()
    if folder is None or not is_loopback(host):
        return None
    with contextlib.suppress(OSError):
        for path in folder.glob("*.json"):
            found = _read(path)
            if found is not None and found.get(kind) == port:
                return found
    return None


def folders() -> list[str]:
    """Return the data folders of this user's main nodes on this machine."""
    folder = _folder()
    if folder is None:
        return []
    with contextlib.suppress(OSError):
        found = (_read(path) for path in sorted(folder.glob("*.json")))
        return [document["data_dir"] for document in found if document is not None]
    return []


def tooling_keys(data_dir: Path, key_file: str, host: str, port: int) -> ClientKeys | None:
    """Return the CURVE keys for a main node's admin socket.

    They are those of `key_file`; else those of the main node of this user that listens there; else
    those of the data folder. Returns None when it is not encrypted or has never been started.
    Raises `KeyFileError`.
    """
    if key_file:
        found = client_keys(Path(key_file))
        if found is None:
            raise KeyFileError(f"{key_file}: there is no such key file")
        return found
    # One whose worker bus was dialled instead tells which port is the right one.
    neighbour = find(host, port, "admin_port") or find(host, port, "worker_port")
    folder = Path(neighbour["data_dir"]) if neighbour is not None else data_dir
    if neighbour is not None and not neighbour.get("encrypted"):
        return None
    return client_keys(folder / ADMIN_KEY)


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a live main node left, None for a dead one's."""
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        pid, folder = int(document["pid"]), document["data_dir"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    alive = isinstance(folder, str) and is_same(pid, document.get("started"))
    return document if alive else None
