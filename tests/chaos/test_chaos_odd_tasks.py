"""Every odd deed once, between innocent witnesses: none of them is late, wrong or failed."""

from __future__ import annotations

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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    deeds = {name: lambda context, name=name: done.append(name) for name in odd.DEEDS}
    monkeypatch.setattr(odd_plugin, "DEEDS", deeds)
    run: Any = odd_plugin.odd
    run({"deeds": ["env_folder", "file_all_folders_closed", "file_much"]}, None)
    assert done == ["file_all_folders_closed", "file_much", "env_folder"]
