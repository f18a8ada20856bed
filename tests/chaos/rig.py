"""A small cluster of real processes that is made to be broken: start, kill, look."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retire_cluster.broker.client import AdminClient
from retire_cluster.schemas.errors import ClusterError
from tests.chaos.harness.zygote import Child, Zygote
from tests.ports import free_port

#: Beats fast, so that a lease is over while a test waits; retries at once.
QUICK = """
[heartbeat]
interval = 1
max_missed = 2
timeout = 3
[scheduler]
retry_base_seconds = 0.05
retry_cap_seconds = 0.5
poison_devices = 100
sweep_interval_seconds = 0.25
[api]
rate_limit = false
[worker]
slots = 4
"""


def eventually(condition: Callable[[], Any], what: str, timeout_seconds: float = 30.0) -> Any:
    """The condition's first true value; raises `AssertionError` when it stays false."""
    until = time.monotonic() + timeout_seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout_seconds:g} s: {what}")
        time.sleep(0.01)


class Rig:
    """One cluster: a folder, ports that stay the same over restarts, and its processes."""

    def __init__(
        self,
        folder: Path,
        *,
        settings: str = QUICK,
        seed: int = 1,
        data_dir: Path | None = None,
        zygote: Zygote | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir or folder / "main"
        self.config = folder / "settings.toml"
        #: Where tasks may leave marks of having run: elsewhere they meet their walls.
        self.marks = folder / "marks"
        self.marks.mkdir(exist_ok=True)
        # Without keys: bare sockets and proxies that change bytes speak to it.
        own = f"[server]\ncurve = false\n[policy]\nfolders = [{json.dumps(str(self.marks))}]\n"
        self.config.write_text(own + settings, "utf-8")
        self.admin_port, self.bus_port, self.event_port, self.api_port = (
            free_port() for _ in range(4)
        )
        self.rng = random.Random(seed)
        self._own_zygote = Zygote(folder / "zygote.log") if zygote is None else None
        self._zygote = zygote or self._own_zygote
        self._started: list[Child] = []
        self.broker: Child | None = None
        self.api: Child | None = None
        self.devices: dict[str, Child] = {}
        self.clients: list[AdminClient] = []
        self.admin = self.client()

    @property
    def database(self) -> Path:
        """The broker's file."""
        return self.data_dir / "cluster.db"

    def client(self, timeout_seconds: float = 2.0, port: int | None = None) -> AdminClient:
        """A client of the admin socket."""
        client = AdminClient("127.0.0.1", port or self.admin_port, timeout_seconds=timeout_seconds)
        self.clients.append(client)
        return client

    # --- processes -------------------------------------------------------------------------------

    def _start(self, command: str, argv: Sequence[str], log: Path, failpoint: str) -> Child:
        assert self._zygote is not None
        child = self._zygote.start(command, argv, log, failpoint)
        self._started = [child, *(each for each in self._started if each.code is None)]
        return child

    def start_broker(self, *extra: str, failpoint: str = "", wait: bool = True) -> Child:
        """The main node."""
        argv = [*self.broker_arguments(), *extra]
        self.broker = self._start("broker", argv, self.folder / "broker.log", failpoint)
        if wait:
            eventually(self._answers_or_ended, "the main node answers", 20.0)
        return self.broker

    def broker_arguments(self) -> list[str]:
        """What the main node is started with."""
        return [
            "--port", str(self.admin_port), "--worker-port", str(self.bus_port),
            "--event-port", str(self.event_port), "--data-dir", str(self.data_dir),
            "--config", str(self.config),
        ]  # fmt: skip

    def await_broker(self, timeout_seconds: float = 20.0) -> None:
        """Until it answers."""
        eventually(self.broker_answers, "the main node answers", timeout_seconds)

    def broker_answers(self) -> bool:
        """Whether it answers now."""
        try:
            self.admin.call("broker.info", timeout_seconds=0.3)
        except ClusterError:
            return False
        return True

    def _answers_or_ended(self) -> bool:
        """As `broker_answers`; `AssertionError` when nobody is left who could answer."""
        answers = self.broker_answers()
        if not answers and self.broker is not None and self.broker.poll() is not None:
            raise AssertionError(f"exit {self.broker.code}: {self.broker.last_words()}")
        return answers

    def start_device(
        self, name: str, *extra: str, failpoint: str = "", port: int | None = None
    ) -> Child:
        """A worker with a folder of its own."""
        argv = [
            "--join", f"127.0.0.1:{port or self.bus_port}", "--device-id", name,
            "--data-dir", str(self.folder / name), "--config", str(self.config),
            "--allow", "command", "--allow-root", "--drain-seconds", "1", *extra,
        ]  # fmt: skip
        child = self._start("worker", argv, self.folder / f"{name}.log", failpoint)
        self.devices[name] = child
        return child

    def start_api(self, *extra: str, failpoint: str = "", cluster_port: int | None = None) -> Child:
        """The REST facade."""
        argv = [
            "--port", str(self.api_port), "--cluster-port", str(cluster_port or self.admin_port),
            "--data-dir", str(self.folder / "api"), "--config", str(self.config), *extra,
        ]  # fmt: skip
        self.api = self._start("api", argv, self.folder / "api.log", failpoint)
        return self.api

    def close(self) -> None:
        """End everything."""
        for client in self.clients:
            client.close()
        for child in self._started:
            child.send(signal.SIGCONT)
            child.kill()
        if self._own_zygote is not None:
            self._own_zygote.close()

    # --- looking ---------------------------------------------------------------------------------

    def await_online(self, *names: str, timeout_seconds: float = 20.0) -> None:
        """Until these devices are online."""
        eventually(
            lambda: set(names) <= self.online(), f"{', '.join(names)} online", timeout_seconds
        )

    def online(self) -> set[str]:
        """Devices that are online; none when the main node does not answer."""
        try:
            rows = self.admin.call("device.list", {"page_size": 100})["items"]
        except ClusterError:
            return set()
        return {row["device_id"] for row in rows if row["status"] == "online"}

    def submit(
        self,
        task_type: str,
        payload: dict[str, Any] | None = None,
        count: int = 1,
        *,
        patience_seconds: float = 10.0,
        **fields: Any,
    ) -> list[str]:
        """Ids of new tasks that are alike."""
        args = {"task": {"task_type": task_type, **fields}, "count": count, "brief": True}
        blobs = [json.dumps(payload or {}).encode()] * count
        data = self.admin.call("task.submit", args, blobs, timeout_seconds=patience_seconds)
        ids: list[str] = data["task_ids"]
        return ids

    def status(self, task_id: str) -> str:
        """A task's status."""
        return str(self.admin.call("task.status", {"task_id": task_id})["status"])

    def finish(self, task_ids: Sequence[str], timeout_seconds: float = 60.0) -> list[Any]:
        """How these tasks ended, in their order; raises when not all end in time."""
        until = time.monotonic() + timeout_seconds
        found: dict[str, Any] = {}
        for start in range(0, len(task_ids), 500):
            part = list(task_ids[start : start + 500])
            while True:
                args = {"task_ids": part, "timeout_seconds": 1}
                with contextlib.suppress(ClusterError):
                    data = self.admin.call("task.wait", args, timeout_seconds=4)
                    found.update((row["task_id"], row) for row in data["results"])
                    if not data["unfinished"]:
                        break
                    if time.monotonic() > until:
                        sample = data["unfinished"][0]
                        state = self.admin.call("task.explain", {"task_id": sample})
                        raise AssertionError(f"{len(data['unfinished'])} do not end: {state}")
                assert time.monotonic() < until, "the main node does not answer"
        return [found[task_id] for task_id in task_ids]

    def log_of(self, name: str) -> str:
        """What a process has logged so far."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def dropped(self) -> dict[str, int]:
        """What the main node counted as dropped, by kind."""
        counted: dict[str, int] = self.admin.call("metrics")["dropped_messages"]
        return counted

    def http(
        self,
        method: str,
        path: str,
        document: Any = None,
        headers: dict[str, str] | None = None,
        timeout_seconds: float = 10.0,
    ) -> tuple[int, Any]:
        """One request to the facade: status and JSON. Raises `OSError` when it is not there."""
        connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=timeout_seconds)
        try:
            body = None if document is None else json.dumps(document)
            kind = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, body, {**kind, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(str(error)) from None
        finally:
            connection.close()


@contextmanager
def rig(settings: str = QUICK, seed: int = 1, data_dir: Path | None = None) -> Iterator[Rig]:
    """A rig in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    made = Rig(folder, settings=settings, seed=seed, data_dir=data_dir)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)
