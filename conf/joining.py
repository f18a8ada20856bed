"""The line that makes a device with nothing but Python a worker, and where it is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class JoinServer(NamedTuple):
    """Where `/join.py` is."""

    port: int
    #: Of `/join.py`, hexadecimal.
    sha256: str


def path_of(data_dir: Path) -> Path:
    """The file by which `up` says where it serves `/join.py`."""
    return data_dir / "run" / "join.json"


def find(data_dir: Path) -> JoinServer | None:
    """The join server of a cluster that runs with this folder, None when there is none."""
    try:
        document = json.loads(path_of(data_dir).read_bytes())
        return JoinServer(int(document["port"]), str(document["sha256"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def one_line(server: JoinServer, host: str, join: str) -> str:
    """What to paste on the device, in sh, cmd or PowerShell; it checks the script it runs."""
    name = f"[{host}]" if ":" in host else host
    code = (
        "import urllib.request as u,hashlib as h;"
        f"s=u.urlopen('http://{name}:{server.port}/join.py').read();"
        f"assert h.sha256(s).hexdigest()=='{server.sha256}','join.py was changed on its way';"
        "exec(s)"
    )
    return f'python3 -c "{code}" {join}'
