"""What was cut of a task's output: the device keeps both ends and tells how much is missing.

Where a process cannot be forked for each task (Windows, macOS) other code does it: both are run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.node_kit import Bus, Start, posix_only

pytestmark = posix_only

TYPES = r"""
import os, sys

def prints(payload, context):
    print("FIRST")
    for _ in range(payload["lines"]):
        print("x" * 99)
    os.write(1, b"LAST\n")
    return {"lines": payload["lines"]}

def crashes(payload, context):
    prints(payload, context)
    os._exit(3)

def traces(payload, context):
    raise ValueError("BEGIN" + "y" * payload["length"] + "END")

def escapes(payload, context):
    os.write(1, b"FIRST" + b"\x01" * 65_000 + b"LAST")
    raise ValueError("\x01" * 15_000)

def quiet(payload, context):
    return "quiet"
"""
#: As on a system without fork.
NO_FORK = "import retire_cluster.node.process.server as executor\nexecutor.FORKS = False\n"


def install(site: Path, types: str, *names: str) -> None:
    """A distribution that offers these types."""
    info = site / "cuts_of_test-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "cuts_of_test.py").write_text(types)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cuts-of-test\nVersion: 1.0\n")
    rows = "".join(f"{name} = cuts_of_test:{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[retire_cluster.task_types]\n{rows}")


@pytest.fixture(params=["forked", "inline"])
def environ(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    site = tmp_path / "site"
    install(site, TYPES, "prints", "crashes", "traces", "escapes", "quiet")
    if request.param == "inline":
        (site / "sitecustomize.py").write_text(NO_FORK)
    return {"PYTHONPATH": str(site)}


def kept_of(logs: str) -> int:
    """Bytes of it that the task printed."""
    head, _, rest = logs.partition("\n[... ")
    return len(head.encode()) + len(rest.partition(" ...]\n")[2].encode())


def test_long_logs_keep_both_ends_and_the_counts(
    bus: Bus, start: Start, environ: dict[str, str]
) -> None:
    start("--allow-root", environ=environ)
    bus.welcome()
    ended = bus.run("prints", {"lines": 10_000})
    assert ended.data == {"lines": 10_000}
    logs = ended.details["logs"]
    assert logs.startswith("FIRST\nxxx")
    assert logs.endswith("xxx\nLAST\n")
    total = 10_000 * 100 + len("FIRST\nLAST\n")
    cut: dict[str, Any] = ended.details["truncated"]["logs"]
    assert (cut["total_bytes"], cut["missing"]) == (total, "middle")
    assert cut["kept_bytes"] == kept_of(logs) == 64 * 1024
    assert f"[... {total - cut['kept_bytes']} of {total} bytes are missing here ...]" in logs
    # It is said of this task only.
    assert bus.run("quiet", {}).details == {}
    short = bus.run("prints", {"lines": 2}).details
    assert short == {"logs": "FIRST\n" + ("x" * 99 + "\n") * 2 + "LAST\n"}


def test_a_long_trace_keeps_both_ends_and_the_counts(
    bus: Bus, start: Start, environ: dict[str, str]
) -> None:
    start("--allow-root", environ=environ)
    bus.welcome()
    ended = bus.run("traces", {"length": 100_000})
    trace = ended.details["error_traceback"]
    assert trace.startswith("Traceback (most recent call last):")
    assert trace.endswith("yyyEND\n")
    cut = ended.details["truncated"]["error_traceback"]
    assert cut["total_bytes"] > 100_000
    assert cut["kept_bytes"] == kept_of(trace) == 16_000
    assert list(ended.details["truncated"]) == ["error_traceback"]


def test_logs_and_trace_that_grow_in_json_are_cut_to_what_the_protocol_takes(
    bus: Bus, start: Start, environ: dict[str, str]
) -> None:
    start("--allow-root", environ=environ)
    bus.welcome()
    ended = bus.run("escapes", {})
    assert ended.details["error_traceback"].endswith("\x01\n")
    logs = ended.details["logs"]
    assert logs.startswith("FIRST\x01")
    assert logs.endswith("\x01LAST")
    cut = ended.details["truncated"]["logs"]
    assert (cut["total_bytes"], cut["missing"]) == (65_009, "middle")
    assert cut["kept_bytes"] == kept_of(logs) < 65_009


@pytest.mark.parametrize("environ", ["forked"], indirect=True)
def test_the_logs_of_a_crash_are_counted_too(
    bus: Bus, start: Start, environ: dict[str, str]
) -> None:
    start("--allow-root", environ=environ)
    bus.welcome()
    ended = bus.run("crashes", {"lines": 10_000})
    assert ended.item.error_message == "the task's process ended by itself with exit code 3"
    assert ended.details["logs"].startswith("FIRST\n")
    assert ended.details["truncated"]["logs"]["total_bytes"] > 1_000_000
