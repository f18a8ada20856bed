"""The SQLite file: versions, durability, what cannot be used, damage, a full medium."""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.rows import LiveRow
from retire_cluster.broker.store.base import StoreError, StoreFull
from retire_cluster.broker.store.recent import RecentOutcomes
from retire_cluster.broker.store.schema import MIGRATIONS
from retire_cluster.broker.store.sqlite import SQLiteStore
from tests.unit.broker.kit import Cluster, MakeCluster
from tests.unit.broker.store.kit import load, outcome, task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is."""
    return tmp_path / "cluster.db"


def flip(path: Path, query: str, *values: Any) -> None:
    """Change the file behind the store's back."""
    db = sqlite3.connect(path)
    db.execute(query, values)
    db.commit()
    db.close()


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX; a profile's folder is its own")
def test_the_file_is_for_its_owner_only(path: Path) -> None:
    SQLiteStore(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(sys.platform not in ("linux", "win32"), reason="cannot see what is open")
def test_a_store_that_is_refused_is_not_left_open(path: Path) -> None:
    SQLiteStore(path).close()
    flip(path, f"pragma user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StoreError) as refused:
        SQLiteStore(path)
    if sys.platform == "win32":
        path.rename(path.with_name("aside"))  # of an open file this fails
    else:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.exists()]
        assert [link for link in links if os.path.samefile(link, path)] == []
    assert refused.tb is not None  # it keeps all that the failed start had made


def test_a_store_of_a_newer_version_is_refused(path: Path) -> None:
    SQLiteStore(path).close()
    flip(path, f"pragma user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StoreError, match=r"made by a newer version .*: update retire-cluster"):
        SQLiteStore(path)


def test_a_schema_change_that_fails_is_undone_and_tells_its_cause(path: Path) -> None:
    store = SQLiteStore(path)
    load(store)
    store.commit([ins.StoreTasks([task(1)])])
    store.close()
    # A change of several steps, of which a later one fails.
    flip(path, "alter table attempts drop column times")
    flip(path, "drop table audit")
    flip(path, "pragma user_version = 4")
    with pytest.raises(StoreError, match="duplicate column name: given_back"):
        SQLiteStore(path)
    flip(path, "alter table live drop column given_back")
    again = SQLiteStore(path)
    assert len(list(load(again).index)) == 1
    again.close()


@pytest.mark.parametrize("access", ["drop table access", "select 1"])
def test_a_store_of_an_earlier_version_is_brought_up_to_date(path: Path, access: str) -> None:
    store = SQLiteStore(path)
    load(store)
    store.commit([ins.StoreTasks([task(1)])])
    store.close()
    # Version 1 was written without this table, and for a while with it.
    flip(path, access)
    flip(path, "alter table outcomes drop column ended_s")
    flip(path, "alter table submissions drop column at_s")
    flip(path, "alter table live drop column tried")
    flip(path, "alter table live drop column given_back")
    flip(path, "alter table attempts drop column times")
    flip(path, "drop table audit")
    flip(path, "pragma user_version = 1")
    store = SQLiteStore(path)
    found = load(store)
    assert [row[0] for row in found.index] == [1]
    assert found.access == []
    store.close()


def test_what_is_known_of_a_task_outlives_the_version_that_kept_no_words(path: Path) -> None:
    store = SQLiteStore(path)
    load(store)
    store.commit([ins.StoreTasks([task(1)])])
    store.close()
    flip(path, "drop table audit")
    flip(path, "alter table live drop column given_back")
    flip(path, "alter table attempts drop column times")
    row = """ (1, 2, 1, 1, 0, '["ab", "laptop"]', '["phone"]', '["phone"]')"""
    flip(path, "insert into live values" + row)
    flip(path, "pragma user_version = 4")
    store = SQLiteStore(path)
    found = load(store)
    assert found.warnings == []
    assert found.deviations == {1: LiveRow(1, 2, 1, 1, 0, (), ("phone",), ("phone",))}
    store.close()


def test_commits_are_durable_and_journalled(path: Path) -> None:
    store = SQLiteStore(path)
    pragmas = [
        store._db.execute(f"pragma {n}").fetchone()[0] for n in ("journal_mode", "synchronous")
    ]
    assert pragmas == ["wal", 2]
    store.close()


@pytest.mark.parametrize("what", ["no database", "a folder", "in no folder"])
def test_a_file_that_cannot_be_used_is_one_clear_error(path: Path, what: str) -> None:
    if what == "no database":
        path.write_bytes(b"not a database, " * 500)
    elif what == "a folder":
        path.mkdir()
    else:
        path = path.parent / "missing" / "x.db"
    with pytest.raises(StoreError, match=r"cannot be used: .*--data-dir") as caught:
        SQLiteStore(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["payload", "document"])
def test_a_flipped_byte_of_a_task_is_detected(path: Path, column: str) -> None:
    store = SQLiteStore(path)
    load(store)
    store.commit([ins.StoreTasks([task(1), task(2)])])
    store.close()
    spoiled = getattr(task(1), column).replace(b"a", b"b")
    flip(path, f"update tasks set {column} = ? where number = 1", spoiled)
    store = SQLiteStore(path)
    with pytest.raises(StoreError, match="task 1 is damaged"):
        store.task(1)
    assert store.payloads([1, 2]) == ({2: task(2).payload}, {})
    # It is not handed out from memory either.
    assert [row.payload for row in load(store).live] == [b"", task(2).payload]
    store.close()


def test_what_was_just_committed_is_read_without_the_disk(path: Path) -> None:
    store = SQLiteStore(path)
    load(store)
    store.commit([ins.StoreTasks([task(1), task(2)]), ins.StoreOutcomes([outcome(1)])])
    read = store._read
    store._read = lambda *given: pytest.fail("it was read from the disk")  # type: ignore[method-assign]
    assert store.outcomes([1], results=True) == {1: outcome(1)}
    store._read = read  # type: ignore[method-assign]
    store.commit([ins.ReviveTasks((1,))])
    assert store.outcomes([1], results=True) == {}
    store.commit([ins.StoreOutcomes([outcome(1, status="cancelled")])])
    assert store.outcomes([1, 2], results=True)[1].status == "cancelled"
    store.commit([ins.ForgetTasks((1,))])
    assert store.outcomes([1], results=True) == {}
    with pytest.raises(StoreError):
        store.commit([ins.StoreOutcomes([outcome(2)]), ins.StoreTasks([task(2)])])
    assert store.outcomes([2], results=True) == {}
    store.close()


def test_the_newest_outcomes_are_bounded_by_number_and_by_bytes() -> None:
    recent = RecentOutcomes(rows=3, size=100)
    recent.note([outcome(1, result=b"", details=b""), outcome(2, result=b"", details=b"")])
    recent.note([outcome(2, result=b"new", details=b"")])
    assert [recent.get(n) is not None for n in (1, 2)] == [True, True]
    recent.note([outcome(3, result=b"", details=b"")])
    # The first two came together and went together; what replaced one of them is newer.
    found = recent.get(2)
    assert (recent.get(1), found is not None and found.result) == (None, b"new")
    recent.note([outcome(4, result=b"x" * 99, details=b"")])
    assert [recent.get(n) is not None for n in (2, 3, 4)] == [False, True, True]
    recent.note([outcome(5, result=b"x" * 101, details=b"")])
    assert [recent.get(n) for n in (2, 3, 4, 5)] == [None] * 4


@pytest.mark.parametrize("column", ["result", "details"])
def test_a_flipped_byte_of_a_result_is_detected(path: Path, column: str) -> None:
    store = SQLiteStore(path)
    load(store)
    store.commit([ins.StoreTasks([task(1)]), ins.StoreOutcomes([outcome(1)])])
    store.close()
    flip(path, f"update outcomes set {column} = x'00'")
    store = SQLiteStore(path)
    with pytest.raises(StoreError, match="the result of task 1 is damaged"):
        store.outcomes([1], results=True)
    assert store.outcomes([1], results=False)[1].status == "failed"
    store.close()


def test_a_damaged_task_fails_when_it_is_handed_out(make_cluster: MakeCluster, path: Path) -> None:
    cluster = make_cluster(store=SQLiteStore(path))
    (number,) = cluster.submit(payload=b'{"duration":1}')
    flip(path, "update tasks set payload = ?", b'{"duration":9}')
    cluster.restart()
    assert cluster.task(number).payload is None
    assert cluster.store.payloads([number]) == ({}, {})


def test_a_damaged_device_is_forgotten_with_a_warning(
    make_cluster: MakeCluster, path: Path
) -> None:
    cluster = make_cluster(store=SQLiteStore(path))
    cluster.device("fine")
    _, key = cluster.give(member=cluster.device("bad", tags=("x",)), required_tags=["x"])
    flip(path, "update devices set document = ? where device = 'bad'", b"{")
    cluster.restart()
    assert list(cluster.state.devices) == ["fine"]
    (warning,) = cluster.warnings
    assert "bad is damaged" in warning
    assert cluster.status(key[0]) == "queued"


def test_a_damaged_page_is_an_error_not_an_exit(path: Path) -> None:
    store = SQLiteStore(path)
    load(store)
    store.commit([ins.StoreTasks([task(n, b'"%s"' % (b"x" * 2_000)) for n in range(1, 101)])])
    store.commit([ins.StoreOutcomes([outcome(100)])])
    store.close()
    whole = bytearray(path.read_bytes())
    at = whole.index(b"x" * 2_000)
    page = at // 4096 * 4096
    whole[page : page + 4096] = bytes(4096)
    path.write_bytes(whole)
    store = SQLiteStore(path)
    found, unread = store.payloads(range(1, 101))
    assert not unread
    assert 90 <= len(found) < 100
    missing = next(n for n in range(1, 101) if n not in found)
    for read in (
        lambda: store.task(missing),
        lambda: store.heads([missing]),
        lambda: load(store),
    ):
        with pytest.raises(StoreError, match=r"cannot be read: .*malformed"):
            read()
    assert store.outcomes([100], results=True) == {100: outcome(100)}
    store.close()


def test_a_store_that_refused_to_load_can_be_loaded_later(path: Path) -> None:
    store = SQLiteStore(path)
    load(store)
    # Refuses in the middle of the transaction that begins a new epoch.
    store._db.execute(
        "create trigger no before insert on meta begin select raise(abort, 'no room'); end"
    )
    for _ in range(2):
        with pytest.raises(StoreError, match="no room"):
            load(store)
    store._db.execute("drop trigger no")
    assert load(store).epoch == 2
    store.close()


def test_a_full_medium_is_told_apart_and_what_failed_is_undone(path: Path) -> None:
    store = SQLiteStore(path)
    load(store)
    (pages,) = store._db.execute("pragma page_count").fetchone()
    store._db.execute(f"pragma max_page_count = {pages + 2}")
    with pytest.raises(StoreFull, match="refused a write: database or disk is full"):
        store.commit([ins.StoreTasks([task(n, b"x" * 5_000) for n in range(1, 50)])])
    assert load(store).index == []
    store._db.execute("pragma max_page_count = 100000")
    store.commit([ins.StoreTasks([task(1)])])
    assert [row[0] for row in load(store).index] == [1]
    store.close()


def test_a_folder_that_vanished_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    store = SQLiteStore(folder / "cluster.db")
    store.path = tmp_path / "gone" / "cluster.db"
    with pytest.raises(StoreError, match="cannot be reached"):
        store.free_percent()
    store.close()


def test_the_kit_commits_to_sqlite_too(make_cluster: MakeCluster, path: Path) -> None:
    cluster: Cluster = make_cluster(store=SQLiteStore(path))
    member, key = cluster.give()
    member.finish()
    assert cluster.outcome(key[0]).status == "success"
