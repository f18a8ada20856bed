"""Operations on the cluster as a whole: health, figures, configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retire_cluster.conf.settings import all_specs
from retire_cluster.conf.spec import Spec
from retire_cluster.schemas import errors
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.task_types import BUILTIN
from tests.unit.broker.kit import Cluster, MakeCluster, settings_with, wrong

ROOT = Path(__file__).resolve().parents[4]
AT = "2023-11-14T22:13:20Z"


# --- the cluster ---------------------------------------------------------------------------------


def test_who_answers_here(cluster: Cluster) -> None:
    cluster.pass_time(90)
    assert cluster.call("broker.info").data == {
        "version": "1.2.3", "epoch": cluster.state.epoch, "pid": 77, "uptime_seconds": 90.0,
        "started_at": AT,
        "host": "127.0.0.1", "admin_port": 8080, "worker_port": 8082, "event_port": 8083,
        "store": "memory", "server_key": "", "bus_encrypted": False,
    }  # fmt: skip


def test_the_scheduler_is_unhealthy_when_ticks_stop(cluster: Cluster) -> None:
    assert cluster.call("health").data == {
        "components": {"cluster_server": "healthy", "task_scheduler": "healthy"}
    }
    cluster.pass_time(11)
    assert cluster.call("health").data["components"]["task_scheduler"] == "unhealthy"


def test_the_status_of_the_cluster(cluster: Cluster) -> None:
    empty = cluster.call("cluster.status").data["cluster_stats"]
    assert (empty["total_devices"], empty["health_percentage"]) == (0, 0.0)
    cluster.device("a")
    cluster.device("b")
    gone = cluster.device("c")
    gone.say(msg.Goodbye(gone.session))
    cluster.submit(4)
    cluster.place()
    cluster.pass_time(3_660)
    found = cluster.call("cluster.status").data
    stats = found["cluster_stats"]
    assert (stats["online_devices"], stats["offline_devices"]) == (2, 1)
    assert stats["health_percentage"] == 66.7
    assert stats["total_resources"] == {"cpu_cores": 12, "memory_gb": 24, "storage_gb": 300}
    assert stats["by_status"] == {"online": 2, "offline": 1}
    assert found["tasks"]["by_status"]["assigned"] == 2
    assert (found["tasks"]["queued"], found["tasks"]["running"]) == (2, 0)
    assert found["server_info"] == {
        "version": "1.2.3", "uptime": "1h 1m", "host": "127.0.0.1", "port": 8080,
    }  # fmt: skip


def test_the_metrics_are_measured(cluster: Cluster) -> None:
    member, _ = cluster.give(2)
    cluster.device("unsaid")
    member.beat(metrics={"cpu_percent": 30.0})
    member.finish(member.keys[0])
    report = {"facade": "f", "requests": 10, "errors": 1, "total_ms": 25.0}
    assert cluster.call("facade.report", report).data == {}
    found = cluster.call("cluster.metrics").data
    assert found["devices"]["online"] == 2
    assert found["resources"]["average_utilization"] == 30.0
    assert found["performance"]["average_response_time"] == 2.5
    assert found["performance"]["error_rate"] == 0.1
    assert found["performance"]["tasks_per_second"] == 0.017
    assert found["tasks"]["by_status"]["success"] == 1
    assert found["tasks"]["backlog"] == 0
    numbers = cluster.call("metrics").data
    assert numbers["slots"] == {"used": 1.0, "total": 3}
    assert numbers["task_duration_seconds"]["count"] == 1
    assert sum(numbers["task_duration_seconds"]["counts"]) == 1
    assert numbers["http"] == {"requests": 10, "errors": 1}
    assert set(numbers["heartbeat_age_seconds"]) == {"box", "unsaid"}
    assert numbers["store_commits"] == cluster.store.commits
    assert numbers["last_event"] == cluster.state.log.last
    assert numbers["events"] == cluster.state.log.last - cluster.state.epoch > 0
    assert numbers["tasks_ended"] == {"cancelled": 0, "failed": 0, "success": 1, "timeout": 0}


def test_metrics_without_devices_are_zero(cluster: Cluster) -> None:
    found = cluster.call("cluster.metrics").data
    assert found["resources"]["average_utilization"] == 0.0


def test_statistics_of_all_kept_tasks(cluster: Cluster) -> None:
    empty = cluster.call("task.statistics").data
    assert empty["performance_metrics"]["success_rate"] == 0.0
    assert empty["current_load"]["capacity_utilization"] == 0.0
    member, _ = cluster.give(4, max_retries=0)
    first, second, third, _ = member.keys
    member.finish(first, seconds=2.0)
    member.fail(second)
    cluster.call("task.cancel", {"task_id": cluster.public(third[0])})
    cluster.submit(1, priority="low", delay=5)
    cluster.tick("upkeep")
    found = cluster.call("task.statistics").data
    assert found["queue_stats"]["total_tasks"] == 5
    assert found["queue_stats"]["by_device"] == {"box": 4}
    assert found["queue_stats"]["by_type"] == {"sleep": 5}
    assert found["queue_stats"]["by_priority"]["low"] == 1
    figures = found["performance_metrics"]
    assert (figures["success_rate"], figures["tasks_per_hour"]) == (0.3333, 3)
    assert figures["average_execution_time"] == 1.25
    assert figures["device_utilization"] == 25.0
    assert found["current_load"] == {
        "pending_tasks": 1, "running_tasks": 1, "capacity_utilization": 25.0,
    }  # fmt: skip


def test_types_are_the_built_in_and_the_advertised_ones(cluster: Cluster) -> None:
    cluster.device("a")
    gone = cluster.device("b", task_types=(msg.TypeInfo("mine", "does it", None, True),))
    gone.say(msg.Goodbye(gone.session))
    found = cluster.call("task.types").data
    assert found["custom_types"] == ["mine", "resize"]
    assert found["supported_types"] == [*found["builtin_types"], "mine", "resize"]
    assert (found["total_count"], found["online_devices"]) == (len(BUILTIN) + 2, 1)
    by_type = found["by_type"]
    assert (by_type["echo"]["devices"], by_type["http_request"]["devices"]) == (1, 0)
    assert by_type["resize"]["payload_schema"]["properties"]["width"] == {"type": "integer"}
    assert by_type["mine"] == {
        "devices": 0, "payload_schema": {"type": "object"}, "description": "does it",
        "repeatable": True, "described_otherwise_by": [],
    }  # fmt: skip
    cluster.call("device.remove", {"device_id": "b"})
    assert cluster.call("task.types").data["custom_types"] == ["resize"]


# --- configuration -------------------------------------------------------------------------------


def test_the_configuration_is_shown_whole_or_by_section(cluster: Cluster) -> None:
    whole = cluster.call("config.get").data
    assert list(whole) == [
        "server", "heartbeat", "scheduler", "retention", "database", "logging", "api",
    ]  # fmt: skip
    assert "keys" not in whole["api"]
    server = cluster.call("config.get", {"section": "server"}).data
    assert server == whole["server"]
    assert (server["port"], server["worker_port"]) == (8080, 8082)
    assert whole["database"]["url"] == "memory"
    with pytest.raises(errors.NotFound):
        cluster.call("config.get", {"section": "policy"})
    found = cluster.call("cluster.config").data
    assert found["heartbeat"] == {"interval": 5, "timeout": 30, "max_missed": 3}
    assert found["server"]["max_connections"] == 1000


def test_a_change_is_partial_and_takes_effect_at_once(cluster: Cluster) -> None:
    values = {"interval": 10, "timeout": 60}
    found = cluster.call("config.update", {"section": "heartbeat", "values": values}).data
    assert found["updated_fields"] == ["interval", "timeout"]
    assert found["current_config"] == {"interval": 10, "timeout": 60, "max_missed": 3}
    assert cluster.state.settings.heartbeat.timeout == 60
    assert cluster.events("config") == [
        ("config.changed", {"updated_fields": ["interval", "timeout"]})
    ]


@pytest.mark.parametrize(
    ("section", "values", "field"),
    [
        ("heartbeat", {}, ""),
        ("heartbeat", {"interval": 0}, "interval"),
        ("heartbeat", {"timeout": 14}, "timeout"),
        ("heartbeat", {"interval": 4, "color": 1}, "color"),
        ("heartbeat", {"interval": "5"}, "interval"),
        ("heartbeat", {"interval": True}, "interval"),
        ("heartbeat", {"max_missed": 2.5}, "max_missed"),
        ("heartbeat", {"interval": [1]}, "interval"),
        ("heartbeat", {"interval": None}, "interval"),
        ("server", {"max_connections": 0}, "max_connections"),
        ("server", {"port": 9}, "port"),
        ("database", {"min_free_percent": 51}, "min_free_percent"),
        ("database", {"url": "memory://"}, "url"),
        ("logging", {"level": "DEBUG"}, "section"),
        ("nonsense", {"a": 1}, "section"),
    ],
)
def test_a_wrong_change_changes_nothing_and_names_the_field(
    cluster: Cluster, section: str, values: dict[str, Any], field: str
) -> None:
    args = {"section": section, "values": values}
    assert wrong(cluster, "config.update", args).field == field
    assert cluster.state.settings == cluster.base
    assert cluster.state.config_version == 1


def _another_value(spec: Spec) -> Any:
    """A value that a setting may have, other than its default."""
    if spec.kind == "bool":
        return not spec.default
    if spec.choices:
        return next(choice for choice in spec.choices if choice != spec.default)
    if spec.kind in ("int", "float"):
        return spec.default + 1
    return "192.0.2.9"


@pytest.mark.parametrize("spec", list(all_specs()), ids=lambda spec: spec.dotted)
def test_what_is_documented_as_live_can_be_changed_and_nothing_else(
    cluster: Cluster, spec: Spec
) -> None:
    documented = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    row = next(line for line in documented.splitlines() if line.startswith(f"| `{spec.dotted}`"))
    args = {"section": spec.section, "values": {spec.name: _another_value(spec)}}
    if "*live*" not in row:
        assert wrong(cluster, "config.update", args).field in ("section", spec.name)
        return
    assert cluster.call("config.update", args).data["updated_fields"] == [spec.name]
    cluster.restart()
    shown = cluster.call("config.get", {"section": spec.section}).data
    assert shown[spec.name] == _another_value(spec)
    cluster.call("config.reset")
    cluster.restart()
    assert cluster.state.settings == cluster.base


def test_a_reset_goes_back_to_what_the_process_was_started_with(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(settings_with(heartbeat={"interval": 7.0}))
    member = cluster.device()
    cluster.call("config.update", {"section": "heartbeat", "values": {"interval": 9}})
    found = cluster.call("config.reset").data
    assert (found["reset_at"], found["current_config"]["heartbeat"]["interval"]) == (AT, 7.0)
    assert [config.config.interval for config in member.told(msg.Config)] == [9, 7.0]
