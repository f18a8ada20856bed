"""What clients were promised: every acknowledged task, on disk before the client goes on.

At the end the journal is held against the store, by the broker's own answers and by reading the
file: no acknowledged task is missing, each has exactly one outcome, an outcome that a client once
saw never changed, and its content is what the payload asked for.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retire_cluster.schemas.ids import TaskIds

TERMINAL = ("success", "failed", "timeout", "cancelled")


@dataclass
class Verdict:
    """What the comparison found; `problems` is empty when every promise was kept."""

    acknowledged: int = 0
    lost: int = 0
    unfinished: int = 0
    changed: int = 0
    wrong: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def complain(self, kind: str, text: str) -> None:
        """One more broken promise."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.problems) < 20:
            self.problems.append(text)


class Journal:
    """An append-only file of promises, one fsync an entry. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._lock = threading.Lock()
        #: Task → what it was asked to do.
        self.promised: dict[str, dict[str, Any]] = {}
        #: Task → the first outcome that a client saw.
        self.seen: dict[str, dict[str, Any]] = {}
        #: Idempotency key → tasks.
        self.keys: dict[str, list[str]] = {}
        self.changed: list[str] = []
        self._waiting: dict[str, None] = {}

    def acknowledged(self, task_ids: list[str], work: dict[str, Any], key: str = "") -> None:
        """A submission was answered; what it answered is on disk when this returns."""
        entry = json.dumps({"ids": task_ids, "work": work, "key": key}).encode()
        with self._lock:
            self._file.write(entry + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            if key and self.keys.setdefault(key, task_ids) != task_ids:
                self.changed.append(f"key {key} was answered twice, differently")
            for task_id in task_ids:
                self.promised[task_id] = work
                if task_id not in self.seen:
                    self._waiting[task_id] = None

    def saw(self, row: dict[str, Any]) -> None:
        """A client was told how a task ended."""
        with self._lock:
            first = self.seen.setdefault(row["task_id"], row)
            self._waiting.pop(row["task_id"], None)
            if first != row:
                self.changed.append(f"{row['task_id']} was {_short(first)}, now {_short(row)}")

    def waiting(self, limit: int) -> list[str]:
        """Promised tasks that no client has seen the end of, oldest first."""
        with self._lock:
            return list(itertools.islice(self._waiting, limit))

    def __len__(self) -> int:
        return len(self.promised)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def judge(self, database: Path) -> Verdict:
        """Hold the journal against the store of a stopped main node."""
        verdict = Verdict(acknowledged=len(self.promised))
        for text in self.changed:
            verdict.complain("changed", text)
        connection = sqlite3.connect(database)
        try:
            check = connection.execute("pragma integrity_check").fetchone()[0]
            if check != "ok":
                verdict.problems.append(f"the database is damaged: {check}")
            ids = _ids(connection)
            tasks = dict(connection.execute("select number, created_ms from tasks"))
            outcomes = Counter(n for (n,) in connection.execute("select task from outcomes"))
            statuses = dict(connection.execute("select task, status from outcomes"))
            strays = set(outcomes) - set(tasks)
            if strays:
                verdict.problems.append(f"{len(strays)} outcomes belong to no task")
        finally:
            connection.close()
        for task_id, work in self.promised.items():
            number, created_ms = ids.read(task_id) or (0, 0)
            if tasks.get(number) != created_ms:
                verdict.complain("lost", f"{task_id} was acknowledged and is not in the store")
                continue
            if outcomes[number] != 1 or statuses[number] not in TERMINAL:
                verdict.complain("unfinished", f"{task_id} has {outcomes[number]} outcomes")
                continue
            verdict.outcomes[statuses[number]] += 1
            seen = self.seen.get(task_id)
            if seen is None:
                verdict.complain("unfinished", f"{task_id} was never told to have ended")
            elif seen["status"] != statuses[number]:
                verdict.complain("changed", f"{task_id}: {seen['status']} → {statuses[number]}")
            elif not _as_asked(seen, work):
                verdict.complain("wrong", f"{task_id}: {work} led to {_short(seen)}")
        return verdict


def _ids(connection: sqlite3.Connection) -> TaskIds:
    (salt,) = connection.execute("select value from meta where name = 'salt'").fetchone()
    return TaskIds(salt)


def _short(row: dict[str, Any]) -> str:
    names = ("status", "worker_device_id", "completed_at", "error_message", "result_data")
    return ", ".join(f"{name}={str(row.get(name))[:80]}" for name in names)


def _as_asked(row: dict[str, Any], work: dict[str, Any]) -> bool:
    """Whether an outcome is one that this work may have."""
    if row["status"] != "success":
        # Retries can be used up by devices that die again and again; nothing else may fail.
        return bool(row["cause"] == "worker_lost")
    data = row["result_data"]
    if work["type"] == "echo":
        return bool(data == {"echo": work["payload"]})
    if work["type"] == "sleep":
        return bool(data == {"slept_for": work["payload"]["duration"]})
    return bool(data["return_code"] == 0)
