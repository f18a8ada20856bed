"""A busy process's threads stay on one core; seen in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from retire_cluster.api.serving import one_core

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="for systems that can be told so, with two cores or more",
)

_PROGRAM = """
import json, os, threading
from retire_cluster.api.serving import one_core

def cores():
    return [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]

end = threading.Event()
threads = [threading.Thread(target=end.wait) for _ in range(3)]
for thread in threads:
    thread.start()
found, keeper = {}, one_core.OneCore()
for name, now, requests in SCRIPT:
    keeper.look(now, requests)
    found[name] = cores()
keeper.let_go()
found["end"] = cores()
end.set()
print(json.dumps(found))
"""
STAY, FREE, WATCH = one_core.STAY_SECONDS, one_core.FREE_SECONDS, one_core.WATCH_SECONDS


def run(*script: tuple[str, float, int]) -> dict[str, list[list[int]]]:
    """The cores of each thread after each look."""
    text = _PROGRAM.replace("SCRIPT", repr(script))
    done = subprocess.run(
        [sys.executable, "-c", text], check=True, capture_output=True, text=True, timeout=60
    )
    found: dict[str, list[list[int]]] = json.loads(done.stdout)
    assert all(len(cores) == 4 for cores in found.values())
    return found


def test_all_threads_stay_on_one_core_while_there_is_much_to_do() -> None:
    everywhere = [sorted(os.sched_getaffinity(0))] * 4
    found = run(
        ("start", 100.0, 0),
        ("too soon", 100.0 + WATCH / 2, 5_000),
        ("busy", 100.0 + STAY, 5_000),
        ("still busy, let go to be placed anew", 100.0 + 2 * STAY, 10_000),
        ("placed anew", 100.0 + 2 * STAY + FREE, 10_500),
        ("idle", 100.0 + 3 * STAY + FREE, 10_510),
        ("idle for long", 100.0 + 9 * STAY, 10_520),
        ("busy again", 100.0 + 10 * STAY, 20_000),
    )
    assert found["start"] == found["too soon"] == everywhere
    pinned = found["busy"]
    assert pinned == [pinned[0]] * 4
    assert len(pinned[0]) == 1
    assert found["still busy, let go to be placed anew"] == everywhere
    assert [len(cores) for cores in found["placed anew"]] == [1] * 4
    assert found["idle"] == found["idle for long"] == everywhere
    assert [len(cores) for cores in found["busy again"]] == [1] * 4
    assert found["end"] == everywhere


def test_a_process_that_may_use_one_core_only_is_left_alone() -> None:
    core = min(os.sched_getaffinity(0))
    text = _PROGRAM.replace("SCRIPT", "[('start', 1.0, 0), ('busy', 9.0, 90_000)]")
    text = f"import os; os.sched_setaffinity(0, {{{core}}})\n{text}"
    done = subprocess.run(
        [sys.executable, "-c", text], check=True, capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stdout)["busy"] == [[core]] * 4
