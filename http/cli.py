"""The command `retire-cluster-api`: serve the REST facade on waitress."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retire_cluster.api.admission import keys as api_keys
from retire_cluster.api.app import Facade, assemble, product_version
from retire_cluster.api.content.envelope import utc
from retire_cluster.api.serving.one_core import OneCore
from retire_cluster.api.serving.websocket import StreamServer
from retire_cluster.conf.arguments import Parser
from retire_cluster.conf.loading import read_settings
from retire_cluster.conf.logs import configure
from retire_cluster.conf.machine.addresses import is_loopback
from retire_cluster.conf.machine.binding import why_not_listening
from retire_cluster.conf.machine.oserrors import naming
from retire_cluster.conf.machine.ownership import Foreign, check_folder
from retire_cluster.conf.machine.prctl import hide_memory
from retire_cluster.conf.machine.processes import started
from retire_cluster.conf.outlet import last_words, tell
from retire_cluster.conf.settings import Settings
from retire_cluster.conf.spec import SettingsError
from retire_cluster.schemas.errors import ClusterError

PROGRAM = "retire-cluster-api"
_USAGE = 2
_log = logging.getLogger("api")


def parser() -> argparse.ArgumentParser:
    """Make the parser of the flags; what is not given comes from environment, file, defaults."""
    found = Parser(
        prog=PROGRAM, description="The REST API of a Retire-Cluster.", allow_abbrev=False
    )
    add = found.add_argument
    add("--host", metavar="ADDRESS", help="where to listen (127.0.0.1)")
    add("--port", type=int, metavar="N", help="port (8081); 0 lets the system pick one")
    add("--cluster-host", metavar="HOST", help="where the main node is (127.0.0.1)")
    add("--cluster-port", type=int, metavar="N", help="its admin port (8080)")
    add("--cluster-key", metavar="FILE", help="CURVE key for a main node elsewhere")
    add("--auth", action="store_true", default=None, help="ask for an API key; one is made and"
        " shown once if none is set")  # fmt: skip
    add("--auth-reads", action="store_true", default=None,
        help="ask for a key for everything but /health")  # fmt: skip
    add("--api-key", action="append", metavar="KEY", help="accept this key; repeatable. Flags are"
        " seen by others on this machine: RETIRE_CLUSTER_API_KEY is safer")  # fmt: skip
    add("--no-cors", action="store_true", help="send no CORS headers at all")
    add("--cors-origin", action="append", metavar="ORIGIN",
        help="foreign origin whose pages may use the API; repeatable")  # fmt: skip
    add("--trusted-proxy", action="append", metavar="ADDRESS",
        help="address or network whose X-Forwarded-For counts; repeatable")  # fmt: skip
    add("--no-rate-limit", action="store_true", help="do not limit requests a client")
    add("--threads", type=int, metavar="N", help="requests worked on at once (16)")
    add("--data-dir", metavar="FOLDER", help="where the hashes of API keys are kept")
    add("--config", metavar="FILE", help="TOML file of settings")
    add("--log-format", choices=("json", "text"), help="how the log on stderr looks")
    add("--debug", action="store_true", default=None, help="detailed logs, with traces")
    add("--version", action="version", version=f"{PROGRAM} {product_version()}")
    return found


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings of this start. Raises `SettingsError`."""
    overrides: dict[str, Any] = {
        "api.host": args.host,
        "api.port": args.port,
        "api.cluster_host": args.cluster_host,
        "api.cluster_port": args.cluster_port,
        "api.cluster_key_file": args.cluster_key,
        # --auth-reads without keys to ask for would close nothing.
        "api.auth": args.auth or args.auth_reads,
        "api.auth_reads": args.auth_reads,
        "api.keys": args.api_key,
        "api.cors": False if args.no_cors else None,
        "api.cors_origins": args.cors_origin,
        "api.trusted_proxies": args.trusted_proxy,
        "api.rate_limit": False if args.no_rate_limit else None,
        "api.threads": args.threads,
        "data_dir": args.data_dir,
        "logging.format": args.log_format,
        "logging.debug": args.debug,
    }
    return read_settings(overrides, args.config)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT and return 0; return 2 when the start fails."""
    args = parser().parse_args(argv)
    hide_memory()
    try:
        settings = settings_of(args)
        redaction = configure(settings.logging, settings.api.keys, queued=True)
        check_folder(settings.data_dir)
        new_key = _make_key(settings)
        if new_key:
            redaction.add(new_key)
        facade = assemble(settings)
    except (SettingsError, Foreign, api_keys.ApiKeyFileError) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(naming(error, settings.data_dir))
    try:
        server = StreamServer(
            facade.app,
            settings.api.host,
            settings.api.port,
            shutdown=facade.shutdown,
            sender=facade.sender,
            threads=settings.api.threads,
            speaks_for_many=settings.api.trusted_proxies,
            one_core=OneCore(),
        )
    except OSError as error:
        return _refuse(why_not_listening(settings.api.host, settings.api.port, error, "--port"))
    run_file = settings.data_dir / "run" / "api.json"
    try:
        # Before anybody is told that it is here: who then stops it at once gets a clean end.
        _stop_on_signals(server)
        _announce(settings, server, facade, run_file, new_key)
        server.serve()
    except KeyboardInterrupt:  # a second one, or on a platform whose handler came too late
        server.end()
    finally:
        facade.close()
        _remove_own(run_file)
    return 0


def _refuse(reason: str) -> int:
    last_words(f"{PROGRAM}: {' '.join(reason.split())}")
    return _USAGE


def _make_key(settings: Settings) -> str:
    """Make a key when authentication is on and there is none, else return an empty text."""
    if not settings.api.auth or settings.api.keys:
        return ""
    path = settings.data_dir / api_keys.FILE_NAME
    if api_keys.read_keys(path):
        return ""
    key = api_keys.generate()
    note = f"made by {PROGRAM} --auth"
    api_keys.write_keys(path, [api_keys.key_of(key, note=note, at=utc(time.time()))])
    return key


def _announce(
    settings: Settings, server: StreamServer, facade: Facade, run_file: Path, new_key: str
) -> None:
    if new_key:
        tell(f"API key (shown this once): {new_key}", sys.stdout)
    if not facade.authorizer.required and not is_loopback(server.host):
        _log.warning(
            "Listening on %s without authentication: other machines can read everything and submit"
            " harmless tasks; start with --auth or --api-key",
            server.host,
        )
    pid = os.getpid()
    document = {"pid": pid, "started": started(pid), "host": server.host, "port": server.port}
    _write_run_file(run_file, document)
    tell(f"{PROGRAM} on {server.url}", sys.stdout)
    api = settings.api
    threading.Thread(
        target=_look_for_main_node,
        args=(facade, api.cluster_host, api.cluster_port, new_key),
        daemon=True,
    ).start()


def _look_for_main_node(facade: Facade, host: str, port: int, new_key: str) -> None:
    """Print once how to start a main node when there is none; requests find it by themselves.

    One that is there makes an event of a key that was made at this start.
    """
    try:
        facade.link.data("broker.info")
        if new_key:
            key = api_keys.key_of(new_key)
            made = {"change": "created", "key_ids": [key.key_id], "scopes": list(key.scopes)}
            facade.link.data("api_key.changed", made)
    except ClusterError:
        tell(
            f"{PROGRAM}: no main node answers at {host}:{port}; start one with:"
            f" retire-cluster-main --port {port} (or everything with: retire-cluster up)."
            " Requests are answered 503 until it is there."
        )


def _stop_on_signals(server: StreamServer) -> None:
    def stop(number: int, _frame: object) -> None:
        # The same signal again means: now.
        signal.signal(number, signal.SIG_DFL)
        server.stop()

    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)


def _write_run_file(path: Path, document: dict[str, Any]) -> None:
    """Write where this process listens, for who started it: the whole file or none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".api-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file)
        os.replace(name, path)
    except OSError as error:
        _log.warning("%s cannot be written: %s", path, error.strerror)


def _remove_own(path: Path) -> None:
    try:
        if json.loads(path.read_bytes()).get("pid") == os.getpid():
            path.unlink()
    except (OSError, ValueError, AttributeError):
        return


if __name__ == "__main__":
    sys.exit(main())
