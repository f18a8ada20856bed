"""What `up` tells a newcomer once the cluster works: where it is, what to paste, how to stop."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from retire_cluster.conf.machine.addresses import dial_host, is_loopback
from retire_cluster.schemas.text.hosts import bracketed, in_url

#: The join line that is printed works this often, and this long.
JOIN_USES = 20
JOIN_SECONDS = 24 * 3600
JOIN_NOTE = "printed by retire-cluster up"
#: One that starts again and again must not fill the store with tokens.
MOST_JOIN_LINES = 100


@dataclass(frozen=True)
class Announcement:
    """The facts of a running cluster."""

    #: Where the REST facade is bound.
    api_host: str
    api_port: int
    worker_port: int
    #: Where the worker bus is bound.
    worker_host: str
    #: Address of this machine on its network, or None without one.
    lan_address: str | None
    #: ` --data-dir FOLDER` for tooling, where the folder is not the usual one.
    data_dir_flag: str = ""
    #: Folder of our commands with its separator, where they are not found by name alone.
    commands: str = ""
    #: What another device is given to join; empty: nothing.
    join: str = ""
    #: The line for a device with nothing but Python; empty: nothing.
    one_line: str = ""
    #: The worker bus is not encrypted.
    insecure: bool = False
    #: Types that local workers do not run because they are run by root.
    kept_back: Sequence[str] = ()
    #: Local workers may call functions.
    functions: bool = False

    @property
    def url(self) -> str:
        """The facade's address as this machine reaches it."""
        return f"http://{in_url(dial_host(self.api_host))}:{self.api_port}"

    def text(self, *, windows: bool = sys.platform == "win32") -> str:
        """Return the block that is printed."""
        body = '{"task_type": "echo", "payload": {"message": "Hello World"}}'
        quoted = '"' + body.replace('"', '\\"') + '"' if windows else f"'{body}'"
        lines = [
            "",
            "Retire-Cluster is running.",
            "",
            f"  Dashboard    {self.url}/ui/",
            f"  REST API     {self.url}/api/v1",
        ]
        if not is_loopback(self.api_host) and self.lan_address:
            lan = f"http://{in_url(self.lan_address)}:{self.api_port}"
            lines.append(f"  On your LAN  {lan}/ui/")
        lines += [
            "",
            "Run a task:",
            f'  curl -X POST {self.url}/api/v1/tasks -H "Content-Type: application/json"'
            f" -d {quoted}",
            "or without REST:",
            f"  {self.commands}retire-cluster submit echo message=Hello --wait{self.data_dir_flag}",
            *self._functions_lines(),
            "",
            *self._kept_back_lines(),
            *self._join_lines(),
            "",
            "Stop everything: Ctrl-C here, or end this process.",
            "",
        ]
        return "\n".join(lines)

    def _functions_lines(self) -> list[str]:
        if self.functions:
            return [
                "or your own Python functions (docs/functions.md):",
                "  from retire_cluster.sdk import Executor",
                f'  with Executor("{self.url}") as devices:',
                "      print(list(devices.map(lambda n: n * n, range(10))))",
            ]
        return [
            "or your own Python functions, once allowed: retire-cluster up --allow python_call",
            "  (it runs any Python function of whoever may submit, as this user, behind the walls)",
        ]

    def _kept_back_lines(self) -> list[str]:
        if not self.kept_back:
            return []
        return [
            f"Not run here, because this is root: {', '.join(self.kept_back)}",
            "  Name a user that tasks run as (policy.user in the settings file, or"
            " RETIRE_CLUSTER_POLICY_USER),",
            "  or start again as another user, or with --allow-root to run them as root.",
            "",
        ]

    def _join_lines(self) -> list[str]:
        here = f"{bracketed(dial_host(self.worker_host))}:{self.worker_port}"
        worker = "retire-cluster-worker --join"
        if self.join:
            paste = (
                [f"  {self.one_line}", "or, where retire-cluster is installed:"]
                if self.one_line
                else []
            )
            return [
                "Add another device (Python >= 3.10; on Windows say python), paste there:",
                *paste,
                f"  {worker} {self.join}",
                f"It lets {JOIN_USES} devices in, for a day, whatever is restarted here. More:",
                f"  {self.commands}retire-cluster token create{self.data_dir_flag}",
            ]
        if not is_loopback(self.worker_host) and self.insecure:
            address = self.lan_address or "ADDRESS-OF-THIS-MACHINE"
            return [
                "Add another device where retire-cluster is installed, paste there:",
                f"  {worker} {bracketed(address)}:{self.worker_port}",
                "This worker bus is not encrypted (--insecure): only on a network you trust.",
            ]
        return [
            "Add another worker on this machine:",
            f"  {self.commands}{worker} {here} --data-dir FOLDER",
            "For other devices this machine needs a network, and the worker bus has to listen on it"
            if self.lan_address is None
            else "Other devices cannot join: server.worker_host is this machine only.",
        ]


def commands_folder() -> str:
    """Return what must stand before our commands for a shell to find them; empty: nothing."""
    folder = os.path.dirname(sys.executable)
    by_name = shutil.which("retire-cluster")
    if by_name and os.path.dirname(by_name) == folder:
        return ""
    if not shutil.which("retire-cluster", path=folder):
        return ""
    if os.name == "nt":  # cmd and PowerShell quote differently
        return "" if " " in folder else folder + os.sep
    return shlex.quote(folder + os.sep)


def quoted(path: str, *, windows: bool = sys.platform == "win32") -> str:
    """Return a path as one word for the shell at hand: sh, or cmd and PowerShell alike."""
    if not windows:
        return shlex.quote(path)
    return f'"{path}"' if " " in path else path
