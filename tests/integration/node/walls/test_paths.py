"""Folders and packages named by relative paths, and `--test`, which runs a task of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.node_kit import COMMAND, PATIENCE_SECONDS, Bus, Start, python, task_root

TYPES = '''
def where(payload, context):
    """Says where it runs."""
    import os
    return {"cwd": os.getcwd()}

def tried(payload, context):
    return payload["n"] + 1

tried.test_payload = {"n": 1}

def breaks(payload, context):
    raise RuntimeError("no libfoo on this device")

breaks.test_payload = {}
'''
ENTRY_POINTS = """[retire_cluster.task_types]
where = paths_of_test:where
tried = paths_of_test:tried
breaks = paths_of_test:breaks
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with own types, below the folder that workers are started in."""
    info = tmp_path / "site" / "paths_of_test-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "paths_of_test.py").write_text(TYPES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: paths-of-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return info.parent


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_a_relative_data_folder_and_package_path_serve_tasks_too(
    bus: Bus, start: Start, tmp_path: Path, site: Path, how: str
) -> None:
    environ = {"PYTHONPATH": site.name}
    if how == "flag":
        start(*COMMAND, "--data-dir", "rel-w", environ=environ)
    else:
        environ["RETIRE_CLUSTER_DATA_DIR"] = "rel-w"
        start(*COMMAND, environ=environ, folder=None)
    bus.welcome()
    ran = bus.run("command", {"command": python("import os; print(os.getcwd())")})
    assert ran.item.outcome == "success", ran.item.error_message
    scratch = task_root(tmp_path / "rel-w")
    assert Path(ran.data["stdout"].strip()).parent.parent == scratch
    own = bus.run("where", {})
    assert own.item.outcome == "success", own.item.error_message
    assert Path(own.data["cwd"]).parent.parent == scratch


def test_test_runs_one_task_of_each_kind_and_names_what_fails(
    bus: Bus, start: Start, site: Path
) -> None:
    process = start(*COMMAND, "--test", environ={"PYTHONPATH": str(site)})
    bus.welcome()
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    rows = dict(line.split(":", 1) for line in output.splitlines() if line.startswith("task "))
    for name in ("echo", "sleep", "system_info", "python_eval", "http_request", "command", "tried"):
        assert rows[f"task {name}"].strip().startswith("ran in"), output
    assert "no libfoo on this device" in rows["task breaks"]
    assert "no test_payload" in rows["task where"]
    assert "Tasks of these types fail on this device: breaks." in errors
    assert process.returncode == 1


def test_test_tries_no_command_that_the_owner_does_not_allow(
    bus: Bus, start: Start, tmp_path: Path
) -> None:
    config = tmp_path / "rc.toml"
    config.write_text('[policy]\nallow = ["command"]\nallow_root = true\ncommands = ["ffmpeg *"]\n')
    process = start("--test", "--config", str(config))
    bus.welcome()
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert "not run: this device's owner has not allowed" in output
    assert process.returncode == 0
