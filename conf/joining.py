"""What is pasted on a device so that it joins, and where its installer is served."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from retire_cluster.conf import curve
from retire_cluster.conf.machine.processes import is_same
from retire_cluster.schemas.text.hosts import in_url


class InstallerAddress(NamedTuple):
    """Where this machine serves `/join.py`."""

    port: int
    #: Digest of `/join.py`, hexadecimal.
    sha256: str


def path_of(data_dir: Path) -> Path:
    """Return the file by which `up` says where it serves `/join.py`."""
    return data_dir / "run" / "join.json"


def find(data_dir: Path) -> InstallerAddress | None:
    """Return where a cluster that runs with this folder serves the installer, or None."""
    try:
        document = json.loads(path_of(data_dir).read_bytes())
        if not is_same(int(document["pid"]), document.get("started")):
            return None
        return InstallerAddress(int(document["port"]), str(document["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def join_string(made: Mapping[str, Any], host: str) -> str:
    """Return the word to paste on a device, from the answer of `token.create`."""
    token = bytes.fromhex(made["token"])
    return curve.write_join(curve.Invitation(host, made["worker_port"], made["server_key"], token))


def one_line(server: InstallerAddress, host: str, join: str) -> str:
    """Return what to paste on the device, in sh, cmd or PowerShell; it checks the script it runs.

    The join string comes by standard input: no list of processes shows it.
    """
    code = (
        "import urllib.request as u,hashlib as h;"
        f"s=u.urlopen('http://{in_url(host)}:{server.port}/join.py?{server.sha256}')"
        ".read(4000000);"
        # No assert: PYTHONOPTIMIZE would take it out.
        f"exec(s) if h.sha256(s).hexdigest()=='{server.sha256}' else"
        " exit('join.py was changed on its way, or the main node has a newer one: get a new line')"
    )
    return f'echo {join} | python3 -c "{code}"'
