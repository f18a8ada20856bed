"""`POST /join-tokens`: the line that lets a new device join."""

from __future__ import annotations

from typing import Any

import falcon

from retire_cluster.api.content import reading
from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.api.resources.base import Resource, answer
from retire_cluster.conf import joining
from retire_cluster.conf.machine.addresses import is_loopback, public_host
from retire_cluster.conf.settings import Settings
from retire_cluster.schemas.text.hosts import read_host

_TOLD = ("token_id", "uses", "expires_at")


class JoinTokensResource(Resource):
    """Serve `/join-tokens`: tokens, as the line to paste on a device."""

    def __init__(self, link: MainNodeLink, settings: Settings) -> None:
        self._link = link
        self._data_dir = settings.data_dir
        self._main_host = settings.api.cluster_host
        self._public_host = settings.server.public_host

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Make a token. Whoever has the line may join: the scope `admin` is needed."""
        args = reading.checked_body(req)
        host = read_host(args.pop("host", None) or self._address())
        made = self._link.data("token.create", args)
        join = joining.join_string(made, host)
        data: dict[str, Any] = {name: made[name] for name in _TOLD}
        command = f"retire-cluster-worker --join {join}"
        server = joining.find(self._data_dir)
        line = joining.one_line(server, host, join) if server is not None else None
        data |= {
            "join": join,
            "command": command,
            "one_line": line,
            "local_only": is_loopback(host),
        }
        answer(req, resp, data, message="Join token made", status=201)

    def _address(self) -> str:
        """Find where devices reach the main node, as far as this process can tell."""
        if self._public_host:
            return self._public_host
        bound: str = self._link.data("config.get", {"section": "server"})["worker_host"]
        found = public_host(bound)
        if not is_loopback(self._main_host):  # it is another machine's
            return found if found == bound else self._main_host
        return found or "127.0.0.1"
