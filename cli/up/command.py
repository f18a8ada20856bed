"""`retire-cluster up`: its command line, and what keeps it from starting at all."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Sequence

from retire_cluster.cli import exits
from retire_cluster.cli.up.plan import Plan, overrides, parser
from retire_cluster.cli.up.running import Up
from retire_cluster.conf.loading import read_settings
from retire_cluster.conf.machine.addresses import is_loopback
from retire_cluster.conf.machine.locks import FolderLocked
from retire_cluster.conf.machine.oserrors import naming
from retire_cluster.conf.machine.ownership import Foreign
from retire_cluster.conf.machine.prctl import hide_memory
from retire_cluster.conf.outlet import last_words
from retire_cluster.conf.spec import SettingsError


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything until told to stop; return the exit code, 0 after a signal."""
    args = parser().parse_args(argv)
    hide_memory()
    try:
        settings = read_settings(overrides(args), args.config)
        plan = Plan(args, settings, socket.gethostname())
        _check_loopback(plan.admin_host)
        return Up(plan, sys.stdout, sys.stderr).run()
    except (SettingsError, Foreign, FolderLocked) as error:
        last_words(f"retire-cluster up: {error}")
        return exits.USAGE
    except OSError as error:
        last_words(f"retire-cluster up: {naming(error, args.data_dir or 'the data folder')}")
        return exits.USAGE


def _check_loopback(host: str) -> None:
    """Raise `SettingsError` where this machine does not reach itself: nothing would answer."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
    except OSError as error:
        if error.errno == errno.ENETUNREACH and is_loopback(host):
            raise SettingsError(
                "server.host", f"{host} cannot be reached: loopback is down (ip link set lo up)"
            ) from None
