"""Keys as the tooling makes them for local workers."""

from __future__ import annotations

from pathlib import Path

from retire_cluster.conf import curve
from retire_cluster.conf.curve import Pair


def device_pair(folder: Path, server_key: str, address: str, device_id: str) -> Pair:
    """The pair of a local worker, kept in its folder; made when it is missing.

    Raises `KeyFileError` and `OSError`.
    """
    path = folder / curve.DEVICE_KEY
    kept = curve.read_key_file(path)
    pair = curve.new_pair() if kept is None else Pair(kept["public"], kept["secret"])
    wanted = {"server": server_key, "main": address, "device_id": device_id, "enrolled": True}
    if kept is None or any(kept.get(name) != value for name, value in wanted.items()):
        curve.write_key_file(path, pair, **wanted)
    return pair
