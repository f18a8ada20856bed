"""What makes a device with nothing but Python a worker."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

from retire_cluster.cli.joining import join_script, wheel
from retire_cluster.cli.joining import server as join_server
from retire_cluster.conf import joining
from retire_cluster.conf.joining import InstallerAddress

SHA = "ab" * 32


def test_the_wheel_is_what_runs_here_and_always_the_same() -> None:
    name, content = wheel.build()
    assert (name, content) == wheel.build()
    version = importlib.metadata.version("retire-cluster")
    assert name == f"retire_cluster-{version}-py3-none-any.whl"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        record = archive.read(f"retire_cluster-{version}.dist-info/RECORD").decode()
        assert len(record.splitlines()) == len(names)
        here = Path(wheel.__file__).read_bytes()
        assert archive.read("retire_cluster/cli/joining/wheel.py") == here
    assert {"retire_cluster/node/cli.py", "retire_cluster/api/ui/index.html"} <= set(names)
    assert not [one for one in names if "__pycache__" in one]


def test_the_script_knows_where_it_came_from_and_what_to_expect() -> None:
    kept = {"a-1-py3-none-any.whl": "cd" * 32}
    text = join_server.script("http://192.0.2.7:8084", "x.whl", SHA, kept).decode()
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    (listed,) = [node for node in ast.parse(text).body if isinstance(node, ast.AnnAssign)]
    assert listed.value is not None
    assert ast.literal_eval(listed.value) == kept
    lock = Path(join_server.__file__).with_name("device.lock").read_text("utf-8")
    assert values["LOCK"] == lock
    assert "://" not in lock
    assert (values["BASE"], values["WHEEL"]) == ("http://192.0.2.7:8084", "x.whl")
    assert values["SHA256"] == SHA


def test_the_script_needs_nothing_but_the_standard_library_and_parses_on_old_pythons() -> None:
    text = Path(join_script.__file__).read_text("utf-8")
    tree = ast.parse(text, feature_version=(3, 7))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    assert found <= {
        "contextlib",
        "hashlib",
        "os",
        "shutil",
        "subprocess",
        "sys",
        "sysconfig",
        "tempfile",
        "typing",
        "urllib",
    }


@pytest.mark.parametrize("version", [(3, 10), (3, 13, 1), (4, 0)])
def test_a_python_that_is_new_enough_goes_on(version: tuple[int, ...]) -> None:
    join_script.check_python(version, lambda name: None)


def test_an_old_python_names_a_newer_one_or_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(join_script.Stop, match=r"this is Python 3\.8.* with python3\.11 in place"):
        join_script.check_python((3, 8, 1), lambda name: name == "python3.11")
    with pytest.raises(join_script.Stop, match=r"python\.org"):
        join_script.check_python((3, 6), lambda name: None)
    monkeypatch.setenv("PREFIX", "/data/data/com.termux/files/usr")
    with pytest.raises(join_script.Stop, match="pkg install python"):
        join_script.check_python((3, 9), lambda name: None)


@pytest.mark.parametrize("host", ["192.0.2.7", "fe80::1"])
def test_the_line_is_pasteable_everywhere_and_no_command_line_has_the_join_string(
    host: str,
) -> None:
    line = joining.one_line(InstallerAddress(8084, SHA), host, "rc1.abc")
    found = re.fullmatch(r'echo rc1\.abc \| python3 -c "([^"$`\\|]+)"', line)
    assert found, "the quotes of sh, cmd and PowerShell hold it together"
    compile(found[1], "line", "exec")
    assert SHA in found[1]
    assert "rc1" not in found[1]


@pytest.mark.parametrize(
    "sent", [b"rc1.abc\n", b"\xef\xbb\xbfrc1.abc \r\nmore", b"rc1.abc", b'"rc1.abc"\r\n']
)
def test_the_join_line_is_read_as_each_shell_sends_it(
    sent: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(sent)
    with (tmp_path / "in").open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert join_script.join_line(["--slots", "2"]) == ("rc1.abc", ["--slots", "2"])
    assert join_script.join_line(["rc1.x", "--slots"]) == ("rc1.x", ["--slots"])
    with Path(os.devnull).open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(join_script.Stop, match="give the join line"):
            join_script.join_line([])


def test_only_wheels_that_fit_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["pyzmq-27.0-cp312-abi3-manylinux2014_x86_64.manylinux_2_28_x86_64.whl",
             "pyzmq-27.0-cp39-cp39-win32.whl", "simple_eval-1-py3-none-any.whl"]  # fmt: skip
    monkeypatch.setattr(join_script, "KEPT", dict.fromkeys(names, SHA))
    tags = {"cp312-abi3-manylinux_2_28_x86_64", "py3-none-any"}
    asked = ["pyzmq", "simple-eval", "urllib3"]
    assert join_script.kept_wheels(asked, tags) == {
        "pyzmq": names[:1], "simple-eval": names[2:], "urllib3": [],
    }  # fmt: skip
    assert join_script.kept_wheels(["pyzmq"]) == {"pyzmq": names[:2]}
    found = join_script.tags_of(sys.executable)
    assert found is not None
    assert "py3-none-any" in found


def test_the_lock_is_cut_to_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Path(join_server.__file__).with_name("device.lock").read_text("utf-8")
    monkeypatch.setattr(join_script, "LOCK", lock)
    found = join_script.locked(["pyzmq", "tomli"])
    assert re.findall("^[A-Za-z0-9]+", found, re.MULTILINE) == ["pyzmq", "tomli"]
    assert found.count("--hash=sha256:") > 20
    more = join_script.locked(list(join_script.MORE))
    assert set(re.findall("^[A-Za-z0-9]+", more, re.MULTILINE)) == {
        "orjson",
        "psutil",
        "cloudpickle",
    }


def test_a_wheel_that_is_put_there_later_is_in_new_lines_and_old_lines_keep_working(
    tmp_path: Path,
) -> None:
    kept = tmp_path / "wheels"
    server = join_server.JoinServer("127.0.0.1", 0, "127.0.0.1", kept)
    try:
        old, script = server.sha256, server.script
        assert not server.refresh()
        kept.mkdir()
        (kept / "a-1-py3-none-any.whl").write_bytes(b"a")
        assert server.refresh()
        assert server.sha256 != old
        assert hashlib.sha256(b"a").hexdigest().encode() in server.script
        url = f"http://127.0.0.1:{server.port}/join.py"
        for asked, expected in ((old, script), (server.sha256, server.script), ("", server.script)):
            with urllib.request.urlopen(f"{url}?{asked}") as answer:
                assert answer.read() == expected
        (kept / "a-1-py3-none-any.whl").write_bytes(b"b")
        assert server.refresh()
        assert hashlib.sha256(b"b").hexdigest().encode() in server.script
    finally:
        server.close()


def test_where_it_is_served_is_read_back_or_nowhere(tmp_path: Path) -> None:
    assert joining.find(tmp_path) is None
    path = joining.path_of(tmp_path)
    path.parent.mkdir()
    path.write_text("{")
    assert joining.find(tmp_path) is None
    described = '{"pid": %d, "port": 8084, "sha256": "x"}'
    path.write_text(described % os.getpid())
    assert joining.find(tmp_path) == (8084, "x")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path.write_text(described % gone.pid)
    assert joining.find(tmp_path) is None


def test_only_its_own_files_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "wheels"
    kept.mkdir()
    (kept / "pyzmq-1-py3-none-any.whl").write_bytes(b"kept")
    (kept / "notes.txt").write_text("private")
    (tmp_path / "secret.whl").write_text("private")
    server = join_server.JoinServer("127.0.0.1", 0, "127.0.0.1", kept)
    try:
        monkeypatch.setattr(join_script, "BASE", f"http://127.0.0.1:{server.port}")
        assert join_script.fetch("/join.py", server.sha256) == server.script
        with urllib.request.urlopen(f"{join_script.BASE}/wheels/") as answer:
            listing = answer.read().decode()
        assert "pyzmq-1-py3-none-any.whl" in listing
        assert "notes" not in listing
        digest = hashlib.sha256(b"kept").hexdigest()
        assert join_script.fetch("/wheels/pyzmq-1-py3-none-any.whl", digest) == b"kept"
        for path in (
            "/",
            "/wheels/notes.txt",
            "/wheels/../secret.whl",
            "/wheels/%2e%2e/secret.whl",
        ):
            with pytest.raises(join_script.Stop, match="404"):
                join_script.fetch(path, digest)
        with pytest.raises(join_script.Stop, match="changed on its way"):
            join_script.fetch("/wheels/pyzmq-1-py3-none-any.whl", SHA)
    finally:
        server.close()


def run_script(server: join_server.JoinServer, home: Path, *words: str) -> tuple[int, str, str]:
    """The installer as a device gets it, where no package index answers."""
    script = home / "join.py"
    script.write_bytes(server.script)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "RETIRE_"))}
    with socket.create_server(("127.0.0.1", 0)) as found:
        nobody = found.getsockname()[1]
    environ |= {
        "RETIRE_CLUSTER_HOME": str(home / "made"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"http://127.0.0.1:{nobody}/simple/",
        "NO_PROXY": "*",
    }
    done = subprocess.run(
        [sys.executable, str(script), *words], env=environ, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["rc1.abc", "--help"]])
def test_help_only_helps(tmp_path: Path, words: list[str]) -> None:
    server = join_server.JoinServer("127.0.0.1", 0, "127.0.0.1", tmp_path / "wheels")
    try:
        code, out, err = run_script(server, tmp_path, *words)
    finally:
        server.close()
    assert (code, err) == (0, "")
    assert out.startswith("usage: join.py JOIN")
    assert not (tmp_path / "made").exists()


def test_without_an_index_and_without_wheels_one_line_says_at_once_what_to_put_where(
    tmp_path: Path,
) -> None:
    server = join_server.JoinServer("127.0.0.1", 0, "127.0.0.1", tmp_path / "wheels")
    began = time.monotonic()
    try:
        code, _, err = run_script(server, tmp_path, "rc1.abc")
    finally:
        server.close()
    assert code == 2
    assert err.count("\n") == 1, err
    assert "DATA_DIR/wheels on the main node" in err
    assert f"--python-version {sys.version_info[0]}.{sys.version_info[1]}" in err
    assert "pyzmq simpleeval urllib3" in err
    assert time.monotonic() - began < 20
    assert not (tmp_path / "made").exists(), "nothing was made for nothing"


@pytest.mark.slow
def test_wheels_that_do_not_fit_are_told_instead_of_a_trace(tmp_path: Path) -> None:
    kept = tmp_path / "wheels"
    kept.mkdir()
    for name in join_script.libraries():
        (kept / f"{name}-1-cp27-cp27m-win32.whl").write_bytes(b"")
    server = join_server.JoinServer("127.0.0.1", 0, "127.0.0.1", kept)
    try:
        code, _, err = run_script(server, tmp_path, "rc1.abc")
    finally:
        server.close()
    assert code == 2
    last = err.splitlines()[-1]
    assert "do not fit this device" in last
    assert "DATA_DIR/wheels" in last
    assert "ERROR" not in err
