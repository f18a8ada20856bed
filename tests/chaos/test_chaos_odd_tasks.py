"""Every odd deed once, between innocent witnesses: none of them is late, wrong or failed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import odd, odd_plugin
from tests.integration.node_kit import linux_only

pytestmark = linux_only


def test_no_odd_task_harms_a_witness_or_the_device(tmp_path: Path) -> None:
    with odd.device(tmp_path) as device:
        found = device.run(odd.Found(), odd.each_once())
    assert not found.problems, found
    assert found.odd_tasks == len(odd.DEEDS)
    assert found.witnesses > 3 * found.odd_tasks
    assert found.outcomes["timeout"] >= len(odd_plugin.SLOW) - 1
    assert found.outcomes["failed"] > 20
    assert found.outcomes["success"] > 30
    assert found.rss_growth_mb < 20


def test_nothing_is_done_to_the_machine_by_a_deed_after_one_that_left_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done: list[tuple[str, str]] = []
    deeds = {
        name: lambda context, name=name: done.append((name, os.getcwd())) for name in odd.DEEDS
    }
    deeds["env_folder"] = odd_plugin.DEEDS["env_folder"]
    monkeypatch.setattr(odd_plugin, "DEEDS", deeds)
    run: Any = odd_plugin.odd
    others = [name for name in odd.DEEDS if name != "env_folder"]
    for name in others:
        for drawn in ([name, "env_folder"], ["env_folder", name]):
            os.chdir(tmp_path)
            run({"deeds": drawn}, None)
            assert os.getcwd() == "/"
    assert done == [(name, str(tmp_path)) for name in others for _ in range(2)]


def test_a_deed_that_leaves_its_folder_unforeseen_is_the_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run: Any = odd_plugin.odd
    is_inside: Any = odd_plugin.is_inside
    for away in ("..", "/"):
        os.chdir(tmp_path)
        done: list[str] = []
        deeds: dict[str, Any] = {
            "leave": lambda context, away=away: os.chdir(away),
            "more": lambda context, done=done: done.append("more"),
        }
        monkeypatch.setattr(odd_plugin, "DEEDS", deeds)
        with pytest.raises(RuntimeError, match="more would be done to the machine"):
            run({"deeds": ["leave", "more"]}, None)
        assert not done
    os.chdir(tmp_path)
    for below in ("made", "made and removed"):
        os.mkdir(below)
        os.chdir(below)
        if "removed" in below:
            os.rmdir(f"../{below}")
        assert is_inside(str(tmp_path))
        os.chdir(tmp_path)
    assert not is_inside(f"{tmp_path}/made")


def test_the_campaigns_worker_can_change_nothing_but_its_folder(tmp_path: Path) -> None:
    line = odd.shut(tmp_path)
    if not line:
        pytest.skip("this user may not change its view of the file system")
    code = "import os; open('here', 'w').close(); os.chmod('/', 0o755)"
    done = subprocess.run(
        [*line, sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert "Read-only file system" in done.stderr
    assert (tmp_path / "here").exists()
    with odd.device(tmp_path / "device") as device:
        mounts = Path(f"/proc/{device.process.pid}/mounts").read_text().splitlines()
        root = [line.split()[3].split(",") for line in mounts if line.split()[1] == "/"]
        assert "ro" in root[-1]
