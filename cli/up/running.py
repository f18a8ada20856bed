"""The main node, the REST facade and local workers as one supervised whole.

Standard output gets exactly one line, `ready http://HOST:PORT`; everything else goes to standard
error. `DATA_DIR/endpoints.json` says where everything listens, rewritten at each (re)start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
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
)
from retire_cluster.cli.up import local_workers
from retire_cluster.cli.up.announce import (
    Announcement,
    commands_folder,
    quoted,
)
from retire_cluster.cli.up.newcomers import Newcomers, WayIn
from retire_cluster.cli.up.plan import Plan
from retire_cluster.cli.up.readiness import Readiness
from retire_cluster.cli.up.supervisor import Child, Exit, State, Supervisor
from retire_cluster.conf import joining
from retire_cluster.conf.loading import default_data_dir
from retire_cluster.conf.machine.locks import FolderLock
from retire_cluster.conf.machine.ownership import check_folder
from retire_cluster.conf.machine.processes import is_same
from retire_cluster.conf.neighbours import tooling_keys
from retire_cluster.conf.outlet import WHY_VARIABLE, take_why, tell
from retire_cluster.node.device import entry_points
from retire_cluster.node.device.policy import running_as_root
from retire_cluster.node.system.process_tree import become_subreaper

#: How long an earlier cluster of the same folder may take to end.
_EARLIER_SECONDS = 12.0
#: What a worker's process ends with once its device was removed from the cluster.
REMOVED_CODE = 4


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
        self._newcomers = Newcomers(plan, self._say)
        self._supervisor = Supervisor(output=err.fileno(), adopting=become_subreaper())

    def run(self) -> int:
        """Start everything, watch it, stop it; return the exit code.

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
                self._newcomers.close()
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
                self._newcomers.look_after(now)
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
        with contextlib.closing(self._admin_client(main)) as client:
            for number in local_workers.let_in(client, self._plan, main, self._say):
                self._supervisor.leave_out(_worker_name(number))

    def _admin_client(self, main: MainEndpoints) -> AdminClient:
        host = self._plan.admin_host
        return AdminClient(
            host,
            main.admin_port,
            keys=lambda: tooling_keys(self._data_dir, "", host, main.admin_port),
        )

    def _news_of(self, name: str, file: str) -> dict[str, Any] | None:
        """Return what a child wrote since it was last started, once."""
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

    def _announcement(self, way_in: WayIn | None = None) -> Announcement:
        assert self._main is not None
        assert self._api is not None
        usual = default_data_dir(sys.platform, os.environ)
        flag = f" --data-dir {quoted(str(self._data_dir))}" if self._data_dir != usual else ""
        return Announcement(
            api_host=self._api.host,
            api_port=self._api.port,
            worker_port=self._main.worker_port,
            worker_host=self._plan.worker_host,
            lan_address=self._newcomers.host,
            data_dir_flag=flag,
            commands=commands_folder(),
            join=way_in.join if way_in else "",
            one_line=way_in.one_line if way_in else "",
            insecure=not self._main.bus_encrypted,
        )

    def _announce(self) -> None:
        self._announced = True
        assert self._main is not None
        with contextlib.closing(self._admin_client(self._main)) as client:
            way_in = self._newcomers.open(self._main, client)
        own_types = [entry.name for entry in entry_points.installed()] if running_as_root() else []
        found = replace(
            self._announcement(way_in),
            kept_back=self._plan.kept_back(own_types, is_root=running_as_root()),
            functions=self._plan.runs_functions(is_root=running_as_root()),
        )
        tell(f"ready {found.url}", self._out)
        tell(found.text(), self._err)

    def _is_hopeless(self, ended: Exit) -> bool:
        """Tell whether a child said on its first start that it cannot work as it is set up.

        One that has worked is restarted whatever it ended with, and takes nobody with it.
        """
        first = self._supervisor.children[ended.name].starts == 1
        return first and ended.code == exits.USAGE and not self._has_worked(ended.name)

    def _has_worked(self, name: str) -> bool:
        """Tell whether a child has once been at work: is bound, or was seen online."""
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
