"""How devices elsewhere join a cluster that `up` runs: a join line, and an installer to fetch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from retire_cluster.cli.endpoints import MainEndpoints, write_json
from retire_cluster.cli.joining.server import JoinServer
from retire_cluster.cli.target import Caller
from retire_cluster.cli.up.announce import JOIN_NOTE, JOIN_SECONDS, JOIN_USES, MOST_JOIN_LINES
from retire_cluster.cli.up.plan import Plan
from retire_cluster.conf import joining
from retire_cluster.conf.machine.addresses import is_loopback, public_host
from retire_cluster.conf.machine.processes import started
from retire_cluster.schemas.errors import ClusterError

#: How often the folder of kept wheels is looked at.
_WHEELS_SECONDS = 2.0


class WayIn(NamedTuple):
    """What somebody pastes on a device elsewhere."""

    #: For one with retire-cluster; empty: devices elsewhere cannot join.
    join: str = ""
    #: For one with nothing but Python; empty: no installer is served.
    one_line: str = ""


class Newcomers:
    """Makes the join line, and serves the installer from when the cluster works to its end.

    :param say: takes progress lines
    """

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._server: JoinServer | None = None
        self._look_mono = 0.0

    @property
    def host(self) -> str | None:
        """The address by which devices elsewhere reach the worker bus, or None."""
        return public_host(self._plan.worker_host, self._plan.public_host)

    def open(self, main: MainEndpoints, client: Caller) -> WayIn:
        """Serve the installer and make a join line, if devices elsewhere can reach the main node.

        :param client: asks the main node
        """
        host = self.host
        if not main.bus_encrypted or host is None or is_loopback(self._plan.worker_host):
            return WayIn()
        try:
            self._server = JoinServer(
                self._plan.worker_host, self._plan.join_port, host, self._plan.data_dir / "wheels"
            )
            self._tell_where(self._server)
        except OSError as error:
            self._say(f"no installer for new devices is served: {error}")
        join = self._join_string(host, client)
        if not join or self._server is None:
            return WayIn(join)
        server = joining.InstallerAddress(self._server.port, self._server.sha256)
        return WayIn(join, joining.one_line(server, host, join))

    def look_after(self, now: float) -> None:
        """Make wheels that were put into the folder meanwhile part of the next line.

        Raises `OSError`.
        """
        if self._server is not None and now >= self._look_mono:
            self._look_mono = now + _WHEELS_SECONDS
            if self._server.refresh():
                self._tell_where(self._server)

    def close(self) -> None:
        """Stop serving the installer, and say so to who looks for it."""
        if self._server is not None:
            self._server.close()
        joining.path_of(self._plan.data_dir).unlink(missing_ok=True)

    def _join_string(self, host: str, client: Caller) -> str:
        try:
            # A line that was printed before stays good until its time: somebody may have mailed it.
            listed = client.call("token.list")["items"]  # newest first
            for token in [t for t in listed if t["note"] == JOIN_NOTE][MOST_JOIN_LINES - 1 :]:
                client.call("token.revoke", {"token_id": token["token_id"]})
            args = {"uses": JOIN_USES, "age_seconds": JOIN_SECONDS, "note": JOIN_NOTE}
            return joining.join_string(client.call("token.create", args), host)
        except ClusterError as error:
            self._say(f"no join line: {error}")
            return ""

    def _tell_where(self, server: JoinServer) -> None:
        """Say where the installer is, to whoever makes lines for it. Raises `OSError`."""
        pid = os.getpid()
        document = {
            "pid": pid, "started": started(pid), "port": server.port, "sha256": server.sha256,
        }  # fmt: skip
        write_json(joining.path_of(self._plan.data_dir), document)
