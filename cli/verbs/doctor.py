"""`retire-cluster doctor`: looks at what usually is wrong; each finding ends with its cure."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retire_cluster.cli import exits
from retire_cluster.cli.endpoints import running_api
from retire_cluster.cli.output import Output, Style, clean
from retire_cluster.cli.session import PAGE_SIZE, connection_flags, verb_parser
from retire_cluster.cli.target import Caller, Target, find_target
from retire_cluster.cli.up.readiness import answers_ok
from retire_cluster.cli.verbs.version import installed
from retire_cluster.conf.loading import read_settings
from retire_cluster.conf.machine.addresses import dial_host, is_loopback, public_host
from retire_cluster.conf.settings import Settings
from retire_cluster.conf.spec import SettingsError
from retire_cluster.node.device.identity import host_name
from retire_cluster.schemas.errors import ClusterError, DeviceNotFound
from retire_cluster.schemas.text.hosts import bracketed, in_url

_MAIN_NODE_MODULES = ("falcon", "waitress", "cerberus", "apscheduler", "orjson", "wsproto")
_DEVICE_MODULES = ("psutil", "orjson")
_SKEW_SECONDS = 2.0
_LOW_SPACE_BYTES = 200 * 1024 * 1024


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    #: `ok`, `warn` or `fail`.
    level: str
    what: str
    #: What to do about it; empty when all is well.
    cure: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return 1 when something is broken."""
    parser = verb_parser(
        "doctor",
        "Look for what is wrong; each finding ends with its cure.",
        parents=[connection_flags()],
    )
    args = parser.parse_args(argv)
    output = Output.standard(as_json=args.json)
    try:
        settings = read_settings({"data_dir": args.data_dir}, args.config)
        target = find_target(
            host=args.cluster_host,
            port=args.cluster_port,
            data_dir=args.data_dir,
            config=args.config,
            key_file=args.cluster_key,
        )
    except SettingsError as error:
        findings = [Finding("fail", f"settings: {error}", "correct or unset it")]
    else:
        findings = list(examine(settings, target))
    broken = [finding for finding in findings if finding.level == "fail"]
    text = "\n".join(finding_text(finding, output.style) for finding in findings)
    output.data({"findings": [asdict(f) for f in findings], "broken": len(broken)}, text)
    return exits.TASK_FAILED if broken else exits.OK


def finding_text(finding: Finding, style: Style) -> str:
    """Return a finding as one line."""
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.level]
    line = f"{style.paint(finding.level.ljust(4), colour)}  {clean(finding.what)}"
    arrow = "→" if style.unicode else "->"
    return f"{line} {arrow} {finding.cure}" if finding.cure else line


def examine(settings: Settings, target: Target) -> Iterator[Finding]:
    """Yield the findings on all there is to look at, local things first."""
    yield from libraries()
    yield from data_folder(settings.data_dir)
    yield from secret_files(settings.data_dir)
    info = None
    devices: list[Finding] = []
    client = target.client(2.0)
    try:
        info = client.call("broker.info")
        devices = list(of_devices(client, host_name()))
    except ClusterError as error:
        yield from unreachable(target, str(error))
    finally:
        client.close()
    if info is None:
        yield from free_ports(settings)
        return
    yield Finding("ok", f"the main node answers at {target.address} (address from {target.source})")
    yield from devices
    yield from same_version(info)
    yield from same_clock(info, time.time())
    yield from worker_bus(target.host, info, settings)
    yield from facade(settings)


def of_devices(client: Caller, own_host: str) -> Iterator[Finding]:
    """Yield what devices say: own types that they cannot offer, and the walls of those here."""
    asked = {"status": "online", "page_size": PAGE_SIZE}
    for brief in client.call("device.list", asked)["items"]:
        device_id = brief["device_id"]
        try:
            detail = client.call("device.get", {"device_id": device_id})
        except DeviceNotFound:
            continue  # it was removed in between
        for reason in detail.get("task_types_left_out") or ():
            yield Finding("warn", f"{device_id}: {reason}", "mend it there and restart the worker")
        if own_host and detail.get("hostname") == own_host and detail.get("walls"):
            yield from walls_of(device_id, detail["walls"])


def walls_of(device_id: str, walls: Sequence[str]) -> Iterator[Finding]:
    """Yield what a device of this machine keeps its tasks from."""
    words = f"{device_id}: walls around tasks: {'; '.join(walls)}"
    if any(wall.startswith("files: none") for wall in walls):
        yield Finding(
            "warn",
            f"{words}; a task can read what its worker can, its key too",
            "set policy.sandbox or policy.user (docs/security.md)",
        )
    else:
        yield Finding("ok", words)


def libraries() -> Iterator[Finding]:
    """Yield Python's version, and which libraries are missing."""
    yield Finding("ok", f"Python {'.'.join(map(str, sys.version_info[:3]))}")
    missing = [name for name in _MAIN_NODE_MODULES if find_spec(name) is None]
    if missing:
        yield Finding(
            "warn",
            f"this installation can run a worker only (no {', '.join(missing)})",
            'for the main node: pip install "retire-cluster[api]"',
        )
    else:
        yield Finding("ok", "libraries of the main node and the REST facade")
    absent = [name for name in _DEVICE_MODULES if find_spec(name) is None]
    if absent:
        yield Finding(
            "warn",
            f"without {', '.join(absent)} a worker reports fewer facts",
            'where wheels exist: pip install "retire-cluster[worker]"',
        )


def data_folder(data_dir: Path) -> Iterator[Finding]:
    """Check whether the data folder can be written and has room."""
    present = data_dir
    while not present.exists() and present != present.parent:
        present = present.parent
    if not os.access(present, os.W_OK):
        yield Finding(
            "fail", f"{data_dir} cannot be written", "chown it, or choose another by --data-dir"
        )
        return
    free = shutil.disk_usage(present)
    if free.free < _LOW_SPACE_BYTES or free.free < free.total * 0.05:
        yield Finding(
            "fail",
            f"{data_dir}: {free.free // 2**20} MiB free, so no task is taken (QUEUE_FULL)",
            "make room, or choose another disk by --data-dir",
        )
    else:
        yield Finding("ok", f"data folder {data_dir}, {free.free / 2**30:.1f} GiB free")


def secret_files(data_dir: Path) -> Iterator[Finding]:
    """Check whether files with keys can be read by others."""
    if sys.platform == "win32" or not data_dir.is_dir():
        return
    for path in sorted(data_dir.rglob("*key*")):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode) and mode & 0o077 and path.suffix not in (".pub", ".py"):
            yield Finding("fail", f"others can read {path}", f"chmod 600 {path}")


def unreachable(target: Target, message: str) -> Iterator[Finding]:
    """Find out why the main node does not answer."""
    where = f"{target.address} (address from {target.source})"
    try:
        socket.create_connection((target.host, target.port), timeout=2.0).close()
    except ConnectionRefusedError:
        yield Finding("fail", f"nothing listens at {where}", f"start it: {target.next_command}")
    except socket.gaierror:
        yield Finding("fail", f"there is no host {target.host}", "check the name or use an address")
    except OSError as error:
        yield Finding(
            "fail",
            f"no way to {where}: {error}",
            "check that it is switched on, on the same network, and that no firewall is between",
        )
    else:
        yield Finding(
            "fail",
            f"something listens at {where} that is no main node's admin socket: {message}",
            "name the admin port (8080, not the REST port 8081 or the worker bus 8082)",
        )


def free_ports(settings: Settings) -> Iterator[Finding]:
    """Check whether a cluster could be started here."""
    wanted = {
        "the admin socket": (settings.server.host, settings.server.port, "--cluster-port"),
        "the worker bus": ("127.0.0.1", settings.server.worker_port, "--worker-port"),
        "the event feed": (settings.server.event_host, settings.server.event_port, "--event-port"),
        "the REST facade": (settings.api.host, settings.api.port, "--port"),
    }
    for name, (host, port, flag) in wanted.items():
        try:
            with socket.create_connection((dial_host(host), port), timeout=0.5):
                pass
        except OSError:
            continue
        yield Finding(
            "fail",
            f"port {port} for {name} is taken by another program",
            f"end that, or retire-cluster up {flag} N",
        )


def same_version(info: dict[str, Any]) -> Iterator[Finding]:
    """Check whether the main node is of our version."""
    ours = installed("retire-cluster")
    if info["version"] != ours:
        yield Finding(
            "warn",
            f"the main node has version {info['version']}, this installation {ours}",
            "pip install --upgrade retire-cluster on the older one",
        )


def same_clock(info: dict[str, Any], now: float) -> Iterator[Finding]:
    """Check whether the clocks agree; nothing depends on it but what people read in times."""
    started = datetime.fromisoformat(str(info["started_at"]).replace("Z", "+00:00")).timestamp()
    skew_seconds = started + float(info["uptime_seconds"]) - now
    if abs(skew_seconds) > _SKEW_SECONDS:
        yield Finding(
            "warn",
            f"the main node's clock differs from this one's by {skew_seconds:+.0f} s",
            "set both by NTP (timedatectl set-ntp true)",
        )
    else:
        yield Finding("ok", "clocks agree")


def worker_bus(host: str, info: dict[str, Any], settings: Settings) -> Iterator[Finding]:
    """Check whether devices can reach the worker bus."""
    port = int(info["worker_port"])
    if not is_loopback(host):
        addresses = [host]
    else:
        bound = settings.server.bus_host
        outside = public_host(bound, settings.server.public_host)
        addresses = [dial_host(bound), *([outside] if outside else [])]
    for address in dict.fromkeys(addresses):
        where = f"{bracketed(address)}:{port}"
        try:
            socket.create_connection((address, port), timeout=2.0).close()
        except OSError as error:
            yield Finding(
                "fail", f"the worker bus at {where} cannot be reached: {error}",
                f"open port {port} (TCP) in the main node's firewall",
            )  # fmt: skip
        else:
            yield Finding("ok", f"worker bus at {where}")


def says_notice(base: str) -> bool:
    """Tell whether the facade at this address lets this user only look."""
    try:
        with urllib.request.urlopen(f"{base}/ui/session", timeout=2.0) as answer:
            said = json.loads(answer.read(65_536))
        return bool(said["data"]["notice"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return False


def facade(settings: Settings) -> Iterator[Finding]:
    """Check whether the REST facade answers."""
    api = running_api(settings.data_dir)
    host, port = (api.host, api.port) if api else (settings.api.host, settings.api.port)
    base = f"http://{in_url(dial_host(host))}:{port}"
    url = f"{base}/health"
    if answers_ok(url):
        yield Finding("ok", f"REST facade at {url}")
        if says_notice(base):
            yield Finding(
                "warn",
                "the REST facade and the dashboard are run by another user, without authentication:"
                " you can only look there",
                "retire-cluster keys create (and --auth for the API), or as the user that runs it,"
                ' or api.local_users = "all" in its settings',
            )
    else:
        yield Finding("warn", f"no healthy REST facade at {url}", "retire-cluster-api")
