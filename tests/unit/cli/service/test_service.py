"""Service definitions: each is held against what its system reads."""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from retire_cluster.cli.service import command as service
from retire_cluster.cli.service import units
from retire_cluster.cli.service.units import Service

COMMAND = ("/opt/py thon/bin/python", "-m", "retire_cluster.cli.main", "worker", "--tag", '50%"$x"')
MINE = Service("worker", "retire-cluster-worker", COMMAND, "/home/ann/data")
SYSTEM = Service("up", "retire-cluster-up", COMMAND, "/var/lib/rc", system=True, user="ann")
TASK = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("one", [MINE, SYSTEM, Service("main", "m", COMMAND, "/d", system=True)])
def test_systemd_finds_nothing_wrong_with_the_unit(one: Service, tmp_path: Path) -> None:
    here = (sys.executable, *one.command[1:])
    user = "root" if one.user else ""
    made = Service(one.role, one.name, here, str(tmp_path), one.system, user)
    path = tmp_path / f"{one.name}.service"
    path.write_text(units.systemd(made))
    scope = [] if one.system else ["--user"]
    done = subprocess.run(
        ["systemd-analyze", *scope, "verify", "--man=no", str(path)],
        capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin:/usr/sbin", "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    about_ours = [line for line in done.stderr.splitlines() if path.name in line]
    assert about_ours == []
    assert done.returncode == 0, done.stderr


def test_a_unit_keeps_words_apart_and_restarts_but_for_a_removed_device() -> None:
    text = units.systemd(MINE)
    assert 'ExecStart="/opt/py thon/bin/python" -m retire_cluster.cli.main worker --tag' in text
    assert '"50%%\\"$$x\\""' in text
    assert "RestartPreventExitStatus=2 4" in text
    assert "WantedBy=default.target" in text
    assert "User=" not in text
    assert "User=ann" in units.systemd(SYSTEM)
    assert "ReadWritePaths=/var/lib/rc" in units.systemd(SYSTEM)


def test_a_roots_worker_may_still_change_to_the_user_of_its_tasks() -> None:
    roots = Service("worker", "w", COMMAND, "/d", system=True)
    assert "NoNewPrivileges" not in units.systemd(roots)
    assert "NoNewPrivileges=yes" in units.systemd(MINE)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize(
    ("role", "user", "highest"),
    [
        ("main", "ann", 3.0), ("main", "", 3.0), ("api", "ann", 3.0), ("api", "", 3.0),
        ("worker", "ann", 4.5), ("worker", "", 7.0), ("up", "ann", 4.5), ("up", "", 7.0),
    ],
)  # fmt: skip
def test_a_unit_exposes_no_more_than_its_part_needs(
    role: str, user: str, highest: float, tmp_path: Path
) -> None:
    one = Service(role, f"rc-{role}", COMMAND, "/var/lib/rc", system=True, user=user)
    path = tmp_path / f"{one.name}.service"
    path.write_text(units.systemd(one))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    (found,) = re.findall(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert float(found) <= highest


def test_tasks_keep_what_they_may_need_and_get_control_groups() -> None:
    for role in ("up", "worker"):
        text = units.systemd(Service(role, "w", COMMAND, "/d", system=True, user="ann"))
        assert "Delegate=yes" in text
        # With these, no program could have a 32-bit library, a device, or bubblewrap's /proc.
        for taken in ("SystemCallArchitectures", "PrivateDevices", "RestrictNamespaces",
                      "ProtectKernelTunables", "ProtectControlGroups"):  # fmt: skip
            assert taken not in text


def test_no_unit_takes_all_of_the_machines_memory_and_a_task_that_tried_ends_alone() -> None:
    for role in units.ROLES:
        for system in (False, True):
            text = units.systemd(Service(role, "s", COMMAND, "/d", system=system))
            (most,) = re.findall(r"^MemoryMax=([0-9]+)%$", text, re.MULTILINE)
            assert 50 <= int(most) <= 90
            assert "Restart=always" in text
            assert ("OOMPolicy=continue" in text) == (role in ("up", "worker"))


def test_homes_are_hidden_unless_something_of_the_service_is_in_one() -> None:
    text = units.systemd(Service("main", "m", COMMAND, "/home/ann/rc", system=True, user="ann"))
    assert "ProtectHome=read-only" in text
    assert "ReadWritePaths=/home/ann/rc" in text


def test_a_property_list_is_one() -> None:
    found = plistlib.loads(units.launchd(SYSTEM))
    assert found["ProgramArguments"] == list(COMMAND)
    assert found["Label"] == "org.retire-cluster.retire-cluster-up"
    assert found["UserName"] == "ann"
    assert found["KeepAlive"] == {"SuccessfulExit": False}


def test_a_windows_task_has_the_schemas_elements_in_their_order() -> None:
    text = units.task_scheduler(MINE, "PC\\ann & co")
    root = ElementTree.fromstring(text.replace('encoding="UTF-16"', ""))
    assert [child.tag.removeprefix(TASK) for child in root] == [
        "RegistrationInfo", "Triggers", "Principals", "Settings", "Actions",
    ]  # fmt: skip
    assert root.findtext(f"{TASK}Principals/{TASK}Principal/{TASK}UserId") == "PC\\ann & co"
    assert root.findtext(f"{TASK}Actions/{TASK}Exec/{TASK}Command") == COMMAND[0]
    arguments = root.findtext(f"{TASK}Actions/{TASK}Exec/{TASK}Arguments")
    assert arguments == '-m retire_cluster.cli.main worker --tag 50%\\"$x\\"'
    assert root.findtext(f"{TASK}Settings/{TASK}ExecutionTimeLimit") == "PT0S"


@pytest.mark.skipif(sys.platform == "win32", reason="runs sh")
def test_the_script_of_termux_is_one_and_does_not_restart_a_removed_device(tmp_path: Path) -> None:
    one = Service("worker", "w", ("sh", "-c", "exit 4"), str(tmp_path))
    script = units.termux_boot(one).replace("termux-wake-lock", "true")
    assert subprocess.run(["sh", "-n", "-c", script], check=False).returncode == 0
    assert subprocess.run(["sh", "-c", script], timeout=20, check=False).returncode == 4


@pytest.mark.parametrize(
    ("platform", "environ", "kind"),
    [
        ("linux", {}, "systemd"), ("win32", {}, "windows"), ("darwin", {}, "launchd"),
        ("linux", {"PREFIX": "/data/data/com.termux/files/usr"}, "termux"),
    ],
)  # fmt: skip
def test_the_systems_own_way_is_chosen(platform: str, environ: dict[str, str], kind: str) -> None:
    assert service.manager(platform, environ) == kind


@pytest.mark.parametrize("kind", ["systemd", "launchd", "windows"])
@pytest.mark.parametrize("one", [MINE, SYSTEM])
def test_what_install_writes_uninstall_takes_away(kind: str, one: Service) -> None:
    home = {"HOME": "/home/ann"}
    written = {s.path for s in service.plan("install", one, kind, home) if s.content}
    removed = {s.path for s in service.plan("uninstall", one, kind, home) if s.path and not s.mode}
    assert written == removed != set()
    assert all(step.command for step in service.plan("status", one, kind, home))


def test_a_dry_run_shows_everything_and_does_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    words = ["install", "worker", "--dry-run", "--data-dir", str(tmp_path / "d")]
    assert service.main([*words, "--", "--slots", "2"]) == 0
    shown = capsys.readouterr().out
    unit = tmp_path / ".config/systemd/user/retire-cluster-worker.service"
    assert f"# {unit}\n" in shown
    assert "worker --data-dir" in shown
    assert "--slots 2\n" in shown
    assert "$ systemctl --user enable --now retire-cluster-worker.service" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["install", "worker", "--name", "../x"], "--name"),
        (["install", "worker", "--user", "ann"], "--user: goes with --system"),
        (["install", "api", "--", "--api-key=secret"], "keys create"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert service.main(words) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert "secret" not in said
