"""`map` and `top` on a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.kit import Cluster, run
from tests.command_kit import COMMAND, plain_environment


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("map"), "--no-rate-limit")
    try:
        yield found
    finally:
        assert found.close() == 0


def total(cluster: Cluster) -> int:
    """How many tasks there ever were."""
    found = cluster.rest.ask("GET", "/api/v1/tasks?page_size=1").json
    return int(found["pagination"]["total_items"])


def test_results_come_in_the_order_of_the_lines(cluster: Cluster, tmp_path: Path) -> None:
    lines = [json.dumps({"message": number}) for number in range(1_234)]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join([*lines[:600], "", *lines[600:]]))
    data = ("--data-dir", str(cluster.data_dir))
    done = run("map", "echo", str(path), "--window", "400", *data)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["result_data"]["echo"]["message"] for row in rows] == list(range(1_234))
    assert [row["line"] for row in rows] == list(range(1, 1_235))


def test_a_failed_line_is_told_and_the_others_go_on(cluster: Cluster) -> None:
    lines = "\n".join(json.dumps({"expression": text}) for text in ("6*7", "1/0", "2+2"))
    done = subprocess.run(
        [*COMMAND, "map", "python_eval", "-", "--require", "max_retries=0",
         "--data-dir", str(cluster.data_dir)],
        input=lines, capture_output=True, text=True, env=plain_environment(), timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["status"] for row in rows] == ["success", "failed", "success"]
    assert "zero" in rows[1]["error_message"]
    assert "1 of 3 did not succeed" in done.stderr


def test_a_named_run_goes_on_without_doing_anything_twice(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps({"message": n}) for n in range(300)))
    words = ("map", "echo", str(path), "--resume", "photos", "--data-dir", str(cluster.data_dir))
    first = run(*words)
    before = total(cluster)
    second = run(*words)
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout == second.stdout
    assert total(cluster) == before


def test_a_line_that_is_no_object_is_named_before_anything_is_submitted(
    cluster: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"message": 1}\n[2]\n')
    before = total(cluster)
    done = run("map", "echo", str(path), "--data-dir", str(cluster.data_dir))
    assert done.returncode == 6
    assert "line 2" in done.stderr
    assert total(cluster) == before


def test_top_shows_every_device_and_what_it_has_done(cluster: Cluster) -> None:
    data = ("--data-dir", str(cluster.data_dir))
    shown = run("top", *data)
    assert shown.returncode == 0, shown.stderr
    (device,) = cluster.rest.online()
    assert device in shown.stdout
    assert "FAILED" in shown.stdout
    found = json.loads(run("top", "--json", *data).stdout)["data"]
    assert found["devices"][0]["tasks_succeeded"] > 0


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_top_redraws_on_a_terminal_until_it_is_interrupted(cluster: Cluster) -> None:
    import pty
    import signal
    import time

    here, there = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "top", "--interval", "0.2", "--data-dir", str(cluster.data_dir)],
        stdin=there, stdout=there, stderr=there, env=plain_environment(TERM="xterm"),
    )  # fmt: skip
    os.close(there)
    seen = b""
    deadline = time.monotonic() + 30
    while seen.count(b"\x1b[H\x1b[2J") < 3:
        assert time.monotonic() < deadline, seen
        seen += os.read(here, 65_536)
    process.send_signal(signal.SIGINT)
    while True:  # a full terminal would keep it from ending
        try:
            if not os.read(here, 65_536):
                break
        except OSError:
            break
    assert process.wait(20) == 0
    os.close(here)
