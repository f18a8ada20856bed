"""What the cluster costs while nothing is done: the main node with many devices, one worker."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.product import product
from bench.report import Figure

_DEVICES = 10_000
_HERDS = 2
_IDLE_SECONDS = 20.0


def heartbeats(runs: int) -> list[Figure]:
    """The main node with 10,000 devices that beat every 10 s: share of one core, memory."""
    share = Figure(f"main node, {_DEVICES:,} devices, no work", "% of a core")
    memory = Figure("its resident memory", "MB")
    online = Figure("devices online", "")
    environment = {
        "RETIRE_CLUSTER_HEARTBEAT_INTERVAL": "10",
        "RETIRE_CLUSTER_SERVER_MAX_CONNECTIONS": "19000",
    }
    with product(workers=0, environment=environment) as cluster:
        main = json.loads((cluster.folder / "run" / "main.json").read_text("utf-8"))
        process = psutil.Process(main["pid"])
        herds = [_herd(main["worker_port"], number) for number in range(_HERDS)]
        try:
            for herd in herds:
                assert herd.stdout is not None
                if herd.stdout.readline().strip() != b"joined":
                    raise RuntimeError("not all devices joined; are there enough open files?")
            client = cluster.client()
            time.sleep(12)
            for _ in range(runs):
                share.values.append(_busy_percent(process, _IDLE_SECONDS))
                memory.values.append(process.memory_info().rss / 1e6)
                online.values.append(float(client.call("device.summary", {})["online_devices"]))
            client.close()
        finally:
            for herd in herds:
                herd.kill()
                herd.wait()
    return [share, memory, online]


def _herd(port: int, number: int) -> subprocess.Popen[bytes]:
    count = _DEVICES // _HERDS
    command = [sys.executable, "-m", "bench.herd", str(port), str(number * count), str(count), "10"]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def _busy_percent(process: psutil.Process, seconds: float) -> float:
    before = process.cpu_times()
    began = time.perf_counter()
    time.sleep(seconds)
    after = process.cpu_times()
    used = after.user + after.system - before.user - before.system
    return 100 * used / (time.perf_counter() - began)


def worker(runs: int) -> list[Figure]:
    """One worker: until it has joined, then idle; what is installed for it."""
    joined = Figure("from start to joined", "s")
    memory = Figure("resident memory, idle", "MB")
    share = Figure("idle", "% of a core")
    size = Figure("installed: the package and what it requires", "MB")
    with product(workers=0) as cluster, tempfile.TemporaryDirectory() as name:
        main = json.loads((cluster.folder / "run" / "main.json").read_text("utf-8"))
        for number in range(runs):
            began = time.perf_counter()
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "retire_cluster.cli.main", "worker", "--device-id",
                    f"w{number}", "--join", f"127.0.0.1:{main['worker_port']}", "--data-dir",
                    str(Path(name) / str(number)),
                ],
                stderr=subprocess.PIPE,
            )  # fmt: skip
            try:
                assert process.stderr is not None
                while b"joined " not in process.stderr.readline():
                    if process.poll() is not None:
                        raise RuntimeError("the worker ended")
                joined.values.append(time.perf_counter() - began)
                time.sleep(3)
                watched = psutil.Process(process.pid)
                share.values.append(_busy_percent(watched, _IDLE_SECONDS))
                memory.values.append(watched.memory_info().rss / 1e6)
            finally:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=30)
            size.values.append(_installed("retire-cluster", set()) / 1e6)
    return [joined, memory, share, size]


def _installed(name: str, seen: set[str]) -> int:
    """Bytes of a distribution and of all it requires without extras."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen:
        return 0
    seen.add(key)
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return 0  # only for other platforms or Pythons
    total = 0
    for file in found.files or ():
        try:
            total += os.stat(os.fspath(file.locate())).st_size
        except OSError:
            continue
    if key == "retire-cluster":
        root = Path(__file__).resolve().parent.parent
        packages = ("broker", "node", "http", "schemas", "conf", "cli", "sdk")
        total += sum(p.stat().st_size for d in packages for p in (root / d).rglob("*.*"))
    for line in found.requires or ():
        requirement, _, marker = line.partition(";")
        if "extra" not in marker:
            wanted = re.match(r"[A-Za-z0-9._-]+", requirement)
            assert wanted is not None
            total += _installed(wanted[0], seen)
    return total
