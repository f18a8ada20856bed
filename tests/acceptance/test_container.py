"""What the Dockerfile starts, as it starts it: no rights, a read-only system, a network of its own.

Bubblewrap stands in for a container engine; the image's Python is the one that runs this.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from retire_cluster.conf import curve

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
#: Within: begin as the image does, wait until it calls itself healthy, let a worker join, stop.
SCRIPT = """
set -eu
touch "$0.written" 2>/dev/null && exit 90
{start} >"$DATA/up.out" 2>"$DATA/up.log" &
main=$!
until {health} 2>/dev/null; do kill -0 $main; sleep 0.1; done
JOIN={line}
export RETIRE_CLUSTER_WORKER_JOIN=$JOIN
RETIRE_CLUSTER_DATA_DIR=$DATA/worker {worker} 2>"$DATA/worker.log" &
worker=$!
until grep -q 'joined ' "$DATA/worker.log"; do kill -0 $worker; sleep 0.1; done
retire-cluster submit echo message=contained --wait >"$DATA/echo.json"
retire-cluster token create >"$DATA/line"
kill -TERM $worker
wait $worker
# The key that the worker keeps is enough from now on.
export RETIRE_CLUSTER_WORKER_JOIN=
RETIRE_CLUSTER_DATA_DIR=$DATA/worker {worker} --test >"$DATA/again"
kill -TERM $main
wait $main
"""


def words_of(instruction: str) -> list[str]:
    """The JSON list of the last such instruction."""
    found: list[str] = json.loads(re.findall(rf"{instruction} (\[.*\])$", DOCKERFILE, re.M)[-1])
    return found


def shell(words: list[str]) -> str:
    """The words as a shell reads them."""
    return " ".join("'{}'".format(word.replace("'", "'\\''")) for word in words)


@pytest.fixture
def contained(tmp_path: Path) -> list[str]:
    """The command that runs a command in something like the container."""
    found = shutil.which("bwrap")
    if found is None:
        pytest.skip("bubblewrap is not installed")
    user = re.findall(r"^USER (\d+)$", DOCKERFILE, re.M)[-1]
    command = [
        found, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp",
        "--ro-bind", str(ROOT), str(ROOT), "--ro-bind", sys.prefix, sys.prefix,
        "--bind", str(tmp_path), str(tmp_path), "--unshare-all", "--uid", user, "--gid", user,
        "--cap-drop", "ALL", "--die-with-parent", "--clearenv", "--chdir", "/",
        "--setenv", "PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "--setenv", "RETIRE_CLUSTER_DATA_DIR", str(tmp_path / "data"),
        "--setenv", "RETIRE_CLUSTER_SERVER_PUBLIC_HOST", "nas.example",
        "--setenv", "DATA", str(tmp_path),
    ]  # fmt: skip
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("bubblewrap is not allowed here")
    return command


def test_what_the_image_starts_becomes_healthy_and_takes_a_worker(
    contained: list[str], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    (line,) = re.findall(r"^JOIN=(\$\(docker compose .*\)) \\$", page, re.M)
    line = line.replace("docker compose exec -T main ", "").replace(
        "--host main", "--host 127.0.0.1"
    )
    script = SCRIPT.format(
        start=shell(words_of("ENTRYPOINT") + words_of("^CMD")),
        health=shell(words_of("    CMD")),
        worker=shell([*words_of("ENTRYPOINT"), "worker"]),
        line=line,
    )
    done = subprocess.run(
        [*contained, "sh", "-c", script, str(ROOT / "Dockerfile")],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    logs = [path.read_text() for path in sorted(tmp_path.glob("*.log"))]
    assert done.returncode == 0, (done.stdout, done.stderr, logs)
    assert (tmp_path / "up.out").read_text() == "ready http://127.0.0.1:8081\n"
    assert "contained" in (tmp_path / "echo.json").read_text()
    assert "welcomes this device" in (tmp_path / "again").read_text()
    # Lines for other devices name what the container was told, not what it sees of itself.
    word = (tmp_path / "line").read_text().split()[-1]
    assert curve.read_join(word).host == "nas.example"
    printed = (tmp_path / "up.log").read_text()
    assert "http://nas.example:8084/join.py" in printed
    assert "API key (shown this once): rc_" in printed
