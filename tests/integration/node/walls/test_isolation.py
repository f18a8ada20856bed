"""A task of an own type harms only itself: its process, its answer, its folder, its memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from retire_cluster.node.system import process_tree, shared_memory, task_folders
from retire_cluster.schemas.protocol import messages
from tests.integration.node_kit import (
    COMMAND,
    Bus,
    Start,
    children_of,
    linux_only,
    python,
    task_root,
    wait_until,
)

pytestmark = [linux_only, pytest.mark.usefixtures("without_walls")]

TYPES = r'''
import ctypes, os, random, signal, sys, time
from multiprocessing import shared_memory

def forks(payload, context):
    pid = os.fork()
    if pid == 0:
        how = payload["child"]
        if how == "exit":
            sys.exit(payload["code"])
        if how == "raise":
            raise RuntimeError("in the child")
        return "child"
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"parent": True, "code": code}

def does(payload, context):
    exec(payload["code"], {"context": context})
    return "done"

def asks(payload, context):
    print("asked")
    return eval(payload["code"], {"os": os, "sys": sys, "signal": signal})

def sees(payload, context):
    """What of its parent can be reached."""
    found = {}
    for pid in (os.getpid(), os.getppid()):
        fds = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
        found[pid == os.getpid()] = {
            str(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in fds
            if os.path.lexists(f"/proc/{pid}/fd/{fd}")
        }
    return {"own": found[True], "parent": found[False]}
'''
#: Slow to import, so that it is kept imported.
SLOW = r"""
import os, random, time
time.sleep(0.2)
BORN = os.getpid()
seen = []

def slow(payload, context):
    seen.append(payload)
    os.environ["LEFT"] = "x"
    return {"imported_by": BORN, "me": os.getpid(), "parent": os.getppid(), "seen": len(seen),
            "drawn": random.random()}
"""
#: Slow too, and its import leaves something behind.
UNFIT = r"""
import random, threading, time
time.sleep(0.2)
WHAT

def unfit(payload, context):
    import os
    return {"imported_by": BORN, "me": os.getpid()}

import os
BORN = os.getpid()
"""
POINTS = """[retire_cluster.task_types]
forks = isolated_of_test:forks
does = isolated_of_test:does
asks = isolated_of_test:asks
sees = isolated_of_test:sees
slow = slow_of_test:slow
unfit = unfit_of_test:unfit
"""
ONE_SLOT = ("--allow-root", "--slots", "1")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    info = site / "isolated_of_test-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "isolated_of_test.py").write_text(TYPES)
    (site / "slow_of_test.py").write_text(SLOW)
    (site / "unfit_of_test.py").write_text(UNFIT.replace("WHAT", ""))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: isolated-of-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    return site


@pytest.fixture
def environ(site: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(site)}


def folder_names(tmp_path: Path) -> list[str]:
    return [path.name for path in task_root(tmp_path / "w").glob("*/*")]


@pytest.mark.parametrize(("child", "code"), [("exit", 3), ("exit", 0), ("return", 0), ("raise", 1)])
def test_only_the_parent_answers_when_a_task_forks(
    bus: Bus, start: Start, environ: dict[str, str], child: str, code: int
) -> None:
    start(*ONE_SLOT, environ=environ)
    bus.welcome()
    ended = bus.run("forks", {"child": child, "code": code})
    assert ended.data == {"parent": True, "code": code}
    assert bus.run("asks", {"code": "6 * 7"}).data == 42


@pytest.mark.parametrize(
    "code",
    [
        "import signal; signal.alarm(1)",
        "import os; os.close(1)",
        "import os; f = os.open('/dev/null', os.O_RDWR); os.dup2(f, 1); os.dup2(f, 2)",
        "import sys; sys.stdout.close()",
        "import os; os.umask(0o777)",
        "import sys; sys.path.clear(); sys.setrecursionlimit(80)",
        "import os; os.nice(5)",
        "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 5)",
        "import os; os.chmod('..', 0); os.chmod('.', 0)",
        "import shutil; shutil.rmtree('..', ignore_errors=True)",
        "import os; top = os.path.realpath('../..'); os.rename(top, top + '-moved');"
        "open(top, 'w').close()",
    ],
)
def test_what_a_task_does_to_its_process_does_not_reach_the_next(
    bus: Bus, start: Start, environ: dict[str, str], code: str
) -> None:
    start(*ONE_SLOT, environ=environ)
    bus.welcome()
    asked = (
        "[os.umask(0o22), len(sys.path) > 2, sys.getrecursionlimit(), signal.alarm(0),"
        " os.getpriority(os.PRIO_PROCESS, 0), os.listdir('.'), os.path.realpath('../..')]"
    )
    first = bus.run("asks", {"code": asked})
    assert bus.run("does", {"code": code}).item.outcome == "success"
    second = bus.run("asks", {"code": asked})
    assert second.data == first.data
    assert second.details["logs"] == "asked\n"


@pytest.mark.parametrize("end", ["cancel", "timeout", "crash", "keeper"])
def test_the_folder_and_the_shared_memory_of_a_task_are_gone_however_it_ended(
    bus: Bus, start: Start, environ: dict[str, str], tmp_path: Path, end: str
) -> None:
    start(*ONE_SLOT, environ=environ)
    bus.welcome()
    before = shared_memory.names()
    code = (
        "from multiprocessing import shared_memory; import os, time\n"
        "block = shared_memory.SharedMemory(create=True, size=1000000)\n"
        "open('big', 'wb').write(b'x' * 1000000)\n"
        f"open({str(tmp_path / 'name')!r}, 'w').write(block.name)\n"
    )
    code += {
        "cancel": "time.sleep(60)",
        "timeout": "time.sleep(60)",
        "crash": "os.abort()",
        "keeper": "keeper = int(open(f'/proc/{os.getppid()}/stat').read().split()[3])\n"
        "os.kill(keeper, 9); time.sleep(60)",
    }[end]
    key = bus.assign("does", {"code": code}, timeout_seconds=2 if end == "timeout" else 30)
    bus.until(lambda: (tmp_path / "name").exists(), "the segment")
    if end == "cancel":
        bus.until(lambda: (tmp_path / "name").read_text(), "its name")
        bus.send(messages.Cancel(bus.session, (key,), "cancelled"))
    expected = {"cancel": "cancelled", "timeout": "timeout"}.get(end, "failed")
    assert bus.result(key).item.outcome == expected
    assert folder_names(tmp_path) == []
    name = (tmp_path / "name").read_text()
    if end != "keeper":  # nobody is left who knows what was the task's
        assert name not in shared_memory.names() - before
    assert bus.run("asks", {"code": "1"}).data == 1


def test_a_crash_keeps_the_logs_and_the_server(
    bus: Bus, start: Start, environ: dict[str, str]
) -> None:
    worker = start(*ONE_SLOT, environ=environ)
    bus.welcome()
    bus.run("asks", {"code": "1"})
    processes = children_of(worker.pid)
    ended = bus.run("does", {"code": "import os; print('so far'); os.abort()"})
    assert ended.item.outcome == "failed"
    assert ended.details["logs"] == "so far\n"
    assert children_of(worker.pid) == processes


def test_a_task_holds_no_pipe_but_its_own(bus: Bus, start: Start, environ: dict[str, str]) -> None:
    start(*ONE_SLOT, environ=environ)
    bus.welcome()
    seen = bus.run("sees", {}).data
    own = {link for fd, link in seen["own"].items() if link.startswith(("pipe", "socket"))}
    # Output, answers, and what says that it is cancelled.
    assert len(own) == 3
    assert len([fd for fd in seen["own"] if int(fd) > 2]) <= 3


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_tasks_parent_costs_that_task_only(
    bus: Bus, start: Start, environ: dict[str, str], number: signal.Signals
) -> None:
    start(*ONE_SLOT, environ=environ)
    bus.welcome()
    code = f"import os, time; os.kill(os.getppid(), {int(number)}); time.sleep(60)"
    item = bus.run("does", {"code": code}, timeout_seconds=1).item
    assert item.outcome == ("timeout" if number == signal.SIGSTOP else "failed")
    assert bus.run("asks", {"code": "1"}).data == 1


def test_a_task_that_stops_its_keeper_does_not_cost_the_slot(
    bus: Bus, start: Start, environ: dict[str, str]
) -> None:
    start(*ONE_SLOT, environ=environ)
    bus.welcome()
    code = (
        "import os, time\n"
        "keeper = int(open(f'/proc/{os.getppid()}/stat').read().split()[3])\n"
        "os.kill(keeper, 19); os.kill(os.getppid(), 19); time.sleep(60)"
    )
    assert bus.run("does", {"code": code}, timeout_seconds=1).item.outcome == "timeout"
    assert bus.run("asks", {"code": "1"}).data == 1


def test_a_command_that_changes_its_parent_does_not_reach_the_next_task(
    bus: Bus, start: Start
) -> None:
    start(*COMMAND, "--slots", "1")
    bus.welcome()
    asked = {"command": python("import os; print(os.nice(0), len(os.sched_getaffinity(0)))")}
    first = bus.run("command", asked).data["stdout"]
    script = python(
        "import os",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 9)",
        "os.sched_setaffinity(os.getppid(), {min(os.sched_getaffinity(0))})",
        "os.kill(os.getppid(), 2)",
    )
    assert bus.run("command", {"command": script}).item.outcome == "success"
    assert bus.run("command", asked).data["stdout"] == first


def test_a_slow_import_is_done_once_for_many_tasks_that_still_share_nothing(
    bus: Bus, start: Start, environ: dict[str, str]
) -> None:
    start(*ONE_SLOT, environ=environ)
    bus.welcome()
    first = bus.run("slow", {}).data
    assert first["imported_by"] == first["me"]

    def imported_before() -> bool:
        row = bus.run("slow", {}).data
        return bool(row["imported_by"] != row["me"])

    wait_until(imported_before, 15.0)
    rows = [bus.run("slow", {}).data for _ in range(5)]
    assert len({row["imported_by"] for row in rows}) == 1
    assert len({row["me"] for row in rows}) == 5
    assert {row["seen"] for row in rows} == {1}
    assert len({row["drawn"] for row in rows}) == 5
    # The server is the parent, as it is of tasks without a template.
    assert {row["parent"] for row in rows} == {first["parent"]}


@pytest.mark.parametrize(
    "what",
    [
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "mine = random.Random(1)",
        "kept = open('/dev/null')",
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "import os; os.umask(0)",
        "import subprocess; kept = subprocess.Popen(['sleep', '60'])",
    ],
)
def test_an_import_that_leaves_something_behind_is_done_in_each_task(
    bus: Bus, start: Start, environ: dict[str, str], site: Path, what: str
) -> None:
    (site / "unfit_of_test.py").write_text(UNFIT.replace("WHAT", what))
    worker = start(*ONE_SLOT, environ=environ)
    bus.welcome()
    bus.run("unfit", {})
    keeper_and_server = 2
    # Until the template has tried it and is gone.
    bus.until(lambda: len(children_of(worker.pid)) > keeper_and_server, "the template")
    for _ in range(3):
        row = bus.run("unfit", {}).data
        assert row["imported_by"] == row["me"]


def test_an_attempt_that_never_started_is_no_timeout(
    bus: Bus, start: Start, environ: dict[str, str], tmp_path: Path
) -> None:
    site = tmp_path / "late"
    site.mkdir()
    # Every Python that is not the worker itself waits before it runs anything.
    (site / "sitecustomize.py").write_text(
        "import os, time\n"
        "if 'RC_WORKER' in os.environ and os.path.exists(os.environ['RC_SCRATCH'] + '/../late'):\n"
        "    time.sleep(60)\n"
        "if 'RC_WORKER' not in os.environ:\n"
        "    import retire_cluster.node.running.runner as runner\n"
        "    runner.START_SECONDS = 1.0\n"
    )
    start(*COMMAND, environ={"PYTHONPATH": str(site)})
    bus.welcome()
    (task_root(tmp_path / "w") / "late").touch()
    item = bus.run("python_eval", {"expression": "1"}).item
    assert (item.outcome, item.cause) == ("failed", "error")
    assert "never started" in (item.error_message or "")


def test_a_folder_is_removed_whatever_is_in_it(tmp_path: Path) -> None:
    folder = task_folders.make(str(tmp_path / "scratch"), "task-1")
    inner = Path(folder) / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    os.symlink("/", inner / "root")
    os.mkfifo(inner / "fifo")
    here = os.open(folder, os.O_RDONLY)
    for _ in range(2_000):
        os.mkdir("d" * 100, dir_fd=here)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    for path in (inner, inner.parent, Path(folder)):
        path.chmod(0)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    os.chmod(folder, 0o700)
    os.symlink(outside, Path(folder) / "out")
    os.chmod(folder, 0)
    assert task_folders.remove(folder)
    assert os.listdir(tmp_path / "scratch") == []
    assert (outside / "kept").exists()


def test_an_unprivileged_owner_removes_what_was_closed_to_him(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("root runs it as another user")
    scratch = Path(os.path.realpath(f"/tmp/isolation-{os.getpid()}"))
    scratch.mkdir(mode=0o777)
    scratch.chmod(0o777)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setuid(65_534)
            folder = task_folders.make(str(scratch / "work"), "task-1")
            os.makedirs(f"{folder}/a/b/c")
            for path in (f"{folder}/a/b", f"{folder}/a", folder, str(scratch / "work")):
                os.chmod(path, 0)
            second = task_folders.make(str(scratch / "work"), "task-2")
            code = 0 if task_folders.remove(folder) and task_folders.remove(second) else 2
        finally:
            os._exit(code)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        task_folders.remove(scratch)


def test_shared_memory_that_others_hold_is_left_alone(tmp_path: Path) -> None:
    before = shared_memory.names()
    path = Path(shared_memory.FOLDER) / f"isolation-{os.getpid()}"
    held = path.open("wb")
    try:
        assert shared_memory.remove_of([1], before) == 0
        assert shared_memory.remove_of([], before) == 0
        pid = os.fork()
        if pid == 0:
            signal.pause()
        assert shared_memory.remove_of([pid], before) == 0, "this process holds it too"
        held.close()
        assert shared_memory.remove_of([pid], before) == 1
        assert not path.exists()
        process_tree.kill_all([pid])
        os.waitpid(pid, 0)
    finally:
        held.close()
        path.unlink(missing_ok=True)
