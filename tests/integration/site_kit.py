"""A facade on a socket, over a real main node of `main_kit`."""

from __future__ import annotations

import http.client
import json
import threading
from dataclasses import replace
from typing import Any, NamedTuple

from retire_cluster.api.admission.keys import ApiKey, ApiKeyRing, key_of
from retire_cluster.api.app import create_app
from retire_cluster.api.serving.websocket import StreamServer
from retire_cluster.broker.client import AdminClient
from tests.integration.main_kit import PATIENCE_SECONDS, MainNode


class Said(NamedTuple):
    """An answer."""

    status: int
    #: The envelope, or {} where there is none.
    json: dict[str, Any]
    headers: Any

    @property
    def code(self) -> str:
        """The error code, empty for none."""
        return str(self.json.get("error_code", ""))


class Site:
    """One facade process's worth of REST, on a socket, over a main node."""

    def __init__(self, node: MainNode, *keys: str | ApiKey, **options: Any) -> None:
        settings = node.settings
        options = {"rate_limit": False, "threads": 8, **options}
        settings = settings.with_sections({"api": replace(settings.api, **options)})
        client = AdminClient(port=node.facts.admin_port, timeout_seconds=PATIENCE_SECONDS)
        ring = ApiKeyRing([key if isinstance(key, ApiKey) else key_of(key) for key in keys])
        self.facade = create_app(client, settings, keys=ring if keys else None)
        self.server = StreamServer(
            self.facade.app, "127.0.0.1", 0, shutdown=self.facade.shutdown, threads=8
        )
        self.url = f"http://127.0.0.1:{self.server.port}"
        self._kept: http.client.HTTPConnection | None = None
        self._thread = threading.Thread(target=self.server.serve)
        self._thread.start()

    def ask(
        self, method: str, path: str, document: Any = None, *, key: str = "", **headers: str
    ) -> Said:
        """One request over a connection that is kept; `via="x"` is the header Via."""
        if self._kept is None:
            self._kept = http.client.HTTPConnection(
                "127.0.0.1", self.server.port, timeout=PATIENCE_SECONDS
            )
        sent = {
            "Content-Type": "application/json",
            **({"X-API-Key": key} if key else {}),
            **headers,
        }
        body = b"" if document is None else json.dumps(document).encode()
        self._kept.request(method, path, body, sent)
        answer = self._kept.getresponse()
        raw = answer.read()
        try:
            found = json.loads(raw)
        except ValueError:
            found = {}
        return Said(answer.status, found if isinstance(found, dict) else {}, answer.headers)

    def close(self) -> None:
        """Stop serving."""
        if self._kept is not None:
            self._kept.close()
        self.server.stop()
        self._thread.join(PATIENCE_SECONDS)
        self.facade.close()
