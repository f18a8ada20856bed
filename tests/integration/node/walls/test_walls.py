"""What a task is kept from, tried by tasks that want it: files, keys, processes (S23, S24).

Each wall is tried behind each kind of worker: one run by root, one of root's whose tasks run as
another user, and one without any privileges.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from retire_cluster.node.walls import landlock
from tests.integration.node.walls.walls_kit import KINDS, boxed
from tests.integration.node_kit import Bus, Start, linux_only, wait_until

pytestmark = linux_only


def needs_landlock() -> None:
    if landlock.abi() < landlock.SCOPE_ABI:
        pytest.skip("this kernel's Landlock does not hold signals and abstract sockets")


def needs_bwrap() -> None:
    words = ["bwrap", "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    if shutil.which("bwrap") is None or subprocess.run(words, check=False).returncode:
        pytest.skip("bubblewrap is not installed, or not allowed here")


@pytest.mark.parametrize("kind", KINDS)
def test_by_default_a_task_reaches_no_key_no_home_no_other_task_and_no_process(
    bus: Bus, kind: str
) -> None:
    needs_landlock()
    with boxed(bus, kind, "auto") as box:
        hello = bus.welcome()
        found = box.spy(bus)
        assert found["missed"] == []
        # A socket with a name in a folder is nothing that Landlock knows of.
        assert [name for name in found["reached"] if name != "socket"] == []
        assert "files: Landlock" in hello.walls[0]
        assert "signals by Landlock" in hello.walls[1]


@pytest.mark.parametrize("kind", KINDS)
def test_in_bubblewrap_a_task_reaches_no_socket_either(bus: Bus, kind: str) -> None:
    needs_bwrap()
    with boxed(bus, kind, "bwrap") as box:
        bus.welcome()
        found = box.spy(bus)
        assert found["missed"] == []
        left = ["abstract socket"] if landlock.abi() < landlock.SCOPE_ABI else []
        # The numbers of processes are its own: there, the worker's is nobody or another's.
        names = [name for name in found["reached"] if name not in left]
        assert found["pid"] < 1000
        assert [name for name in names if name not in ("environ", "fd/0", "signal")] == []


def test_an_own_type_is_behind_the_same_walls_when_it_runs_and_when_it_is_imported(
    bus: Bus, tmp_path: Path
) -> None:
    needs_landlock()
    site = tmp_path / "site"
    info = site / "walled_of_test-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "walled_of_test.py").write_text(OWN_TYPE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: walled-of-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[retire_cluster.task_types]\nwalled = walled_of_test:walled\n"
    )
    os.environ["PYTHONPATH"] = str(site)
    try:
        with boxed(bus, KINDS[0] if os.geteuid() == 0 else KINDS[2], "auto") as box:
            bus.welcome()
            payload = {"key": str(box.up / "keys" / "admin.key"), "pid": box.process.pid}
            for _ in range(3):  # from its own import, and from a template
                done = bus.run("walled", payload)
                assert done.item.outcome == "success", done.item.error_message
                assert done.data == {"reached": [], "at_import": []}
            refused = bus.run("walled", {**payload, "raise": True}).item
            # No setting opens the folder of `up`.
            assert "no task reaches the worker's own files" in (refused.error_message or "")
            refused = bus.run("walled", {**payload, "key": str(box.home / "letters"),
                                         "raise": True}).item  # fmt: skip
            assert "policy.folders" in (refused.error_message or "")
    finally:
        del os.environ["PYTHONPATH"]


OWN_TYPE = """
import glob, os, time
time.sleep(0.05)
at_import = []
for path in ("/root", "/tmp", *glob.glob("/tmp/walls-*/up/keys/admin.key")):
    try:
        (os.listdir if os.path.isdir(path) else open)(path)
        at_import.append(path)
    except OSError:
        pass

def walled(payload, context):
    if payload.get("raise"):
        open(payload["key"])
    reached = []
    for name, function in (
        ("key", lambda: open(payload["key"])),
        ("signal", lambda: os.kill(payload["pid"], 0)),
        ("siblings", lambda: os.listdir("..")),
        ("environ", lambda: open(f"/proc/{os.getppid()}/environ").read()),
    ):
        try:
            function()
            reached.append(name)
        except OSError:
            pass
    open("mine", "w").close()
    return {"reached": reached, "at_import": at_import}
"""


def test_the_owners_folders_are_open_and_an_error_says_which_setting_opens_others(
    bus: Bus, tmp_path: Path
) -> None:
    needs_landlock()
    kind = KINDS[0] if os.geteuid() == 0 else KINDS[2]
    films = tmp_path / "films"
    films.mkdir()
    (films / "one").write_text("a film")
    with boxed(bus, kind, "auto", FOLDERS=str(films)):
        bus.welcome()
        done = bus.run("command", {"command": ["cp", "one", "two"], "cwd": str(films)})
        assert done.item.outcome == "success", done.item.error_message
        assert (films / "two").read_text() == "a film"
        shut = bus.run("command", {"command": ["cp", "one", str(tmp_path / "out")],
                                   "cwd": str(films), "env": {"LC_ALL": "C"}})  # fmt: skip
        assert "policy.folders" in (shut.item.error_message or "")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sandbox", ["auto", "bwrap"])
def test_a_program_that_is_a_link_to_elsewhere_names_where_and_the_setting(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sandbox: str
) -> None:
    needs_landlock() if sandbox == "auto" else needs_bwrap()
    kind = KINDS[0] if os.geteuid() == 0 else KINDS[2]
    links, installed = tmp_path / "bin", tmp_path / "opt" / "tool" / "bin"
    for folder in (links, installed):
        folder.mkdir(parents=True)
    (installed / "tool").write_text("#!/bin/sh\necho it runs\n")
    (installed / "tool").chmod(0o755)
    (links / "tool").symlink_to(installed / "tool")
    monkeypatch.setenv("PATH", f"{links}{os.pathsep}{os.environ['PATH']}")
    with boxed(bus, kind, sandbox):
        bus.welcome()
        shut = bus.run("command", {"command": ["tool"]}).item
        said = shut.error_message or ""
        assert f"{links / 'tool'} is a link to {installed / 'tool'}" in said, said
        assert f"policy.folders with {installed}" in said
        # Of links in other folders nothing is told.
        (tmp_path / "aside").symlink_to(installed / "tool")
        for payload in (
            {"command": [str(tmp_path / "aside")]},
            {"command": ["aside"], "env": {"PATH": str(tmp_path)}},
        ):
            aside = bus.run("command", payload).item
            assert "is a link" not in (aside.error_message or "is a link")
    with boxed(bus, kind, sandbox, FOLDERS=str(installed)):
        bus.welcome()
        done = bus.run("command", {"command": ["tool"]})
        assert done.item.outcome == "success", done.item.error_message
        assert done.data["stdout"] == "it runs\n"


def test_the_worker_stays_hidden_in_a_folder_that_its_owner_opens(bus: Bus) -> None:
    needs_landlock()
    kind = KINDS[0] if os.geteuid() == 0 else KINDS[2]
    with tempfile.TemporaryDirectory(prefix="walls-") as parent:
        os.chmod(parent, 0o777)
        with boxed(bus, kind, "auto", FOLDERS="/tmp") as box:
            bus.welcome()
            beside = bus.run("command", {"command": ["touch", f"{parent}/here"]})
            assert beside.item.outcome == "success"
            for secret in (box.up / "keys" / "admin.key", box.data / "device_id"):
                spied = bus.run("command", {"command": ["cat", str(secret)]}).item
                assert spied.outcome == "failed"


@pytest.mark.parametrize("sandbox", ["auto", "bwrap"])
def test_a_task_opens_nothing_to_the_next_one_by_a_link(
    bus: Bus, sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_bwrap() if sandbox == "bwrap" else needs_landlock()
    kind = KINDS[0] if os.geteuid() == 0 else KINDS[2]
    with tempfile.TemporaryDirectory(prefix="walls-") as owners:
        programs = Path(owners) / "project" / "bin"
        programs.mkdir(parents=True)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        with boxed(bus, kind, sandbox, FOLDERS=owners) as box:
            bus.welcome()
            swap = f"cd {programs.parent} && rmdir bin && ln -s {box.base} bin"
            done = bus.run("command", {"command": ["sh", "-c", swap]})
            assert done.item.outcome == "success", done.data
            assert os.path.realpath(programs) == os.path.realpath(box.base)
            for secret in (box.home / "letters", box.up / "keys" / "admin.key"):
                spied = bus.run("command", {"command": ["cat", str(secret)]}).item
                assert spied.outcome == "failed"


ROOTS = """
import os, socket, subprocess, sys
open("one", "w").close()
os.chown("one", 1, 1)
subprocess.run(["tar", "cf", "one.tar", "one"], check=True)
subprocess.run(["tar", "xpf", "one.tar", "--same-owner"], check=True)
assert os.stat("one").st_uid == 1
went = []
for name, function in (
    ("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
    ("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)),
    ("powers of a file", lambda: os.setxattr("one", "security.capability", bytes.fromhex(
        "0100000200200000" + "00" * 12))),
):
    try:
        function()
        went.append(name)
    except PermissionError:
        pass
os.setgroups([])
os.setgid(1)
os.setuid(1)
print(went)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_roots_task_unpacks_and_changes_users_but_reads_no_traffic_and_leaves_no_powers(
    bus: Bus,
) -> None:
    needs_landlock()
    with boxed(bus, KINDS[0], "auto") as box:
        bus.welcome()
        done = bus.run("command", {"command": [box.python, "-c", ROOTS]})
        assert (done.item.outcome, done.data["stdout"]) == ("success", "[]\n"), done.data


@pytest.mark.parametrize("depth", [0, 12])
def test_a_task_serves_others_of_its_own_by_sockets(
    bus: Bus, start: Start, tmp_path: Path, depth: int
) -> None:
    data = tmp_path / "/".join(["deeper"] * depth) if depth else Path(tempfile.mkdtemp())
    start("--allow", "command", "--allow-root", "--data-dir", str(data))
    bus.welcome()
    code = "import multiprocessing as m; d = m.Manager().dict(); d[1] = 2; print(dict(d))"
    done = bus.run("command", {"command": [sys.executable, "-c", code]})
    assert (done.item.outcome, done.data["stdout"]) == ("success", "{1: 2}\n"), done.data
    if not depth:
        shutil.rmtree(data)


def test_without_a_sandbox_a_task_reaches_what_its_user_may(bus: Bus) -> None:
    kind = KINDS[0] if os.geteuid() == 0 else KINDS[2]
    with boxed(bus, kind, "none") as box:
        hello = bus.welcome()
        found = box.spy(bus)
        assert str(box.home / "letters") in found["reached"]
        assert hello.walls[0] == "files: none"


@pytest.mark.parametrize("sandbox", ["auto", "bwrap"])
def test_tasks_without_a_network_reach_none(bus: Bus, sandbox: str) -> None:
    needs_bwrap() if sandbox == "bwrap" else needs_landlock()
    kind = KINDS[0] if os.geteuid() == 0 else KINDS[2]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)"
        with boxed(bus, kind, sandbox, NETWORK="none") as box:
            hello = bus.welcome()
            assert "http_request" not in {info.name for info in hello.task_types}
            shut = bus.run("command", {"command": [box.python, "-c", code]})
            assert shut.item.outcome == "failed"
            assert "Error" in shut.data["stderr"]


def test_a_killed_workers_tasks_do_not_stay_in_a_sandbox(bus: Bus) -> None:
    needs_bwrap()
    kind = KINDS[0] if os.geteuid() == 0 else KINDS[2]
    with boxed(bus, kind, "bwrap") as box:
        bus.welcome()
        name = f"61{os.getpid()}"
        bus.started(bus.assign("command", {"command": ["sleep", name]}))
        wait_until(lambda: _sleeping(name))
        box.process.kill()
        wait_until(lambda: not _sleeping(name))


def _sleeping(seconds: str) -> bool:
    words = ["pgrep", "-f", f"^sleep {seconds}$"]
    return not subprocess.run(words, capture_output=True, check=False).returncode


#: As behind the kernel of an Ubuntu 22.04, whose Landlock knows nothing of moving files.
MOVER = """
import os, sys
from retire_cluster.node.walls import enforcement, landlock
landlock.abi = lambda: 1
os.makedirs("one/two")
open("one/file", "w").close()
usr = landlock.Rule("/usr", landlock.READ)
os.environ[enforcement.VARIABLE] = enforcement.Walls((usr,), True, "L").write()
enforcement.learn(os.getcwd())
enforcement.enter(os.getcwd())
try:
    os.rename("one/file", "one/two/file")
except OSError as error:
    print(enforcement.hint(str(error)))
"""


@pytest.mark.skipif(not landlock.abi(), reason="needs Landlock")
def test_a_kernel_that_lets_no_file_be_moved_is_named_in_the_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MOVER], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "before Linux 5.19 moves and links no file" in done.stdout
