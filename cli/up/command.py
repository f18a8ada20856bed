"""`retire-cluster up`: the main node, the REST facade and local workers as one supervised whole.

Standard output gets exactly one line, `ready http://HOST:PORT`; everything else goes to standard
error. `DATA_DIR/endpoints.json` says where everything listens, rewritten at each (re)start.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from retire_cluster.broker.client import AdminClient
from retire_cluster.cli import exits
from retire_cluster.cli.endpoints import (
    ApiEndpoint,
    MainEndpoints,
    WorkerEntry,
    endpoints_document,
    endpoints_path,
    is_ours,
    pid_alive,
    read_api,
    read_json,
    read_main,
    recorded_processes,
    run_path,
    write_endpoints,
    write_json,
)
from retire_cluster.cli.joining.server import JoinServer
from retire_cluster.cli.up.announce import (
    JOIN_NOTE,
    JOIN_SECONDS,
    JOIN_USES,
    MOST_JOIN_LINES,
    Announcement,
    commands_folder,
    quoted,
)
from retire_cluster.cli.up.local_workers import device_pair
from retire_cluster.cli.up.plan import Plan, overrides, parser
from retire_cluster.cli.up.readiness import Readiness
from retire_cluster.cli.up.supervisor import Child, Exit, State, Supervisor
from retire_cluster.conf import joining
from retire_cluster.conf.curve import KeyFileError
from retire_cluster.conf.loading import default_data_dir, read_settings
from retire_cluster.conf.machine.addresses import is_loopback, public_host
from retire_cluster.conf.machine.locks import FolderLock, FolderLocked
from retire_cluster.conf.machine.oserrors import naming
from retire_cluster.conf.machine.ownership import Foreign, check_folder
from retire_cluster.conf.machine.prctl import hide_memory
from retire_cluster.conf.machine.processes import is_same, started
from retire_cluster.conf.neighbours import tooling_keys
from retire_cluster.conf.outlet import WHY_VARIABLE, last_words, take_why, tell
from retire_cluster.conf.spec import SettingsError
from retire_cluster.node.device.policy import running_as_root
from retire_cluster.node.system.process_tree import become_subreaper
from retire_cluster.node.tasks import own_type
from retire_cluster.schemas.errors import ClusterError, Forbidden

#: How long an earlier cluster of the same folder may take to end.
_EARLIER_SECONDS = 12.0
#: How often the folder of kept wheels is looked at.
_WHEELS_SECONDS = 2.0
#: What a worker's process ends with once its device was removed from the cluster.
REMOVED_CODE = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything until told to stop; the exit code (0 after a signal)."""
    args = parser().parse_args(argv)
    hide_memory()
    try:
        settings = read_settings(overrides(args), args.config)
        plan = Plan(args, settings, socket.gethostname())
        _check_loopback(plan.admin_host)
        return Up(plan, sys.stdout, sys.stderr).run()
    except (SettingsError, Foreign, FolderLocked) as error:
        last_words(f"retire-cluster up: {error}")
        return exits.USAGE
    except OSError as error:
        last_words(f"retire-cluster up: {naming(error, args.data_dir or 'the data folder')}")
        return exits.USAGE


def _check_loopback(host: str) -> None:
    """Raises `SettingsError` where this machine does not reach itself: nothing would answer."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
    except OSError as error:
        if error.errno == errno.ENETUNREACH and is_loopback(host):
            raise SettingsError(
                "server.host", f"{host} cannot be reached: loopback is down (ip link set lo up)"
            ) from None


class Up:
    """One running `up`.

    :param plan: what to start
    :param out: takes the ready line
    :param err: takes progress, and what children print to standard output
    """

    def __init__(self, plan: Plan, out: TextIO, err: TextIO) -> None:
        self._plan = plan
        self._data_dir = plan.data_dir
        self._out = out
        self._err = err
        self._main: MainEndpoints | None = None
        self._api: ApiEndpoint | None = None
        self._written: Mapping[str, Any] | None = None
        #: Child → which of its starts its run file was read for.
        self._read_at_start: dict[str, int] = {}
        self._signals = 0
        self._complaint = ""
        #: Which child cannot work as it is set up, and why.
        self._hopeless = ""
        self._readiness: Readiness | None = None
        self._announced = False
        self._joins: JoinServer | None = None
        self._joins_at = 0.0
        self._supervisor = Supervisor(output=err.fileno(), adopting=become_subreaper())

    def run(self) -> int:
        """Start, watch, stop.

        Raises `FolderLocked` when the data folder is taken, `Foreign` when it is another user's,
        `OSError`.
        """
        self._listen_to_signals()
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(self._data_dir)
        (self._data_dir / "run").mkdir(mode=0o700, exist_ok=True)
        with FolderLock(self._data_dir / "run" / "up.lock", "retire-cluster up"):
            self._await_earlier()
            for path in (
                endpoints_path(self._data_dir),
                run_path(self._data_dir, "main"),
                run_path(self._data_dir, "api"),
                run_path(self._data_dir, "started"),
                joining.path_of(self._data_dir),
            ):
                path.unlink(missing_ok=True)
            self._add_children()
            try:
                code = self._watch()
            finally:
                if self._readiness is not None:
                    self._readiness.stop()
                if self._joins is not None:
                    self._joins.close()
                joining.path_of(self._data_dir).unlink(missing_ok=True)
                self._supervisor.stop(hurry=lambda: self._signals > 1)
        if self._hopeless:
            # Last, below what the others logged while they stopped.
            self._say(self._hopeless)
        return code

    def _why_path(self, name: str) -> Path:
        return run_path(self._data_dir, f"{name}.why")

    def _watch(self) -> int:
        self._supervisor.start("broker", time.monotonic())
        while not self._signals:
            now = time.monotonic()
            for ended in self._supervisor.step(now):
                why = take_why(self._why_path(ended.name))
                if self._is_hopeless(ended):
                    self._say(f"{ended.name} could not start; stopping")
                    self._hopeless = f"{ended.name} could not start: {why or 'its reason is above'}"
                    return exits.USAGE
                if why:
                    tell(why, self._err)
                self._tell_end(ended)
            try:
                self._learn_endpoints(now)
                self._look_after_joins(now)
                if not self._announced and self._readiness and self._readiness.ready.is_set():
                    self._announce()
            except Exception as error:
                # Once it works, nothing but a signal ends it: what failed is tried again.
                if not self._announced:
                    raise
                self._complain(f"{type(error).__name__}: {error}")
            time.sleep(0.2 if self._announced else 0.03)
        self._say("stopping")
        return exits.OK

    def _add_children(self) -> None:
        plan, add = self._plan, self._supervisor.add

        def environ(name: str, given: Mapping[str, str | None]) -> Mapping[str, str | None]:
            path = self._why_path(name)
            path.unlink(missing_ok=True)
            return {**given, WHY_VARIABLE: str(path)}

        others = plan.other_environ
        add(Child("broker", self._broker, environ("broker", others), stop_rank=2, stop_seconds=2.5))
        api = environ("api", plan.api_environ)
        add(Child("api", self._facade, api, stop_rank=1, stop_seconds=2.0))
        final = frozenset({REMOVED_CODE})
        for number in plan.device_ids:
            command = partial(self._worker, number)
            name = _worker_name(number)
            env = environ(name, others)
            add(Child(name, command, env, stop_rank=0, stop_seconds=4.5, final_codes=final))

    def _broker(self) -> list[str]:
        return self._plan.broker(self._main)

    def _facade(self) -> list[str]:
        assert self._main is not None
        return self._plan.api(self._main, self._api)

    def _worker(self, number: int) -> list[str]:
        assert self._main is not None
        return self._plan.worker(number, self._main)

    def _learn_endpoints(self, now: float) -> None:
        """Read what the children wrote, start who waited for it, tell everyone who reads files."""
        main = read_main(self._news_of("broker", "main"))
        if main is not None:
            self._main = main
            self._say(
                f"main node: admin port {main.admin_port}, worker bus {main.worker_port}, "
                f"events {main.event_port}"
            )
            if main.bus_encrypted:
                self._let_workers_in(main)
            for child in self._supervisor.children.values():
                if child.state is State.NEW:
                    self._supervisor.start(child.name, now)
        api = read_api(self._news_of("api", "api"))
        if api is not None:
            self._api = api
            self._say(f"REST facade: {self._announcement().url}")
        if self._main and self._api:
            self._write_endpoints()
            if self._readiness is None:
                self._readiness = self._begin_readiness()

    def _let_workers_in(self, main: MainEndpoints) -> None:
        """Tell the main node the keys of the local workers: they need no token."""
        client = self._admin_client(main)
        try:
            for number, device_id in self._plan.device_ids.items():
                folder = self._plan.worker_dir(number)
                try:
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                    pair = device_pair(
                        folder, main.server_key, self._plan.worker_address(main), device_id
                    )
                    args = {"device_id": device_id, "public_key": pair.public}
                    client.call("device.authorise", args, timeout_seconds=10.0)
                except (ClusterError, KeyFileError, OSError) as error:
                    self._say(f"worker {device_id}: {error}")
                    if isinstance(error, Forbidden):  # removed: it stays down
                        self._supervisor.leave_out(_worker_name(number))
        finally:
            client.close()

    def _join_line(self, main: MainEndpoints) -> str:
        """A new join string for other devices, empty when there is none to give."""
        host = self._public_host()
        if not main.bus_encrypted or host is None or is_loopback(self._plan.worker_host):
            return ""
        client = self._admin_client(main)
        try:
            # A line that was printed before stays good until its time: somebody may have mailed it.
            listed = client.call("token.list")["items"]  # newest first
            for token in [t for t in listed if t["note"] == JOIN_NOTE][MOST_JOIN_LINES - 1 :]:
                client.call("token.revoke", {"token_id": token["token_id"]})
            args = {"uses": JOIN_USES, "age_seconds": JOIN_SECONDS, "note": JOIN_NOTE}
            made = client.call("token.create", args)
        except ClusterError as error:
            self._say(f"no join line: {error}")
            return ""
        finally:
            client.close()
        return joining.join_string(made, host)

    def _serve_installer(self, main: MainEndpoints) -> None:
        """Serve `/join.py` where the worker bus listens, if devices elsewhere can reach that."""
        host, name = self._plan.worker_host, self._public_host()
        if not main.bus_encrypted or name is None or is_loopback(host):
            return
        try:
            self._joins = JoinServer(host, self._plan.join_port, name, self._data_dir / "wheels")
            self._tell_joins(self._joins)
        except OSError as error:
            self._say(f"no installer for new devices is served: {error}")

    def _tell_joins(self, joins: JoinServer) -> None:
        """Say where the installer is, to whoever makes lines for it. Raises `OSError`."""
        pid = os.getpid()
        document = {
            "pid": pid, "started": started(pid), "port": joins.port, "sha256": joins.sha256,
        }  # fmt: skip
        write_json(joining.path_of(self._data_dir), document)

    def _look_after_joins(self, now: float) -> None:
        """Wheels that were put into the folder meanwhile are part of the next line."""
        if self._joins is not None and now >= self._joins_at:
            self._joins_at = now + _WHEELS_SECONDS
            if self._joins.refresh():
                self._tell_joins(self._joins)

    def _admin_client(self, main: MainEndpoints) -> AdminClient:
        host = self._plan.admin_host
        return AdminClient(
            host,
            main.admin_port,
            keys=lambda: tooling_keys(self._data_dir, "", host, main.admin_port),
        )

    def _news_of(self, name: str, file: str) -> dict[str, Any] | None:
        """What a child wrote since it was last started, once."""
        child = self._supervisor.children[name]
        if child.state is not State.RUNNING or self._read_at_start.get(name) == child.starts:
            return None
        document = read_json(run_path(self._data_dir, file)) or {}
        pid = document.get("pid")
        # A virtual environment's python.exe is a launcher: the serving process has another number.
        launched = sys.platform == "win32" and type(pid) is int and pid_alive(pid)
        if pid != child.pid and not launched:
            return None
        if type(pid) is not int or not is_same(pid, document.get("started")):
            return None  # left by an earlier process of this number
        self._read_at_start[name] = child.starts
        return document

    def _write_endpoints(self) -> None:
        workers = [
            WorkerEntry(device_id, pid, str(self._plan.worker_dir(number)))
            for number, device_id in self._plan.device_ids.items()
            if (pid := self._supervisor.children[_worker_name(number)].pid) is not None
        ]
        document = endpoints_document(self._main, self._api, workers)
        if document != self._written:
            try:
                write_endpoints(self._data_dir, document)
            except OSError as error:  # a full disk must not take the cluster down
                if self._written is not None:
                    self._say(f"endpoints.json could not be written: {error}")
            self._written = document

    def _begin_readiness(self) -> Readiness:
        assert self._main is not None
        client = self._admin_client(self._main)
        url = f"{self._announcement().url}/health"
        readiness = Readiness(client, url, self._expected_devices, self._say)
        readiness.start()
        return readiness

    def _expected_devices(self) -> list[str]:
        children = self._supervisor.children
        return [
            device_id
            for number, device_id in self._plan.device_ids.items()
            if children[_worker_name(number)].state is not State.FINAL
        ]

    def _announcement(self, join: str = "") -> Announcement:
        assert self._main is not None
        assert self._api is not None
        usual = default_data_dir(sys.platform, os.environ)
        flag = f" --data-dir {quoted(str(self._data_dir))}" if self._data_dir != usual else ""
        return Announcement(
            api_host=self._api.host,
            api_port=self._api.port,
            worker_port=self._main.worker_port,
            worker_host=self._plan.worker_host,
            lan_address=self._public_host(),
            data_dir_flag=flag,
            commands=commands_folder(),
            join=join,
            one_line=self._one_line(join),
            insecure=not self._main.bus_encrypted,
        )

    def _public_host(self) -> str | None:
        return public_host(self._plan.worker_host, self._plan.public_host)

    def _one_line(self, join: str) -> str:
        host = self._public_host()
        if not join or self._joins is None or host is None:
            return ""
        server = joining.JoinServer(self._joins.port, self._joins.sha256)
        return joining.one_line(server, host, join)

    def _announce(self) -> None:
        self._announced = True
        assert self._main is not None
        self._serve_installer(self._main)
        own_types = [entry.name for entry in own_type.installed()] if running_as_root() else []
        found = replace(
            self._announcement(self._join_line(self._main)),
            kept_back=self._plan.kept_back(own_types, is_root=running_as_root()),
        )
        tell(f"ready {found.url}", self._out)
        tell(found.text(), self._err)

    def _is_hopeless(self, ended: Exit) -> bool:
        """Whether a child said on its first start that it cannot work as it is set up.

        One that has worked is restarted whatever it ended with, and takes nobody with it.
        """
        first = self._supervisor.children[ended.name].starts == 1
        return first and ended.code == exits.USAGE and not self._has_worked(ended.name)

    def _has_worked(self, name: str) -> bool:
        """Whether a child has once been at work: is bound, or was seen online."""
        if self._announced or name in self._read_at_start:
            return True
        seen = self._readiness.seen_online if self._readiness is not None else ()
        return any(
            _worker_name(number) == name and device_id in seen
            for number, device_id in self._plan.device_ids.items()
        )

    def _tell_end(self, ended: Exit) -> None:
        how = f"ended by signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
        if ended.restart_in_seconds is None:
            ids = {_worker_name(n): device_id for n, device_id in self._plan.device_ids.items()}
            device_id = ids[ended.name]
            self._say(
                f"{ended.name} was removed from the cluster and stays down; undo with: "
                f"retire-cluster devices readmit {device_id}, then restart"
            )
            return
        self._say(f"{ended.name} died ({how}); it starts again in {ended.restart_in_seconds:g} s")

    def _await_earlier(self) -> None:
        """Give the processes of an `up` that was killed the time to end by their lifelines."""
        earlier = recorded_processes(self._data_dir)
        deadline = time.monotonic() + _EARLIER_SECONDS
        told = False
        while any(is_ours(*each) for each in earlier) and time.monotonic() < deadline:
            if self._signals:
                return
            if not told:
                self._say("waiting for the processes of an earlier run to end")
                told = True
            time.sleep(0.05)

    def _listen_to_signals(self) -> None:
        for name in ("SIGTERM", "SIGINT", "SIGBREAK", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is None:
                continue
            if name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                continue  # `nohup` wants it to outlive the terminal
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1

    def _complain(self, text: str) -> None:
        """Say what fails, once as long as it is the same."""
        if text != self._complaint:
            self._say(text)
        self._complaint = text

    def _say(self, text: str) -> None:
        tell(f"retire-cluster up: {text}", self._err)


def _worker_name(number: int) -> str:
    return f"worker-{number}"
