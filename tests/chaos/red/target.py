"""A real `retire-cluster up` to attack, and what an attacker has in hand: sockets, keys, names."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psutil

from retire_cluster.broker.client import AdminClient
from retire_cluster.conf import curve, joining
from retire_cluster.conf.curve import ClientKeys
from retire_cluster.node.system import process_tree
from retire_cluster.schemas.errors import ClusterError
from tests.chaos.red.attack import Went
from tests.command_kit import ANY_PORTS, API, COMMAND, Answer, exchange, plain_environment, until
from tests.integration.main_kit import RawDevice

#: Not given: as `key=OWN`, the key that the cluster was started with.
OWN = "\0"
#: What a witness may take on a machine that is busy with an attack.
WITNESS_SECONDS = 15.0
_numbers = itertools.count(1)
_WITNESS_TAG = "witness"
_WITNESS_ADDRESS = "127.0.2.1" if process_tree.IS_LINUX else "127.0.0.1"


class Target:
    """One running `up`: main node, REST facade and local workers, with keys, on its own ports.

    The usual one is as the quick start makes it, with `--allow command` for its worker.

    :param folder: for its data and for whatever attacks leave behind
    :param flags: of `up`, beside data folder and ports
    :param api_key: key that the facade is started with; with it `up` gets `--auth`
    :param settings: TOML for `--config`
    :param environ: more for its environment
    """

    #: Process numbers of every `up` that runs now.
    roots: ClassVar[set[int]] = set()

    def __init__(
        self,
        folder: Path,
        *flags: str,
        api_key: str = "",
        settings: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.data_dir = folder / "data"
        self.api_key = api_key
        self.environ = _environment(folder, environ or {})
        self._devices: list[RawDevice] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._client: AdminClient | None = None
        self._others: dict[str, Target] = {}
        #: Where requests come from: each attack has an address, and so its own limits.
        self.address = _next_address()
        words = ["up", "--data-dir", str(self.data_dir), *ANY_PORTS, *flags]
        if settings:
            (folder / "settings.toml").write_text(settings, "utf-8")
            words += ["--config", str(folder / "settings.toml")]
        # By it the witness's tasks go to a worker of this cluster's own, not to an attacker's.
        up_environ = {"RETIRE_CLUSTER_WORKER_TAGS": _WITNESS_TAG, **self.environ}
        if api_key:
            words.append("--auth")
            up_environ["RETIRE_CLUSTER_API_KEY"] = api_key
        with (folder / "up.log").open("wb") as log:
            self.up = subprocess.Popen(
                [*COMMAND, *words],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=up_environ,
            )  # fmt: skip
        self.roots.add(self.up.pid)
        assert self.up.stdout is not None
        line = self.up.stdout.readline().decode()
        if not line.startswith("ready http://"):
            self.up.kill()
            self.up.wait()
            self.roots.discard(self.up.pid)
            raise RuntimeError(f"`up` does not start: {self.log()[-2000:]}")
        self.url = line.split()[1]

    # --- where things are ------------------------------------------------------------------------

    @property
    def endpoints(self) -> dict[str, Any]:
        """What endpoints.json says: `main`, `api`, `workers` with pids and ports."""
        found: dict[str, Any] = json.loads((self.data_dir / "endpoints.json").read_text())
        return found

    @property
    def api_port(self) -> int:
        """The REST facade's port on 127.0.0.1."""
        return int(self.endpoints["api"]["port"])

    @property
    def admin_port(self) -> int:
        """The admin socket's port."""
        return int(self.endpoints["main"]["admin_port"])

    @property
    def bus_port(self) -> int:
        """The worker bus's port."""
        return int(self.endpoints["main"]["worker_port"])

    @property
    def event_port(self) -> int:
        """The event feed's port."""
        return int(self.endpoints["main"]["event_port"])

    @property
    def main_pid(self) -> int:
        """The main node's process."""
        return int(self.endpoints["main"]["pid"])

    @property
    def api_pid(self) -> int:
        """The REST facade's process."""
        return int(self.endpoints["api"]["pid"])

    @property
    def worker_pids(self) -> list[int]:
        """The local workers' processes."""
        return [int(worker["pid"]) for worker in self.endpoints["workers"]]

    @property
    def local(self) -> str:
        """Device id of the first local worker."""
        return str(self.endpoints["workers"][0]["device_id"])

    def log(self) -> str:
        """Everything that `up` and its children wrote to standard error."""
        return (self.folder / "up.log").read_text("utf-8", "replace")

    @staticmethod
    def rss_mb(pid: int) -> float:
        """Resident memory of one process."""
        return float(psutil.Process(pid).memory_info().rss) / 2**20

    def new_folder(self, name: str = "work") -> Path:
        """An empty folder that nobody else uses."""
        made = self.folder / f"{name}-{next(_numbers)}"
        made.mkdir(mode=0o700)
        return made

    # --- as an administrator ---------------------------------------------------------------------

    @property
    def admin(self) -> AdminClient:
        """A client of the admin socket with the keys of this machine's tooling."""
        if self._client is None:
            self._client = self.admin_client(self.tooling_keys())
        return self._client

    def admin_client(self, keys: ClientKeys | None, timeout_seconds: float = 20.0) -> AdminClient:
        """A client of the admin socket with any keys; close it yourself."""
        return AdminClient(port=self.admin_port, timeout_seconds=timeout_seconds, keys=lambda: keys)

    def tooling_keys(self) -> ClientKeys | None:
        """The keys in `keys/admin.key`."""
        return curve.client_keys(self.data_dir / curve.ADMIN_KEY)

    def call(self, op: str, blobs: Sequence[bytes] = (), /, **args: Any) -> dict[str, Any]:
        """An admin operation's data. Raises `ClusterError`."""
        return self.admin.call(op, args, blobs)

    def dropped(self, reason: str) -> int:
        """The main node's counter of what it did not take."""
        return int(self.call("metrics")["dropped_messages"].get(reason, 0))

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """Every event that is still kept, of one type or of all."""
        found: list[dict[str, Any]] = []
        since = 0
        while True:
            data = self.call("events.poll", since=since, wait_seconds=0, limit=1000)
            if not data["events"]:
                return [event for event in found if kind in ("", event["type"])]
            found += data["events"]
            since = data["next"]

    def cli(self, *words: str, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A verb of the command line on this cluster, run to its end."""
        return subprocess.run(
            [*COMMAND, *words, "--data-dir", str(self.data_dir)],
            capture_output=True, text=True, timeout=seconds, env=self.environ, check=False,
        )  # fmt: skip

    def new_api_key(self, *scopes: str) -> tuple[str, str]:
        """A key for REST and its id."""
        flags = [word for scope in scopes for word in ("--scope", scope)]
        done = self.cli("keys", "create", *flags, "--json")
        assert done.returncode == 0, done.stderr
        data = json.loads(done.stdout)["data"]
        return data["key"], data["key_id"]

    # --- as somebody who submits -----------------------------------------------------------------

    def submit(self, task_type: str, payload: Any = None, **fields: Any) -> str:
        """A new task's id; `max_retries` is 0 unless `requirements` say otherwise."""
        requirements = {"max_retries": 0, **fields.pop("requirements", {})}
        task = {"task_type": task_type, "requirements": requirements, **fields}
        blob = payload if isinstance(payload, bytes) else json.dumps(payload or {}).encode()
        made = self.call("task.submit", [blob], tasks=[task], brief=True)
        return str(made["task_ids"][0])

    def command(self, *words: str, seconds: float = 30.0, **fields: Any) -> dict[str, Any]:
        """How a `command` task ended (see `outcome`)."""
        return self.outcome(self.submit("command", {"command": list(words)}, **fields), seconds)

    def outcome(self, task_id: str, seconds: float = 30.0) -> dict[str, Any]:
        """A task's row once it has ended: `status`, `result_data`, `error_message` and so on.

        Raises `TimeoutError` when it does not end.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            wait = max(0.0, min(5.0, deadline - time.monotonic()))
            data = self.call("task.wait", task_ids=[task_id], timeout_seconds=wait)
            if not data["unfinished"]:
                row: dict[str, Any] = data["results"][0]
                return row
        raise TimeoutError(f"task {task_id} did not end within {seconds:g} s")

    def status(self, task_id: str) -> str:
        """A task's status."""
        return str(self.call("task.status", task_id=task_id)["status"])

    # --- over REST -------------------------------------------------------------------------------

    def http(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = OWN,
        headers: Mapping[str, str] | None = None,
        source: str = "",
        seconds: float = 40.0,
    ) -> Answer:
        """One request on a connection of its own; a body that is no bytes is sent as JSON.

        :param key: API key; None for none; not given: the cluster's own, if it has one
        :param source: the address that it comes from, such as 127.0.0.5; not given: the attack's
        """
        mine = self.api_key if key == OWN else key
        sent = {**({"X-API-Key": mine} if mine else {}), **(headers or {})}
        return exchange(
            self.api_port, method, path, body, sent, source=source or self.address, seconds=seconds
        )

    # --- as a device or a stranger ---------------------------------------------------------------

    def tcp(self, port: int, seconds: float = 10.0) -> socket.socket:
        """A bare connection to one of the ports."""
        return socket.create_connection(("127.0.0.1", port), seconds)

    @property
    def server_key(self) -> str:
        """The main node's public key."""
        keys = self.tooling_keys()
        assert keys is not None
        return keys.server

    def stranger(self) -> ClientKeys:
        """New keys that this cluster does not know."""
        return ClientKeys(curve.new_pair(), self.server_key)

    def known(self, device_id: str) -> ClientKeys:
        """The keys of a device that may join."""
        pair = curve.new_pair()
        with contextlib.suppress(ClusterError):  # only one that an attack before this removed
            self.call("device.readmit", device_id=device_id)
        self.call("device.authorise", device_id=device_id, public_key=pair.public)
        return ClientKeys(pair, self.server_key)

    def token(self, **args: Any) -> ClientKeys:
        """The keys of a new join token's holder; `uses` and `age_seconds` as `token.create`."""
        made = self.call("token.create", **args)
        return ClientKeys(curve.pair_of_token(bytes.fromhex(made["token"])), self.server_key)

    def join_string(self, **args: Any) -> str:
        """A new join string for this machine."""
        return joining.join_string(self.call("token.create", **args), "127.0.0.1")

    def device(self, device_id: str, keys: ClientKeys | None = None, *, port: int = 0) -> RawDevice:
        """A bare socket on the worker bus that speaks frames by hand; closed with the target.

        `join()` says HELLO and takes WELCOME, `next_task()`, `started()`, `finished()` work; `send`
        takes any message of `schemas.messages`, `socket.send_multipart` any bytes.

        :param keys: of the connection; None for a plain one. See `known`, `token`, `stranger`
        :param port: another than the bus's, such as that of something between
        """
        return self.keep(RawDevice(port or self.bus_port, device_id, keys=keys))

    def keep(self, device: RawDevice) -> RawDevice:
        """One that was made elsewhere, to be closed with the others."""
        self._devices.append(device)
        return device

    def worker(
        self,
        device_id: str,
        *flags: str,
        settings: str = "",
        command: Sequence[str] = COMMAND,
        environ: Mapping[str, str] | None = None,
        online: bool = True,
    ) -> subprocess.Popen[bytes]:
        """A real worker that joins by a token, in `folder/DEVICE_ID`; stopped with the target.

        :param settings: TOML for its `--config`
        :param command: what it is started with, such as `setpriv` before `COMMAND`
        :param online: wait until it is
        """
        folder = self.folder / device_id
        words = ["worker", "--join", self.join_string(), "--data-dir", str(folder),
                 "--device-id", device_id, "--drain-seconds", "0", *flags]  # fmt: skip
        if settings:
            path = self.folder / f"{device_id}.toml"
            path.write_text(settings, "utf-8")
            words += ["--config", str(path)]
        with (self.folder / f"{device_id}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**self.environ, **(environ or {})},
            )  # fmt: skip
        self._processes[device_id] = process
        if online:
            until(lambda: self.is_online(device_id), f"{device_id} online: see {log.name}")
        return process

    def is_online(self, device_id: str) -> bool:
        """Whether a device is online."""
        rows = self.call("device.list", page_size=100, status="online")["items"]
        return device_id in {row["device_id"] for row in rows}

    # --- others, witnesses, the end --------------------------------------------------------------

    @property
    def guarded(self) -> Target:
        """The same with `--auth` and a key for everything; started when first asked for."""
        if "guarded" not in self._others:
            self._others["guarded"] = Target(
                self.folder / "guarded", "--allow", "command", "--allow-root",
                api_key="key-of-the-red-team-0123456789",
            )  # fmt: skip
        return self._others["guarded"]

    @contextmanager
    def another(self, *flags: str, **options: Any) -> Iterator[Target]:
        """One more cluster with other flags (see `Target`) for as long as the block lasts."""
        made = Target(self.new_folder("cluster"), *flags, **options)
        try:
            yield made
        finally:
            made.close()

    def witness(self, seconds: float = WITNESS_SECONDS) -> float:
        """A well-behaved caller's task by REST runs to its end; how long it took, in seconds.

        Raises `Went` when the cluster does not serve any more.
        """
        began = time.monotonic()
        body = {
            "task_type": "echo",
            "payload": {"n": next(_numbers)},
            "requirements": {"required_tags": [_WITNESS_TAG]},
        }
        try:
            answer = self._as_witness("POST", f"{API}/tasks", body, seconds)
            path = f"{API}/tasks/{answer.data['task_id']}/result?wait={min(seconds, 30):g}"
            found = self._as_witness("GET", path, None, seconds + 5).data["status"]
            assert found == "success", found
        except (OSError, AssertionError, http.client.HTTPException, ValueError) as error:
            raise Went(f"the cluster no longer serves others: {error!r}") from None
        return time.monotonic() - began

    def _as_witness(self, method: str, path: str, body: Any, seconds: float) -> Answer:
        return self.http(method, path, body, source=_WITNESS_ADDRESS, seconds=seconds)

    def release(self) -> None:
        """Close the bare devices and end the workers that an attack made: the next one begins."""
        self.address = _next_address()
        gone = {device.device_id for device in self._devices} | self._processes.keys()
        for device in self._devices:
            device.close()
        self._devices.clear()
        _end([*self._processes.values()])
        self._processes.clear()
        for device_id in gone:  # else tasks of others wait until it is missed
            with contextlib.suppress(ClusterError):
                self.call("device.remove", device_id=device_id)
        for other in self._others.values():
            other.release()

    def close(self) -> None:
        """End everything; nothing that was started here lives on."""
        self.release()
        for other in self._others.values():
            other.close()
        if self._client is not None:
            self._client.close()
        below = [process.pid for process in process_tree.descendants(self.up.pid)]
        _end([self.up], seconds=15.0)
        self.roots.discard(self.up.pid)
        if self.up.stdout is not None:
            self.up.stdout.close()
        process_tree.kill_all(pid for pid in below if _is_below(pid, self.up.pid))


def _next_address() -> str:
    """An address of this machine; only Linux has more than one without being told."""
    number = next(_numbers)
    return f"127.0.1.{number % 250 + 1}" if process_tree.IS_LINUX else "127.0.0.1"


def _is_below(pid: int, root: int) -> bool:
    """Whether a process is still one of those that descended from `root`: it was adopted by us."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).ppid() in (root, os.getpid())
    return False


def _end(processes: Sequence[subprocess.Popen[bytes]], seconds: float = 10.0) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        if process.poll() is None:
            process.kill()
            process.wait()


def _environment(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return plain_environment(HOME=str(home), **more)
