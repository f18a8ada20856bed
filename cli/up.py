"""`retire-cluster up`: the main node, the REST facade and local workers as one supervised whole.

Standard output gets exactly one line, `ready http://HOST:PORT`; everything else goes to standard
error. `DATA_DIR/endpoints.json` says where everything listens, rewritten at each (re)start.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from retire_cluster.broker.client import AdminClient
from retire_cluster.cli import exits
from retire_cluster.cli.announce import Announcement, bracketed, dial_host, lan_address
from retire_cluster.cli.endpoints import (
    ApiEndpoint,
    MainEndpoints,
    WorkerEntry,
    endpoints_document,
    endpoints_path,
    is_ours,
    read_api,
    read_json,
    read_main,
    recorded_pids,
    run_path,
    write_json,
)
from retire_cluster.cli.readiness import Readiness
from retire_cluster.cli.supervisor import Child, Exit, State, Supervisor
from retire_cluster.conf.loading import default_data_dir, read_settings
from retire_cluster.conf.locks import FolderLock, FolderLocked
from retire_cluster.conf.settings import Settings, SettingsError
from retire_cluster.node.proctree import become_subreaper

#: How long an earlier cluster of the same folder may take to end.
_EARLIER_SECONDS = 12.0
#: What a worker's process ends with once its device was removed from the cluster.
REMOVED_CODE = 4
_KEY_VARIABLE = "RETIRE_CLUSTER_API_KEY"


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything until told to stop; the exit code (0 after a signal)."""
    args = parser().parse_args(argv)
    try:
        settings = read_settings(_overrides(args), args.config)
        return Up(args, settings, sys.stdout, sys.stderr).run()
    except (SettingsError, FolderLocked) as error:
        print(f"retire-cluster up: {error}", file=sys.stderr)
        return exits.USAGE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"retire-cluster up: {where}{error.strerror or error}", file=sys.stderr)
        return exits.USAGE


def parser() -> argparse.ArgumentParser:
    """The flags; those not given fall to environment, TOML and defaults."""
    found = argparse.ArgumentParser(
        prog="retire-cluster up",
        description="Start main node, REST facade and local workers; stop all with Ctrl-C.",
        allow_abbrev=False,
    )
    add = found.add_argument
    add("--host", metavar="ADDRESS", help="where the REST facade listens (127.0.0.1)")
    add("--port", type=int, metavar="N", help="its port (8081); any port may be 0")
    add("--cluster-port", type=int, metavar="N", help="admin port of the main node (8080)")
    add("--worker-port", type=int, metavar="N", help="port of the worker bus (8082)")
    add("--event-port", type=int, metavar="N", help="port of the event feed (8083)")
    add("--data-dir", metavar="FOLDER", help="store, keys, identities, endpoints.json")
    add("--workers", type=_count, default=1, metavar="N", help="local workers (1); 0 for none")
    add("--slots", type=int, metavar="N", help="tasks each local worker runs at once")
    add(
        "--allow",
        action="append",
        default=[],
        metavar="TYPE",
        help="task type the local workers may run beside the harmless ones; repeatable",
    )
    add("--auth", action="store_true", help="ask for an API key; made, shown once if none is set")
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"accept this key; repeatable. Others on this machine can see flags: {_KEY_VARIABLE}"
        " in the environment is safer",
    )
    add("--no-rate-limit", action="store_true", help="do not limit requests a client")
    add("--no-cors", action="store_true", help="send no CORS headers at all")
    add(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="foreign origin whose pages may use the API; repeatable",
    )
    add("--insecure", action="store_true", help="let other devices join, without encryption")
    add("--debug", action="store_true", help="detailed logs")
    add("--config", metavar="FILE", help="TOML file of settings")
    return found


class Up:
    """One running `up`.

    :param out: takes the ready line
    :param err: takes progress
    """

    def __init__(
        self, args: argparse.Namespace, settings: Settings, out: TextIO, err: TextIO
    ) -> None:
        self._args = args
        self._settings = settings
        self._out = out
        self._err = err
        self._data_dir = settings.data_dir.absolute()
        self._main: MainEndpoints | None = None
        self._api: ApiEndpoint | None = None
        self._written: Mapping[str, Any] | None = None
        self._signals = 0
        self._readiness: Readiness | None = None
        self._announced = False
        self._supervisor = Supervisor(output=err.fileno(), adopting=become_subreaper())
        host = local_host_id(socket.gethostname())
        self._device_ids = {
            f"worker-{number}": f"{host}-local-{number}" for number in range(1, args.workers + 1)
        }

    def run(self) -> int:
        """Start, watch, stop. Raises `FolderLocked` when the data folder is taken, `OSError`."""
        self._listen_to_signals()
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._data_dir / "run").mkdir(mode=0o700, exist_ok=True)
        with FolderLock(self._data_dir / "run" / "up.lock", "retire-cluster up"):
            self._await_earlier()
            for path in (
                endpoints_path(self._data_dir),
                run_path(self._data_dir, "main"),
                run_path(self._data_dir, "api"),
            ):
                path.unlink(missing_ok=True)
            self._add_children()
            try:
                return self._watch()
            finally:
                if self._readiness is not None:
                    self._readiness.stop()
                self._supervisor.stop(hurry=lambda: self._signals > 1)

    def _watch(self) -> int:
        self._supervisor.start("broker", time.monotonic())
        while not self._signals:
            now = time.monotonic()
            for ended in self._supervisor.step(now):
                if self._is_hopeless(ended):
                    self._say(f"{ended.name} could not start; stopping (its reason is above)")
                    return exits.USAGE
                self._tell_end(ended)
            self._learn_endpoints(now)
            if not self._announced and self._readiness and self._readiness.ready.is_set():
                self._announce()
            time.sleep(0.2 if self._announced else 0.03)
        self._say("stopping")
        return exits.OK

    def _add_children(self) -> None:
        no_keys: dict[str, str | None] = {_KEY_VARIABLE: None}
        keys: dict[str, str | None] = {}
        if self._args.api_key:
            keys[_KEY_VARIABLE] = "\n".join(self._args.api_key)
        add = self._supervisor.add
        add(Child("broker", self._broker_command, no_keys, stop_rank=2, stop_seconds=2.5))
        add(Child("api", self._api_command, keys, stop_rank=1, stop_seconds=2.0))
        for number, name in enumerate(self._device_ids, start=1):
            command = self._worker_command(number, self._device_ids[name])
            final = frozenset({REMOVED_CODE})
            add(Child(name, command, no_keys, stop_rank=0, stop_seconds=4.0, final_codes=final))

    def _broker_command(self) -> list[str]:
        server, main = self._settings.server, self._main
        command = [
            *self._module("main"),
            *("--port", str(main.admin_port if main else self._cluster_port)),
            *("--worker-port", str(main.worker_port if main else server.worker_port)),
            *("--event-port", str(main.event_port if main else server.event_port)),
        ]
        if self._args.insecure:
            command += ["--insecure", "--worker-host", self._worker_host]
        return command

    def _api_command(self) -> list[str]:
        args, api = self._args, self._settings.api
        assert self._main is not None
        command = [
            *self._module("api"),
            *("--host", api.host, "--port", str(self._api.port if self._api else api.port)),
            *("--cluster-host", dial_host(self._settings.server.host)),
            *("--cluster-port", str(self._main.admin_port)),
        ]
        switches = (
            ("--auth", args.auth),
            ("--no-rate-limit", args.no_rate_limit),
            ("--no-cors", args.no_cors),
        )
        command += [flag for flag, on in switches if on]
        return command + [f"--cors-origin={origin}" for origin in args.cors_origin]

    def _worker_command(self, number: int, device_id: str) -> Any:
        def command() -> list[str]:
            assert self._main is not None
            host = bracketed(dial_host(self._worker_host))
            made = [
                *self._module("worker", self._worker_dir(number)),
                *("--join", f"{host}:{self._main.worker_port}", "--device-id", device_id),
            ]
            if self._args.slots is not None:
                made += ["--slots", str(self._args.slots)]
            return made + [f"--allow={task_type}" for task_type in self._args.allow]

        return command

    def _module(self, name: str, data_dir: Path | None = None) -> list[str]:
        # The folder that `up` was started in must not be where children import from.
        safe = ["-P"] if sys.version_info >= (3, 11) else []
        command = [sys.executable, *safe, "-m", "retire_cluster.cli.main", name]
        command += ["--data-dir", str(data_dir or self._data_dir)]
        if self._args.config:
            command += ["--config", os.path.abspath(self._args.config)]
        if self._args.debug:
            command.append("--debug")
        return command

    @property
    def _cluster_port(self) -> int:
        """The admin port, under whichever of its two names it was set."""
        settings = self._settings
        if settings.source_of("server.port") == "default":
            return settings.api.cluster_port
        return settings.server.port

    @property
    def _worker_host(self) -> str:
        server = self._settings.server
        return server.worker_host or ("0.0.0.0" if server.insecure else "127.0.0.1")

    def _worker_dir(self, number: int) -> Path:
        return self._data_dir / "workers" / str(number)

    def _learn_endpoints(self, now: float) -> None:
        """Read what the children wrote, start who waited for it, tell everyone who reads files."""
        main = read_main(read_json(run_path(self._data_dir, "main")))
        if main and main != self._main and self._is_childs(main.pid, "broker"):
            self._main = main
            self._say(
                f"main node: admin port {main.admin_port}, worker bus {main.worker_port}, "
                f"events {main.event_port}"
            )
            for child in self._supervisor.children.values():
                if child.state is State.NEW:
                    self._supervisor.start(child.name, now)
        api = read_api(read_json(run_path(self._data_dir, "api")))
        if api and api != self._api and self._is_childs(api.pid, "api"):
            self._api = api
            self._say(f"REST facade: {self._announcement().url}")
        if self._main and self._api:
            self._write_endpoints()
            if self._readiness is None:
                self._readiness = self._begin_readiness()

    def _is_childs(self, pid: int, name: str) -> bool:
        child = self._supervisor.children[name]
        # A virtual environment's python.exe is a launcher: the serving process has another number.
        return child.state is State.RUNNING and (pid == child.pid or sys.platform == "win32")

    def _write_endpoints(self) -> None:
        workers = [
            WorkerEntry(device_id, pid, str(self._worker_dir(number)))
            for number, (name, device_id) in enumerate(self._device_ids.items(), start=1)
            if (pid := self._supervisor.children[name].pid) is not None
        ]
        document = endpoints_document(self._main, self._api, workers)
        if document != self._written:
            try:
                write_json(endpoints_path(self._data_dir), document)
            except OSError as error:  # a full disk must not take the cluster down
                if self._written is not None:
                    self._say(f"endpoints.json could not be written: {error}")
            self._written = document

    def _begin_readiness(self) -> Readiness:
        assert self._main is not None
        client = AdminClient(dial_host(self._settings.server.host), self._main.admin_port)
        url = f"{self._announcement().url}/health"
        readiness = Readiness(client, url, self._expected_devices, self._say)
        readiness.start()
        return readiness

    def _expected_devices(self) -> list[str]:
        children = self._supervisor.children
        return [
            device_id
            for name, device_id in self._device_ids.items()
            if children[name].state is not State.FINAL
        ]

    def _announcement(self) -> Announcement:
        assert self._main is not None
        assert self._api is not None
        usual = default_data_dir(sys.platform, os.environ)
        flag = f" --data-dir {shlex.quote(str(self._data_dir))}" if self._data_dir != usual else ""
        return Announcement(
            api_host=self._api.host,
            api_port=self._api.port,
            worker_port=self._main.worker_port,
            worker_host=self._worker_host,
            lan_address=lan_address(),
            data_dir_flag=flag,
        )

    def _announce(self) -> None:
        self._announced = True
        found = self._announcement()
        print(f"ready {found.url}", file=self._out, flush=True)
        self._say_block(found.text())

    def _is_hopeless(self, ended: Exit) -> bool:
        """Whether a child said on its first start that it cannot work as it is set up."""
        return ended.code == exits.USAGE and self._supervisor.children[ended.name].starts == 1

    def _tell_end(self, ended: Exit) -> None:
        how = f"ended by signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
        if ended.restart_in_seconds is None:
            device_id = self._device_ids.get(ended.name, ended.name)
            self._say(
                f"{ended.name} was removed from the cluster and stays down; undo with: "
                f"retire-cluster devices readmit {device_id}, then restart"
            )
            return
        self._say(f"{ended.name} died ({how}); it starts again in {ended.restart_in_seconds:g} s")

    def _await_earlier(self) -> None:
        """Give the processes of an `up` that was killed the time to end by their lifelines."""
        earlier = recorded_pids(read_json(endpoints_path(self._data_dir)))
        deadline = time.monotonic() + _EARLIER_SECONDS
        told = False
        while any(is_ours(pid) for pid in earlier) and time.monotonic() < deadline:
            if self._signals:
                return
            if not told:
                self._say("waiting for the processes of an earlier run to end")
                told = True
            time.sleep(0.05)

    def _listen_to_signals(self) -> None:
        for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK"):
            number = getattr(signal, name, None)
            # `nohup` ignores SIGHUP on purpose: leave that.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1

    def _say(self, text: str) -> None:
        self._say_block(f"retire-cluster up: {text}")

    def _say_block(self, text: str) -> None:
        try:
            print(text, file=self._err, flush=True)
        except (OSError, ValueError):  # the terminal is gone; the cluster is not
            return


def local_host_id(hostname: str) -> str:
    """A host's name as the beginning of a device id."""
    short = re.sub(r"[^A-Za-z0-9_.-]+", "-", hostname.split(".")[0]).strip("-._")
    return short[:60] or "host"


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 256:
        raise argparse.ArgumentTypeError(f"must be from 0 to 256, not {number}")
    return number


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "data_dir": args.data_dir,
        "api.host": args.host,
        "api.port": args.port,
        "server.port": args.cluster_port,
        "server.worker_port": args.worker_port,
        "server.event_port": args.event_port,
        "server.insecure": True if args.insecure else None,
        "worker.slots": args.slots,
        "api.cors_origins": args.cors_origin or None,
        "logging.debug": True if args.debug else None,
    }
