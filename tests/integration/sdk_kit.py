"""The facade as the SDK sees it, played by a small HTTP server in memory."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import pytest

from retire_cluster.sdk import Cluster

S = TypeVar("S", bound=ThreadingHTTPServer)


class Facade(ThreadingHTTPServer):
    """Runs `echo` at once, `fail` to a failure, `hang` until cancelled."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.changed = threading.Condition()
        self.events: list[dict[str, Any]] = []
        self.results: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        #: Ids by idempotency key.
        self.submitted: dict[str, list[str]] = {}
        #: Answers to polls for events that come before the true ones: an error's code, or data.
        self.odd_events: list[Any] = []
        self.busy_results = 0
        self.lose_events = False
        #: Answer a submission only this long after its task has ended.
        self.answer_late_seconds = 0.0
        #: Every submission is told that the limit is used up for ten minutes.
        self.limited_submissions = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/api/v1"

    def live(self) -> int:
        """How many tasks have not ended."""
        with self.changed:
            return sum(not result for result in self.results.values())

    def submit(self, task: dict[str, Any]) -> str:
        with self.changed:
            task_id = f"t{len(self.results)}"
            self.results[task_id] = {}
        if task["task_type"] != "hang":
            good = task["task_type"] == "echo"
            self.end(task_id, "success" if good else "failed", {"echo": task["payload"]})
        return task_id

    def end(self, task_id: str, status: str, data: Any = None) -> None:
        with self.changed:
            message = None if status == "success" else f"it {status}"
            self.results[task_id] = {
                "status": status,
                "result_data": data,
                "error_message": message,
            }
            self.events.append({"type": f"task.{status}", "task_id": task_id})
            self.changed.notify_all()


class Handler(BaseHTTPRequestHandler):
    server: Facade

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.requests.append(path)
        if path.endswith("/events"):
            self._events(dict(part.split("=") for part in query.split("&") if part))
        elif path.endswith("/tasks/types"):
            self._answer(200, {"by_type": {"python_call": {"devices": 1}}})
        else:
            result = self.server.results[path.split("/")[-2]]
            self._answer(200, {"is_terminal": bool(result)})

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.requests.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if path.endswith("/tasks/cancel"):
            self._cancel(body["task_ids"])
        elif path.endswith("/cancel"):
            self.server.end(path.split("/")[-2], "cancelled")
            self._answer(200, {})
        elif path.endswith("/results"):
            self._results(body["task_ids"], float(query.partition("=")[2] or 0))
        elif path.endswith("/batch") and self.server.limited_submissions:
            self._answer(429, {}, code="RATE_LIMIT_EXCEEDED", retry_after="600")
        elif path.endswith("/batch"):
            key = self.headers["Idempotency-Key"]
            if key not in self.server.submitted:
                tasks = body["tasks"]
                self.server.submitted[key] = [self.server.submit(task) for task in tasks]
            time.sleep(self.server.answer_late_seconds)
            self._answer(201, {"task_ids": self.server.submitted[key]})
        else:
            task_id = self.server.submit(body)
            time.sleep(self.server.answer_late_seconds)
            self._answer(201, {"task_id": task_id})

    def _cancel(self, task_ids: list[str]) -> None:
        live = [task_id for task_id in task_ids if not self.server.results[task_id]]
        for task_id in live:
            self.server.end(task_id, "cancelled")
        rest = [task_id for task_id in task_ids if task_id not in live]
        self._answer(200, {"cancelled": live, "not_cancelled": rest})

    def _events(self, query: dict[str, str]) -> None:
        if self.server.odd_events and "since" in query:
            odd = self.server.odd_events.pop(0)
            if isinstance(odd, str):
                self._answer(401, {}, code=odd)
            else:
                self._answer(200, odd)
            return
        since = int(query["since"]) if "since" in query else len(self.server.events)
        with self.server.changed:
            self.server.changed.wait_for(
                lambda: len(self.server.events) > since, float(query["wait"])
            )
            found = self.server.events[since:]
            following = len(self.server.events)
        lost = self.server.lose_events and bool(found)
        self._answer(200, {"events": [] if lost else found, "next": following, "gap": lost})

    def _results(self, task_ids: list[str], wait_seconds: float) -> None:
        known = self.server.results
        with self.server.changed:
            self.server.changed.wait_for(
                lambda: all(known.get(task_id, True) for task_id in task_ids), wait_seconds
            )
        if self.server.busy_results:
            self.server.busy_results -= 1
            self._answer(429, {}, code="RATE_LIMIT_EXCEEDED")
        elif any(task_id not in known for task_id in task_ids):
            self._answer(404, {}, code="TASK_NOT_FOUND")
        else:
            # As if only a few fitted into one answer.
            ended = [task_id for task_id in task_ids if known[task_id]]
            results = [{"task_id": task_id, **known[task_id]} for task_id in ended[:7]]
            unfinished = [task_id for task_id in task_ids if not known[task_id]]
            found = {"results": results, "unfinished": unfinished, "omitted": ended[7:]}
            self._answer(200, found)

    def _answer(self, status: int, data: Any, code: str = "", retry_after: str = "0") -> None:
        envelope = {"status": "error" if code else "success", "data": data, "error_code": code}
        text = json.dumps(envelope).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@contextmanager
def serving(server: S) -> Iterator[S]:
    """The server, answering in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def facade() -> Iterator[Facade]:
    with serving(Facade()) as server:
        yield server


@pytest.fixture
def cluster(facade: Facade) -> Iterator[Cluster]:
    with Cluster(facade.url) as found:
        yield found
