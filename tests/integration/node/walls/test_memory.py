"""A task finds nothing of earlier ones in its memory, and cannot look into who serves it (S18)."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from retire_cluster.node.system import process_tree
from tests.integration.node.test_confinement import nobody
from tests.integration.node_kit import COMMAND, Bus, Start, children_of, linux_only

__all__ = ["nobody"]
pytestmark = linux_only

TYPES = r'''
import os, time
SLEEP

def keeps(payload, context):
    return {"kept": payload["secret"][::-1]}

def searches(payload, context):
    """How often texts, told backwards, are in this process's memory but for one time."""
    found = {word: 0 for word in payload["backwards"]}
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps:
            place, modes = line.split()[:2]
            if modes.startswith("rw"):
                begin, end = (int(part, 16) for part in place.split("-"))
                try:
                    memory.seek(begin)
                    text = memory.read(end - begin)
                except (OSError, ValueError, OverflowError):
                    continue
                for word in found:
                    needle = word.encode()[::-1]
                    found[word] += text.count(needle)
                    del needle
                del text
    return {"found": found, "servers": told()}

def told():
    """What can be opened of those who serve this task: its parent and all around it."""
    reached = []
    me, mine = os.getpid(), set()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != me:
            try:
                line = open(f"/proc/{name}/cmdline", "rb").read()
                if b"retire_cluster" not in line:
                    continue
            except OSError:
                continue
            for what in ("mem", "environ", "fd/0", "fd/1", "fd/3", "fd/4", "maps"):
                try:
                    os.close(os.open(f"/proc/{name}/{what}", os.O_RDONLY | os.O_NONBLOCK))
                    reached.append(f"{name}/{what}")
                except OSError:
                    pass
    return reached

AT_IMPORT = told()

def at_import(payload, context):
    return AT_IMPORT

at_import.description = f"reached {AT_IMPORT}"
'''
POINTS = """[retire_cluster.task_types]
keeps = memory_of_test:keeps
searches = memory_of_test:searches
at_import = memory_of_test:at_import
"""


@pytest.fixture
def own_types(request: pytest.FixtureRequest) -> Iterator[Path]:
    site = Path(tempfile.mkdtemp(prefix="own-types-", dir="/tmp"))
    site.chmod(0o755)
    info = site / "memory_of_test-1.0.dist-info"
    info.mkdir()
    sleep = getattr(request, "param", "")
    (site / "memory_of_test.py").write_text(TYPES.replace("SLEEP", sleep))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: memory-of-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    yield site
    shutil.rmtree(site)


@pytest.mark.parametrize("own_types", ["", "time.sleep(0.1)"], indirect=True, ids=["seed", "kept"])
def test_nothing_of_earlier_tasks_is_in_a_tasks_memory(
    bus: Bus, start: Start, own_types: Path
) -> None:
    start(*COMMAND, "--slots", "1", environ={"PYTHONPATH": str(own_types)})
    bus.welcome()
    secrets = {name: f"{name}-{os.urandom(12).hex()}" for name in ("command", "keeps", "eval")}
    for _ in range(3):
        payload = {"command": ["true"], "env": {"SECRET": secrets["command"]}}
        assert bus.run("command", payload).item.outcome == "success"
        assert bus.run("keeps", {"secret": secrets["keeps"] * 50}).item.outcome == "success"
        expression = {"expression": "len(x)", "variables": {"x": secrets["eval"] * 50}}
        assert bus.run("python_eval", expression).item.outcome == "success"
    backwards = [secret[::-1] for secret in secrets.values()]
    for _ in range(2):
        ended = bus.run("searches", {"backwards": backwards})
        assert ended.item.outcome == "success", ended.item.error_message
        # Once or twice for the words that it looks for itself.
        assert max(ended.data["found"].values()) <= 2, ended.data


def test_a_device_without_own_types_keeps_no_process_for_them(bus: Bus, start: Start) -> None:
    worker = start(*COMMAND, "--slots", "1")
    bus.welcome()
    assert bus.run("command", {"command": ["true"]}).item.outcome == "success"
    assert len(children_of(worker.pid)) == 2  # keeper and server


def test_what_a_task_did_to_the_process_others_come_from_costs_no_later_task(
    bus: Bus, start: Start, own_types: Path
) -> None:
    worker = start("--allow-root", "--slots", "1", environ={"PYTHONPATH": str(own_types)})
    bus.welcome()
    assert bus.run("at_import", {}).item.outcome == "success"
    server = process_tree.descendants(children_of(worker.pid)[0])[0].pid
    for pid in children_of(server):
        process_tree.kill_all([pid])
    for _ in range(2):
        ended = bus.run("at_import", {})
        assert ended.item.outcome == "success", ended.item.error_message


def test_no_code_of_strangers_can_look_into_a_worker_of_the_same_user(
    bus: Bus, own_types: Path, nobody: tuple[str, str, dict[str, str]]
) -> None:
    user, program, environ = nobody
    entry = pwd.getpwnam(user)
    home = Path(tempfile.mkdtemp(prefix="worker-", dir="/tmp"))
    os.chown(home, entry.pw_uid, entry.pw_gid)
    path = os.pathsep.join(filter(None, [str(own_types), environ.get("PYTHONPATH")]))
    command = [program, "-m", "retire_cluster.node", "--join", f"127.0.0.1:{bus.port}"]
    worker = subprocess.Popen(
        [*command, "--data-dir", str(home / "w"), "--slots", "2"], cwd="/",
        env={**os.environ, "PYTHONPATH": path, "HOME": str(home)}, user=entry.pw_uid,
        group=entry.pw_gid, extra_groups=[], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        types = {info.name: info for info in bus.welcome().task_types}
        # Other own types may be described at the same time: these are as new as this one.
        around = set(map(str, children_of(worker.pid)))
        assert types["at_import"].description.startswith("reached ")
        reached = types["at_import"].description
        assert f"'{worker.pid}/" not in reached, (reached, around)
        for _ in range(2):
            ended = bus.run("searches", {"backwards": []})
            assert ended.item.outcome == "success", ended.item.error_message
            assert ended.data["servers"] == []
    finally:
        worker.kill()
        worker.communicate()
        shutil.rmtree(home, ignore_errors=True)
