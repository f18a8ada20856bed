"""`retire-cluster-main`: the main node as a process."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType

import zmq

from retire_cluster.broker.net.binding import BindError
from retire_cluster.broker.net.opening import TICKS_ENDPOINT, MainKeys
from retire_cluster.broker.server import Broker
from retire_cluster.broker.store.base import Store, StoreDamaged, StoreError
from retire_cluster.broker.store.opening import open_store, set_aside
from retire_cluster.broker.sweeper import Sweeper
from retire_cluster.conf import curve, logs, neighbours
from retire_cluster.conf.arguments import Parser
from retire_cluster.conf.loading import read_settings
from retire_cluster.conf.machine import openfiles
from retire_cluster.conf.machine.addresses import is_loopback
from retire_cluster.conf.machine.locks import FolderLock, FolderLocked
from retire_cluster.conf.machine.oserrors import naming
from retire_cluster.conf.machine.ownership import Foreign, check_folder
from retire_cluster.conf.machine.prctl import hide_memory
from retire_cluster.conf.machine.processes import started
from retire_cluster.conf.outlet import last_words
from retire_cluster.conf.settings import Settings
from retire_cluster.conf.spec import SettingsError
from retire_cluster.schemas.text.hosts import EVERYWHERE

log = logging.getLogger("broker")

#: Files and sockets that are not devices' connections, generously.
_FILES_BESIDE = 256
_USAGE = 2
_OBJECTS_BETWEEN_COLLECTIONS = 50_000
_OLDEST_LIBZMQ = (4, 3, 5)


class StartError(Exception):
    """The main node cannot start; the text is one line with cause and cure."""


def parser(program: str = "retire-cluster-main") -> argparse.ArgumentParser:
    """Make the command's parser."""
    found = Parser(
        prog=program, description="The main node: tracks devices, keeps tasks, hands them out."
    )
    add = found.add_argument
    add("--host", help="address of the admin socket (default 127.0.0.1)")
    add("--port", type=int, help="port of the admin socket (default 8080; 0: any)")
    add("--worker-host", help="address of the worker bus (default *: all, encrypted)")
    add("--worker-port", type=int, help="port of the worker bus (default 8082; 0: any)")
    add("--event-port", type=int, help="port of the event feed (default 8083; 0: any)")
    add("--data-dir", help="folder for everything that outlives the process")
    add("--store", metavar="URL", help="sqlite:///FILE or memory:// (default: in the data folder)")
    add("--config", metavar="FILE", help="settings in TOML")
    add(
        "--insecure",
        action="store_true",
        default=None,
        help="leave the worker bus unencrypted, beyond this machine too: anyone who reaches it"
        " can join and see the work",
    )
    add(
        "--set-aside-damaged",
        action="store_true",
        help="when the store's file is damaged, rename it and begin with an empty one: the tasks"
        " in it are then unknown to this cluster",
    )
    add("--debug", action="store_true", default=None, help="log more, with traces")
    return found


def main(argv: Sequence[str] | None = None, program: str = "retire-cluster-main") -> int:
    """Run the main node until it is told to stop; return the exit code (2: it cannot start)."""
    args = parser(program).parse_args(argv)
    hide_memory()
    try:
        settings = _settings(args)
        logs.configure(settings.logging, queued=True)
    except (SettingsError, StartError) as error:
        return _refuse(program, error)
    with ExitStack() as stack:
        try:
            broker = _start(settings, program, args.set_aside_damaged, stack)
        except (SettingsError, StartError, StoreError, BindError, FolderLocked) as error:
            return _refuse(program, error)
        # From here on an error is no wrong setting: it ends the process as what it is.
        broker.run()
        log.info("stopped; everything acknowledged is kept")
    return 0


def _refuse(program: str, error: Exception) -> int:
    last_words(f"{program}: {error}")
    return _USAGE


def _settings(args: argparse.Namespace) -> Settings:
    settings = read_settings(
        {
            "server.host": args.host,
            "server.port": args.port,
            "server.worker_host": args.worker_host,
            "server.worker_port": args.worker_port,
            "server.event_port": args.event_port,
            "server.insecure": args.insecure,
            "database.url": args.store,
            "logging.debug": args.debug,
            "data_dir": args.data_dir,
        },
        args.config,
    )
    server = settings.server
    if server.curve and not curve.available():
        raise StartError(
            "this libzmq cannot encrypt: pip install --force-reinstall pyzmq (its wheels can);"
            " server.curve = false works on this machine only"
        )
    for name, host in (("server.host", server.host), ("server.event_host", server.event_host)):
        if not is_loopback(host) and not server.curve:
            raise StartError(
                f"{name}: {host} is beyond this machine, and server.curve is off; the admin socket"
                " and the event feed listen elsewhere only encrypted"
            )
    beyond = server.worker_host and not is_loopback(server.worker_host)
    if beyond and not server.curve and not server.insecure:
        raise StartError(
            f"server.worker_host: {server.worker_host} is beyond this machine, and server.curve is"
            " off. On a network you trust, add --insecure"
        )
    if server.insecure and not server.worker_host:
        # Asked for in so many words: on every address, as a device elsewhere needs it.
        settings = settings.with_sections({"server": replace(server, worker_host=EVERYWHERE)})
    return settings


def _keys(settings: Settings) -> MainKeys | None:
    if not settings.server.curve:
        return None
    folder = settings.data_dir
    try:
        pair = curve.server_pair(folder)
        tooling = curve.client_keys(folder / curve.ADMIN_KEY)
    except curve.KeyFileError as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise StartError(_unusable(folder, error)) from None
    assert tooling is not None
    return MainKeys(pair, tooling.pair.public)


def _broker(settings: Settings, set_aside_damaged: bool) -> Broker:
    url = settings.store_url
    keys = _keys(settings)
    store: Store | None = None
    try:
        store = open_store(url)
        return Broker(settings, store, keys=keys)
    except StoreDamaged as error:
        if store is not None:
            store.close()
        if not set_aside_damaged:
            raise
        kept = set_aside(url)
        log.error("%s: set aside as %s; this main node begins with an empty one", error, kept)
    return Broker(settings, open_store(url), keys=keys)


def _start(settings: Settings, program: str, set_aside_damaged: bool, stack: ExitStack) -> Broker:
    """Return the main node, listening; `stack` releases what it holds. Raises what `main` logs."""
    if zmq.zmq_version_info() < _OLDEST_LIBZMQ:
        raise StartError(
            f"libzmq {zmq.zmq_version()} is too old: pip install --upgrade pyzmq (4.3.5 or newer)"
        )
    folder = _folder(settings.data_dir)
    try:
        stack.enter_context(FolderLock(folder / "main.lock", program))
    except OSError as error:
        raise StartError(_unusable(folder, error)) from None
    if settings.server.insecure and not is_loopback(settings.server.worker_host or "127.0.0.1"):
        log.warning(
            "--insecure: the worker bus listens on %s unencrypted; anyone who reaches it can join",
            settings.server.worker_host,
        )
    connections = settings.server.max_connections
    files = openfiles.allow(connections + _FILES_BESIDE)
    if files is not None and files < connections + _FILES_BESIDE:
        log.info(
            "this system lets the main node have %d open files: about %d devices can connect, not"
            " the %d of server.max_connections (ulimit -n)",
            files, max(0, files - _FILES_BESIDE), connections,
        )  # fmt: skip
    broker = _broker(settings, set_aside_damaged)
    # Tasks are made by the thousand and end without cycles: looking for some every 700 objects
    # took a tenth of this process's time in batches.
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    stack.callback(broker.context.term)
    stack.callback(broker.close)
    sweeper = Sweeper(broker.context, TICKS_ENDPOINT, settings.scheduler.sweep_interval_seconds)
    _stop_on_signals(broker)
    try:
        run_file = _announce(folder, broker)
    except OSError as error:
        raise StartError(_unusable(folder, error)) from None
    stack.callback(run_file.unlink, missing_ok=True)
    facts = broker.facts
    neighbour = neighbours.announce(
        folder,
        pid=facts.pid,
        admin_port=facts.admin_port,
        worker_port=facts.worker_port,
        encrypted=bool(facts.server_key),
    )
    if neighbour is not None:
        stack.callback(neighbour.unlink, missing_ok=True)
    log.info(
        "%s %s: admin socket %s:%d, worker bus %s:%d, event feed %d, store %s, %d tasks waiting",
        program, facts.version, facts.host, facts.admin_port,
        facts.worker_host, facts.worker_port, facts.event_port,
        settings.store_url.partition(":")[0], len(broker.state.tasks),
    )  # fmt: skip
    sweeper.start()
    stack.callback(sweeper.stop)
    return broker


def _folder(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(path)
        (path / "run").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StartError(_unusable(path, error)) from None
    except Foreign as error:
        raise StartError(str(error)) from None
    return path


def _unusable(path: Path, error: OSError) -> str:
    return (
        f"the data folder {path} cannot be used: {naming(error, path)}; check its permissions"
        " or choose another with --data-dir"
    )


def _announce(folder: Path, broker: Broker) -> Path:
    """Tell other processes of this machine where the sockets are."""
    facts = broker.facts
    path = folder / "run" / "main.json"
    document = {
        "pid": facts.pid,
        "started": started(facts.pid),
        "admin_port": facts.admin_port,
        "worker_port": facts.worker_port,
        "event_port": facts.event_port,
        "server_key": facts.server_key,
        "bus_encrypted": facts.bus_encrypted,
    }
    draft = path.with_suffix(f".{facts.pid}.tmp")
    draft.write_text(json.dumps(document), "utf-8")
    os.replace(draft, path)
    return path


def _stop_on_signals(broker: Broker) -> None:
    def stop(signal_number: int, frame: FrameType | None) -> None:
        broker.stopping = True

    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, stop)


if __name__ == "__main__":
    sys.exit(main())
