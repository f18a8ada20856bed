"""Functions on real devices, as a newcomer sends them; a worker that dies costs nothing."""

from __future__ import annotations

import base64
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retire_cluster.sdk import Executor, RemoteError
from tests.acceptance.kit import Cluster
from tests.command_kit import plain_environment, until
from tests.interpreters import candidates, choose, probe

NEWCOMER = """
from retire_cluster.sdk import Executor
with Executor("{url}") as devices:
    print(list(devices.map(lambda n: n * n, range(10))))
"""
ALLOWED = ("--allow", "python_call", "--allow-root", "--workers", "2", "--slots", "2")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("functions")
    found = Cluster(folder, *ALLOWED, "--no-rate-limit")
    try:
        yield found
    finally:
        assert found.close() == 0


@pytest.fixture
def executor(cluster: Cluster) -> Iterator[Executor]:
    with Executor(cluster.rest.url) as found:
        yield found


def run(text: str, folder: Path) -> str:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, str(path)], cwd=folder, env=plain_environment(), capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_three_lines_of_a_newcomer(cluster: Cluster, tmp_path: Path) -> None:
    assert run(NEWCOMER.format(url=cluster.rest.url), tmp_path) == f"{[n * n for n in range(10)]}\n"


def test_a_program_of_several_files_sends_its_own_modules_along(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "model.py").write_text(
        "class Model:\n"
        "    def __init__(self, k):\n        self.k = k\n"
        "    def fit(self, n):\n        return scale(self, n)\n\n"
        "def scale(model, n):\n    return model.k * n\n"
    )
    out = run(
        f"""
        from model import Model
        from retire_cluster.sdk import Executor
        def doubled(n): return Model(2).fit(n)
        if __name__ == "__main__":
            with Executor("{cluster.rest.url}") as devices:
                print(devices.submit(Model(3).fit, 14).result(30))
                print(list(devices.map(doubled, range(3))))
        """,
        tmp_path,
    )
    assert out == "42\n[0, 2, 4]\n"


def test_a_cell_of_a_notebook_is_sent(executor: Executor) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("k = 40\ndef cell(n):\n    return k + n\n", "<ipython-input-1>", "exec"), names)
    assert executor.submit(names["cell"], 2).result(30) == 42


def test_arrays_go_there_and_back(executor: Executor) -> None:
    array = np.arange(12.0).reshape(3, 4)
    found = executor.submit(np.linalg.norm, array, axis=1).result(30)
    np.testing.assert_allclose(found, np.linalg.norm(array, axis=1))


def test_a_worker_that_is_killed_in_the_middle_costs_nothing(
    cluster: Cluster, executor: Executor
) -> None:
    def slow(n: int) -> int:
        import time

        time.sleep(0.2)
        return n

    results = executor.map(slow, range(40), chunksize=2)
    assert next(results) == 0
    victim = int(cluster.endpoints()["workers"][0]["pid"])
    os.kill(victim, signal.SIGKILL)
    assert list(results) == list(range(1, 40))


def test_what_a_function_raises_arrives_with_its_trace(executor: Executor) -> None:
    with pytest.raises(RemoteError, match="math domain error") as caught:
        executor.submit(math.sqrt, -1).result(30)
    assert caught.value.type == "ValueError"


def test_interpreters_at_hand_give_the_right_answer_or_a_mismatch(
    cluster: Cluster, tmp_path: Path
) -> None:
    import cloudpickle

    where = str(Path(cloudpickle.__file__).parent.parent)
    code = (
        "import sys, base64; sys.path.append(sys.argv[1]); import cloudpickle\n"
        "k = 2\n"
        "text = base64.b64encode(cloudpickle.dumps((lambda n: n + k, (40,), {}))).decode()\n"
        "print('{}.{}'.format(*sys.version_info), text)"
    )
    own = "{}.{}".format(*sys.version_info)
    seen = set()
    for python in choose(filter(None, map(probe, candidates(os.environ)))):
        version, call = subprocess.run(
            [python.path, "-c", code, where], capture_output=True, text=True, check=True
        ).stdout.split()
        payload = {"form": "cloudpickle", "python": version, "call": call, "name": f"on {version}"}
        task_id = cluster.rest.submit("python_call", payload)
        end = cluster.rest.result(task_id)
        seen.add(version == own)
        if version == own:
            assert end["result_data"] == {"value": 42}
        else:
            assert "PYTHON_MISMATCH" in end["error_message"]
    assert True in seen
    devices = cluster.rest.get("/devices")
    assert {device["status"] for device in devices} == {"online"}


def test_a_call_that_no_device_may_run_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Cluster(tmp_path)
    try:
        executor = Executor(refusing.rest.url)
        future = executor.submit(math.sqrt, 4)
        until(lambda: "--allow python_call" in caplog.text, "the reason")
        executor.shutdown(cancel_futures=True)
        assert future.cancelled()
    finally:
        assert refusing.close() == 0


def test_a_hostile_pickle_as_a_result_is_not_opened(cluster: Cluster, tmp_path: Path) -> None:
    mark = tmp_path / "opened"

    class Bomb:
        def __reduce__(self) -> Any:
            return open, (str(mark), "w")

    text = base64.b64encode(pickle.dumps(Bomb())).decode()
    with Executor(cluster.rest.url) as executor:
        lie = {"pickle": text, "python": "{}.{}".format(*sys.version_info)}
        assert executor.submit(json.loads, json.dumps(lie)).result(30) == lie
    time.sleep(0.1)
    assert not mark.exists()
