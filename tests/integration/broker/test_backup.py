"""A backup put back: what came after it is lost, and nobody takes the new for the old."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retire_cluster.broker.client import AdminClient
from tests.integration.main_kit import MainProcess


def _submit(client: AdminClient, count: int) -> list[str]:
    args = {"task": {"task_type": "sleep"}, "count": count, "brief": True}
    found: list[str] = client.call("task.submit", args, [b"{}"] * count)["task_ids"]
    return found


def _after(client: AdminClient, cursor: int) -> tuple[list[dict[str, Any]], bool, int]:
    """Everything after a cursor, whether any of it was said to be missing, and the next cursor."""
    events: list[dict[str, Any]] = []
    gap = False
    while True:
        page = client.call("events.poll", {"since": cursor, "wait_seconds": 0})
        events += page["events"]
        gap = gap or page["gap"]
        cursor = page["next"]
        if not page["events"]:
            return events, gap, cursor


def test_after_a_restored_backup_an_old_cursor_is_told_of_the_gap(
    start_main: Callable[..., MainProcess], tmp_path: Path
) -> None:
    folder, copy = tmp_path / "data", tmp_path / "copy.db"
    main = start_main()
    client = main.ready()
    before = _submit(client, 30)
    _, _, seen_early = _after(client, 0)
    # As docs/operations.md says: SQLite's own backup, while it runs.
    with sqlite3.connect(folder / "cluster.db") as live, sqlite3.connect(copy) as kept:
        live.backup(kept)
    epochs = [client.call("broker.info")["epoch"]]
    assert main.end() == 0

    main = start_main()
    client = main.ready()
    epochs.append(client.call("broker.info")["epoch"])
    lost = _submit(client, 50)
    _, _, seen_late = _after(client, 0)
    assert main.end() == 0

    for suffix in ("", "-wal", "-shm"):
        (folder / f"cluster.db{suffix}").unlink(missing_ok=True)
    (folder / "cluster.db").write_bytes(copy.read_bytes())
    main = start_main()
    client = main.ready()
    epochs.append(client.call("broker.info")["epoch"])
    made = _submit(client, 120)

    assert len(set(epochs)) == 3, "an epoch was used twice"
    for cursor in (seen_early, seen_late):
        events, gap, following = _after(client, cursor)
        assert gap, f"a cursor of before the restore ({cursor}) was told that it missed nothing"
        assert {one["task_id"] for one in events} >= set(made)
        assert following not in (seen_early, seen_late)
        assert _after(client, following)[:2] == ([], False)
    # The numbers are used again inside, the ids are not.
    assert not set(made) & {*before, *lost}
    listed = client.call("task.list", {"page_size": 100, "page": 2})
    assert listed["pagination"]["total_items"] == 150
    gone = client.call("task.cancel_many", {"task_ids": lost})
    assert gone["not_cancelled"] == lost
