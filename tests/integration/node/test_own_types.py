"""Own task types, installed as entry points, on a real worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from retire_cluster.schemas.ids import TaskIds
from retire_cluster.schemas.protocol import messages
from tests.integration.node_kit import Bus, Start, opened

OWN_TYPES = '''
import logging, subprocess, sys, time

def double(payload, context):
    """Doubles a number."""
    print("from print")
    logging.getLogger("mine").warning("from logging")
    subprocess.run([sys.executable, "-c", "print('from a process')"], check=True)
    context.progress(50, "half way")
    time.sleep(0.5)  # what is said just before the end is not told on its own
    context.log(f"{context.task_id} attempt {context.attempt}")
    return {"doubled": payload["n"] * 2}

double.repeatable = True
double.payload_schema = {"n": {"type": "integer", "required": True}}
double.deterministic_errors = (KeyError,)

class Patient:
    name = "be.patient"
    description = "Waits until it is cancelled"

    def run(self, payload, context):
        while not context.cancelled:
            time.sleep(0.01)
        open(payload["file"], "w").close()

def huge(payload, context):
    return "x" * (1 << 21)

def odd(payload, context):
    return {"value": float("nan")}

def dies(payload, context):
    import os
    os._exit(7)

def lacks(payload, context):
    if payload.get("gpu"):
        raise LookupError("no GPU in this device")
    import no_such_package_here

lacks.not_here_errors = (LookupError,)
'''
ENTRY_POINTS = """[retire_cluster.task_types]
double = own_types_of_test:double
patient = own_types_of_test:Patient
huge = own_types_of_test:huge
odd = own_types_of_test:odd
dies = own_types_of_test:dies
lacks = own_types_of_test:lacks
broken = own_types_of_test:missing
Bad Name = own_types_of_test:huge
"""


@pytest.fixture
def own_types(tmp_path: Path) -> dict[str, str]:
    site = tmp_path / "site"
    info = site / "own_types_of_test-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "own_types_of_test.py").write_text(OWN_TYPES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-types-of-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return {"PYTHONPATH": str(site)}


def test_own_task_types_are_offered_and_run(
    bus: Bus, start: Start, own_types: dict[str, str]
) -> None:
    start("--allow-root", environ=own_types)
    offered = {info.name: info for info in bus.welcome().task_types}
    assert {"double", "be.patient", "huge", "odd", "dies"} <= offered.keys()
    assert "broken" not in offered
    assert offered["double"].repeatable
    assert not offered["huge"].repeatable
    assert offered["double"].description == "Doubles a number."
    assert offered["double"].payload_schema == {"n": {"type": "integer", "required": True}}
    key = bus.assign("double", {"n": 21})
    progress = bus.expect(messages.Progress)
    assert [(i.percent, i.message) for i in progress.items] == [(50, "half way")]
    ended = bus.result(key)
    assert ended.data == {"doubled": 42}
    assert ended.details["logs"].splitlines() == [
        "from print",
        "WARNING mine: from logging",
        "from a process",
        f"{TaskIds(0).public(1, 1)} attempt 1",
    ]


def test_a_package_that_is_missing_and_what_the_author_names_are_not_here(
    bus: Bus, start: Start, own_types: dict[str, str]
) -> None:
    start("--allow-root", environ=own_types)
    bus.welcome()
    ended = bus.run("lacks", {})
    assert (ended.item.outcome, ended.item.cause) == ("failed", "not_here")
    assert "No module named 'no_such_package_here'" in (ended.item.error_message or "")
    assert "import no_such_package_here" in ended.details["error_traceback"]
    ended = bus.run("lacks", {"gpu": True})
    assert (ended.item.cause, ended.item.error_message) == (
        "not_here", "LookupError: no GPU in this device",
    )  # fmt: skip


def test_errors_of_own_types_are_told_apart_and_traced(
    bus: Bus, start: Start, own_types: dict[str, str]
) -> None:
    start("--allow-root", environ=own_types)
    bus.welcome()
    ended = bus.run("double", {"m": 1})
    assert (ended.item.outcome, ended.item.cause) == ("failed", "deterministic")
    assert "KeyError: 'n'" in (ended.item.error_message or "")
    assert 'payload["n"]' in ended.details["error_traceback"]
    ended = bus.run("double", {"n": None})
    assert (ended.item.outcome, ended.item.cause) == ("failed", "error")
    ended = bus.run("huge", {})
    assert ended.item.cause == "deterministic"
    assert "1 MiB" in (ended.item.error_message or "")
    assert "nan" in (bus.run("odd", {}).item.error_message or "")
    ended = bus.run("dies", {})
    assert ended.item.cause == "error"
    assert "exit code 7" in (ended.item.error_message or "")


def test_a_cancelled_own_type_is_told_before_it_is_killed(
    bus: Bus, start: Start, own_types: dict[str, str], tmp_path: Path
) -> None:
    start("--allow-root", environ={**own_types, **opened(tmp_path / "open")})
    bus.welcome()
    key = bus.assign("be.patient", {"file": str(tmp_path / "open" / "told")})
    bus.started(key)
    bus.send(messages.Cancel(bus.session, (key,), "cancelled"))
    assert bus.result(key).item.outcome == "cancelled"
    assert (tmp_path / "open" / "told").exists()
