"""A cluster on networks that are not the usual one: a join line is printed, and works."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from retire_cluster.conf import curve
from tests.integration.netns_kit import MAIN_INTERFACE, Place, cable, needs_networks

PATIENCE_SECONDS = 30.0
CLI = (sys.executable, "-m", "retire_cluster.cli.main")
ANY_PORT = ("--port", "0", "--cluster-port", "0", "--worker-port", "0", "--event-port", "0")
NETWORKS = {
    "a LAN without a default route": (["10.77.0.0/24"], "10.77.0.1"),
    "IPv6 only": (["fd77::0/64"], "fd77::1"),
    "link-local addresses only": ([], f"fe80::[0-9a-f:]+%{MAIN_INTERFACE}"),
}


@contextlib.contextmanager
def process(words: Sequence[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = folder / f"log-{time.monotonic_ns()}"
    environ = {**os.environ, "RETIRE_CLUSTER_DATA_DIR": "", "RETIRE_CLUSTER_SERVER_JOIN_PORT": "0"}
    with log.open("wb") as file:
        found = subprocess.Popen(words, stdout=file, stderr=file, cwd=folder, env=environ)
    try:
        yield found, log
    finally:
        found.send_signal(signal.SIGTERM)
        try:
            found.wait(15)
        except subprocess.TimeoutExpired:
            found.kill()
            found.wait()


def until(log: Path, pattern: str, running: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        text = log.read_text("utf-8", "replace")
        found = re.search(pattern, text, re.MULTILINE)
        if found:
            return found[1]
        assert running.poll() is None, text
        assert time.monotonic() < end, f"no {pattern!r} in:\n{text}"
        time.sleep(0.05)


def online(main: Place, data: Sequence[str]) -> list[str]:
    rows = json.loads(main.run(*CLI, "devices", "ls", "--json", *data).stdout)["data"]
    return [row["device_id"] for row in rows if row["status"] == "online"]


@needs_networks
@pytest.mark.parametrize("name", NETWORKS)
def test_a_join_line_is_printed_and_works(name: str, tmp_path: Path) -> None:
    networks, expected = NETWORKS[name]
    data = ("--data-dir", str(tmp_path / "main"))
    with cable(networks) as (main, device):
        command = main.command([*CLI, "up", "--workers", "0", *ANY_PORT, *data])
        with process(command, tmp_path) as (up, log):
            word = until(log, r"retire-cluster-worker --join (rc1\S+)$", up)
            host = curve.read_join(word).host
            assert re.fullmatch(expected, host), host
            # By the flag's way and by REST the same address is named.
            made = json.loads(main.run(*CLI, "token", "create", "--json", *data).stdout)["data"]
            assert curve.read_join(made["join"]).host == host
            # The installer is fetched over that address too; --help keeps it from installing.
            line = until(log, r'^\s*echo rc1\S+ \| python3 -c "(.*)"$', up)
            if not networks:  # this end's zone is to be written for that end
                line = line.replace(f"%25{MAIN_INTERFACE}", "%25wlan9")
            fetched = device.run(sys.executable, "-c", line, "--help")
            assert "Makes this device a worker" in fetched.stdout + fetched.stderr
            join = [*CLI, "worker", "--join", word, "--device-id", "dev"]
            join += ["--data-dir", str(tmp_path / "device")]
            with process(device.command(join), tmp_path) as (worker, worker_log):
                until(worker_log, "(enrolled at)", worker)
                end = time.monotonic() + PATIENCE_SECONDS
                while online(main, data) != ["dev"]:
                    assert worker.poll() is None, worker_log.read_text()
                    assert time.monotonic() < end, worker_log.read_text()
                    time.sleep(0.1)
