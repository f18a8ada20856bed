"""Own types that return, raise, print and forge what no worker expects: only they fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.node.core.records import Result
from retire_cluster.node.running.spool import Spool
from retire_cluster.schemas.protocol.messages import AttemptKey, Finished
from tests.integration.node_kit import COMMAND, Bus, Start, linux_only, python

ODD_TYPES = r'''
import asyncio, enum, json, os, stat, struct, sys, time

def witness(payload, context):
    return {"seen": payload}

def lone(payload, context):
    """Text that is no Unicode, wherever there is room for it."""
    bad = "caf\udce9"
    where = payload["where"]
    if where == "value":
        return [bad, {"deep": bad}]
    if where == "key":
        return {bad: 1}
    if where == "both":
        return {bad: 2**64}
    if where == "print":
        print(bad)
        sys.stderr.write(bad + "\n")
        context.log(bad)
    if where == "progress":
        context.progress(100, bad)
    if where == "error":
        raise ValueError(bad)
    if where == "chain":
        try:
            raise KeyError(bad)
        except KeyError as first:
            raise ValueError("second") from first
    if where == "trace":
        namespace = {}
        exec(compile("def inner():\n    raise RuntimeError('x')", bad, "exec"), namespace)
        namespace["inner"]()
    if where == "type":
        class Named(type):
            @property
            def __name__(cls):
                return bad
        raise Named("Plain", (Exception,), {})(bad)
    if where == "note":
        error = ValueError("noted")
        error.__notes__ = [bad]
        raise error
    if where == "exit":
        sys.exit(bad)
    return {"done": where}

def silent(payload, context):
    class Silent(Exception):
        def __str__(self):
            raise RuntimeError("no")
    raise Silent("hidden")

def colors(payload, context):
    class Color(str, enum.Enum):
        RED = "red"
    class Level(enum.IntEnum):
        HIGH = 3
    return {"c": Color.RED, "l": Level.HIGH, Color.RED: {True: None, None: 1.5, 2: 3}}

async def later(payload, context):
    await asyncio.sleep(0)
    return {"awaited": payload}

async def later_fails(payload, context):
    await asyncio.sleep(0)
    raise ValueError("after all")

def denies(payload, context):
    from retire_cluster.node.tasks.base import Denied
    raise Denied("not on any device")

def _head(letter, text, blob=0):
    return struct.pack("<cII", letter, len(text), blob) + text

def _done(**changes):
    header = {"outcome": "success", "cause": None, "error_message": None, "details": {}}
    return _head(b"d", json.dumps({**header, "last": False, **changes}).encode())

FORGED = {
    "outcome is a list": _done(outcome=[]),
    "outcome released": _done(outcome="released"),
    "cause is an object": _done(cause={}),
    "cause worker_lost": _done(outcome="failed", cause="worker_lost"),
    "details are a list": _done(details=[1]),
    "logs are a number": _done(details={"logs": 5}),
    "nested": _head(b"d", b"[" * 200_000 + b"]" * 200_000),
    "nested details": _done(details={"logs": "", "x": json.loads("[" * 90 + "]" * 90)}),
    "no json": _head(b"d", b"{"),
    "not utf-8": _head(b"d", b"\xff\xfe"),
    "40 MB of header": struct.pack("<cII", b"d", 40 << 20, 0),
    "2 GB of result": struct.pack("<cII", b"d", 2, 2 << 30) + b"{}",
    "percent NaN": _head(b"p", b'{"percent": NaN, "message": ""}'),
    "percent x": _head(b"p", b'{"percent": "x"}'),
    "unknown kind": _head(b"?", b"{}"),
    "bytes of no frame": b"\0" * 64,
    "result is no json": _head(b"d", _done()[9:], 3) + b"{{{",
    "lone surrogate in the result": _head(b"d", _done()[9:], 8) + b'"\\ud800"',
}

def forge(payload, context):
    """Writes into every pipe of its process, as code that means ill would."""
    mine = {os.fstat(n).st_ino for n in (1, 2)}
    for fd in range(3, 64):
        try:
            about = os.fstat(fd)
        except OSError:
            continue
        if stat.S_ISFIFO(about.st_mode) and about.st_ino not in mine:
            try:
                os.set_blocking(fd, True)
                os.write(fd, FORGED[payload["what"]])
            except OSError:
                pass
    time.sleep(60)

def flood(payload, context):
    for number in range(30_000):
        context._tell(100.0, "x" * 900)
    return "told"
'''
NAMES = ["witness", "lone", "silent", "colors", "later", "later_fails", "denies", "forge", "flood"]


@pytest.fixture
def odd_types(tmp_path: Path) -> dict[str, str]:
    site = tmp_path / "site"
    info = site / "odd_types_of_test-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "odd_types_of_test.py").write_text(ODD_TYPES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-types-of-test\nVersion: 1.0\n")
    rows = "".join(f"{name} = odd_types_of_test:{name}\n" for name in NAMES)
    (info / "entry_points.txt").write_text(f"[retire_cluster.task_types]\n{rows}")
    return {"PYTHONPATH": str(site)}


def test_text_that_is_not_unicode_ends_up_as_a_question_and_everything_lives(
    bus: Bus, start: Start, odd_types: dict[str, str], tmp_path: Path
) -> None:
    worker = start("--allow-root", environ=odd_types)
    bus.welcome()
    bad = "caf\ufffd"
    assert bus.run("lone", {"where": "value"}).data == [bad, {"deep": bad}]
    assert bus.run("lone", {"where": "key"}).data == {bad: 1}
    both = bus.run("lone", {"where": "both"})
    assert both.item.outcome == "failed"
    assert f"result.{bad} is an integer outside" in (both.item.error_message or "")
    assert bus.run("lone", {"where": "print"}).details["logs"].count("caf") == 3
    assert bus.run("lone", {"where": "progress"}).item.outcome == "success"
    for where in ("error", "chain", "trace", "type", "note", "exit"):
        ended = bus.run("lone", {"where": where})
        assert (ended.item.outcome, ended.item.cause) == ("failed", "error"), where
        assert "caf" in ended.details["error_traceback"], where
    evaluated = bus.run("python_eval", {"expression": '{"\\ud800": 2**64}'})
    assert evaluated.item.outcome == "failed"
    assert "result.\ufffd is an integer outside" in (evaluated.item.error_message or "")
    assert bus.run("witness", {"n": 1}).data == {"seen": {"n": 1}}
    assert worker.poll() is None
    assert not (tmp_path / "w" / "results.bad").exists()


def test_a_worker_killed_with_such_a_result_on_disk_starts_again_and_sends_it(
    bus: Bus, start: Start, odd_types: dict[str, str]
) -> None:
    bus.acknowledge = False
    worker = start("--allow-root", environ=odd_types)
    bus.welcome()
    key = bus.assign("lone", {"where": "error"})
    assert bus.result(key).item.error_message == "ValueError: caf\ufffd"
    worker.kill()
    worker.wait()
    bus.ended.clear()
    bus.acknowledge = True
    start("--allow-root", environ=odd_types)
    assert bus.welcome().unsent == (key,)
    assert bus.result(key).item.error_message == "ValueError: caf\ufffd"


def test_a_stored_result_that_cannot_be_used_is_set_aside_and_stops_no_start(
    bus: Bus, start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    good, bad, old = (3, 1, 1, 1), (4, 1, 1, 1), (5, 1, 1, 1)
    spool = Spool(folder / "results.spool")
    spool.store([Result(good, "success", 1.0, None, None, b'{"n":1}', b"")])
    spool.store([Result(bad, "success", 1.0, {"a": 1}, ["?"], b"", b"")])  # type: ignore[arg-type]
    spool.store([Result(old, "failed", 1.0, "error", "caf\udce9", b"", b"")])
    spool.close()
    worker = start("--allow-root")
    assert set(bus.welcome().unsent) == {good, old}
    assert bus.result(good).data == {"n": 1}
    assert bus.result(old).item.error_message == "caf\ufffd"
    (line,) = (folder / "results.bad").read_text().splitlines()
    assert "its cause is none" in json.loads(line)["reason"]
    assert "[4, 1, 1, 1]" in json.loads(line)["parts"][0]
    worker.kill()
    assert "set aside in results.bad" in worker.communicate()[1]


def test_what_is_subclassed_and_what_is_awaited_comes_as_a_user_expects(
    bus: Bus, start: Start, odd_types: dict[str, str]
) -> None:
    start("--allow-root", environ=odd_types)
    bus.welcome()
    expected = {"c": "red", "l": 3, "red": {"true": None, "null": 1.5, "2": 3}}
    assert bus.run("colors", {}).data == expected
    assert bus.run("later", {"a": 1}).data == {"awaited": {"a": 1}}
    ended = bus.run("later_fails", {})
    assert ended.item.error_message == "ValueError: after all"
    assert 'raise ValueError("after all")' in ended.details["error_traceback"]
    ended = bus.run("silent", {})
    assert ended.item.error_message == (
        "Silent: (its text cannot be had: __str__ raised RuntimeError)"
    )
    assert 'raise Silent("hidden")' in ended.details["error_traceback"]


def test_a_task_cannot_refuse_its_type_in_the_name_of_the_devices_owner(
    bus: Bus, start: Start, odd_types: dict[str, str]
) -> None:
    start("--allow-root", environ=odd_types)
    bus.welcome()
    ended = bus.run("denies", {})
    assert (ended.item.outcome, ended.item.cause) == ("failed", "error")
    assert ended.item.error_message == "not on any device"


@linux_only
def test_forged_answers_fail_their_own_attempt_and_nothing_else(
    bus: Bus, start: Start, odd_types: dict[str, str]
) -> None:
    namespace: dict[str, Any] = {}
    exec(ODD_TYPES, namespace)
    worker = start("--allow-root", environ=odd_types)
    bus.welcome()
    waiting: list[tuple[str, AttemptKey, AttemptKey]] = []
    for what in namespace["FORGED"]:
        bad, good = bus.assign_all([("forge", {"what": what}), ("witness", {"beside": what})])
        waiting.append((what, bad, good))
    for what, bad, good in waiting:
        ended = bus.result(bad)
        assert (ended.item.outcome, ended.item.cause) == ("failed", "error"), what
        assert "answer that is none" in (ended.item.error_message or ""), (what, ended)
        assert bus.result(good).data == {"seen": {"beside": what}}
    assert worker.poll() is None
    assert len(bus.beats) >= 1


def test_a_flood_of_progress_reaches_the_main_node_as_a_trickle(
    bus: Bus, start: Start, odd_types: dict[str, str]
) -> None:
    from retire_cluster.schemas.protocol.messages import Progress

    start("--allow-root", environ=odd_types)
    bus.welcome()
    assert bus.run("flood", {}).data == "told"
    told = sum(len(message.items) for message in bus.seen if isinstance(message, Progress))
    assert told <= 100


def test_names_that_are_no_utf_8_do_not_harm_a_command(bus: Bus, start: Start) -> None:
    start(*COMMAND)
    bus.welcome()
    ended = bus.run("command", {"command": python("import os", "os.write(1, b'caf\\xe9')")})
    assert ended.data["stdout"] == "caf\ufffd"
    assert Finished in {type(message) for message in bus.seen}
