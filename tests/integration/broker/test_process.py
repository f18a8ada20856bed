"""`retire-cluster-main` as a process: how it starts, refuses to start, is killed, and runs full."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.broker.client import AdminClient
from retire_cluster.broker.core.records.event_log import EPOCH_STEP
from retire_cluster.schemas import errors
from retire_cluster.schemas.protocol import messages as msg
from tests.integration.main_kit import (
    PATIENCE_SECONDS,
    MainProcess,
    RawDevice,
    eventually,
    quiet_environment,
)

Start = Callable[..., MainProcess]
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prlimit")
#: More by `RETIRE_CLUSTER_TEST_KILLS=200`.
KILLS = int(os.environ.get("RETIRE_CLUSTER_TEST_KILLS") or 20)


def refused(main: MainProcess) -> str:
    """The one line of a main node that does not start."""
    code = main.process.wait(PATIENCE_SECONDS)
    said = main.said()
    assert code == 2, said
    assert "Traceback" not in said
    lines = said.splitlines()
    assert len(lines) == 1, said
    assert lines[0].startswith("retire-cluster-main: ")
    return lines[0]


# --- starting and stopping -----------------------------------------------------------------------


def test_it_announces_its_ports_serves_and_stops_cleanly(start_main: Start) -> None:
    main = start_main()
    client = main.ready()
    print(f"started after {time.monotonic() - main.began:.2f} s")
    info = client.call("broker.info")
    assert info["pid"] == main.process.pid
    assert info["admin_port"] == main.ports["admin_port"]
    assert info["store"] == "sqlite"
    assert client.call("health")["components"]["task_scheduler"] == "healthy"
    (task_id,) = client.call("task.submit", {"task": {"task_type": "echo"}}, [b"{}"])["task_ids"]
    assert main.end() == 0
    assert not (main.folder / "run" / "main.json").exists()
    assert "Traceback" not in main.said()
    again = start_main()
    client = again.ready()
    assert client.call("task.status", {"task_id": task_id})["status"] == "queued"
    assert client.call("broker.info")["epoch"] >= info["epoch"] + EPOCH_STEP


def test_what_is_not_kept_is_forgotten(start_main: Start) -> None:
    first = start_main("--store", "memory://")
    first.ready().call("task.submit", {"task": {"task_type": "echo"}}, [b"{}"])
    first.end()
    found = start_main("--store", "memory://").ready().call("cluster.status")
    assert found["tasks"]["queued"] == 0


def test_a_second_main_node_on_the_same_folder_exits_2_with_one_line(start_main: Start) -> None:
    first = start_main()
    client = first.ready()
    line = refused(start_main())
    assert f"already runs with this data folder (process {first.process.pid})" in line
    assert "--data-dir" in line
    assert client.call("health")


@pytest.mark.parametrize("blocked", ["run", "main.lock", "cluster.db"])
def test_what_cannot_be_used_is_named_by_its_path(
    start_main: Start, tmp_path: Path, blocked: str
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / blocked).touch() if blocked == "run" else (folder / blocked).mkdir()
    line = refused(start_main("--data-dir", str(folder)))
    assert str(folder / blocked) in line


def test_a_port_that_is_taken_is_one_line(start_main: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for flag in ("--port", "--worker-port", "--event-port"):
            line = refused(start_main(flag, str(port)))
            assert f"cannot listen on 127.0.0.1:{port}: another program uses that port" in line


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[server", "main.toml"),
        ("[server]\nprot = 1\n", "server.prot"),
        ("[nonsense]\na = 1\n", "nonsense"),
        ("[server]\nmax_connections = 'x'\n", "server.max_connections"),
        ("[heartbeat]\ninterval = 0\n", "heartbeat.interval"),
        ("[heartbeat]\ntimeout = 2\n", "heartbeat.timeout"),
        ("[database]\nurl = 'postgres://x'\n", "postgres://x"),
    ],
)
def test_a_bad_settings_file_is_one_line_naming_the_setting(
    start_main: Start, tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "main.toml"
    path.write_text(text)
    assert complaint in refused(start_main("--config", str(path)))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--config", "missing.toml"), "missing.toml"),
        (("--port", "70000"), "server.port"),
        (("--host", "0.0.0.0"), "listen elsewhere only encrypted"),
        (("--worker-host", "0.0.0.0"), "add --insecure"),
        (("--host", "203.0.113.1"), "beyond this machine"),
        (("--store", "nonsense://x"), "use sqlite:///FILE or memory://"),
        (("--store", "sqlite:////nowhere/at/all.db"), "cannot be used"),
    ],
)
def test_a_bad_flag_is_one_line(start_main: Start, flags: tuple[str, ...], complaint: str) -> None:
    assert complaint in refused(start_main(*flags))


def test_a_data_folder_that_cannot_be_used_is_one_line(start_main: Start, tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_text("")
    for folder in (file, file / "below"):
        line = refused(
            start_main(folder=folder) if folder == file else start_main("--data-dir", str(folder))
        )
        assert "cannot be used" in line
        assert "--data-dir" in line


@posix_only
def test_a_data_folder_of_somebody_else_is_one_line(start_main: Start, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0)
    # Imported first: whoever it becomes may not be able to read the program.
    program = (
        "import os, sys\n"
        "from retire_cluster.broker.cli import main\n"
        "import retire_cluster.broker.admin.cluster, retire_cluster.broker.admin.devices\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    tmp_path.chmod(0o755)
    try:
        line = refused(start_main("--store", "memory://", folder=folder, python=("-c", program)))
        assert "Permission denied" in line
    finally:
        folder.chmod(0o700)


def test_a_store_that_is_no_database_is_one_line(start_main: Start, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "cluster.db").write_bytes(b"something else " * 1_000)
    assert "is not a database" in refused(start_main())


def test_help_names_every_flag() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "retire_cluster.broker.cli", "--help"],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=quiet_environment(),
        check=True,
    )  # fmt: skip
    for flag in ("--host", "--port", "--worker-host", "--worker-port", "--event-port",
                 "--data-dir", "--store", "--config", "--insecure", "--debug"):  # fmt: skip
        assert flag in found.stdout


# --- killed at random moments --------------------------------------------------------------------


class Submitter(threading.Thread):
    """Submits without end; keeps a journal of what was acknowledged, synced before it goes on."""

    def __init__(self, journal: Path) -> None:
        super().__init__(name="submitter")
        self.journal = journal.open("a")
        self.acknowledged: list[str] = []
        #: The admin port of the main node that now runs.
        self.port = 0
        self.over = threading.Event()

    def run(self) -> None:
        client = AdminClient(timeout_seconds=0.5)
        while not self.over.is_set():
            if client.port != self.port:
                client.close()
                client = AdminClient(port=self.port, timeout_seconds=0.5)
            args = {"task": {"task_type": "echo"}, "count": 3, "brief": True}
            try:
                ids = client.call("task.submit", args, [b"{}"] * 3)["task_ids"]
            except errors.ClusterError:
                continue
            self.journal.write(json.dumps(ids) + "\n")
            self.journal.flush()
            os.fsync(self.journal.fileno())
            self.acknowledged += ids
        client.close()


@posix_only
def test_no_acknowledged_task_is_lost_by_kill_9(start_main: Start, tmp_path: Path) -> None:
    rng = random.Random(3)
    submitter = Submitter(tmp_path / "journal")
    lost: list[str] = []
    epochs: list[int] = []
    try:
        for _ in range(KILLS):
            main = start_main()
            epochs.append(main.ready().call("broker.info")["epoch"])
            before = len(submitter.acknowledged)
            submitter.port = main.ports["admin_port"]
            if not submitter.is_alive():
                submitter.start()
            eventually(lambda: len(submitter.acknowledged) > before, "a submission")  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.05))  # any moment will do
            main.end(kill=True)
        main = start_main()
        final = main.ready()
        submitter.over.set()
        submitter.join(PATIENCE_SECONDS)
        kept: set[str] = set()
        after: dict[str, Any] = {}
        while True:
            page = final.call("task.list", {"page_size": 100, **after})
            kept.update(item["task_id"] for item in page["items"])
            after = {"after": page["pagination"]["next_cursor"]}
            if after["after"] is None:
                break
        lost = [task_id for task_id in submitter.acknowledged if task_id not in kept]
        assert len(submitter.acknowledged) >= 3 * KILLS
        epochs.append(final.call("broker.info")["epoch"])
        assert len(epochs) == KILLS + 1
        assert all(b >= a + EPOCH_STEP for a, b in pairwise(epochs))
    finally:
        submitter.over.set()
        if submitter.is_alive():
            submitter.join(PATIENCE_SECONDS)
        submitter.journal.close()
    assert lost == []
    print(f"{KILLS} kills, {len(submitter.acknowledged)} acknowledged, none lost")


@posix_only
def test_a_result_acknowledged_before_a_kill_is_there_after_it(start_main: Start) -> None:
    main = start_main()
    client = main.ready()
    device = RawDevice(main.ports["worker_port"])
    device.join()
    (task_id,) = client.call("task.submit", {"task": {"task_type": "sleep"}}, [b"{}"])["task_ids"]
    device.finished(device.next_task()[0])
    device.expect(msg.FinishedAck)
    device.close()
    main.end(kill=True)
    client = start_main().ready()
    assert client.call("task.result", {"task_id": task_id})["result_data"] == {"ok": True}


# --- a disk that takes no more -------------------------------------------------------------------


@linux_only
def test_a_store_that_refuses_writes_is_answered_503_and_recovers_by_itself(
    start_main: Start,
) -> None:
    import resource  # not on every system

    main = start_main()
    client = main.ready()
    submit = {"task": {"task_type": "echo"}}
    (first,) = client.call("task.submit", submit, [b"{}"])["task_ids"]
    pid = main.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    # No file of that process may grow any more: what a full disk looks like to SQLite.
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4_096, hard))
    refusals = 0
    payload = b'{"a":"' + b"x" * 100_000 + b'"}'
    for _ in range(5):
        with pytest.raises(errors.ClusterUnavailable) as caught:
            client.call("task.submit", submit, [payload], timeout_seconds=10)
        assert caught.value.retry_after is not None
        refusals += "store" in caught.value.message
    assert refusals == 5
    assert main.process.poll() is None
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))

    def taken() -> list[str]:
        try:
            found: list[str] = client.call("task.submit", submit, [payload])["task_ids"]
        except errors.ClusterUnavailable:
            return []
        return found

    (second,) = eventually(taken, "a submission after the trouble")
    ids = [item["task_id"] for item in client.call("task.list")["items"]]
    assert ids == [second, first]
    eventually(
        lambda: "the state is read anew, clients are served again" in main.said(),
        "a log that says so",
    )
    assert "Traceback" not in main.said()


def test_too_little_free_space_refuses_new_tasks_only(start_main: Start, tmp_path: Path) -> None:
    path = tmp_path / "main.toml"
    path.write_text("[database]\nmin_free_percent = 0\n")
    main = start_main("--config", str(path))
    client = main.ready()
    (task_id,) = client.call("task.submit", {"task": {"task_type": "echo"}}, [b"{}"])["task_ids"]
    main.end()
    # No machine that runs tests has so much room.
    path.write_text("[database]\nmin_free_percent = 50\n")
    client = start_main("--config", str(path)).ready()

    def refusal() -> str:
        try:
            client.call("task.submit", {"task": {"task_type": "echo"}}, [b"{}"])
        except errors.QueueFull as error:
            return error.message
        return ""

    free = os.statvfs(tmp_path) if hasattr(os, "statvfs") else None
    if free is not None and free.f_bavail / free.f_blocks < 0.5:
        assert "database.min_free_percent" in eventually(refusal, "QUEUE_FULL")
    assert client.call("task.cancel", {"task_id": task_id})["status"] == "cancelled"
