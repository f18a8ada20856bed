"""Which main node the tooling speaks to, and how it came to that address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from retire_cluster.broker.client import AdminClient
from retire_cluster.cli.endpoints import running_main
from retire_cluster.conf.loading import COMMAND_LINE, read_settings
from retire_cluster.conf.machine.addresses import is_loopback
from retire_cluster.conf.neighbours import tooling_keys
from retire_cluster.conf.settings import Settings
from retire_cluster.schemas.errors import ClusterUnavailable
from retire_cluster.schemas.text.hosts import bracketed

#: A main node that is started anew is away for less.
_REFUSED_SECONDS = 1.0


class Caller(Protocol):
    """What verbs need of an admin client."""

    def call(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        timeout_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Return the data of operation `op`. Raises a `ClusterError`."""


@dataclass(frozen=True)
class Target:
    """A main node's admin socket."""

    host: str
    port: int
    #: Where the address came from, for people.
    source: str
    data_dir: Path
    #: File with the key for it; empty: the data folder's.
    key_file: str = ""
    #: By which devices reach this machine, where that was said.
    public_host: str = ""

    def client(self, timeout_seconds: float) -> AdminClient:
        """Return a client of it, whose calls wait so long unless they say otherwise."""
        return AdminClient(
            self.host,
            self.port,
            timeout_seconds=timeout_seconds,
            keys=lambda: tooling_keys(self.data_dir, self.key_file, self.host, self.port),
            refused_seconds=_REFUSED_SECONDS,
        )

    @property
    def address(self) -> str:
        """`HOST:PORT`."""
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def next_command(self) -> str:
        """What to try when nobody answers there."""
        if is_loopback(self.host):
            found = running_main(self.data_dir)
            if found is not None and found[0].admin_port != self.port:
                return f"--cluster-port {found[0].admin_port}, where this machine's main node is"
            return "retire-cluster up"
        return f"retire-cluster doctor --cluster-host {self.host} --cluster-port {self.port}"

    def unreachable(self, error: ClusterUnavailable) -> ClusterUnavailable:
        """Return the error with what helps: the address, where it came from, the next command."""
        if "speaks admin protocol" in error.message:
            return error
        what = error.message.partition("; start it with")[0]
        if "did not answer within" in what:
            what = f"the main node at {self.address} does not answer"
        return ClusterUnavailable(
            f"{what} (address from {self.source}); try: {self.next_command}",
            details={
                **error.details,
                "address": self.address,
                "address_source": self.source,
                "next_command": self.next_command,
            },
            retry_after=error.retry_after,
        )


def find_target(
    *,
    host: str | None,
    port: int | None,
    data_dir: str | None,
    config: str | None,
    key_file: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Target:
    """Return the main node by flag, environment, TOML file, this machine's endpoints, or default.

    Raises `SettingsError` for a setting that is wrong.
    """
    flags = {"api.cluster_host": host, "api.cluster_port": port, "data_dir": data_dir}
    flags["api.cluster_key_file"] = key_file
    settings = read_settings(flags, config, environ)
    host_source = _source(settings, "api.cluster_host", "--cluster-host")
    port_source = _source(settings, "api.cluster_port", "--cluster-port")
    chosen = [source for source in (host_source, port_source) if source]
    if not chosen:
        found = running_main(settings.data_dir)
        if found is not None:
            main, path = found
            return Target(
                "127.0.0.1",
                main.admin_port,
                str(path),
                settings.data_dir,
                settings.api.cluster_key_file,
                settings.server.public_host,
            )
        source = f"the default; no cluster runs with the data folder {settings.data_dir}"
    else:
        source = " and ".join(dict.fromkeys(chosen))
    api = settings.api
    return Target(
        api.cluster_host, api.cluster_port, source, settings.data_dir, api.cluster_key_file,
        settings.server.public_host,
    )  # fmt: skip


def _source(settings: Settings, dotted: str, flag: str) -> str:
    source = settings.source_of(dotted)
    if source == "default":
        return ""
    return f"flag {flag}" if source == COMMAND_LINE else source
