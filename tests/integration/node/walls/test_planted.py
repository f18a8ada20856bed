"""A module that a task leaves somewhere is imported by no later task process (S19)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.integration.node.test_confinement import ALLOWED, bwrap, nobody
from tests.integration.node_kit import COMMAND, Bus, Start, linux_only, python

__all__ = ["bwrap", "nobody"]
pytestmark = linux_only

#: Leaves modules that a task process imports sooner or later in every place that is told.
PLANT = """
import os, sys
site = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
home, temporary = os.environ.get("HOME", "."), os.environ.get("TMPDIR", ".")
places = [".", "..", "../..", home, f"{home}/.local/{site}", temporary, *sys.argv[1:]]
planted = []
for place in places:
    if os.path.realpath(place) in ("/", "/tmp", "/var/tmp", "/root"):
        continue  # other programs of this machine's would find them too
    try:
        os.makedirs(place, exist_ok=True)
        for name in ("base64", "ctypes", "json", "signal", "retire_cluster", "usercustomize"):
            with open(f"{place}/{name}.py", "w") as file:
                file.write("import os; os.write(2, b'planted'); os._exit(77)")
        with open(f"{place}/planted.pth", "w") as file:
            file.write("import os; os._exit(77)")
        planted.append(place)
    except OSError:
        pass
print(planted)
"""


def planted_in(folder: str) -> set[str]:
    """Modules in a folder that hide those of Python."""
    names = {name.removesuffix(".py") for name in os.listdir(folder) if name.endswith(".py")}
    return names & {*sys.stdlib_module_names, "retire_cluster", "usercustomize"}


def test_what_these_tests_plant_stays_out_of_everybodys_folder_for_temporary_files() -> None:
    before = planted_in("/tmp")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        environ = {"PATH": os.environ["PATH"], "HOME": folder, "TMPDIR": "/tmp"}
        told = subprocess.run(
            [sys.executable, "-c", PLANT, "/tmp"], cwd=folder, env=environ,
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "base64" in planted_in(folder)
    assert "'.'" in told
    assert "'..'" not in told
    assert planted_in("/tmp") <= before


def kill_server_and_go_on(bus: Bus) -> None:
    """So that the next task has a process that begins after the modules were planted."""
    script = python("import os, signal; os.kill(os.getppid(), signal.SIGKILL)")
    bus.run("command", {"command": script})
    for _ in range(2):
        done = bus.run("python_eval", {"expression": "6 * 7"})
        assert done.item.outcome == "success", done.item.error_message
        done = bus.run("command", {"command": ["true"]})
        assert done.item.outcome == "success", done.item.error_message


@pytest.mark.usefixtures("without_walls")
def test_modules_planted_wherever_a_task_may_write_are_not_imported_by_the_next(
    bus: Bus, start: Start, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    start(*COMMAND, "--slots", "1", environ={"HOME": str(home), "TMPDIR": str(tmp_path)})
    bus.welcome()
    start_of_server = python("import os; print(os.readlink(f'/proc/{os.getppid()}/cwd'))")
    where = bus.run("command", {"command": start_of_server, "cwd": "/"})
    extra = [where.data["stdout"].strip(), str(tmp_path / "w" / "task-start")]
    planted = bus.run("command", {"command": [*python(PLANT), *extra]})
    assert "'..'" in planted.data["stdout"]
    kill_server_and_go_on(bus)


def test_another_users_tasks_share_no_folder_and_plant_nothing(
    bus: Bus, start: Start, nobody: tuple[str, str, dict[str, str]]
) -> None:
    user, program, environ = nobody
    settings = {**ALLOWED, **environ, "RETIRE_CLUSTER_POLICY_USER": user}
    worker = start("--slots", "1", environ=settings, python=program)
    bus.welcome()
    planted = bus.run("command", {"command": ["/usr/bin/python3", "-c", PLANT]})
    # Its own folder, home and place for temporary files, and the one around it, of its process.
    assert "'../..'" not in planted.data["stdout"], planted.data
    kill_server_and_go_on(bus)
    around = "ls ../..; echo $HOME $TMPDIR; pwd; ls -A"
    seen = bus.run("command", {"command": ["sh", "-c", around]}).data["stdout"].split()
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert worker.poll() is None


def test_a_sandboxed_task_plants_nothing_for_the_next(
    bus: Bus, start: Start, tmp_path: Path, bwrap: str
) -> None:
    environ = {"RETIRE_CLUSTER_POLICY_SANDBOX": bwrap}
    start(*COMMAND, "--slots", "1", environ=environ)
    bus.welcome()
    planted = bus.run("command", {"command": [*python(PLANT), "../../../task-start"]})
    assert planted.item.outcome == "success", planted.data
    kill_server_and_go_on(bus)


def test_the_folder_a_worker_was_started_in_is_no_place_for_modules(tmp_path: Path) -> None:
    code = (
        "from retire_cluster.node.running.task_process import modules; print('\\n'.join(modules()))"
    )
    (tmp_path / "told.py").write_text(code)
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}"}
    command = [sys.executable, "-m", "told"]
    told = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert str(tmp_path) not in told
    assert told[0] == str(tmp_path / "site")
