"""What tests of real commands share: their words, waiting for a condition, one HTTP request."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

COMMAND = [sys.executable, "-m", "retire_cluster.cli.main"]
ANY_PORTS = ("--port", "0", "--cluster-port", "0", "--worker-port", "0", "--event-port", "0")
TERMINAL = frozenset({"success", "failed", "timeout", "cancelled"})
API = "/api/v1"


def until(condition: Callable[[], Any], what: str = "the condition", seconds: float = 30.0) -> Any:
    """Return the first true value of a condition. Raises `TimeoutError` when it does not come."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)
    return found


def plain_environment(**more: str) -> dict[str, str]:
    """Return this environment without the caller's settings; what starts listens here only."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RETIRE_CLUSTER_")}
    kept["RETIRE_CLUSTER_SERVER_WORKER_HOST"] = "127.0.0.1"
    return {**kept, "NO_PROXY": "*", **more}


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def data(self) -> Any:
        """`data` of a success envelope. Raises `AssertionError` for anything else."""
        document = self.json
        assert document["status"] == "success", document
        return document["data"]

    @property
    def code(self) -> str:
        """The error code of an error envelope, with all that belongs to one."""
        document = self.json
        assert document["status"] == "error", document
        assert document["timestamp"].endswith("Z")
        assert self.headers["x-request-id"] == document["request_id"]
        assert isinstance(document["error_details"], dict)
        assert document["message"]
        return str(document["error_code"])


def exchange(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    source: str = "",
    seconds: float = 40.0,
) -> Answer:
    """Make one request on a connection of its own; a body that is no bytes is sent as JSON.

    :param source: the address of this machine that it comes from
    """
    sent = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        sent.setdefault("Content-Type", "application/json")
    connection = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=seconds, source_address=(source, 0) if source else None
    )
    try:
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read())
    finally:
        connection.close()
