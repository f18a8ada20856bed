"""Local workers need no join line: `up` makes their keys and tells the main node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from retire_cluster.cli.endpoints import MainEndpoints
from retire_cluster.cli.target import Caller
from retire_cluster.cli.up.plan import Plan
from retire_cluster.conf import curve
from retire_cluster.conf.curve import KeyFileError, Pair
from retire_cluster.schemas.errors import ClusterError, Forbidden


def let_in(
    client: Caller, plan: Plan, main: MainEndpoints, say: Callable[[str], None]
) -> list[int]:
    """Tell the main node the CURVE keys of the local workers; return the numbers of removed ones.

    :param client: asks the main node
    :param say: takes progress lines, what fails among them
    """
    removed = []
    for number, device_id in plan.device_ids.items():
        folder = plan.worker_dir(number)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            pair = device_pair(folder, main.server_key, plan.worker_address(main), device_id)
            args = {"device_id": device_id, "public_key": pair.public}
            client.call("device.authorise", args, timeout_seconds=10.0)
        except (ClusterError, KeyFileError, OSError) as error:
            say(f"worker {device_id}: {error}")
            if isinstance(error, Forbidden):
                removed.append(number)
    return removed


def device_pair(folder: Path, server_key: str, address: str, device_id: str) -> Pair:
    """Return the pair of a local worker, kept in its folder; made when it is missing.

    Raises `KeyFileError` and `OSError`.
    """
    path = folder / curve.DEVICE_KEY
    kept = curve.read_key_file(path)
    pair = curve.new_pair() if kept is None else Pair(kept["public"], kept["secret"])
    wanted = {"server": server_key, "main": address, "device_id": device_id, "enrolled": True}
    if kept is None or any(kept.get(name) != value for name, value in wanted.items()):
        curve.write_key_file(path, pair, **wanted)
    return pair
