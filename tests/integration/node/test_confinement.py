"""What the device's owner can keep a task from, tried by tasks that want it (S10 to S13, S17)."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
import zmq

from retire_cluster.node.walls import confinement
from tests.integration.node_kit import COMMAND, Bus, Start, linux_only, python

pytestmark = linux_only
ALLOWED = {"RETIRE_CLUSTER_POLICY_ALLOW": "command"}


@pytest.fixture
def nobody(root: Path) -> tuple[str, str, dict[str, str]]:
    """An unprivileged user, a Python that he can run, and its environment."""
    if os.geteuid() != 0:
        pytest.skip("only root can change users")
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        pytest.skip("there is no user nobody")
    found = python_of(entry, root)
    if found is None:
        pytest.skip("nobody can run no Python that has what is needed")
    return ("nobody", *found)


def python_of(entry: pwd.struct_passwd, root: Path) -> tuple[str, dict[str, str]] | None:
    """A Python that a user can run a worker with, and its environment."""
    # The system's own, when that of the tests lies in root's folder: same version, same libraries.
    libraries = os.path.dirname(os.path.dirname(zmq.__file__))
    others = {"PYTHONPATH": f"{root / '.typing'}:{libraries}"}
    tries: list[tuple[str, dict[str, str]]] = [(sys.executable, {}), ("/usr/bin/python3", others)]
    for program, environ in tries:
        try:
            trial = subprocess.run(
                [program, "-c", "import zmq, retire_cluster.node"],
                user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], cwd="/",
                env={**os.environ, **environ}, capture_output=True, check=False,
            )  # fmt: skip
        except OSError:
            continue
        if not trial.returncode:
            return program, environ
    return None


@pytest.fixture
def bwrap() -> str:
    """The sandbox, where it works."""
    found = shutil.which("bwrap")
    if found is None:
        pytest.skip("bubblewrap is not installed")
    trial = [found, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "true"]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("bubblewrap is not allowed here")
    return "bwrap"


def test_a_roots_worker_runs_tasks_as_the_user_it_was_given(
    bus: Bus, start: Start, tmp_path: Path, nobody: tuple[str, str, dict[str, str]]
) -> None:
    user, program, environ = nobody
    start(environ={**ALLOWED, **environ, "RETIRE_CLUSTER_POLICY_USER": user}, python=program)
    bus.welcome()
    secret = tmp_path / "w" / "secret"
    secret.write_text("only root")
    secret.chmod(0o600)
    done = bus.run("command", {"command": ["sh", "-c", "id -u; touch here && ls; echo $HOME"]})
    words = done.data["stdout"].split()
    assert words[:2] == [str(pwd.getpwnam(user).pw_uid), "here"]
    assert words[2] != os.environ.get("HOME")
    spying = bus.run("command", {"command": ["cat", str(secret)]})
    assert spying.item.outcome == "failed"
    assert "only root" not in str(spying.data)
    around = "cat /proc/$PPID/environ /proc/1/environ"
    assert "RETIRE_CLUSTER" not in str(bus.run("command", {"command": ["sh", "-c", around]}).data)


def test_a_sandboxed_task_writes_to_its_own_folder_only_and_sees_no_key(
    bus: Bus, start: Start, tmp_path: Path, bwrap: str
) -> None:
    start(*COMMAND, environ={"RETIRE_CLUSTER_POLICY_SANDBOX": bwrap})
    bus.welcome()
    outside = tmp_path / "outside"
    script = f"touch here && ls; touch {outside}; touch /etc/hello; ls {tmp_path}/w"
    done = bus.run("command", {"command": ["sh", "-c", script]})
    assert done.data["stdout"].split()[0] == "here"
    assert "device_id" not in done.data["stdout"]
    assert not outside.exists()
    assert not Path("/etc/hello").exists()
    assert bus.run("python_eval", {"expression": "6 * 7"}).data["result"] == 42


def test_only_the_commands_of_the_owner_run(bus: Bus, start: Start, tmp_path: Path) -> None:
    owners = 'sh -c "echo fine"; true *'.replace("; ", "\n")
    folders = str(tmp_path / "music")
    (tmp_path / "music").mkdir()
    config = tmp_path / "device.toml"
    lines = ", ".join(repr(line) for line in owners.splitlines())
    config.write_text(
        f"[policy]\nallow = ['command']\ncommands = [{lines}]\nfolders = ['{folders}']\n"
    )
    start("--allow-root", "--config", str(config))
    bus.welcome()
    assert bus.run("command", {"command": ["sh", "-c", "echo fine"]}).data["stdout"] == "fine\n"
    assert bus.run("command", {"command": ["true", "a", "b"], "cwd": folders}).data
    mark = tmp_path / "made"
    for payload in (
        {"command": ["touch", str(mark)]},
        {"command": ["sh", "-c", f"echo fine; touch {mark}"]},
        {"command": ["sh", "-c", "echo fine", str(mark)]},
        {"command": ["true"], "env": {"LD_PRELOAD": "/tmp/evil.so"}},
        {"command": ["true"], "cwd": str(tmp_path)},
        {"command": ["true"], "cwd": f"{folders}/.."},
    ):
        item = bus.run("command", payload).item
        assert (item.outcome, item.cause) == ("failed", "policy_denied"), payload
    assert not mark.exists()


@pytest.mark.parametrize(
    ("setting", "value", "lines", "said"),
    [
        ("CPU_LIMIT_SECONDS", "1", ["while True: pass"], "killed by signal"),
        ("FILE_LIMIT_MB", "1", ["open('big', 'wb').write(b'x' * 5_000_000)"], "exited with code 1"),
        ("MEMORY_LIMIT_MB", "200", ["x = bytearray(10**9)"], "exited with code 1"),
    ],
)
def test_what_uses_more_than_the_owner_grants_fails_and_the_device_goes_on(
    bus: Bus, start: Start, setting: str, value: str, lines: list[str], said: str
) -> None:
    start(*COMMAND, environ={f"RETIRE_CLUSTER_POLICY_{setting}": value})
    bus.welcome()
    item = bus.run("command", {"command": python(*lines)}, timeout_seconds=20).item
    assert item.outcome == "failed"
    assert said in str(item.error_message)
    assert bus.run("command", {"command": ["true"]}).item.outcome == "success"


def test_output_is_cut_where_the_owner_says(bus: Bus, start: Start) -> None:
    start(*COMMAND, environ={"RETIRE_CLUSTER_POLICY_OUTPUT_LIMIT_KB": "2"})
    bus.welcome()
    done = bus.run("command", {"command": python("print('x' * 100_000)")})
    assert done.data["stdout"].count("x") == 2047  # and the newline at the end
    assert done.details["truncated"] == {
        "stdout": {"total_bytes": 100_001, "kept_bytes": 2_048, "missing": "middle"}
    }


@pytest.mark.parametrize(
    ("user", "sandbox", "complaint"),
    [
        ("no-such-user-here", "", "useradd"),
        ("root", "", "unprivileged"),
        ("", "bwrap", "bubblewrap"),
    ],
)
def test_a_confinement_that_cannot_be_had_is_told_with_its_cure(
    user: str, sandbox: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(confinement.Unconfined, match=complaint):
        confinement.find_confinement(user, sandbox, tmp_path)


def test_another_user_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(confinement.Unconfined, match="only a worker run by root"):
        confinement.find_confinement("nobody", "", tmp_path)


def test_an_own_type_of_another_user_reaches_nothing_of_the_process_that_started_it(
    bus: Bus, start: Start, nobody: tuple[str, str, dict[str, str]]
) -> None:
    user, program, environ = nobody
    site = Path(tempfile.mkdtemp(prefix="own-types-"))
    try:
        site.chmod(0o755)
        info = site / "spies_of_test-1.0.dist-info"
        info.mkdir()
        (site / "spies_of_test.py").write_text(SPY)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: spies-of-test\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[retire_cluster.task_types]\nspy = spies_of_test:spy\n"
        )
        path = os.pathsep.join(filter(None, [str(site), environ.get("PYTHONPATH")]))
        start(environ={"PYTHONPATH": path, "RETIRE_CLUSTER_POLICY_USER": user}, python=program)
        bus.welcome()
        for _ in range(2):
            ended = bus.run("spy", {})
            assert ended.item.outcome == "success", ended.item.error_message
            assert ended.data["user"] == pwd.getpwnam(user).pw_uid
            assert ended.data["reached"] == []
            assert ended.data["own"]
            bus.until(partial(_is_gone, ended.data["folder"]), "its folder is gone")
    finally:
        shutil.rmtree(site)


def _is_gone(path: str) -> bool:
    return not os.path.lexists(path)


SPY = """
import os

def spy(payload, context):
    keeper = int(open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1])
    reached = []
    for pid in (os.getppid(), keeper):
        for what in ("fd/0", "fd/3", "fd/4", "mem", "environ"):
            try:
                os.close(os.open(f"/proc/{pid}/{what}", os.O_RDONLY))
                reached.append(what)
            except OSError:
                pass
    os.makedirs("a/b")
    own = os.listdir("/proc/self/fd") != []
    os.chmod("a", 0)
    try:
        os.chmod("..", 0)
    except PermissionError:
        pass
    os.chmod(".", 0)
    return {"user": os.getuid(), "reached": reached, "own": own, "folder": os.getcwd()}
"""
