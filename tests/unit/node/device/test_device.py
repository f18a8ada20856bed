"""What a device knows of itself and what its owner allows."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.conf.sections import Policy as Rules
from retire_cluster.node.device import identity, probe
from retire_cluster.node.device.metrics import Sampler
from retire_cluster.node.device.policy import Policy
from retire_cluster.node.link.sockets import Address, parse_join
from retire_cluster.node.running.catalog import Catalog, Place, decode
from retire_cluster.node.tasks.base import BadPayload, Context, Denied, Limits, NotHere
from retire_cluster.node.tasks.own_type import OwnType
from retire_cluster.schemas.protocol.messages import TypeInfo
from retire_cluster.schemas.vocabulary import Platform, Role

# --- probes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "environ", "expected"),
    [
        ("linux", {}, Platform.LINUX),
        ("linux", {"PREFIX": "/data/data/com.termux/files/usr"}, Platform.ANDROID),
        ("linux", {"ANDROID_ROOT": "/system"}, Platform.ANDROID),
        ("android", {}, Platform.ANDROID),
        ("darwin", {}, Platform.DARWIN),
        ("win32", {}, Platform.WINDOWS),
        ("freebsd14", {}, Platform.LINUX),
    ],
)
def test_termux_is_android_and_not_linux(
    system: str, environ: dict[str, str], expected: Platform
) -> None:
    assert probe.detect_platform(system, environ) is expected


def test_a_phone_is_mobile_and_anything_else_a_worker() -> None:
    assert probe.detect_role(Platform.ANDROID) is Role.MOBILE
    assert probe.detect_role(Platform.LINUX) is Role.WORKER


@pytest.mark.parametrize(
    ("facts", "tags"),
    [
        ({}, ["linux"]),
        ({"architecture": "aarch64", "has_gpu": True}, ["linux", "aarch64", "gpu-capable"]),
        ({"memory_total_gb": 1.9}, ["linux", "low-memory"]),
        ({"memory_total_gb": 2}, ["linux"]),
        ({"memory_total_gb": 8}, ["linux"]),
        ({"memory_total_gb": 8.1, "cpu_count": 8}, ["linux", "high-memory", "high-cpu"]),
        ({"cpu_count": 7, "has_gpu": False}, ["linux"]),
    ],
)
def test_automatic_tags_follow_the_facts(facts: dict[str, Any], tags: list[str]) -> None:
    assert probe.automatic_tags("linux", facts) == tags


def test_the_owners_tags_come_first_and_none_comes_twice() -> None:
    assert probe.all_tags(["a", "linux"], ["linux", "b"]) == ("a", "linux", "b")


def test_capabilities_are_plausible_and_a_failing_probe_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = probe.capabilities(tmp_path)
    assert facts["cpu_count"] >= 1
    assert facts["memory_total_gb"] > 0
    assert facts["storage_total_gb"] > 0
    assert facts["python_version"].count(".") == 2
    assert isinstance(facts["has_gpu"], bool)

    def deny() -> None:
        raise PermissionError("/proc/stat")

    monkeypatch.setattr(probe, "cpu_count", deny)
    assert "cpu_count" not in probe.capabilities(tmp_path)


def test_metrics_are_plausible_and_not_taken_more_than_once_a_second(tmp_path: Path) -> None:
    now = 10.0
    sampler = Sampler(tmp_path, lambda: now)
    first = sampler.sample()
    assert 0 < first["memory_percent"] <= 100
    assert 0 <= first["disk_percent"] <= 100
    assert set(first) == {
        "cpu_percent", "memory_percent", "disk_percent", "load_average", "temperature_c",
        "battery_percent", "power_plugged",
    }  # fmt: skip
    now = 10.9
    assert sampler.sample() is first
    now = 11.1
    sum(i * i for i in range(300_000))  # some processor time to measure
    second = sampler.sample()
    assert second is not first
    assert second["cpu_percent"] is None or 0 <= second["cpu_percent"] <= 100


# --- identity ---------------------------------------------------------------------------------


def test_a_device_names_itself_once_and_keeps_the_name(tmp_path: Path) -> None:
    first = identity.device_id(tmp_path)
    assert identity.device_id(tmp_path) == first
    assert identity.device_id(tmp_path, "other") == "other"
    assert identity.device_id(tmp_path) == identity.kept_id(tmp_path) == "other"


def test_a_name_given_at_first_start_is_kept(tmp_path: Path) -> None:
    assert identity.device_id(tmp_path, "laptop-001") == "laptop-001"
    assert identity.device_id(tmp_path) == "laptop-001"


@pytest.mark.parametrize("name", ["-x", "a b", "x" * 101, "a\n", "é", "summary"])
def test_a_name_the_protocol_does_not_allow_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="device id"):
        identity.device_id(tmp_path, name)


def test_a_damaged_name_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "device_id").write_bytes(b"\xff\xfe")
    name = identity.device_id(tmp_path)
    assert identity.device_id(tmp_path) == name


@pytest.mark.parametrize(
    ("hostname", "expected"),
    [("pi.local", "pi-1"), ("", "device-1"), ("Ünïcode box", "n-code-box-1"), ("---", "device-1")],
)
def test_names_are_made_of_the_hosts(hostname: str, expected: str) -> None:
    assert identity.make_device_id(hostname, "1") == expected


def test_a_folder_has_one_worker_at_a_time(tmp_path: Path) -> None:
    lock = identity.FolderLock(tmp_path)
    with pytest.raises(identity.FolderTaken, match=f"process {os.getpid()}"):
        identity.FolderLock(tmp_path)
    lock.release()
    identity.FolderLock(tmp_path).release()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host", Address("host", 8082)),
        ("host:9000", Address("host", 9000)),
        ("192.168.1.10", Address("192.168.1.10", 8082)),
        ("tcp://a.b:1", Address("a.b", 1)),
        ("[::1]:9000", Address("::1", 9000)),
        ("[fe80::1%eth0]", Address("fe80::1%eth0", 8082)),
        ("2001:db8::1", Address("2001:db8::1", 8082)),
    ],
)
def test_join_addresses_are_read(text: str, expected: Address) -> None:
    assert parse_join(text) == expected


@pytest.mark.parametrize(
    "text", ["", "http://x/", "a:b", "a:0", "a:65536", "a b", "[::1", "a:\uff11"]
)
def test_bad_join_addresses_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT, for example 192\.168"):
        parse_join(text)


# --- policy -----------------------------------------------------------------------------------


def test_everything_but_command_is_allowed_by_default() -> None:
    policy = Policy()
    assert policy.refusal("echo") is None
    assert policy.refusal("my.own") is None
    assert "--allow command" in (policy.refusal("command") or "")


def test_command_shell_allows_the_command_and_its_shell() -> None:
    policy = Policy.of(Rules(allow=("command:shell",)))
    assert policy.refusal("command") is None
    assert policy.shell
    assert not Policy.of(Rules(allow=("command",))).shell


def test_a_denied_type_stays_denied() -> None:
    policy = Policy.of(Rules(allow=("command",), deny=("command", "echo")))
    assert "policy.deny" in (policy.refusal("command") or "")
    assert policy.refusal("echo") is not None


def test_root_runs_only_harmless_types_unless_told() -> None:
    policy = Policy.of(Rules(allow=("command",)), is_root=True)
    assert policy.refusal("python_eval") is None
    assert "--allow-root" in (policy.refusal("command") or "")
    assert "--allow-root" in (policy.refusal("my.own") or "")
    told = Rules(allow=("command",), allow_root=True)
    assert Policy.of(told, is_root=True).refusal("command") is None


def test_tasks_see_nothing_of_the_environment_but_what_is_listed() -> None:
    environ = {
        "PATH": "/bin", "LC_ALL": "C", "Path": "x", "RETIRE_CLUSTER_API_KEY": "s",
        "AWS_SECRET_ACCESS_KEY": "s", "HTTP_PROXY": "http://u:p@h", "MINE": "1",
        "PYTHONPATH": os.path.abspath("/p"), "LD_PRELOAD": "x", "RETIRE_CLUSTER_X": "s",
    }  # fmt: skip
    policy = Policy.of(Rules(pass_environment=("MINE", "RETIRE_CLUSTER_X")))
    seen = policy.task_environment(environ)
    assert seen == {"PATH": "/bin", "LC_ALL": "C", "Path": "x", "MINE": "1"}
    assert "LD_PRELOAD" in policy.task_environment(environ, android=True)
    assert policy.process_environment(environ)["PYTHONPATH"] == environ["PYTHONPATH"]


def own(name: str) -> OwnType:
    return OwnType(TypeInfo(name), "module:thing")


def test_only_allowed_types_are_advertised_and_the_others_still_refused() -> None:
    catalog = Catalog(Policy(), [own("mine"), own("echo")])
    assert {info.name for info in catalog.advertised()} == {
        "echo", "sleep", "system_info", "python_eval", "http_request", "mine",
    }  # fmt: skip
    assert catalog.kind("echo").place is Place.INLINE
    assert catalog.kind("mine").entry_point == "module:thing"
    with pytest.raises(Denied, match="not allowed command"):
        catalog.kind("command")
    with pytest.raises(NotHere, match="has no type"):
        catalog.kind("nothing")


@pytest.mark.parametrize(
    ("rules", "command", "web"),
    [
        ({}, {"shell": False}, {"private_addresses": False}),
        ({"allow": ("command:shell",)}, {"shell": True}, {"private_addresses": False}),
        ({"private_addresses": True}, {"shell": False}, {"private_addresses": True}),
        (
            {
                "shell": True,
                "commands": ("ffmpeg -i *", "'my tool' x", "ffmpeg", "un'closed", "/opt/*/run *"),
            },
            {"shell": False, "programs": ["ffmpeg", "my tool", "/opt/*/run"]},
            {"private_addresses": False},
        ),
        (
            {"commands": tuple(f"p{n}" for n in range(101))},
            {"shell": False},
            {"private_addresses": False},
        ),
    ],
)
def test_what_the_owner_allows_of_a_type_is_told_without_arguments_and_folders(
    rules: dict[str, Any], command: dict[str, Any], web: dict[str, Any]
) -> None:
    secret = (os.path.abspath("/secret"),)
    policy = Policy.of(Rules(**{"allow": ("command",), "folders": secret, **rules}))
    offered = {info.name: info.allows for info in Catalog(policy).advertised()}
    assert offered["command"] == command
    assert offered["http_request"] == web
    assert offered["echo"] == {}


def test_root_is_told_what_it_keeps_back() -> None:
    policy = Policy.of(Rules(allow=("command",), deny=("other",)), is_root=True)
    assert Catalog(policy, [own("mine"), own("other")]).kept_back() == ("command", "mine")
    assert Catalog(Policy(is_root=True)).kept_back() == ()


def test_what_may_run_twice_depends_on_the_type_and_for_http_on_the_request() -> None:
    catalog = Catalog(Policy(), [own("mine")])
    assert catalog.repeatable("echo", b"{}")
    assert not catalog.repeatable("command", b"{}")
    assert not catalog.repeatable("mine", b"{}")
    assert not catalog.repeatable("nothing", b"{}")
    assert catalog.repeatable("http_request", b'{"url":"x"}')
    assert not catalog.repeatable("http_request", b'{"method":"POST"}')
    assert catalog.repeatable("http_request", b"not json")


@pytest.mark.parametrize("payload", [b"[1]", b"x", b'"a"'])
def test_a_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    with pytest.raises(BadPayload):
        decode(payload)


# --- progress ---------------------------------------------------------------------------------


def test_progress_is_kept_between_0_and_100() -> None:
    told: list[tuple[float | None, str]] = []
    context = Context(
        task_id="t",
        attempt=2,
        timeout_seconds=1,
        limits=Limits(),
        tell=lambda percent, message: told.append((percent, message)),
        write_log=lambda text: None,
        is_cancelled=lambda: True,
    )
    context.progress(150, "x" * 2000)
    context.progress(None)
    assert [(percent, len(message)) for percent, message in told] == [(100, 1000), (None, 0)]
    assert context.cancelled
    with pytest.raises(ValueError, match="0 to 100"):
        context.progress(float("nan"))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX process table")
def test_the_process_table_knows_this_process_and_its_parent() -> None:
    from retire_cluster.node.system import process_tree

    table = process_tree.table()
    assert table[os.getpid()].parent == os.getppid()
    assert os.getpid() in {process.pid for process in process_tree.descendants(os.getppid(), table)}
    assert process_tree.find(os.getpid()) is not None
    assert process_tree.find(2**22 + 1) is None
