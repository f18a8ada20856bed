"""An error that a setting of this device is the reason of names the setting."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from retire_cluster.node.device.policy import missing
from retire_cluster.node.system import resource_limits
from retire_cluster.node.system.resource_limits import Bounds


@pytest.mark.parametrize(
    ("said", "setting"),
    [
        ("MemoryError: ", "policy.memory_limit_mb"),
        ("OSError: [Errno 12] Cannot allocate memory", "policy.memory_limit_mb"),
        ("sh: 1: Cannot fork", "policy.process_limit"),
        ("bash: fork: retry: Resource temporarily unavailable", "policy.process_limit"),
        ("RuntimeError: can't start new thread", "policy.process_limit"),
        ("OSError: [Errno 27] File too large", "policy.file_limit_mb"),
    ],
)
def test_a_bound_that_a_task_met_is_named_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, said: str, setting: str
) -> None:
    monkeypatch.setattr(resource_limits, "current", Bounds(1 << 28, 0, 1 << 20, 7))
    assert setting in resource_limits.hint(said)
    assert resource_limits.hint("ValueError: no") == ""
    monkeypatch.setattr(resource_limits, "current", Bounds(new_processes=0))
    assert resource_limits.hint(said) == ""


@pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")
def test_a_folder_that_is_not_there_is_named_with_the_form_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    assert missing([str(tmp_path), str(tmp_path / "a b")]) == []
    gone, several = missing([str(tmp_path / "gone"), f"{tmp_path}/x {tmp_path}/y"])
    assert str(tmp_path / "gone") in gone
    assert "commas" not in gone
    assert "with commas into RETIRE_CLUSTER_POLICY_FOLDERS" in several
