"""Full disks, read-only folders, damaged files: a clear state, nothing wrong, no hands needed."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.schemas.errors import ClusterError, InternalError
from tests.chaos.rig import QUICK, Rig, eventually

MakeRig = Callable[..., Rig]


def spoil(cluster: Rig, statement: str, *values: Any) -> None:
    """Change rows behind the main node's back; it must not run."""
    connection = sqlite3.connect(cluster.database)
    with connection:
        changed = connection.execute(statement, values).rowcount
    connection.close()
    assert changed == 1


def restart(cluster: Rig, *extra: str) -> None:
    """Stop the main node, run nothing, start it."""
    assert cluster.broker is not None
    cluster.broker.stop()
    cluster.start_broker(*extra)


# --- no room -------------------------------------------------------------------------------------


def test_a_store_without_room_is_503_and_all_goes_on_when_there_is_room_again(
    cluster: Rig,
) -> None:
    cluster.start_device("box")
    cluster.await_online("box")
    promised = cluster.submit("echo", {"before": True}, 50)
    running = cluster.submit("sleep", {"duration": 1.0})
    eventually(lambda: cluster.status(running[0]) == "running", "it runs")
    assert cluster.broker is not None
    pid = cluster.broker.pid
    # No file of that process may grow: every write of the store fails from here on.
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    codes = set()
    until = time.monotonic() + 3.0
    while time.monotonic() < until:
        try:
            promised += cluster.submit("echo", {"during": True}, 10)
        except ClusterError as error:
            codes.add((error.code, error.status))
        time.sleep(0.02)
    assert codes == {("CLUSTER_UNAVAILABLE", 503)}
    assert cluster.broker.poll() is None
    infinity = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, infinity)
    cluster.await_online("box")
    promised += cluster.submit("echo", {"after": True}, 10)
    rows = cluster.finish(promised + running)
    assert {row["status"] for row in rows} == {"success"}
    assert cluster.broker.poll() is None


def test_a_full_disk_refuses_new_tasks_first_and_loses_nothing(
    tmp_path: Path, make_rig: MakeRig
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        cluster = make_rig(data_dir=disk / "main", settings=QUICK)
        cluster.start_broker()
        cluster.start_device("box")
        cluster.await_online("box")
        promised = cluster.submit("echo", {"before": True}, 20)
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space"):
            _fill(filler)
        seen = set()
        until = time.monotonic() + 8.0
        while time.monotonic() < until and "QUEUE_FULL" not in seen:
            try:
                promised += cluster.submit("echo", {"text": "x" * 4000}, 5)
            except ClusterError as error:
                seen.add(error.code)
            time.sleep(0.02)
        assert seen
        assert seen <= {"QUEUE_FULL", "CLUSTER_UNAVAILABLE"}
        filler.unlink()
        eventually(lambda: _takes(cluster, promised), "new tasks are taken again", 15)
        rows = cluster.finish(promised)
        assert {row["status"] for row in rows} == {"success"}
        assert cluster.broker is not None
        assert cluster.broker.stop() == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def _fill(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(handle, bytes(4096))
    finally:
        os.close(handle)


def _takes(cluster: Rig, promised: list[str]) -> bool:
    try:
        promised += cluster.submit("echo", {"after": True})
    except ClusterError:
        return False
    return True


def test_a_folder_that_cannot_be_written_is_one_line_with_the_cure(
    tmp_path: Path, make_rig: MakeRig
) -> None:
    cluster = make_rig()
    cluster.start_broker()
    promised = cluster.submit("echo", {"before": True})
    assert cluster.broker is not None
    cluster.broker.stop()
    folder = str(cluster.data_dir)
    steps = (
        ["mount", "--bind", folder, folder],
        ["mount", "-o", "remount,ro,bind", folder],
    )
    if os.geteuid() or any(
        subprocess.run(s, capture_output=True, check=False).returncode for s in steps
    ):
        pytest.skip("only root may make a folder read-only for everyone")
    before = len(cluster.log_of("broker"))
    try:
        child = cluster.start_broker(wait=False)
        assert child.wait(20) == 2
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
    (said,) = cluster.log_of("broker")[before:].strip().splitlines()
    assert "Read-only file system" in said
    assert "--data-dir" in said
    cluster.start_broker()
    cluster.start_device("box")
    (row,) = cluster.finish(promised)
    assert row["status"] == "success"


# --- damaged files -------------------------------------------------------------------------------


def test_a_flipped_payload_byte_fails_that_task_alone(cluster: Rig) -> None:
    small = cluster.submit("echo", {"text": "small"}, 2)
    large = cluster.submit("echo", {"text": "y" * 9_000}, 2)
    assert cluster.broker is not None
    cluster.broker.stop()
    spoil(cluster, "update tasks set payload = ? where number = 1", b'{"text":"smalk"}')
    spoil(cluster, "update tasks set payload = replace(payload, 'yyyy', 'yyzy') where number = 3")
    cluster.start_broker()
    cluster.start_device("box")
    rows = cluster.finish([*small, *large])
    assert [row["status"] for row in rows] == ["failed", "success", "failed", "success"]
    for row in (rows[0], rows[2]):
        assert "damaged in the main node's store" in row["error_message"]
    _logged(cluster, "is damaged in the store", 2)
    detail = cluster.admin.call("task.get", {"task_id": small[0]})
    assert (detail["status"], detail["payload"]) == ("failed", None)
    with pytest.raises(ClusterError, match="submit it again"):
        cluster.admin.call("task.retry", {"task_id": small[0]})


@pytest.mark.parametrize(
    ("column", "value"),
    [("type", "ecko"), ("priority", 77), ("document", b"{"), ("timeout_seconds", "soon")],
)
def test_other_damage_to_a_waiting_task_fails_it_and_no_other(
    cluster: Rig, column: str, value: object
) -> None:
    tasks = cluster.submit("echo", {"n": 1}, 3)
    assert cluster.broker is not None
    cluster.broker.stop()
    spoil(cluster, f"update tasks set {column} = ? where number = 2", value)
    cluster.start_broker()
    cluster.start_device("box")
    rows = cluster.finish(tasks)
    assert [row["status"] for row in rows] == ["success", "failed", "success"]
    items = cluster.admin.call("task.list", {"page": 1, "page_size": 10})["items"]
    assert len(items) == 3


@pytest.mark.parametrize(
    ("column", "value"),
    [("result", b'{"echo":{"n":2}}'), ("status", "succesr"), ("device", "elsewhere")],
)
def test_a_damaged_result_is_never_given_out(cluster: Rig, column: str, value: object) -> None:
    cluster.start_device("box")
    tasks = cluster.submit("echo", {"n": 1}, 3)
    cluster.finish(tasks)
    assert cluster.broker is not None
    cluster.broker.stop()
    spoil(cluster, f"update outcomes set {column} = ? where task = 2", value)
    cluster.start_broker()
    rows = cluster.finish(tasks)
    assert [row["status"] for row in rows] == ["success", "failed", "success"]
    assert "its result is damaged" in rows[1]["error_message"]
    assert rows[1]["result_data"] is None
    by_id = {row["task_id"]: row for row in cluster.finish(list(reversed(tasks)))}
    assert [by_id[task_id] for task_id in tasks] == rows
    _logged(cluster, "is damaged in the store", 1)
    cluster.admin.call("task.retry", {"task_id": tasks[1]})
    (again,) = cluster.finish([tasks[1]])
    assert again["status"] == "success"


def test_damaged_side_tables_cost_only_what_they_held(cluster: Rig) -> None:
    cluster.start_device("box")
    cluster.await_online("box")
    tasks = cluster.submit("sleep", {"duration": 0.2}, 2, delay_seconds=2)
    cluster.admin.call(
        "config.update", {"section": "heartbeat", "values": {"interval": 1.5, "timeout": 4}}
    )
    args = {
        "task": {"task_type": "echo"}, "owner": "me", "idempotency_key": "k", "fingerprint": "f",
    }  # fmt: skip
    cluster.admin.call("task.submit", args, [b"{}"])
    assert cluster.broker is not None
    cluster.broker.kill()
    spoil(cluster, "update live set killers = 'not json' where task = 1")
    spoil(cluster, "update config set document = '[1' where section = 'heartbeat'")
    spoil(cluster, "update submissions set first = 'one'")
    cluster.start_broker()
    rows = cluster.finish(tasks)
    assert {row["status"] for row in rows} == {"success"}
    _logged(cluster, "a damaged row of", 3)


@pytest.mark.parametrize("what", ["header", "page", "salt"])
def test_a_damaged_file_is_refused_in_one_line_and_set_aside_when_asked(
    cluster: Rig, what: str
) -> None:
    for _ in range(10):
        cluster.submit("echo", {"text": "x" * 300}, 100)
    assert cluster.broker is not None
    cluster.broker.stop()
    if what == "salt":
        spoil(cluster, "update meta set value = value + 4 where name = 'salt'")
    else:
        content = bytearray(cluster.database.read_bytes())
        if what == "header":
            content[:100] = bytes(100)
        else:
            at = content.index(b"x" * 300) // 4096 * 4096
            content[at : at + 4096] = b"\xa5" * 4096
        cluster.database.write_bytes(content)
    before = len(cluster.log_of("broker"))
    child = cluster.start_broker(wait=False)
    assert child.wait(20) == 2
    (said,) = cluster.log_of("broker")[before:].strip().splitlines()
    for word in (str(cluster.database), "restore a backup", "--set-aside-damaged"):
        assert word in said
    cluster.start_broker("--set-aside-damaged")
    (kept,) = cluster.data_dir.glob("cluster.db.damaged-*Z")
    assert kept.stat().st_size > 0
    cluster.start_device("box")
    (row,) = cluster.finish(cluster.submit("echo", {"new": True}))
    assert row["status"] == "success"
    # A sound file is never set aside.
    restart(cluster, "--set-aside-damaged")
    assert len(list(cluster.data_dir.glob("cluster.db.damaged-*Z"))) == 1
    assert cluster.finish([row["task_id"]]) == [row]


def test_a_torn_log_costs_at_most_what_was_torn_off_and_leaves_the_rest_right(
    cluster: Rig,
) -> None:
    first = cluster.submit("echo", {"n": 1}, 10)
    assert cluster.broker is not None
    wal = cluster.database.with_name("cluster.db-wal")
    kept = wal.stat().st_size
    cluster.submit("echo", {"n": 2}, 10)
    cluster.broker.kill()
    with wal.open("r+b") as file:
        file.truncate(kept + (wal.stat().st_size - kept) // 2)
    cluster.start_broker()
    cluster.start_device("box")
    rows = cluster.finish(first)
    assert {row["status"] for row in rows} == {"success"}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX")
def test_a_restart_after_damage_while_running_serves_what_is_whole(cluster: Rig) -> None:
    cluster.start_device("box")
    tasks = cluster.submit("echo", {"text": "z" * 9_000}, 20)
    cluster.finish(tasks)
    assert cluster.broker is not None
    cluster.broker.stop()
    content = bytearray(cluster.database.read_bytes())
    # An overflow page: the rows that point to it cannot be read, all others can.
    at = content.index(b"z" * 4_000) // 4096 * 4096
    content[at : at + 4] = b"\xff\xff\xff\xff"
    cluster.database.write_bytes(content)
    cluster.start_broker()
    good = 0
    for task_id in tasks:
        try:
            row = cluster.admin.call("task.result", {"task_id": task_id})
        except InternalError:
            continue
        else:
            good += row["status"] == "success"
    assert good >= 15
    (row,) = cluster.finish(cluster.submit("echo", {"new": True}))
    assert row["status"] == "success"


def _logged(cluster: Rig, words: str, times: int) -> None:
    """The main node logs this so often and no oftener; a thread of its own writes the log."""
    eventually(lambda: cluster.log_of("broker").count(words) >= times, f"the log says {words!r}")
    assert cluster.log_of("broker").count(words) == times
