"""What `up` starts and what it announces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.cli.endpoints import ApiEndpoint, MainEndpoints
from retire_cluster.cli.up import command, plan
from retire_cluster.cli.up.announce import Announcement, quoted
from retire_cluster.conf.loading import read_settings
from retire_cluster.conf.machine.addresses import is_loopback


def announcement(**more: Any) -> Announcement:
    plain: dict[str, Any] = {
        "api_host": "127.0.0.1",
        "api_port": 8081,
        "worker_port": 8082,
        "worker_host": "127.0.0.1",
        "lan_address": "192.0.2.7",
    }
    return Announcement(**{**plain, **more})


def test_a_loopback_bus_is_not_offered_to_other_devices() -> None:
    text = announcement().text(windows=False)
    assert "192.0.2.7" not in text
    assert "Other devices cannot join" in text
    assert "http://127.0.0.1:8081/api/v1" in text


def test_an_encrypted_bus_is_offered_by_its_join_line() -> None:
    text = announcement(worker_host="0.0.0.0", join="rc1.abc").text(windows=False)
    assert "retire-cluster-worker --join rc1.abc\n" in text
    assert "retire-cluster token create" in text
    assert "not encrypted" not in text


def test_an_open_bus_is_offered_by_the_lan_address() -> None:
    text = announcement(worker_host="0.0.0.0", insecure=True).text(windows=False)
    assert "retire-cluster-worker --join 192.0.2.7:8082\n" in text
    assert "not encrypted" in text


def test_a_facade_on_every_address_is_called_by_loopback_here() -> None:
    assert announcement(api_host="0.0.0.0").url == "http://127.0.0.1:8081"
    assert announcement(api_host="::").url == "http://[::1]:8081"


def test_functions_are_shown_where_they_run_and_offered_by_what_they_are_elsewhere() -> None:
    assert (
        'with Executor("http://127.0.0.1:8081") as devices' in announcement(functions=True).text()
    )
    offered = announcement().text()
    assert "up --allow python_call" in offered
    assert "any Python function of whoever may submit" in offered


def test_the_curl_line_is_quoted_for_the_shell_at_hand() -> None:
    assert """-d '{"task_type""" in announcement().text(windows=False)
    assert """-d "{\\"task_type""" in announcement().text(windows=True)


def test_a_path_is_one_word_for_the_shell_at_hand() -> None:
    assert quoted("C:\\two words\\data", windows=True) == '"C:\\two words\\data"'
    assert quoted("C:\\data", windows=True) == "C:\\data"
    assert quoted("/two words", windows=False) == "'/two words'"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("pi", False)],
)
def test_loopback_is_recognised(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("hostname", "expected"),
    [("old-laptop", "old-laptop"), ("Käthes PC.local", "K-thes-PC"), ("...", "host"), ("", "host")],
)
def test_a_hostname_becomes_the_beginning_of_a_device_id(hostname: str, expected: str) -> None:
    assert plan.local_host_id(hostname) == expected


@pytest.mark.parametrize("workers", ["-1", "257", "x"])
def test_a_number_of_workers_out_of_bounds_is_a_usage_error(
    workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        plan.parser().parse_args(["--workers", workers])
    assert ended.value.code == 2
    assert "--workers" in capsys.readouterr().err


def test_a_wrong_port_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--port", "70000"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


API_KEY = "k-very-secret"


def planned(tmp_path: Path, *flags: str, **environ: str) -> plan.Plan:
    args = plan.parser().parse_args(["--data-dir", str(tmp_path), *flags])
    return plan.Plan(args, read_settings(plan.overrides(args), None, environ), "pc")


def value_of(command: Sequence[str], flag: str) -> str:
    return command[list(command).index(flag) + 1]


MAIN = MainEndpoints(1, 5001, 5002, 5003)


def test_a_restarted_process_gets_the_ports_it_had(tmp_path: Path) -> None:
    made = planned(tmp_path, "--port", "0", "--cluster-port", "0")
    assert value_of(made.broker(None), "--port") == "0"
    assert value_of(made.broker(None), "--worker-port") == "8082"
    assert [
        value_of(made.broker(MAIN), f) for f in ("--port", "--worker-port", "--event-port")
    ] == [
        "5001",
        "5002",
        "5003",
    ]
    assert value_of(made.api(MAIN, None), "--port") == "0"
    assert value_of(made.api(MAIN, ApiEndpoint(2, "127.0.0.1", 5004)), "--port") == "5004"
    assert value_of(made.api(MAIN, None), "--cluster-port") == "5001"


def test_keys_are_in_the_facades_environment_and_in_no_command_line(tmp_path: Path) -> None:
    made = planned(tmp_path, "--api-key", API_KEY, "--api-key", "second")
    commands = [made.broker(None), made.api(MAIN, None), made.worker(1, MAIN)]
    assert API_KEY not in str(commands)
    assert made.api_environ == {"RETIRE_CLUSTER_API_KEY": f"{API_KEY}\nsecond"}
    assert made.other_environ == {"RETIRE_CLUSTER_API_KEY": None}
    assert planned(tmp_path).api_environ == {}


def test_local_workers_have_names_and_folders_of_their_own(tmp_path: Path) -> None:
    made = planned(tmp_path, "--workers", "2", "--slots", "3", "--allow", "command")
    command = made.worker(2, MAIN)
    assert value_of(command, "--join") == "127.0.0.1:5002"
    assert value_of(command, "--device-id") == "pc-local-2"
    assert value_of(command, "--data-dir") == str(tmp_path / "workers" / "2")
    assert value_of(command, "--slots") == "3"
    assert "--allow=command" in command
    assert "--slots" not in planned(tmp_path).worker(1, MAIN)


def test_root_is_told_what_its_workers_do_not_run_and_may_let_them(tmp_path: Path) -> None:
    def kept_back(*flags: str, is_root: bool = True, **environ: str) -> list[str]:
        return planned(tmp_path, *flags, **environ).kept_back(["my.own"], is_root=is_root)

    wanted = ("--allow", "command")
    assert kept_back(*wanted) == ["command", "my.own"]
    assert kept_back() == ["my.own"]  # nobody asked for command
    assert kept_back(*wanted, is_root=False) == []
    assert kept_back(*wanted, "--allow-root") == []
    assert kept_back(*wanted, RETIRE_CLUSTER_ALLOW_ROOT="1") == []
    assert kept_back(*wanted, RETIRE_CLUSTER_POLICY_USER="nobody") == []
    assert kept_back(*wanted, "--workers", "0") == []
    assert "--allow-root" in planned(tmp_path, *wanted, "--allow-root").worker(1, MAIN)
    assert "--allow-root" not in planned(tmp_path, *wanted).worker(1, MAIN)
    told = announcement(kept_back=kept_back(*wanted)).text()
    assert "because this is root: command, my.own\n" in told
    assert 0 < told.index("policy.user") < told.index("--allow-root")
    assert "root" not in announcement().text()


@pytest.mark.parametrize("source", ["flag", "environment"])
def test_an_insecure_bus_listens_everywhere_whoever_said_so(tmp_path: Path, source: str) -> None:
    if source == "flag":
        made = planned(tmp_path, "--insecure")
    else:
        made = planned(tmp_path, RETIRE_CLUSTER_SERVER_INSECURE="true")
    assert value_of(made.broker(None), "--worker-host") == "*"
    assert "--insecure" in made.broker(None)
    assert value_of(made.worker(1, MAIN), "--join") == "127.0.0.1:5002"
    assert "--insecure" not in planned(tmp_path).broker(None)


def test_the_admin_port_may_be_set_by_either_of_its_names(tmp_path: Path) -> None:
    made = planned(tmp_path, RETIRE_CLUSTER_CLUSTER_PORT="7001")
    assert value_of(made.broker(None), "--port") == "7001"
    both = planned(tmp_path, "--cluster-port", "7002", RETIRE_CLUSTER_CLUSTER_PORT="7001")
    assert value_of(both.broker(None), "--port") == "7002"


def test_the_facades_switches_are_passed_on(tmp_path: Path) -> None:
    flags = ("--auth", "--no-rate-limit", "--cors-origin", "https://a.example", "--debug")
    command = planned(tmp_path, *flags).api(MAIN, None)
    for flag in ("--auth", "--no-rate-limit", "--cors-origin=https://a.example", "--debug"):
        assert flag in command
    assert "--no-cors" not in command


def test_local_workers_keep_their_names_when_the_machine_gets_another(tmp_path: Path) -> None:
    known = tmp_path / "workers" / "1"
    known.mkdir(parents=True)
    (known / "device_id").write_text("attic-local-1\n")
    (tmp_path / "workers" / "2").mkdir()
    (tmp_path / "workers" / "2" / "device_id").write_bytes(b"\xff no name")
    made = planned(tmp_path, "--workers", "2")
    assert made.device_ids[1] == "attic-local-1"
    assert made.device_ids[2].endswith("-local-2")
