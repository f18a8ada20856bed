"""What a `map` has submitted is on the disk before the note of what it was submitting goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retire_cluster.cli.map.journal import BatchSubmission, Journal


def test_what_was_submitted_is_on_the_disk_before_what_was_put_aside_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, str]] = []
    to_disk = os.fsync

    def fsync(descriptor: int) -> None:
        to_disk(descriptor)
        kept = [path.read_text() for path in tmp_path.glob("*.jsonl")]
        seen.append((any(tmp_path.glob("*.sending")), "".join(kept)))

    monkeypatch.setattr(os, "fsync", fsync)
    what = BatchSubmission("key 1", {"task_type": "echo"}, [b"{}"])
    with Journal(tmp_path, "photos") as journal:
        journal.sending(what)
        assert seen == [(False, "")], "whole on the disk before it takes its name"
        journal.sent(what, ["id 1"])
    still_there, kept = seen[1]
    assert still_there
    assert '"ids": ["id 1"]' in kept
    assert not any(tmp_path.glob("*.sending"))
