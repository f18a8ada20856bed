"""A main node without encryption that moved: the address that said welcome is dialled next time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retire_cluster.schemas.protocol.messages import Hello
from tests.integration.node_kit import Bus


@pytest.fixture
def moved() -> Iterator[Bus]:
    found = Bus()
    yield found
    found.close()
    found.context.term()


@pytest.fixture
def bus() -> Iterator[Bus]:
    found = Bus()
    yield found
    found.close()
    found.context.term()


def _work(folder: Path, at: Bus, *flags: str, welcome: bool = True) -> str:
    """A worker that says HELLO there (and is welcomed), then is stopped; its log."""
    process = subprocess.Popen(
        [sys.executable, "-m", "retire_cluster.node", "--data-dir", str(folder), *flags],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        if welcome:
            at.welcome()
            at.until(lambda: at.beats, "a heartbeat")
        else:
            at.expect(Hello)
    finally:
        process.terminate()
        _, said = process.communicate(timeout=20)
        at.beats.clear()
    return said


def test_the_address_that_welcomed_a_worker_is_the_one_it_dials_without_the_flag(
    bus: Bus, moved: Bus, tmp_path: Path
) -> None:
    folder = tmp_path / "w"
    _work(folder, bus, "--join", f"127.0.0.1:{bus.port}")
    assert f"dials 127.0.0.1:{bus.port}" in _work(folder, bus)
    # Not welcomed yet: the old address stays.
    _work(folder, moved, "--join", f"127.0.0.1:{moved.port}", welcome=False)
    assert f"dials 127.0.0.1:{bus.port}" in _work(folder, bus)
    _work(folder, moved, "--join", f"127.0.0.1:{moved.port}")
    assert f"dials 127.0.0.1:{moved.port}" in _work(folder, moved)
