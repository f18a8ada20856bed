"""The flags of `retire-cluster-worker`, and the settings and rules that they and the files make."""

from __future__ import annotations

import argparse
from typing import Any

from retire_cluster.conf import ports
from retire_cluster.conf.arguments import Parser
from retire_cluster.conf.loading import read_settings
from retire_cluster.conf.sections import ROLES
from retire_cluster.conf.settings import Settings
from retire_cluster.conf.usage import Unusable
from retire_cluster.node.core.pace import Pace
from retire_cluster.node.device.policy import Policy, running_as_root
from retire_cluster.node.link import join_line

PROGRAM = "retire-cluster-worker"


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = Parser(
        prog=PROGRAM,
        description="Joins this device to a Retire-Cluster and runs tasks for it.",
    )
    parser.add_argument(
        "--join",
        metavar="LINE",
        help="the line that `retire-cluster token create` prints on the main node, or HOST[:PORT]"
        f" (port {ports.WORKER_BUS}) of one without encryption; - reads it from standard input;"
        " once joined it may be left out",
    )
    parser.add_argument(
        "--join-file",
        metavar="FILE",
        help="the same from a file, where no list of processes has it",
    )
    parser.add_argument(
        "--plain", action="store_true", help="do not encrypt, whatever key this device has"
    )
    parser.add_argument("--device-id", help="name in the cluster; made once when not given")
    parser.add_argument("--role", choices=ROLES, help="what the device is for")
    parser.add_argument("--tag", action="append", metavar="T", help="a tag; may be repeated")
    parser.add_argument("--slots", type=int, help="tasks run at once (one a core)")
    parser.add_argument(
        "--allow",
        action="append",
        metavar="TYPE",
        default=[],
        help="also run this type: command, command:shell (with a shell), or python_call (any Python"
        " function of whoever may submit, as this user, behind the walls); may be repeated",
    )
    parser.add_argument(
        "--allow-root",
        action="store_true",
        help="run command, python_call and own types even as root",
    )
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=Pace.grace_seconds,
        help="how long running tasks may go on after the first Ctrl-C (default %(default)g)",
    )
    parser.add_argument("--data-dir", help="folder of this worker's identity and results")
    parser.add_argument("--config", help="TOML file with settings")
    parser.add_argument(
        "--test",
        action="store_true",
        help="say what this device offers, run a task of each kind, ask whether it may join",
    )
    parser.add_argument("--debug", action="store_true", help="log more, with traces")
    return parser


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings, with what the flags say on top. Raises `Unusable` and `SettingsError`."""
    overrides: dict[str, Any] = {
        "data_dir": arguments.data_dir,
        "worker.join": _join_line(arguments),
        "worker.device_id": arguments.device_id,
        "worker.role": arguments.role,
        "worker.tags": arguments.tag,
        "worker.slots": arguments.slots,
        "policy.allow_root": True if arguments.allow_root else None,
        "logging.debug": True if arguments.debug else None,
    }
    if not 0 <= arguments.drain_seconds <= 86_400:
        raise Unusable("--drain-seconds: must be from 0 to 86400")
    return read_settings(overrides, arguments.config)


def _join_line(arguments: argparse.Namespace) -> str | None:
    if arguments.join_file is not None:
        if arguments.join is not None:
            raise Unusable("--join-file: goes without --join")
        return join_line.from_file(arguments.join_file) or None
    if arguments.join == join_line.STANDARD_INPUT:
        return join_line.from_standard_input()
    found: str | None = arguments.join
    return found


def policy_of(arguments: argparse.Namespace, settings: Settings) -> Policy:
    """What this device's owner allows, by settings and flags. Raises `Unusable`."""
    return Policy.of(settings.policy, also=arguments.allow, is_root=running_as_root())
