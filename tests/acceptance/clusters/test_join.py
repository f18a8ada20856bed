"""A device joins an encrypted cluster with one pasted line, as real processes and machines."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retire_cluster.cli.joining.server import JoinServer
from retire_cluster.conf import joining
from tests.acceptance.kit import Cluster, run
from tests.command_kit import COMMAND, plain_environment, until

MINUTES = 120.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("join"), "--no-rate-limit", "--workers", "0")
    try:
        yield found
    finally:
        assert found.close() == 0


def line(cluster: Cluster, *flags: str) -> str:
    """A join string of `token create`."""
    data = ("--data-dir", str(cluster.data_dir))
    done = run("token", "create", "--host", "127.0.0.1", *flags, *data)
    assert done.returncode == 0, done.stderr
    found = re.search(r"retire-cluster-worker --join (rc1\.\S+)$", done.stdout.strip())
    assert found, done.stdout
    return found[1]


@contextlib.contextmanager
def worker(
    folder: Path, *flags: str, after: str = "", away_from_home: bool = True
) -> Iterator[Callable[[], str]]:
    """A worker process; what it said. Waits for a text of its log first."""
    log = folder.with_suffix(".log")
    more = {"HOME": str(folder)} if away_from_home else {}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*COMMAND, "worker", "--data-dir", str(folder), *flags],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=plain_environment(**more),
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while after and after not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield log.read_text
    finally:
        process.terminate()
        process.wait(20)


def test_a_pasted_line_joins_once_and_the_device_comes_back_without_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "laptop"
    word = line(cluster)
    with worker(folder, "--join", word, "--device-id", "laptop", after="joined "):
        task_id = cluster.rest.submit("echo", {"from": "afar"})
        assert cluster.rest.result(task_id)["worker_device_id"] == "laptop"
    if os.name == "posix":
        assert (folder / "device.key").stat().st_mode & 0o777 == 0o600
    assert "rc1." not in (folder / "device.key").read_text()
    with worker(folder, "--device-id", "laptop", after="joined "):
        pass
    # The same line again: it has been used, and is not needed.
    with worker(folder, "--join", word, "--device-id", "laptop", after="joined "):
        pass


def test_a_line_that_was_used_up_says_so_and_what_to_do(cluster: Cluster, tmp_path: Path) -> None:
    word = line(cluster)
    with worker(tmp_path / "first", "--join", word, after="joined "):
        done = run("worker", "--join", word, "--data-dir", str(tmp_path / "second"))
    assert done.returncode == 2
    assert "refuses the join token" in done.stderr
    assert "retire-cluster token create" in done.stderr


def test_a_revoked_line_lets_nobody_in_and_a_test_does_not_use_it_up(
    cluster: Cluster, tmp_path: Path
) -> None:
    word = line(cluster, "--note", "to be revoked")
    data = ("--data-dir", str(cluster.data_dir))
    for _ in range(2):
        tried = run("worker", "--join", word, "--test", "--data-dir", str(tmp_path / "box"))
        assert tried.returncode == 0
        assert "takes this join token" in tried.stdout
    listed = json.loads(run("token", "ls", "--json", *data).stdout)["data"]
    (token_id,) = [t["token_id"] for t in listed if t["note"] == "to be revoked"]
    assert run("token", "revoke", token_id, *data).returncode == 0
    refused = run("worker", "--join", word, "--test", "--data-dir", str(tmp_path / "box"))
    assert refused.returncode == 2
    assert "refuses this join token" in refused.stdout


def test_a_test_on_the_main_nodes_own_machine_leaves_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    port = cluster.endpoints()["main"]["worker_port"]
    join = ("--join", f"127.0.0.1:{port}", "--device-id", "only-looks")
    tried = run("worker", *join, "--test", "--data-dir", str(tmp_path / "box"))
    assert (tried.returncode, "takes this device" in tried.stdout) == (0, True), tried.stdout
    assert not (tmp_path / "box" / "device.key").exists()
    assert cluster.rest.ask("GET", "/api/v1/devices/only-looks").status == 404
    assert "only-looks" not in {event.get("device_id") for event in cluster.rest.events()}


def test_a_mistyped_line_is_one_line_with_the_cure(cluster: Cluster, tmp_path: Path) -> None:
    done = run("worker", "--join", line(cluster)[:-3], "--data-dir", str(tmp_path / "box"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cut or mistyped" in done.stderr


def test_a_bare_address_from_another_user_is_told_that_a_line_is_needed(
    cluster: Cluster, tmp_path: Path
) -> None:
    port = cluster.endpoints()["main"]["worker_port"]
    needs = "asks for a join string: run `retire-cluster token create`"
    with worker(tmp_path / "box", "--join", f"127.0.0.1:{port}", after=needs) as said:
        assert "joined " not in said()


def test_a_worker_of_the_same_user_on_this_machine_needs_no_line(
    cluster: Cluster, tmp_path: Path
) -> None:
    port = cluster.endpoints()["main"]["worker_port"]
    join = ("--join", f"127.0.0.1:{port}", "--device-id", "neighbour")
    with worker(tmp_path / "box", *join, after="joined ", away_from_home=False):
        cluster.rest.await_online("neighbour")
    data = ("--data-dir", str(cluster.data_dir))
    assert run("devices", "rm", "neighbour", *data).returncode == 0
    # Once removed it is told so, and keeps no key that would be refused for good.
    anew = tmp_path / "anew"
    done = run("worker", *join, "--data-dir", str(anew))
    assert (done.returncode, "was removed" in done.stderr) == (2, True), done.stderr
    assert not (anew / "device.key").exists()
    assert run("devices", "readmit", "neighbour", *data).returncode == 0
    with worker(anew, *join, after="joined ", away_from_home=False):
        cluster.rest.await_online("neighbour")


def test_a_removed_device_leaves_and_a_new_line_brings_it_back(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder, data = tmp_path / "box", ("--data-dir", str(cluster.data_dir))
    flags = ("--device-id", "prodigal")
    with worker(folder, "--join", line(cluster), *flags, after="joined "):
        assert run("devices", "rm", "prodigal", *data).returncode == 0
        until(lambda: "prodigal" not in cluster.rest.online(), "it to be gone")
    done = run("worker", "--data-dir", str(folder), *flags)
    assert done.returncode == 4
    with worker(folder, "--join", line(cluster), *flags, after="joined "):
        cluster.rest.await_online("prodigal")


def test_an_admin_key_opens_the_cluster_from_elsewhere_until_it_is_revoked(
    cluster: Cluster, tmp_path: Path
) -> None:
    data = ("--data-dir", str(cluster.data_dir))
    made = run("admin-key", "create", "ann", "--out", str(tmp_path / "ann.key"), *data)
    assert made.returncode == 0, made.stderr
    port = str(cluster.endpoints()["main"]["admin_port"])
    home = str(tmp_path / "home")
    flags = ("--cluster-port", port, "--cluster-key", str(tmp_path / "ann.key"))
    assert run("status", *flags, HOME=home).returncode == 0
    without = run("status", "--cluster-port", port, HOME=home)
    assert without.returncode == 3
    assert "asks for a key" in without.stderr
    assert run("admin-key", "revoke", "ann", *data).returncode == 0
    revoked = run("status", *flags, HOME=home)
    assert revoked.returncode == 3
    assert "does not know this key" in revoked.stderr


def test_api_keys_are_made_listed_with_their_last_use_and_revoked_at_once(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "--auth", "--no-rate-limit", "--workers", "0")
    data = ("--data-dir", str(cluster.data_dir))
    try:
        made = run("keys", "create", "--scope", "read", "--note", "wall display", *data)
        assert made.returncode == 0, made.stderr
        key = made.stdout.strip()
        headers = {"X-API-Key": key}
        assert cluster.rest.ask("GET", "/api/v1/config", headers=headers).status == 200
        changed = cluster.rest.ask("PUT", "/api/v1/config/heartbeat", {}, headers=headers)
        assert (changed.status, changed.code) == (403, "FORBIDDEN")
        task = {"task_type": "command", "payload": {"command": ["true"]}}
        refused = cluster.rest.ask("POST", "/api/v1/tasks", task, headers=headers)
        assert (refused.status, refused.code) == (403, "FORBIDDEN")
        stored = (cluster.data_dir / "api-keys.json").read_text()
        assert key not in stored

        def listed() -> dict[str, str]:
            rows = json.loads(run("keys", "ls", "--json", *data).stdout)["data"]
            (row,) = [row for row in rows if row["note"] == "wall display"]
            found: dict[str, str] = row
            return found

        until(lambda: listed()["last_used_at"], "its last use to be known")
        assert run("keys", "revoke", listed()["key_id"], *data).returncode == 0
        gone = cluster.rest.ask("GET", "/api/v1/config", headers=headers)
        assert (gone.status, gone.code) == (401, "UNAUTHORIZED")
        assert run("keys", "revoke", "nobody", *data).returncode == 5
    finally:
        assert cluster.close() == 0


# --- three machines ------------------------------------------------------------------------------

_NAMES = ("rcmain", "rcdev", "rcevil")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[Callable[..., list[str]]]:
    """Three network namespaces on one bridge, 10.77.0.1 to .3: how to run a command in one."""
    if sys.platform != "linux" or not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("network namespaces need Linux, iproute2 and root")
    made: list[str] = []
    tag = f"{os.getpid() % 10_000}"
    try:
        try:
            _ip("link", "add", f"rcb{tag}", "type", "bridge")
            _ip("link", "set", f"rcb{tag}", "up")
            for number, name in enumerate(_NAMES, 1):
                space = f"{name}{tag}"
                _ip("netns", "add", space)
                made.append(space)
                _ip("link", "add", f"rc{tag}v{number}", "type", "veth", "peer", "name",
                    "eth0", "netns", space)  # fmt: skip
                _ip("link", "set", f"rc{tag}v{number}", "master", f"rcb{tag}", "up")
                for words in (
                    ("link", "set", "lo", "up"),
                    ("addr", "add", f"10.77.0.{number}/24", "dev", "eth0"),
                    ("link", "set", "eth0", "up"),
                    ("route", "add", "default", "via", "10.77.0.254"),
                ):
                    _ip("-n", space, *words)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")

        def on(name: str, *command: str) -> list[str]:
            return ["ip", "netns", "exec", f"{name}{tag}", *command]

        yield on
    finally:
        for space in made:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", f"rcb{tag}"], check=False, capture_output=True)


@pytest.mark.slow
def test_a_line_that_was_mailed_lets_a_device_in_after_up_was_started_again(
    machines: Callable[..., list[str]], tmp_path: Path
) -> None:
    environ = plain_environment(HOME=str(tmp_path))
    del environ["RETIRE_CLUSTER_SERVER_WORKER_HOST"]
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str, log: Path, *words: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as out:
            command = machines(name, *COMMAND, *words)
            running.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ
                )
            )
        return running[-1]

    def printed(log: Path, pattern: str) -> str:
        until(lambda: re.search(pattern, log.read_text(), re.MULTILINE), f"{pattern} in {log}")
        found = re.search(pattern, log.read_text(), re.MULTILINE)
        assert found
        return found[0]

    words = ("up", "--data-dir", str(tmp_path / "main"), "--workers", "0")
    try:
        lines = []
        for number in range(2):
            log = tmp_path / f"up-{number}.log"
            up = start("rcmain", log, *words)
            lines.append(printed(log, r"(?<=-worker --join )rc1\.\S+$"))
            if not number:
                up.terminate()
                assert up.wait(20) == 0
        assert lines[0] != lines[1]
        for number, word in enumerate(lines):
            log = tmp_path / f"laptop-{number}.log"
            folder = str(tmp_path / f"laptop-{number}")
            start("rcdev", log, "worker", "--join", word, "--data-dir", folder)
            printed(log, "joined 10.77.0.1:8082")
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(20)


@pytest.mark.slow
def test_up_on_one_machine_the_line_pasted_on_another_and_a_stranger_gets_nothing(
    machines: Callable[..., list[str]], tmp_path: Path
) -> None:
    began = time.monotonic()
    environ = plain_environment(HOME=str(tmp_path / "main-home"))
    del environ["RETIRE_CLUSTER_SERVER_WORKER_HOST"]
    log = tmp_path / "up.log"
    data = tmp_path / "main"
    running: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], to: Path, **more: str) -> subprocess.Popen[bytes]:
        with to.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**environ, **more}
            )
        running.append(process)
        return process

    def wait(path: Path, pattern: str) -> re.Match[str]:
        while True:
            found = re.search(pattern, path.read_text(), re.MULTILINE)
            if found:
                return found
            assert time.monotonic() - began < MINUTES, path.read_text()
            time.sleep(0.05)

    try:
        start(machines("rcmain", *COMMAND, "up", "--data-dir", str(data), "--workers", "0"), log)
        word = wait(log, r"retire-cluster-worker --join (rc1\.\S+)$")[1]
        capture = tmp_path / "wire.bin"
        sniffer = start(
            machines("rcmain", sys.executable, str(Path(__file__).with_name("sniff.py"))), capture
        )
        laptop = tmp_path / "laptop.log"
        start(
            machines("rcdev", *COMMAND, "worker", "--join", word, "--device-id", "laptop",
                     "--data-dir", str(tmp_path / "laptop")),
            laptop, HOME=str(tmp_path / "laptop-home"),
        )  # fmt: skip
        wait(laptop, "joined 10.77.0.1:8082 as laptop")
        done = subprocess.run(
            machines("rcmain", *COMMAND, "submit", "echo", "canary=wire-canary", "--wait",
                     "--data-dir", str(data)),
            env=environ, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert "wire-canary" in done.stdout
        assert time.monotonic() - began < MINUTES
        stranger = tmp_path / "stranger.log"
        start(
            machines("rcevil", *COMMAND, "worker", "--join", "10.77.0.1", "--device-id", "evil",
                     "--data-dir", str(tmp_path / "evil")),
            stranger, HOME=str(tmp_path / "evil-home"),
        )  # fmt: skip
        wait(stranger, "asks for a join string")
        listed = subprocess.run(
            machines("rcmain", *COMMAND, "devices", "ls", "--json", "--data-dir", str(data)),
            env=environ, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert [d["device_id"] for d in json.loads(listed.stdout)["data"]] == ["laptop"]
        for port in (8080, 8083, 8081):
            dial = f"import socket; socket.create_connection(('10.77.0.1', {port}), 2)"
            knock = machines("rcevil", sys.executable, "-c", dial)
            assert subprocess.run(knock, capture_output=True, check=False).returncode != 0
        sniffer.terminate()
        sniffer.wait(10)
        seen = capture.read_bytes()
        assert len(seen) > 1_000, "nothing was captured"
        assert b"CURVE" in seen, "the handshake crossed this wire"
        for canary in (b"wire-canary", b"laptop", b"HELLO\x00", b"ASSIGN", b"echo"):
            assert canary not in seen
    finally:
        for process in reversed(running):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)


# --- a device with nothing but Python ------------------------------------------------------------


@pytest.mark.slow
def test_a_device_with_nothing_but_python_joins_by_one_line(
    cluster: Cluster, tmp_path: Path
) -> None:
    server = JoinServer("127.0.0.1", 0, "127.0.0.1", tmp_path / "wheels")
    process = None
    log = tmp_path / "bare.log"
    try:
        where = joining.InstallerAddress(server.port, server.sha256)
        pasted = joining.one_line(where, "127.0.0.1", line(cluster))
        found = re.fullmatch(r'echo (rc1\.\S+) \| python3 (-c "[^"]+")', pasted)
        assert found, pasted
        command = [sys.executable, *shlex.split(found[2]), "--device-id", "bare"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=out,
                env=plain_environment(HOME=str(tmp_path / "home")), cwd=tmp_path,
            )  # fmt: skip
            assert process.stdin is not None
            process.stdin.write(found[1].encode() + b"\r\n")
            process.stdin.close()
        deadline = time.monotonic() + MINUTES
        while "joined " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        task_id = cluster.rest.submit("echo", {"n": 1})
        assert cluster.rest.result(task_id)["worker_device_id"] == "bare"
        wrong = [word.replace(server.sha256, "0" * 64) for word in command]
        refused = subprocess.run(
            wrong, input="rc1.word", capture_output=True, text=True, check=False, timeout=60,
            env=plain_environment(PYTHONOPTIMIZE="1"),
        )  # fmt: skip
        assert refused.returncode != 0
        assert "join.py was changed on its way" in refused.stderr
    finally:
        server.close()
        if process is not None:
            process.terminate()
            process.wait(20)
