"""Proves that a cluster works: its workers are online and a task has gone through it.

Runs in a thread of its own, so that the supervisor never waits for an answer. It asks the admin
socket and `/health`, which cost no rate limit.
"""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection

from retire_cluster.broker.client import AdminClient
from retire_cluster.schemas.errors import ClusterError
from retire_cluster.schemas.text import json_text

_PAUSE_SECONDS = 0.05
#: After this long the person waiting is told what is still missing.
_PATIENCE_SECONDS = 15.0


class Readiness(threading.Thread):
    """Tries until the cluster works, then sets `ready`.

    :param client: asks the broker; closed by this thread
    :param health_url: the facade's `/health`
    :param expected: the device ids that must be online, asked anew each time
    :param say: takes progress lines
    """

    def __init__(
        self,
        client: AdminClient,
        health_url: str,
        expected: Callable[[], Collection[str]],
        say: Callable[[str], None],
    ) -> None:
        super().__init__(name="readiness", daemon=True)
        self.ready = threading.Event()
        #: Devices that were online once.
        self.seen_online: set[str] = set()
        self._client = client
        self._health_url = health_url
        self._expected = expected
        self._say = say
        self._stopping = threading.Event()
        self._missing = "the main node's answer"
        self._complain_at = time.monotonic() + _PATIENCE_SECONDS

    def stop(self) -> None:
        """Stop trying."""
        self._stopping.set()

    def run(self) -> None:
        """Try each step until it holds, then set `ready`."""
        try:
            for step in (self._workers_online, self._task_goes_through, self._facade_healthy):
                while not self._attempt(step):
                    self._grumble()
                    if self._stopping.wait(_PAUSE_SECONDS):
                        return
            self.ready.set()
        finally:
            self._client.close()

    def _attempt(self, step: Callable[[], bool]) -> bool:
        try:
            return step()
        except ClusterError as error:
            why = f"{self._missing} ({error.message})"
            self._missing = why if error.status >= 500 else error.message
            return False

    def _workers_online(self) -> bool:
        self._missing = "the main node's answer"
        self._client.call("broker.info")
        for device_id in self._expected():
            self._missing = f"worker {device_id} to come online"
            with contextlib.suppress(ClusterError):
                if self._client.call("device.get", {"device_id": device_id})["status"] == "online":
                    self.seen_online.add(device_id)
                    continue
            return False
        return True

    def _task_goes_through(self) -> bool:
        if not self._expected():
            return True
        self._missing = "an echo task to come back"
        started = time.monotonic()
        task = {
            "task_type": "echo",
            "priority": "urgent",
            "requirements": {},
            "metadata": {"created_by": "retire-cluster up"},
        }
        payload = json_text.dumps({"message": "Hello from retire-cluster up"})
        task_id = self._client.call("task.submit", {"tasks": [task]}, [payload])["task_ids"][0]
        while not self._stopping.is_set():
            args = {"task_ids": [task_id], "timeout_seconds": 1.0}
            results = self._client.call("task.wait", args, timeout_seconds=3.0)["results"]
            if results:
                spent_ms = (time.monotonic() - started) * 1000
                if results[0]["status"] != "success":
                    self._missing = f"an echo task to succeed ({results[0].get('error_message')})"
                    self._stopping.wait(1.0)
                    return False
                worker = results[0].get("worker_device_id")
                self._say(f"an echo task went through {worker} in {spent_ms:.0f} ms")
                return True
            self._grumble()
        return False

    def _facade_healthy(self) -> bool:
        self._missing = f"the REST facade at {self._health_url}"
        return answers_ok(self._health_url)

    def _grumble(self) -> None:
        if time.monotonic() >= self._complain_at:
            self._say(f"still waiting for {self._missing}")
            self._complain_at = time.monotonic() + _PATIENCE_SECONDS


def answers_ok(url: str, *, timeout_seconds: float = 2.0) -> bool:
    """Tell whether a GET of a local address, past all proxies, is answered by 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_seconds) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False
