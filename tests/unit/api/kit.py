"""The application over a main node in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from falcon import testing

from retire_cluster.api.admission.keys import ApiKeyRing, key_of
from retire_cluster.api.app import Facade, create_app
from retire_cluster.broker.client import RawAnswer
from retire_cluster.conf.sections import Api
from retire_cluster.conf.settings import Settings
from retire_cluster.schemas.errors import BY_CODE

TASK_ID = "550e8400-e29b-41d4-a716-446655440000"
API = "/api/v1"
ECHO = {"task_type": "echo", "payload": {"message": "Hello World"}}
PAGES = {"page": 1, "page_size": 20, "total_items": 0, "total_pages": 0, "has_next": False,
         "has_previous": False}  # fmt: skip


class MemoryCluster:
    """A main node that answers from memory and remembers what it was asked."""

    timeout_seconds = 2.0

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], list[bytes]]] = []
        self.answers: dict[str, Any] = {
            "health": {"components": {"cluster_server": "healthy", "task_scheduler": "healthy"}},
            "cluster.status": {"server_info": {"version": "1", "uptime": "0m", "host": "h",
                                               "port": 1}},
            "cluster.config": {"server": {}, "heartbeat": {}, "features": {}},
            "config.get": {"worker_host": ""},
            "config.reset": {"reset_at": "t", "current_config": {}},
            "token.create": {"token_id": "t", "uses": 1, "expires_at": "t", "token": "00" * 16,
                             "server_key": "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7",
                             "worker_port": 8082},
            "device.list": {"items": [], "pagination": PAGES},
            "task.list": {"items": [], "pagination": PAGES},
            "device.ping": {"ping_successful": False},
            "task.cancel_many": {"cancelled": [TASK_ID], "not_cancelled": [], "cancelled_at": "t"},
            "facade.identity": {"cluster_id": "c1", "session_secret": "00" * 32},
            "rate.hit": {"allowed": True, "limit": 60, "remaining": 59, "reset": 1640995200},
            "events.poll": {"events": [], "next": 5, "gap": False},
            "metrics": {
                "version": "1", "uptime_seconds": 1.0, "devices": {"online": 4},
                "tasks": {"success": 1250}, "backlog": {"normal": 1},
                "slots": {"used": 0, "total": 4}, "heartbeat_age_seconds": {"laptop-001": 0.5},
                "task_duration_seconds": {"bounds": [0.1, 1.0], "counts": [3, 2], "sum": 2.5,
                                          "count": 6},
                "retries": {"error": 1}, "passed_over": {"not_here": 2}, "dropped_messages": {},
                "http": {"requests": 1, "errors": 0}, "store_commits": 9, "last_event": 5,
                "events": 5, "tasks_ended": {"success": 1250, "failed": 3},
            },
        }  # fmt: skip
        self.blobs: dict[str, list[tuple[str, bytes]]] = {}

    def call_raw(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        timeout_seconds: float | None = None,
    ) -> RawAnswer:
        self.calls.append((op, dict(args or {}), list(blobs)))
        if op == "task.submit" and op not in self.answers:
            asked = dict(args or {})
            count = len(asked.get("tasks", ())) or asked.get("count", 1)
            task = {"task_id": TASK_ID, "status": "queued"}
            data: Any = {
                "task_ids": [TASK_ID] * count, "tasks": [task] * count,
                "submitted_at": "2023-01-01T12:00:00Z", "replayed": False,
            }  # fmt: skip
        else:
            data = self.answers.get(op, {})
        if isinstance(data, Exception):
            raise data
        return RawAnswer(json.loads(json.dumps(data)), self.blobs.get(op, []))

    def close(self) -> None:
        return

    def asked(self, op: str) -> tuple[dict[str, Any], list[bytes]]:
        return next((args, blobs) for name, args, blobs in self.calls if name == op)


class Bench:
    """An application, its main node and a client."""

    def __init__(self, *keys: str, **options: Any) -> None:
        self.cluster = MemoryCluster()
        api = Api(**{"rate_limit": False, **options})
        self.facade: Facade = create_app(
            self.cluster,
            Settings(data_dir=Path("data"), api=api),
            keys=ApiKeyRing(map(key_of, keys)),
            clock=lambda: 1672574400.25,
        )
        self.facade.reporter.stop()
        self.client = testing.TestClient(self.facade.app)

    def ask(self, method: str, path: str, **options: Any) -> testing.Result:
        options.setdefault("remote_addr", "127.0.0.1")
        options.setdefault("host", "localhost")
        return self.client.simulate_request(method, path, **options)

    def send(self, path: str, document: Any, method: str = "POST", **options: Any) -> Any:
        raw = document if isinstance(document, bytes) else orjson.dumps(document)
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return self.ask(method, path, body=raw, headers=headers, **options)


def code_of(result: testing.Result) -> str:
    document = result.json
    assert document["status"] == "error"
    assert set(document) >= {"message", "error_code", "error_details", "timestamp", "request_id"}
    assert document["error_code"] in BY_CODE
    return str(document["error_code"])
