"""What is killed, taken away or silent: nothing acknowledged is lost, all recovers by itself."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from retire_cluster.cli.endpoints import pid_alive
from tests.acceptance.kit import Cluster, Process, Rest, all_gone, naming
from tests.command_kit import ANY_PORTS, COMMAND, TERMINAL, Answer, until
from tests.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL and SIGSTOP"),
]
QUICK = {"interval": 1, "max_missed": 1, "timeout": 2}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two local workers that notices silence quickly."""
    found = Cluster(
        tmp_path_factory.mktemp("failures"),
        *("--no-rate-limit", "--workers", "2", "--slots", "2"),
    )
    try:
        found.rest.put("/config/heartbeat", QUICK)
        done = found.cli("config", "set", "scheduler.retry_base_seconds=0.1")
        assert done.returncode == 0, done.stderr
        yield found
    finally:
        assert found.close() == 0
        assert naming(found.folder) == []


def outcomes(rest: Rest, ids: list[str], since: int = 0) -> Counter[str]:
    """How often each of these tasks was recorded as ended, by the events this main node has."""
    wanted = set(ids)
    ends = {f"task.{status}" for status in TERMINAL}
    events = (e for e in rest.events(since) if e["type"] in ends)
    return Counter(e["task_id"] for e in events if e["task_id"] in wanted)


def all_succeeded(rest: Rest, before: int, count: int, seconds: float = 60.0) -> None:
    """Wait until so many more tasks have succeeded."""

    def ended() -> bool:
        found = rest.ask("GET", "/api/v1/cluster/status")
        if found.status != 200:
            return False
        return bool(found.data["tasks"]["by_status"].get("success", 0) >= before + count)

    until(ended, f"{count} tasks to succeed", seconds)


def each_succeeded_once(rest: Rest, ids: list[str]) -> None:
    """Every one of these is listed once, as a success, and none ended again after a restart."""
    listed: Counter[str] = Counter()
    query = "/api/v1/tasks?status=success&page_size=100"
    answer = rest.ask("GET", query).json
    while True:
        listed.update(task["task_id"] for task in answer["data"])
        cursor = answer["pagination"]["next_cursor"]
        if cursor is None:
            break
        answer = rest.ask("GET", f"{query}&after={cursor}").json
    assert [task_id for task_id in ids if listed[task_id] != 1] == []
    assert set(outcomes(rest, ids).values()) <= {1}


def succeeded(rest: Rest) -> int:
    return int(rest.get("/cluster/status")["tasks"]["by_status"].get("success", 0))


def test_the_task_of_a_killed_worker_finishes_on_another(cluster: Cluster) -> None:
    rest = cluster.rest
    workers = {name: cluster.join(name, "--tag", "pair", "--slots", "1") for name in ("one", "two")}
    task_id = rest.submit("sleep", {"duration": 1.5}, required_tags=["pair"], max_retries=1)
    victim = rest.await_status(task_id, "running")["assigned_device_id"]
    below = workers[victim].tree()
    os.kill(workers[victim].pid, signal.SIGKILL)
    workers[victim].kill()
    result = rest.result(task_id)
    assert result["status"] == "success"
    assert {victim, result["worker_device_id"]} == {"one", "two"}
    all_gone(below)
    attempts = rest.get(f"/tasks/{task_id}")["attempts"]
    # A lease of two seconds may end on a busy machine; that costs no retry and is no fault here.
    told = [a for a in attempts if a is attempts[0] or "was silent for" not in str(a)]
    assert [a["device_id"] for a in told] == [victim, result["worker_device_id"]], str(attempts)
    until(lambda: victim not in rest.online(), "the killed one to be offline")


def test_the_late_result_of_a_silent_worker_changes_nothing(cluster: Cluster) -> None:
    rest = cluster.rest
    workers = {name: cluster.join(name, "--tag", "duo", "--slots", "1") for name in ("d1", "d2")}
    since = rest.cursor()
    task_id = rest.submit("sleep", {"duration": 1}, required_tags=["duo"], max_retries=2)
    frozen = rest.await_status(task_id, "running")["assigned_device_id"]
    family = [workers[frozen].pid, *workers[frozen].tree()]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        result = rest.result(task_id)
        assert result["status"] == "success"
        assert result["worker_device_id"] != frozen
    finally:
        for pid in family:
            os.kill(pid, signal.SIGCONT)
    rest.await_online(frozen)
    assert rest.result(task_id) == result
    assert outcomes(rest, [task_id], since) == {task_id: 1}


def test_a_thousand_queued_tasks_outlive_the_main_node(cluster: Cluster) -> None:
    rest = cluster.rest
    before = succeeded(rest)
    wanted = {"required_tags": ["later"]}
    ids = rest.batch(
        {"task_type": "echo", "payload": {"n": n}, "requirements": wanted} for n in range(1000)
    )
    assert len(set(ids)) == 1000
    cluster.kill_broker()
    assert rest.get("/cluster/status")["tasks"]["queued"] == 1000
    cluster.join("later", "--tag", "later")
    all_succeeded(rest, before, 1000)
    each_succeeded_once(rest, ids)
    assert rest.get(f"/tasks/{ids[700]}/result")["result_data"] == {"echo": {"n": 700}}


def test_a_main_node_that_is_killed_amid_a_thousand_loses_none(cluster: Cluster) -> None:
    rest = cluster.rest
    before = succeeded(rest)
    evaluated = (
        {"task_type": "python_eval", "payload": {"expression": f"{n}"}} for n in range(200)
    )
    echoed = ({"task_type": "echo", "payload": {"n": n}} for n in range(800))
    ids = rest.batch([*evaluated, *echoed])
    until(lambda: succeeded(rest) - before >= 20, "some to be done")
    assert succeeded(rest) - before < 1000
    cluster.kill_broker()
    all_succeeded(rest, before, 1000)
    each_succeeded_once(rest, ids)
    assert rest.get(f"/tasks/{ids[70]}/result")["result_data"]["result"] == 70


def test_a_running_task_goes_on_while_the_main_node_is_away(cluster: Cluster) -> None:
    rest = cluster.rest
    task_id = rest.submit("sleep", {"duration": 1.5})
    rest.await_status(task_id, "running")
    cluster.kill_broker()
    assert rest.result(task_id)["status"] == "success"
    details = rest.get(f"/tasks/{task_id}")
    assert len(details["attempts"]) == 1
    assert details["retry_count"] == 0


def test_settings_reach_the_devices_at_once_and_outlive_the_main_node(cluster: Cluster) -> None:
    rest = cluster.rest
    answer = rest.post("/config/reset")
    assert answer["current_config"]["heartbeat"]["interval"] == 5
    rest.put("/config/heartbeat", {"interval": 60, "timeout": 300, "max_missed": 3})
    changed = rest.put("/config/heartbeat", {"interval": 1, "timeout": 2, "max_missed": 1})
    assert sorted(changed["updated_fields"]) == ["interval", "max_missed", "timeout"]
    assert changed["current_config"]["interval"] == 1

    def beats() -> int:
        return int(rest.get(f"/devices/{cluster.local}")["total_heartbeats"])

    first, started = beats(), time.monotonic()
    until(lambda: beats() >= first + 3, "a beat a second", 12.0)
    assert time.monotonic() - started < 10
    cluster.kill_broker()
    assert rest.get("/config/heartbeat") == {**QUICK}
    refused = rest.ask("PUT", "/api/v1/config/heartbeat", {"interval": 5, "max_missed": 0})
    assert (refused.status, refused.code) == (400, "VALIDATION_ERROR")
    assert refused.json["error_details"]["field"] == "max_missed"
    refused = rest.ask("PUT", "/api/v1/config/heartbeat", {"interval": 30})
    assert (refused.status, refused.code) == (400, "VALIDATION_ERROR")
    assert rest.get("/config/heartbeat") == {**QUICK}


def test_a_removed_device_gives_up_its_work_exits_4_and_may_return_when_readmitted(
    cluster: Cluster,
) -> None:
    rest = cluster.rest
    rest.put("/config/heartbeat", QUICK)
    worker = cluster.join("leaving", "--tag", "leave", "--slots", "1")
    task_id = rest.submit("sleep", {"duration": 600}, required_tags=["leave"])
    rest.await_status(task_id, "running")
    below = worker.tree()
    removed = rest.ask("DELETE", "/api/v1/devices/leaving").data
    assert (removed["device_id"], removed["was_online"]) == ("leaving", True)
    assert worker.popen.wait(timeout=10) == 4
    all_gone(below)
    status = rest.await_status(task_id, "queued")
    assert status["retry_count"] == 0
    gone = rest.ask("GET", "/api/v1/devices/leaving")
    assert (gone.status, gone.code) == (404, "DEVICE_NOT_FOUND")
    again = Process(
        cluster.folder / "again.log",
        *("worker", "--join", f"127.0.0.1:{cluster.endpoints()['main']['worker_port']}"),
        *("--device-id", "leaving", "--data-dir", str(cluster.folder / "leaving")),
    )
    try:
        assert again.popen.wait(timeout=15) == 4
    finally:
        again.kill()
    assert cluster.cli("devices", "readmit", "leaving").returncode == 0
    cluster.join("leaving", "--tag", "leave", "--slots", "1")
    rest.await_status(task_id, "running")
    rest.post(f"/tasks/{task_id}/cancel")


def test_up_does_not_restart_a_local_worker_that_was_removed(cluster: Cluster) -> None:
    first, second = cluster.endpoints()["workers"]
    cluster.rest.ask("DELETE", f"/api/v1/devices/{second['device_id']}")
    until(lambda: cluster.endpoints()["workers"] == [first], "only one local worker to be left")
    assert not pid_alive(second["pid"])
    cluster.kill_broker()
    assert cluster.endpoints()["workers"] == [first]
    assert f"retire-cluster devices readmit {second['device_id']}" in cluster.up.log.read_text()


def test_a_facade_without_a_main_node_says_so_and_finds_one_later(tmp_path: Path) -> None:
    admin_port = free_port()

    def main_node() -> Process:
        ports = ["--port", str(admin_port), "--worker-port", "0", "--event-port", "0"]
        data = ["--data-dir", str(tmp_path / "main")]
        return Process(tmp_path / "main.log", "main", *ports, *data)

    def timed(path: str) -> tuple[int, float, Answer]:
        started = time.monotonic()
        answer = api.ask("GET", path)
        return answer.status, time.monotonic() - started, answer

    def is_away() -> None:
        status, seconds, answer = timed("/api/v1/tasks")
        assert (status, answer.code) == (503, "CLUSTER_UNAVAILABLE")
        assert seconds < 3
        assert int(answer.headers["retry-after"]) >= 1

    flags = ("--port", "0", "--cluster-port", str(admin_port), "--data-dir", str(tmp_path / "api"))
    facade = Process(tmp_path / "api.log", "api", *flags, "--no-rate-limit")
    processes = [facade]
    try:
        api = Rest(facade.line(r"retire-cluster-api on (http://\S+)")[1])
        is_away()
        status, seconds, answer = timed("/health")
        assert (status, answer.json["status"]) == (503, "unhealthy")
        assert answer.json["components"]["api"] == "healthy"
        assert seconds < 3
        until(lambda: "retire-cluster-main" in facade.log.read_text(), "the line with the cure")
        processes.append(main_node())
        until(api.healthy, "the facade to find the main node")
        assert api.get("/tasks") == []

        os.kill(processes[-1].pid, signal.SIGKILL)
        processes[-1].kill()
        is_away()
        processes.append(main_node())
        until(api.healthy, "the facade to find the main node again")

        os.kill(processes[-1].pid, signal.SIGSTOP)
        is_away()
        os.kill(processes[-1].pid, signal.SIGCONT)
        until(api.healthy, "the facade to hear the main node again")
    finally:
        codes = [process.stop() for process in reversed(processes)]
    assert codes == [0, -signal.SIGKILL, 0]


def test_a_signal_to_up_alone_leaves_nothing_even_amid_work(tmp_path: Path) -> None:
    cluster = Cluster(
        tmp_path / "stop",
        *("--no-rate-limit", "--slots", "2", "--workers", "2", "--allow", "command"),
        RETIRE_CLUSTER_ALLOW_ROOT="1",
    )
    wait = f"# {tmp_path}\nimport time; time.sleep(600)"
    for _ in range(3):
        task_id = cluster.rest.submit("command", {"command": [sys.executable, "-c", wait]})
        cluster.rest.await_status(task_id, "running")
    # up, main node, facade, two workers, three commands; one that runs may still be about to exec
    until(lambda: len(naming(tmp_path)) >= 8, "all of it to be there")
    pids = cluster.up.tree()
    started = time.monotonic()
    assert cluster.up.stop() == 0
    assert time.monotonic() - started < 10
    assert [pid for pid in pids if pid_alive(pid)] == []
    assert naming(tmp_path) == []


def test_up_stops_while_it_is_still_starting(tmp_path: Path) -> None:
    words = ("up", "--data-dir", str(tmp_path / "data"), *ANY_PORTS, "--workers", "2")
    starting = Process(tmp_path / "up.log", *words, command=COMMAND)
    until(lambda: len(naming(tmp_path)) >= 2, "the first child")
    assert starting.stop(10) == 0
    assert naming(tmp_path) == []
