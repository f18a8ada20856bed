"""docs/cookbook.md: every job in it is done, by its own lines, on a cluster of real devices."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.documents import Block, blocks, command_environment, python
from tests.acceptance.kit import Cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum"),
    pytest.mark.skipif(os.name != "posix", reason="its lines are for a POSIX shell"),
]

BLOCKS = blocks(Path(__file__).resolve().parents[2] / "docs" / "cookbook.md")
#: The folder of the document that all devices see.
SHARE = "/srv/share"
DEVICES = {"attic", "cellar"}
#: Do real work on real files, with the arguments of the document and no others.
PROGRAMS = {
    "ffmpeg": """
import gzip, sys
flags = [word for word in sys.argv[1:] if word in ("-nostdin", "-y")]
words = [word for word in sys.argv[1:] if word not in flags]
options = dict(zip(words[:-1:2], words[1:-1:2]))
assert flags == ["-nostdin", "-y"], flags
assert options.pop("-loglevel") == "error"
source = options.pop("-i")
assert options == {"-c:v": "libx264", "-crf": "23"}, options
film = open(source, "rb").read()
if not film.startswith(b"moov"):
    sys.exit(source + ": Invalid data found when processing input")
open(words[-1], "wb").write(gzip.compress(film))
""",
    "convert": """
import sys
source, orient, thumbnail, size, target = sys.argv[1:]
assert (orient, thumbnail) == ("-auto-orient", "-thumbnail")
kind, width, height, depth, pixels = open(source, "rb").read().split(maxsplit=4)
assert (kind, depth) == (b"P6", b"255")
width, height = int(width), int(height)
most = [int(number) for number in size.split("x")]
scale = min(most[0] / width, most[1] / height, 1)
w, h = round(width * scale), round(height * scale)
rows = [int(y / scale) * width for y in range(h)]
small = b"".join(pixels[(row + int(x / scale)) * 3 :][:3] for row in rows for x in range(w))
open(target, "wb").write(b"P6 %d %d 255\\n" % (w, h) + small)
""",
}


def of(heading: str, language: str) -> list[Block]:
    """The blocks of a section in a language."""
    return [b for b in BLOCKS if b.heading == heading and b.language == language]


def file_of(block: Block) -> str:
    """Where in the shared folder the document keeps this block, empty when nowhere."""
    found = re.match(rf"(?:#!.*\n)?# {SHARE}/([\w./]+): ", block.text)
    return found[1] if found else ""


class Kitchen:
    """A cluster with two devices that see one folder, as the document's first section makes it."""

    def __init__(self, folder: Path) -> None:
        self.share = folder / "share"
        programs = folder / "programs"
        programs.mkdir()
        for name, code in PROGRAMS.items():
            (programs / name).write_text(f"#!{sys.executable}\n{code}")
            (programs / name).chmod(stat.S_IRWXU)
        for block in BLOCKS:
            if name := file_of(block):
                path = self.share / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self.here(block.text), "utf-8")
        # The device of `up` itself has neither the folder nor leave to run programs.
        self.cluster = Cluster(folder, "--no-rate-limit")
        self.path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        for name in sorted(DEVICES):
            self.cluster.join(
                name, "--config", str(self.share / "worker.toml"),
                PATH=self.path, RETIRE_CLUSTER_ALLOW_ROOT="1",
                RETIRE_CLUSTER_POLICY_PRIVATE_ADDRESSES="1",
            )  # fmt: skip

    def here(self, text: str) -> str:
        """A text of the document with the folder of this test in place of its own."""
        return text.replace(SHARE, str(self.share))

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run lines of the document on the machine that submits, without the devices' programs."""
        return subprocess.run(
            ["bash", "-c", f"set -u\n{self.here(script)}"],
            capture_output=True, text=True, timeout=60, check=False,
            env=command_environment(RETIRE_CLUSTER_DATA_DIR=str(self.cluster.data_dir)),
        )  # fmt: skip

    def folder(self, name: str) -> Path:
        """A folder of the share."""
        found = self.share / name
        found.mkdir(exist_ok=True)
        return found

    def devices_of(self, rows: list[dict[str, Any]]) -> set[str]:
        """Who did these lines of a map."""
        results = (self.cluster.rest.get(f"/tasks/{row['task_id']}/result") for row in rows)
        return {result["worker_device_id"] for result in results}


def rows(path: Path) -> list[dict[str, Any]]:
    """What a map wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kitchen]:
    found = Kitchen(tmp_path_factory.mktemp("cookbook"))
    try:
        yield found
    finally:
        assert found.cluster.close() == 0


def test_a_folder_is_transcoded_by_all_devices_and_a_damaged_film_is_told(kitchen: Kitchen) -> None:
    films = kitchen.folder("videos")
    for number in range(6):
        (films / f"holiday {number}.mov").write_bytes(b"moov" + bytes([number]) * 50_000)
    transcode, failed = (block.text for block in of("Transcode a folder", "bash"))
    done = kitchen.shell(transcode)
    assert done.returncode == 0, done.stderr
    for film in films.glob("*.mov"):
        assert 0 < film.with_suffix(".mp4").stat().st_size < 50_000
    found = rows(films / "results.jsonl")
    assert len(found) == 6
    assert kitchen.devices_of(found) == DEVICES
    assert kitchen.shell(failed).stdout == "all done\n"
    # The same line again does nothing anew; of another list it does what is new.
    before = [path.stat().st_mtime_ns for path in sorted(films.glob("*.mp4"))]
    assert kitchen.shell(transcode).returncode == 0
    assert [path.stat().st_mtime_ns for path in sorted(films.glob("*.mp4"))] == before
    (films / "torn.mov").write_bytes(b"\0" * 100)
    more = transcode.replace("--resume videos", "--resume videos --retries 0")
    assert kitchen.shell(more).returncode == 1
    assert [path.stat().st_mtime_ns for path in sorted(films.glob("*.mp4"))] == before
    (told,) = kitchen.shell(failed).stdout.splitlines()
    assert "torn.mov: Invalid data" in json.loads(told)["result_data"]["stderr"]
    # Mended, it is tried anew, and nothing else.
    (films / "torn.mov").write_bytes(b"moov" + b"t" * 50_000)
    assert kitchen.shell(more).returncode == 1
    assert kitchen.shell(more.replace("--retries 0", "--retry-failed")).returncode == 0
    assert kitchen.shell(failed).stdout == "all done\n"
    after = [path.stat().st_mtime_ns for path in sorted(films.glob("holiday*.mp4"))]
    assert after == before


def test_every_photo_gets_its_thumbnail(kitchen: Kitchen) -> None:
    photos = kitchen.folder("photos")
    for number in range(3):
        pixels = bytes([number, 100, 200]) * (640 * 480)
        (photos / f"{number}.jpg").write_bytes(b"P6 640 480 255\n" + pixels)
    (block,) = of("Thumbnails of photos", "bash")
    done = kitchen.shell(block.text)
    assert done.returncode == 0, done.stderr
    for number in range(3):
        head, pixels = (photos / "small" / f"{number}.jpg").read_bytes().split(b"\n", 1)
        assert head == b"P6 320 240 255"
        assert pixels == bytes([number, 100, 200]) * (320 * 240)


def test_the_nightly_check_is_silent_until_a_backup_changes(kitchen: Kitchen) -> None:
    backups = kitchen.folder("backups")
    for name in ("mail.tar.gz", "photos.tar.gz", "home directory.tar.gz"):
        content = name.encode() * 1_000
        (backups / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        (backups / f"{name}.sha256").write_text(f"{digest}  {name}\n")
    night = f"sh {SHARE}/backups/check"
    done = kitchen.shell(night)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert kitchen.devices_of(rows(backups / "checked.jsonl")) <= DEVICES
    with (backups / "photos.tar.gz").open("r+b") as file:
        file.seek(700)
        file.write(b"\xff")
    done = kitchen.shell(night)
    assert done.returncode == 1
    (told,) = done.stdout.splitlines()
    assert "photos.tar.gz: FAILED" in json.loads(told)["result_data"]["stdout"]
    assert "1 of 3 did not succeed" in done.stderr


def test_the_sweep_finds_the_curve(kitchen: Kitchen) -> None:
    fit, _ = of("A parameter sweep in Python", "python")
    said = python(fit.at(kitchen.cluster.rest.port))
    assert re.fullmatch(r"a = 72, b = 0\.055, squared error 0\.\d\d\n", said), said


def test_the_sweep_by_a_script_gives_a_line_for_each_value_in_order(kitchen: Kitchen) -> None:
    (block,) = of("A parameter sweep in Python", "bash")
    done = kitchen.shell(block.text)
    assert done.returncode == 0, done.stderr
    found = rows(kitchen.share / "sweep" / "results.jsonl")
    assert [row["line"] for row in found] == list(range(1, 27))
    errors = [float(row["result_data"]["stdout"]) for row in found]
    assert 60 + errors.index(min(errors)) == 72


class _Site(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        """Says nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    """A web site that answers `/CODE` with that status."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_sites_that_do_not_answer_200_are_told(kitchen: Kitchen, site: str) -> None:
    sites = kitchen.folder("sites")
    gone = "http://127.0.0.1:9/"
    # A device that may not look at private addresses is asked too, unless a tag says where from.
    watch = (sites / "watch").read_text()
    from_share = watch.replace("--priority", "--require required_tags=share --priority")
    (sites / "watch").write_text(from_share)
    (sites / "sites.txt").write_text(f"{site}/200\n{site}/503\n")
    done = kitchen.shell(f"sh {SHARE}/sites/watch")
    assert (done.stdout, done.stderr) == (f"{site}/503 503\n", "")
    (sites / "sites.txt").write_text(f"{site}/200\n{gone}\n")
    done = kitchen.shell(f"sh {SHARE}/sites/watch")
    assert done.stdout.startswith(f"{gone} cannot connect to {gone}: ")
    assert done.stdout.count("\n") == 1


def test_what_cron_is_told_to_run_is_there(kitchen: Kitchen) -> None:
    tables = [block for block in BLOCKS if block.language == "crontab"]
    assert len(tables) == 2
    for table in tables:
        path, job = table.text.splitlines()
        assert path.startswith("PATH=/")
        fields = job.split()
        assert all(re.fullmatch(r"[\d*/]+", field) for field in fields[:5])
        assert fields[5] == "sh"
        assert Path(kitchen.here(fields[6])).is_file()


def test_every_block_of_the_cookbook_is_run_here() -> None:
    run = [
        *of("Transcode a folder", "bash"),
        *of("Thumbnails of photos", "bash"),
        *of("A parameter sweep in Python", "bash"),
        of("A parameter sweep in Python", "python")[0],
    ]
    left = [b.name for b in BLOCKS if b not in run and not file_of(b) and b.language != "crontab"]
    assert left == []
    kept = {file_of(block) for block in BLOCKS} - {""}
    assert kept == {
        "worker.toml", "each.py", "backups/check", "sweep/model.py", "sites/watch",
        "sites/report.py",
    }  # fmt: skip
