"""A client that openapi-python-client makes of our document drives a real cluster."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import pytest

from tests.acceptance.kit import Cluster
from tests.command_kit import plain_environment

pytestmark = pytest.mark.slow

GENERATOR = "openapi-python-client==0.29.1"
DRIVE = Path(__file__).with_name("generated_client.py")
KEY = "the-key-of-this-test"


def run(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=plain_environment(),
        check=False,
    )


@pytest.fixture(scope="module")
def generator(root: Path) -> Path:
    """The Python of a venv with the generator, kept between runs; skips where it cannot be had."""
    own = root / ".venv"
    place = own if own.is_dir() else Path(tempfile.gettempdir())
    folder = place / "retire-cluster-generated-client"
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text("utf-8") == GENERATOR:
        return python
    venv.create(folder, with_pip=True, clear=True)
    try:
        done = run([str(python), "-m", "pip", "install", "-q", GENERATOR], 180)
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip did not deliver {GENERATOR} within 180 s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"pip could not install {GENERATOR}: {last}")
    stamp.write_text(GENERATOR, "utf-8")
    return python


def test_a_generated_client_gets_from_submit_to_the_result(generator: Path, tmp_path: Path) -> None:
    cluster = Cluster(
        tmp_path / "data", "--workers", "1", "--no-rate-limit", "--auth", "--api-key", KEY
    )
    try:
        document = tmp_path / "openapi.json"
        document.write_bytes(cluster.rest.ask("GET", "/api/v1/openapi.json").body)
        made = tmp_path / "made"
        make = ["generate", "--path", str(document), "--output-path", str(made), "--meta", "none"]
        done = run([str(generator.with_name("openapi-python-client")), *make], 120)
        assert done.returncode == 0, done.stdout + done.stderr
        drive = [str(generator), str(DRIVE), cluster.rest.url, KEY, str(tmp_path)]
        driven = run(drive, 90)
        assert driven.returncode == 0, driven.stderr
        assert json.loads(driven.stdout) == {
            "same": True,
            "status": "success",
            "value": 42,
            "ran_on": True,
            "refused": "VALIDATION_ERROR",
            "last_event": "task.success",
        }
    finally:
        cluster.close()
