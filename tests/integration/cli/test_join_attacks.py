"""A device that joins while a man in the middle answers for the main node or for the index."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import os
import subprocess
import sys
import sysconfig
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from retire_cluster.cli.joining import server as join_server
from retire_cluster.conf import curve, joining
from retire_cluster.conf.joining import InstallerAddress
from tests import ports

pytestmark = pytest.mark.skipif(
    os.name != "posix", reason="the device of these tests is a POSIX one"
)
LIBRARIES = ("pyzmq", "simpleeval", "urllib3", "tomli")


def wheel(name: str, version: str, content: str = "") -> tuple[str, bytes]:
    """A wheel that pip installs anywhere."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"stand_in_{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
        rows.append(f"{path},sha256={digest.rstrip('=')},{len(text)}")
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return f"{name}-{version}-py3-none-any.whl", packed.getvalue()


@contextmanager
def serving(files: Mapping[str, bytes], port: int = 0) -> Iterator[str]:
    """An HTTP server of whoever: path → content."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            body = files.get(path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "text/html" if path.endswith("/") else "text/plain")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Device:
    """A home in which the environment is there already, and installs go into a folder apart."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "made"
        self.target = folder / "installed"
        python = self.home / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
        (self.home / "venv" / "pyvenv.cfg").write_text(
            f"home = {os.path.dirname(os.path.realpath(sys.executable))}\n"
        )
        site = Path(sysconfig.get_path("purelib"))
        lib = self.home / "venv" / site.relative_to(sys.prefix)
        lib.parent.mkdir(parents=True)
        lib.symlink_to(site)

    def environ(self, index: str) -> dict[str, str]:
        """Of a process on it."""
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "RETIRE_"))}
        return {
            **plain, "RETIRE_CLUSTER_HOME": str(self.home), "PIP_TARGET": str(self.target),
            "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "NO_PROXY": "*",
            "PIP_NO_CACHE_DIR": "1", "HOME": str(self.home), "PIP_RETRIES": "0",
        }  # fmt: skip

    def run(self, script: bytes, index: str) -> tuple[int, str]:
        """The installer with a line that nobody made, so that its worker ends at once."""
        path = self.home / "join.py"
        path.write_bytes(script)
        done = subprocess.run(
            [sys.executable, str(path), "rc1." + "A" * 80], env=self.environ(index),
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    def installed(self) -> set[str]:
        """Distributions that were installed."""
        return {p.name.removesuffix(".dist-info") for p in self.target.glob("*.dist-info")}


NOWHERE = f"http://127.0.0.1:{1}/simple/"


class Middle:
    """A main node that keeps wheels, whose place on the wire somebody else takes."""

    def __init__(self, folder: Path) -> None:
        self.kept = folder / "wheels"
        self.kept.mkdir()
        for name in LIBRARIES:
            file, content = wheel(name, "30.0")
            (self.kept / file).write_bytes(content)
        server = join_server.JoinServer("127.0.0.1", 0, "127.0.0.1", self.kept)
        self.port, self.script = server.port, server.script
        own, content = server._wheel_name, server._wheel
        server.close()
        self.files = {f"/wheels/{p.name}": p.read_bytes() for p in self.kept.iterdir()}
        self.files[f"/wheels/{own}"] = content
        self.listed()

    def listed(self) -> None:
        """The list that names what there is now."""
        names = [path.rpartition("/")[2] for path in self.files if path.endswith(".whl")]
        links = "".join(f'<a href="{name}">{name}</a>\n' for name in names)
        self.files["/wheels/"] = f"<!doctype html>\n{links}".encode()


def test_a_kept_wheel_that_a_man_in_the_middle_changed_is_refused(tmp_path: Path) -> None:
    middle, device = Middle(tmp_path), Device(tmp_path)
    middle.files["/wheels/pyzmq-30.0-py3-none-any.whl"] = wheel("pyzmq", "30.0", "evil = 1")[1]
    with serving(middle.files, middle.port):
        code, said = device.run(middle.script, NOWHERE)
    assert device.installed() == set()
    assert code == 2
    assert "/wheels/pyzmq-30.0-py3-none-any.whl was changed on its way here" in said
    assert "nothing was installed" in said


def test_a_wheel_that_a_man_in_the_middle_added_is_not_looked_at(tmp_path: Path) -> None:
    middle, device = Middle(tmp_path), Device(tmp_path)
    for name in ("pyzmq", "psutil", "orjson"):
        file, content = wheel(name, "99.0", "evil = 1")
        middle.files[f"/wheels/{file}"] = content
    middle.listed()
    with serving(middle.files, middle.port):
        _, said = device.run(middle.script, NOWHERE)
    found = device.installed()
    assert "starting the worker" in said, said
    assert {"pyzmq-30.0", "simpleeval-30.0", "urllib3-30.0"} <= found
    assert not [name for name in found if name.endswith("-99.0")]


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (None, "gave another file than the one that this release was made with"),
        ("99.0", "does not have that version for this device"),
    ],
    ids=["another file", "only a newer one"],
)
def test_an_index_is_believed_by_the_hashes_of_the_lock_only(
    tmp_path: Path, version: str | None, told: str
) -> None:
    lock = Path(join_server.__file__).with_name("device.lock").read_text("utf-8")
    pinned = dict(line.partition(" ")[0].split("==") for line in lock.splitlines() if "==" in line)
    files = {}
    for name in LIBRARIES:
        file, content = wheel(name, version or pinned[name], "evil = 1")
        files[f"/files/{file}"] = content
        files[f"/simple/{name}/"] = f'<a href="/files/{file}">{file}</a>'.encode()
    server = join_server.JoinServer("127.0.0.1", 0, "127.0.0.1", tmp_path / "none")
    device = Device(tmp_path)
    try:
        with serving(files) as url:
            code, said = device.run(server.script, f"{url}/simple/")
    finally:
        server.close()
    assert device.installed() == set()
    assert code == 2
    assert told in said


# --- who sees the join line ----------------------------------------------------------------------


def word(port: int) -> str:
    """A join string for a port."""
    pair = curve.pair_of_token(b"\1" * 16)
    return curve.write_join(curve.Invitation("127.0.0.1", port, pair.public, b"\2" * 16))


def below(process: subprocess.Popen[bytes]) -> list[str]:
    """The command lines of a process and of all that it started."""
    try:
        whole = psutil.Process(process.pid)
        found = [whole, *whole.children(recursive=True)]
    except psutil.Error:
        return []
    lines = []
    for one in found:
        try:
            lines.append(" ".join(one.cmdline()))
        except psutil.Error:
            continue
    return lines


def end(process: subprocess.Popen[bytes]) -> None:
    for one in psutil.Process(process.pid).children(recursive=True):
        one.terminate()
    process.terminate()
    process.wait(20)


def test_no_process_of_a_pasted_line_shows_it(tmp_path: Path) -> None:
    middle, device = Middle(tmp_path), Device(tmp_path)
    server = InstallerAddress(middle.port, hashlib.sha256(middle.script).hexdigest())
    middle.files["/join.py"] = middle.script
    line = joining.one_line(server, "127.0.0.1", word(ports.free_port()))
    line = line.replace("python3", sys.executable) + f" --data-dir {tmp_path / 'w'}\n"
    log = tmp_path / "log"
    with serving(middle.files, middle.port), log.open("wb") as out:
        shell = subprocess.Popen(
            ["sh"], stdin=subprocess.PIPE, stdout=out, stderr=out, env=device.environ(NOWHERE)
        )
        assert shell.stdin is not None
        seen: set[str] = set()
        try:
            shell.stdin.write(line.encode())
            shell.stdin.flush()
            until = time.monotonic() + 60
            while not (tmp_path / "w" / "joining.key").exists():
                seen.update(below(shell))
                assert shell.poll() is None
                assert "retire-cluster-worker:" not in log.read_text(), log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.002)
            seen.update(below(shell))
        finally:
            end(shell)
            shell.stdin.close()
    assert any("worker --join - " in one for one in seen), seen
    assert not [one for one in seen if "rc1." in one]


def test_a_worker_takes_the_line_from_its_command_line(tmp_path: Path) -> None:
    join = word(ports.free_port())
    for words in (["worker", "--join", join], ["worker", f"--join={join}"], ["join", join]):
        folder = tmp_path / f"w{len(list(tmp_path.iterdir()))}"
        process = subprocess.Popen(
            [sys.executable, "-m", "retire_cluster.cli.main", *words, "--data-dir", str(folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until = time.monotonic() + 30
            while not (folder / "joining.key").exists():
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.01)
            assert "rc1." not in " ".join(below(process))
            assert psutil.Process(process.pid).environ().get("RETIRE_CLUSTER_WORKER_JOIN") is None
        finally:
            end(process)


def test_a_unit_has_no_join_line_and_its_file_is_its_owners(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("systemctl", "loginctl"):
        (tools / name).write_text("#!/bin/sh\nexit 0\n")
        (tools / name).chmod(0o755)
    join, data = word(8082), tmp_path / "data"
    environ = {**os.environ, "HOME": str(tmp_path), "PATH": f"{tools}:{os.environ['PATH']}"}

    def service(verb: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "retire_cluster.cli.main", "service", verb, "worker",
             "--data-dir", str(data), *words],
            env=environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    given = ("--", "--join", join, "--slots", "2")
    assert join not in service("install", "--dry-run", *given)
    if sys.platform != "linux":
        return
    service("install", *given)
    unit = tmp_path / ".config/systemd/user/retire-cluster-worker.service"
    assert "rc1." not in unit.read_text()
    assert f"--join-file {data}/join.line --slots 2" in unit.read_text()
    assert (data / "join.line").read_text().strip() == join
    assert (data / "join.line").stat().st_mode & 0o777 == 0o600
    service("uninstall")
    assert not (data / "join.line").exists()
