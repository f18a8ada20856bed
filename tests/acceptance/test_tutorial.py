"""docs/tutorial.md, step by step: a laptop, and a worker that believes it is a phone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from retire_cluster.cli.up.announce import Announcement
from retire_cluster.conf.joining import InstallerAddress, one_line
from tests.acceptance.documents import blocks, command_environment
from tests.acceptance.kit import Cluster, Process
from tests.command_kit import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="its lines are for a POSIX shell"),
    pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash"),
]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
BLOCKS = blocks(PAGE)
#: By which the worker, and all that Termux starts, knows where it is.
TERMUX = {"PREFIX": "/data/data/com.termux/files/usr"}


class Laptop:
    """The machine of the page's reader, with its second terminal, and the phone beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = Cluster(folder)
        data = str(self.cluster.data_dir)
        made = self.cluster.cli("token", "create", "--host", "127.0.0.1")
        self.line = made.stdout.split()[-1]
        self.environ = command_environment(RETIRE_CLUSTER_DATA_DIR=data)
        self.phones: list[Process] = []

    def paste_on_the_phone(self) -> Process:
        """The worker that the pasted line comes to, until it has joined."""
        words = ["worker", "--join", self.line, "--data-dir", str(self.folder / "phone")]
        log = self.folder / f"phone-{len(self.phones)}.log"
        home = str(self.folder / "phone-home")
        phone = Process(log, *words, "--device-id", "phone", environ={**TERMUX, "HOME": home})
        self.phones.append(phone)
        until(lambda: re.search(r"joined 127\.0\.0\.1:\d+ as phone", log.read_text()), "joined")
        return phone

    def type(self, heading: str, number: int) -> str:
        """Run a block of commands of a step; what it printed."""
        found = [b for b in BLOCKS if b.heading.startswith(heading) and b.language == "bash"]
        done = subprocess.run(
            ["bash", "-euc", found[number].text], cwd=self.folder, env=self.environ,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (found[number].text, done.stdout, done.stderr)
        return done.stdout


@pytest.fixture
def laptop(tmp_path: Path) -> Iterator[Laptop]:
    found = Laptop(tmp_path)
    try:
        yield found
    finally:
        for phone in found.phones:
            phone.stop()
        assert found.cluster.close() == 0


def test_the_tutorial_from_its_first_line_to_its_last(laptop: Laptop) -> None:
    said = laptop.type("1.", 0)
    assert '"Hello"' in said
    assert laptop.cluster.local in said
    assert "phone" not in said

    phone = laptop.paste_on_the_phone()
    assert re.search(r"^phone\b.*\bonline\b", laptop.type("2.", 0), re.MULTILINE)

    facts = laptop.type("3.", 0)
    assert "cpu_count" in facts
    shown = laptop.type("3.", 1)
    assert "phone" in shown
    rows = [json.loads(line) for line in (laptop.folder / "sums.jsonl").read_text().splitlines()]
    sums = [row["result_data"]["result"] for row in rows]
    assert sums == [sum(range(n * 1_000)) for n in range(1, 101)]
    tasks = (laptop.cluster.rest.get(f"/tasks/{row['task_id']}/result") for row in rows[-20:])
    assert {task["worker_device_id"] for task in tasks} == {"phone", laptop.cluster.local}

    assert phone.stop() == 0
    why = laptop.type("4.", 0)
    assert re.search(r"phone\b.*offline", why)
    assert re.search(rf"{laptop.cluster.local}\b.*mobile", why)
    laptop.paste_on_the_phone()
    assert '"hello"' in laptop.type("4.", 1)


def test_what_up_says_is_what_the_page_shows() -> None:
    (shown,) = (block.text for block in BLOCKS if block.language == "text")
    paste = one_line(InstallerAddress(8084, "0" * 64), "192.168.1.20", "rc1.word")
    printed = Announcement(
        api_host="127.0.0.1", api_port=8081, worker_port=8082, worker_host="0.0.0.0",
        lan_address="192.168.1.20", join="rc1.word", one_line=paste,
    ).text(windows=False)  # fmt: skip
    for line in shown.splitlines():
        assert line.rstrip("…") in printed


def test_every_line_to_type_is_run_or_is_for_the_system() -> None:
    plain = [block.text for block in BLOCKS if block.language not in ("bash", "text")]
    assert plain == ["python3 bootstrap.py up\n", "pkg upgrade\npkg install python\n"]
    steps = [block.heading[:2] for block in BLOCKS if block.language == "bash"]
    assert steps == ["1.", "2.", "3.", "3.", "4.", "4."]
