"""Which main node this worker joins, by which name, and with which keys."""

from __future__ import annotations

from dataclasses import replace

from retire_cluster.conf.curve import KeyFileError
from retire_cluster.conf.settings import Settings
from retire_cluster.conf.usage import Unusable
from retire_cluster.node.device.identity import (
    check_id,
    device_id,
)
from retire_cluster.node.link import credentials
from retire_cluster.node.link.credentials import Credentials
from retire_cluster.node.link.local_enrolment import let_in
from retire_cluster.node.link.sockets import Address


def main_node(settings: Settings, *, plain: bool) -> tuple[Address, Credentials | None]:
    """Where to dial, and with which keys (None: without encryption). Raises `Unusable`.

    :param plain: do not encrypt, whatever key this device has
    """
    try:
        return credentials.find(settings.data_dir, settings.worker.join.strip(), plain=plain)
    except KeyFileError as error:
        raise Unusable(str(error)) from None


def identity(
    settings: Settings,
    address: Address,
    keys: Credentials | None,
    *,
    plain: bool,
    trial: bool,
) -> tuple[Settings, Credentials | None]:
    """The settings with this device's one name in them, and the keys that are known by it.

    Raises `Unusable` and `NotLetIn` with the cure, `OSError` when the data folder cannot be used.

    :param trial: the main node is not to know of this device afterwards
    """
    folder, wanted = settings.data_dir, settings.worker.device_id
    check_id(wanted)
    name = wanted if keys is not None and wanted else device_id(folder, wanted)
    if not plain and (keys is None or not (keys.enrolled or keys.enrolling)):
        # None yet, or one whose join never came to an end: on the main node's own machine,
        # as its user, another way is open.
        keys = let_in(folder, address, name, trial=trial) or keys
    if keys is not None:
        name = device_id(folder, keys.settle(name, asked=bool(wanted)))
    worker = replace(settings.worker, device_id=name)
    return settings.with_sections({"worker": worker}), keys
