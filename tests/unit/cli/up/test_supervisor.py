"""The supervisor with small real children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retire_cluster.cli.endpoints import pid_alive
from retire_cluster.cli.up.supervisor import Backoff, Child, Exit, State, Supervisor

LIFELINED = "from retire_cluster.cli import lifeline; lifeline.watch_from_environment()\n"


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def script(text: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text)]


def child(name: str, text: str, **options: object) -> Child:
    command = script(text)
    return Child(name, lambda: command, **options)  # type: ignore[arg-type]


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    found = Supervisor()
    yield found
    found.stop(hurry=lambda: True)


def step_until_exit(supervisor: Supervisor, seconds: float = 15.0) -> Exit:
    ended: list[Exit] = []

    def stepped() -> bool:
        ended.extend(supervisor.step(time.monotonic()))
        return bool(ended)

    until(stepped, seconds)
    return ended[0]


def test_the_delay_doubles_from_a_fifth_of_a_second_to_ten() -> None:
    backoff = Backoff()
    delays = [backoff.after_exit(0.1) for _ in range(8)]
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_a_run_that_lasted_makes_the_next_delay_short_again() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.after_exit(0.1)
    assert backoff.after_exit(60.0) == 0.2


def test_a_child_that_dies_starts_again_with_a_new_process(supervisor: Supervisor) -> None:
    supervisor.add(child("one", "import time; time.sleep(60)"))
    supervisor.start("one", time.monotonic())
    first = supervisor.children["one"].pid
    assert first is not None
    os.kill(first, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    ended = step_until_exit(supervisor)
    assert ended.restart_in_seconds == 0.2
    until(
        lambda: supervisor.step(time.monotonic()) == [] and supervisor.children["one"].starts == 2
    )
    assert supervisor.children["one"].pid not in (None, first)


def test_one_childs_death_leaves_the_others_alone(supervisor: Supervisor) -> None:
    supervisor.add(child("stays", "import time; time.sleep(60)"))
    supervisor.add(child("goes", "raise SystemExit(3)"))
    for name in ("stays", "goes"):
        supervisor.start(name, time.monotonic())
    pid = supervisor.children["stays"].pid
    assert step_until_exit(supervisor).name == "goes"
    assert supervisor.children["stays"].pid == pid
    assert supervisor.children["stays"].starts == 1


def test_a_final_exit_code_is_final(supervisor: Supervisor) -> None:
    supervisor.add(child("removed", "raise SystemExit(4)", final_codes=frozenset({4})))
    supervisor.start("removed", time.monotonic())
    ended = step_until_exit(supervisor)
    assert (ended.code, ended.restart_in_seconds) == (4, None)
    assert supervisor.children["removed"].state is State.FINAL
    assert supervisor.step(time.monotonic() + 3600) == []
    assert supervisor.children["removed"].starts == 1


def test_the_command_is_asked_anew_at_each_start(supervisor: Supervisor) -> None:
    asked: list[int] = []

    def command() -> list[str]:
        asked.append(len(asked))
        return script("pass")

    supervisor.add(Child("one", command))
    supervisor.start("one", 0.0)
    step_until_exit(supervisor)
    supervisor.step(time.monotonic() + 60)
    assert asked == [0, 1]


def test_variables_are_added_and_taken_out(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETIRE_CLUSTER_TEST_SECRET", "hidden")
    seen = tmp_path / "seen"
    text = f"""
        import os
        names = ("RETIRE_CLUSTER_TEST_SECRET", "RETIRE_CLUSTER_TEST_GIVEN")
        open({str(seen)!r}, "w").write(repr([os.environ.get(name) for name in names]))
    """
    environ = {"RETIRE_CLUSTER_TEST_SECRET": None, "RETIRE_CLUSTER_TEST_GIVEN": "yes"}
    supervisor.add(child("one", text, environ=environ))
    supervisor.start("one", time.monotonic())
    step_until_exit(supervisor)
    assert seen.read_text() == "[None, 'yes']"


@pytest.mark.skipif(os.name == "nt", reason="the children of this test handle POSIX signals")
def test_children_are_stopped_by_rank_each_after_the_one_before_has_ended(tmp_path: Path) -> None:
    supervisor = Supervisor()
    for name, rank in (("last", 2), ("first", 0), ("middle", 1)):
        text = f"""
            import pathlib, signal, sys, time
            def stop(*_):
                time.sleep(0.1)
                with open({str(tmp_path / "order")!r}, "a") as file:
                    file.write("{name} ")
                sys.exit(0)
            signal.signal(signal.SIGTERM, stop)
            pathlib.Path({str(tmp_path / name)!r}).touch()
            time.sleep(60)
        """
        supervisor.add(child(name, text, stop_rank=rank))
        supervisor.start(name, time.monotonic())
    until(lambda: all((tmp_path / name).exists() for name in ("first", "middle", "last")))
    supervisor.stop()
    assert (tmp_path / "order").read_text().split() == ["first", "middle", "last"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal to ignore")
def test_a_child_that_does_not_listen_is_killed_within_ten_seconds(tmp_path: Path) -> None:
    supervisor = Supervisor()
    text = f"""
        import pathlib, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path({str(tmp_path / "up")!r}).touch()
        time.sleep(60)
    """
    supervisor.add(child("deaf", text, stop_seconds=0.3))
    supervisor.start("deaf", time.monotonic())
    until((tmp_path / "up").exists)
    pid = supervisor.children["deaf"].pid
    started = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - started < 3.0
    assert pid is not None
    assert not pid_alive(pid)


@pytest.mark.skipif(os.name == "nt", reason="process groups")
def test_what_a_child_leaves_behind_in_its_group_goes_with_it(tmp_path: Path) -> None:
    supervisor = Supervisor()
    note = tmp_path / "grandchild"
    text = f"""
        import pathlib, subprocess, sys
        p = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        pathlib.Path({str(note)!r}).write_text(f"{{p.pid}} ")
        import os
        os._exit(1)
    """
    supervisor.add(child("parent", text))
    supervisor.start("parent", time.monotonic())
    step_until_exit(supervisor)
    grandchild = int(note.read_text())
    until(lambda: not pid_alive(grandchild))
    supervisor.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="adopting orphans is Linux's")
def test_a_grandchild_in_its_own_session_does_not_survive_an_adopting_supervisor(
    tmp_path: Path,
) -> None:
    note = tmp_path / "grandchild"
    inner = f"""
import pathlib, subprocess, sys, time
p = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
pathlib.Path({str(note)!r}).write_text(f"{{p.pid}} ")
time.sleep(60)
"""
    outer = f"""
import pathlib, sys, time
from retire_cluster.cli.up.supervisor import Child, Supervisor
from retire_cluster.node.system.process_tree import become_subreaper
s = Supervisor(adopting=become_subreaper())
s.add(Child("one", lambda: [sys.executable, "-c", {inner!r}]))
s.start("one", time.monotonic())
note = pathlib.Path({str(note)!r})
while not (note.exists() and note.read_text().endswith(" ")):
    time.sleep(0.02)
s.stop()
"""
    subprocess.run([sys.executable, "-c", outer], check=True, timeout=30)
    assert not pid_alive(int(note.read_text()))


def test_children_end_when_their_supervisor_is_killed_outright(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    inner = f"""{LIFELINED}
import os, pathlib, time
pathlib.Path({str(note)!r}).write_text(f"{{os.getpid()}} ")
time.sleep(60)
"""
    outer = f"""
import sys, time
from retire_cluster.cli.up.supervisor import Child, Supervisor
s = Supervisor()
s.add(Child("one", lambda: [sys.executable, "-c", {inner!r}]))
s.start("one", time.monotonic())
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", outer]) as process:
        try:
            until(lambda: note.exists() and note.read_text().endswith(" "))
        finally:
            process.kill()
    pid = int(note.read_text())
    until(lambda: not pid_alive(pid), seconds=5.0)


@pytest.mark.skipif(os.name == "nt", reason="asks for a handler of SIGTERM")
def test_a_lifelines_end_reaches_the_handler_of_sigterm_even_in_a_blocking_call(
    tmp_path: Path,
) -> None:
    note = tmp_path / "handled"
    text = f"""{LIFELINED}
import os, pathlib, select, signal, sys
def stop(*_):
    pathlib.Path({str(note)!r}).touch()
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
assert "RETIRE_CLUSTER_LIFELINE" not in os.environ
assert sys.stdin.read() == ""
print("up", flush=True)
select.select([], [], [], 60)
"""
    environ = {**os.environ, "RETIRE_CLUSTER_LIFELINE": "stdin"}
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"up\n"
        process.stdin.close()
        assert process.wait(timeout=10) == 7
    assert note.exists()
