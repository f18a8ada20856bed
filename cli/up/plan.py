"""What `up` starts: its flags, the settings they become, and each child's command line. Pure.

API keys are never in a command line: others on the machine can read those.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from retire_cluster.cli.endpoints import ApiEndpoint, MainEndpoints
from retire_cluster.conf.arguments import Parser
from retire_cluster.conf.machine.addresses import dial_host
from retire_cluster.conf.settings import Settings
from retire_cluster.node.device.identity import kept_id
from retire_cluster.node.device.policy import Policy
from retire_cluster.schemas.text.hosts import bracketed
from retire_cluster.schemas.vocabulary import OFF_BY_DEFAULT

#: Time a local worker gives its tasks to finish when everything stops; then they are given back.
_DRAIN_SECONDS: Final = 2.5
_API_KEYS_VARIABLE: Final = "RETIRE_CLUSTER_API_KEY"


def parser() -> argparse.ArgumentParser:
    """Return the flags of `up`; those not given fall to environment, TOML and defaults."""
    found = Parser(
        prog="retire-cluster up",
        description="Start main node, REST facade and local workers; stop all with Ctrl-C.",
        allow_abbrev=False,
    )
    add = found.add_argument
    add("--host", metavar="ADDRESS", help="where the REST facade listens (127.0.0.1)")
    add("--port", type=int, metavar="N", help="its port (8081); any port may be 0")
    add("--cluster-port", type=int, metavar="N", help="admin port of the main node (8080)")
    add("--worker-port", type=int, metavar="N", help="port of the worker bus (8082)")
    add("--event-port", type=int, metavar="N", help="port of the event feed (8083)")
    add("--data-dir", metavar="FOLDER", help="store, keys, identities, endpoints.json")
    add("--workers", type=_count, default=1, metavar="N", help="local workers (1); 0 for none")
    add("--slots", type=int, metavar="N", help="tasks each local worker runs at once")
    add(
        "--allow",
        action="append",
        default=[],
        metavar="TYPE",
        help="task type the local workers may run too: command, or python_call (any Python function"
        " of whoever may submit, as this user, behind the walls); repeatable",
    )
    add("--allow-root", action="store_true", help="local workers run all types as root, too")
    add("--auth", action="store_true", help="ask for an API key; made, shown once if none is set")
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="accept this key; repeatable. Others on this machine can see flags:"
        f" {_API_KEYS_VARIABLE} in the environment is safer",
    )
    add("--no-rate-limit", action="store_true", help="do not limit requests a client")
    add("--no-cors", action="store_true", help="send no CORS headers at all")
    add(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="foreign origin whose pages may use the API; repeatable",
    )
    add("--insecure", action="store_true", help="let other devices join, without encryption")
    add("--debug", action="store_true", help="detailed logs")
    add("--config", metavar="FILE", help="TOML file of settings")
    return found


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags as settings, for `read_settings`."""
    return {
        "data_dir": args.data_dir,
        "api.host": args.host,
        "api.port": args.port,
        "server.port": args.cluster_port,
        "server.worker_port": args.worker_port,
        "server.event_port": args.event_port,
        "server.insecure": True if args.insecure else None,
        "worker.slots": args.slots,
        "api.cors_origins": args.cors_origin or None,
        "logging.debug": True if args.debug else None,
    }


class Plan:
    """The command lines and environments of the children.

    :param args: the flags, as `parser` reads them
    :param settings: what flags, environment and TOML file come to
    :param hostname: names the local workers
    """

    def __init__(self, args: argparse.Namespace, settings: Settings, hostname: str) -> None:
        self._args = args
        self._settings = settings
        self.data_dir: Final = settings.data_dir.absolute()
        host = local_host_id(hostname)
        #: Device ids of the local workers, by number from 1; a machine that gets another name keeps
        #: those that the main node knows.
        self.device_ids: Final = {
            number: kept_id(self.worker_dir(number)) or f"{host}-local-{number}"
            for number in range(1, args.workers + 1)
        }

    @property
    def admin_host(self) -> str:
        """Host by which this machine reaches the admin socket."""
        return dial_host(self._settings.server.host)

    @property
    def worker_host(self) -> str:
        """Host that the worker bus is bound to."""
        return self._settings.server.bus_host

    @property
    def join_port(self) -> int:
        """Port where the installer for new devices is served."""
        return self._settings.server.join_port

    @property
    def public_host(self) -> str:
        """Host by which devices elsewhere reach this machine, empty when it is to be found out."""
        return self._settings.server.public_host

    def worker_address(self, main: MainEndpoints) -> str:
        """Return the `HOST:PORT` by which local workers reach the worker bus."""
        return f"{bracketed(dial_host(self.worker_host))}:{main.worker_port}"

    def worker_dir(self, number: int) -> Path:
        """Return the data folder of a local worker."""
        return self.data_dir / "workers" / str(number)

    def broker(self, before: MainEndpoints | None) -> list[str]:
        """Return the main node's command line: on the ports it had `before`, for all to find it."""
        server = self._settings.server
        command = [
            *self._module("main", self.data_dir),
            *("--port", str(before.admin_port if before else self._admin_port)),
            *("--worker-port", str(before.worker_port if before else server.worker_port)),
            *("--event-port", str(before.event_port if before else server.event_port)),
        ]
        if server.insecure:
            command += ["--insecure", "--worker-host", self.worker_host]
        return command

    def api(self, main: MainEndpoints, before: ApiEndpoint | None) -> list[str]:
        """Return the command line of the REST facade of `main`: on the port it had `before`."""
        args, api = self._args, self._settings.api
        command = [
            *self._module("api", self.data_dir),
            *("--host", api.host, "--port", str(before.port if before else api.port)),
            *("--cluster-host", self.admin_host, "--cluster-port", str(main.admin_port)),
        ]
        switches = {
            "--auth": args.auth,
            "--no-rate-limit": args.no_rate_limit,
            "--no-cors": args.no_cors,
        }
        command += [flag for flag, on in switches.items() if on]
        return command + [f"--cors-origin={origin}" for origin in args.cors_origin]

    def worker(self, number: int, main: MainEndpoints) -> list[str]:
        """Return the command line of a local worker of `main`."""
        command = [
            *self._module("worker", self.worker_dir(number)),
            *("--join", self.worker_address(main), "--device-id", self.device_ids[number]),
            *("--drain-seconds", f"{_DRAIN_SECONDS:g}"),
        ]
        if not main.bus_encrypted:
            command.append("--plain")
        if self._args.slots is not None:
            command += ["--slots", str(self._args.slots)]
        if self._args.allow_root:
            command.append("--allow-root")
        return command + [f"--allow={task_type}" for task_type in self._args.allow]

    def kept_back(self, own_types: Sequence[str], *, is_root: bool) -> list[str]:
        """Return the types that local workers do not run only because they are run by root.

        :param own_types: the names of those that are installed
        """
        rules, policy = self._settings.policy, self._policy(is_root=is_root)
        off = [name for name in OFF_BY_DEFAULT if name in policy.allow]
        allowed = [*off, *sorted(set(own_types))]
        wanted = [name for name in allowed if name not in rules.deny]
        return [name for name in wanted if self.device_ids and policy.refused_for_root(name)]

    def runs_functions(self, *, is_root: bool) -> bool:
        """Tell whether the local workers call functions of whoever may submit."""
        policy = self._policy(is_root=is_root)
        return bool(self.device_ids) and policy.refusal("python_call") is None

    def _policy(self, *, is_root: bool) -> Policy:
        rules = self._settings.policy
        # Its folders are for the workers to look at: they refuse those that they cannot use.
        mine = replace(rules, folders=(), allow_root=rules.allow_root or self._args.allow_root)
        return Policy.of(mine, also=self._args.allow, is_root=is_root)

    @property
    def api_environ(self) -> Mapping[str, str | None]:
        """The facade's environment; it alone gets the API keys."""
        api_keys = self._args.api_key
        return {_API_KEYS_VARIABLE: "\n".join(api_keys)} if api_keys else {}

    @property
    def other_environ(self) -> Mapping[str, str | None]:
        """The environment of the main node and the workers."""
        return {_API_KEYS_VARIABLE: None}

    @property
    def _admin_port(self) -> int:
        """The admin port, under whichever of its two names it was set."""
        settings = self._settings
        if settings.source_of("server.port") == "default":
            return settings.api.cluster_port
        return settings.server.port

    def _module(self, name: str, data_dir: Path) -> list[str]:
        # The folder that `up` was started in must not be where children import from.
        safe = ["-P"] if sys.version_info >= (3, 11) else []
        command = [sys.executable, *safe, "-m", "retire_cluster.cli.main", name]
        command += ["--data-dir", str(data_dir)]
        if self._args.config:
            command += ["--config", os.path.abspath(self._args.config)]
        if self._args.debug:
            command.append("--debug")
        return command


def local_host_id(hostname: str) -> str:
    """Return a host's name as the beginning of a device id."""
    short = re.sub(r"[^A-Za-z0-9_.-]+", "-", hostname.split(".")[0]).strip("-._")
    return short[:60] or "host"


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 256:
        raise argparse.ArgumentTypeError(f"must be from 0 to 256, not {number}")
    return number
