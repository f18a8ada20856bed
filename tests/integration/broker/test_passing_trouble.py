"""A store that cannot be read for a moment, and errors after a commit: what counts is told so."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.broker import server
from retire_cluster.broker.store.sqlite import SQLiteStore
from retire_cluster.schemas import errors
from retire_cluster.schemas.protocol import messages as msg
from tests.integration.main_kit import MainNode, eventually

LARGE = b'{"duration":1,"note":"' + b"x" * 5_000 + b'"}'
needs_proc = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="finds SQLite's descriptors in /proc"
)


def _store(node: MainNode) -> SQLiteStore:
    store = node.broker._store
    assert isinstance(store, SQLiteStore)
    return store


def _descriptors(path: Path) -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == str(path):
                found.append(int(name))
        except OSError:
            continue
    return found


@contextmanager
def unreadable(node: MainNode, *tables: str) -> Iterator[None]:
    """The system refuses to read the rows of tables: SQLite itself meets a disk I/O error."""
    store = _store(node)
    store._db.execute("pragma wal_checkpoint(truncate)")
    store._db.execute("pragma shrink_memory")
    names = [name for (name,) in store._db.execute("select name from sqlite_schema")]
    for name in set(names) - set(tables):  # what is in the cache already is not read again
        store._db.execute(f"select count(*) from {name}").fetchall()
    files = {fd: os.dup(fd) for fd in _descriptors(store.path)}
    blind = os.open(os.devnull, os.O_WRONLY)
    try:
        for fd in files:
            os.dup2(blind, fd)
        yield
    finally:
        for fd, kept in files.items():
            os.dup2(kept, fd)
            os.close(kept)
        os.close(blind)


@needs_proc
def test_a_task_whose_payload_cannot_be_read_now_waits_and_goes_later(
    main_node: MainNode, caplog: pytest.LogCaptureFixture
) -> None:
    (task_id,) = main_node.submit(LARGE, task_type="echo")
    epoch = main_node.broker.state.epoch
    device = main_node.socket()
    with unreadable(main_node, "tasks"):
        device.join()

        def was_tried() -> bool:
            task = next(iter(main_node.broker.state.tasks.values()), None)
            return task is not None and task.unsent >= 2 and task.device is None

        eventually(was_tried, "an assignment that could not be sent")
        assert main_node.call("health")["components"]["cluster_server"] == "degraded"
        reason = main_node.call("task.status", task_id=task_id)["queued_reason"]
        assert reason is None or "tried again" in str(reason["rejected"])
        with pytest.raises(errors.ClusterUnavailable, match="disk I/O error") as caught:
            main_node.call("task.get", task_id=task_id)
        assert caught.value.retry_after == 1
    assert device.next_task()[1::2] == (task_id, LARGE)
    assert main_node.status(task_id) == "assigned"
    assert main_node.broker.state.epoch == epoch, "the state was read anew"
    found = main_node.call("task.get", task_id=task_id)
    assert (found["retry_count"], len(found["attempts"])) == (0, 1)
    told = [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()]
    assert len(told) == 1


@needs_proc
def test_who_waits_for_a_result_that_cannot_be_read_now_is_told_to_ask_again(
    main_node: MainNode,
) -> None:
    device = main_node.device()
    (task_id,) = main_node.submit()
    device.finished(device.next_task()[0])
    device.expect(msg.FinishedAck)
    read = main_node.broker.state.ids.read(task_id)
    assert read is not None
    _store(main_node)._recent.forget([read[0]])
    with (
        unreadable(main_node, "outcomes"),
        pytest.raises(errors.ClusterUnavailable, match="ask again"),
    ):
        main_node.call("task.wait", task_ids=[task_id])
    found = main_node.call("task.wait", task_ids=[task_id])
    assert [one["status"] for one in found["results"]] == ["success"]


def _fail_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[object]:
    """Have a function fail at its next call, and work after it; what it was called with."""
    real: Callable[..., Any] = getattr(owner, name)
    seen: list[object] = []

    def wrapped(*args: Any, **options: Any) -> Any:
        seen.append(args)
        if len(seen) == 1:
            raise ZeroDivisionError("a step after the commit has a bug")
        return real(*args, **options)

    monkeypatch.setattr(owner, name, wrapped)
    return seen


def test_an_error_while_assignments_are_sent_takes_nothing_back_from_who_submitted(
    main_node: MainNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = main_node.device()
    epoch = main_node.broker.state.epoch
    _fail_once(monkeypatch, server, "hand_out")
    (task_id,) = main_node.submit()  # on the old loop: "nothing of it counts"
    assert device.next_task()[1] == task_id, "it is handed out again"
    device.finished(device_key(main_node))
    eventually(lambda: main_node.status(task_id) == "success", "success")
    assert main_node.broker.state.epoch == epoch


def device_key(node: MainNode) -> tuple[int, int, int, int]:
    """The key of the only running attempt."""
    (task,) = node.broker.state.tasks.values()
    return task.key


@pytest.mark.parametrize("count", [1, 40])
def test_an_answer_that_fails_after_the_commit_says_that_it_was_done(
    main_node: MainNode, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    _fail_once(monkeypatch, main_node.broker._clients, "answer")
    with pytest.raises(errors.InternalError, match="has been done and is kept"):
        main_node.submit(count=count)
    assert main_node.call("cluster.status")["tasks"]["queued"] == count


def test_an_error_of_the_store_after_its_commit_is_no_lost_turn(
    main_node: MainNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = main_node.broker.state.epoch
    _fail_once(monkeypatch, _store(main_node), "_remember")
    (task_id,) = main_node.submit()
    assert main_node.status(task_id) == "queued"
    assert main_node.broker.state.epoch == epoch


def test_events_that_cannot_be_published_cost_no_answer(
    main_node: MainNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = main_node.broker.state.epoch
    _fail_once(monkeypatch, main_node.broker._feed, "publish")
    (task_id,) = main_node.submit()
    assert main_node.status(task_id) == "queued"
    assert main_node.broker.state.epoch == epoch


def test_a_result_is_acknowledged_when_something_after_its_commit_fails(
    main_node: MainNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = main_node.device()
    (task_id,) = main_node.submit()
    key = device.next_task()[0]
    _fail_once(monkeypatch, main_node.broker._feed, "publish")
    batch = device.finished(key)
    assert device.expect(msg.FinishedAck).batch == batch
    assert main_node.status(task_id) == "success"
