"""Operations on the cluster: status, figures, configuration, the numbers behind `/metrics`."""

from __future__ import annotations

from typing import Any, Final

from retire_cluster.broker.admin import figures
from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.registry import operation
from retire_cluster.broker.admin.timestamps import duration, stamp
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.records.stats import DURATION_BOUNDS
from retire_cluster.conf.sections import SECTIONS
from retire_cluster.conf.settings import merge_section, public_view
from retire_cluster.conf.spec import specs
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.vocabulary import TERMINAL, TaskStatus

#: Sections that may be changed while the cluster runs.
MUTABLE_SECTIONS: Final = tuple(
    name for name, section in SECTIONS.items() if any(spec.mutable for spec in specs(section))
)


def _uptime(admin: AdminContext, call: Call) -> float:
    return call.now.mono - admin.facts.started.mono


@operation("broker.info", {})
def info(admin: AdminContext, call: Call) -> Reply:
    """Answer which main node this is, its ports and its key."""
    facts = admin.facts
    return Reply(
        {
            "version": facts.version,
            "epoch": admin.state.epoch,
            "pid": facts.pid,
            "uptime_seconds": round(_uptime(admin, call), 3),
            "started_at": stamp(facts.started.wall_ms),
            "host": facts.host,
            "admin_port": facts.admin_port,
            "worker_port": facts.worker_port,
            "event_port": facts.event_port,
            "store": admin.store.name.partition(":")[0],
            "server_key": facts.server_key,
            "bus_encrypted": facts.bus_encrypted,
        }
    )


@operation("health", {})
def health(admin: AdminContext, call: Call) -> Reply:
    """Answer whether the main node and its scheduler are healthy."""
    return Reply({"components": admin.health.components(call.now.mono)})


@operation("cluster.status", {})
def status(admin: AdminContext, call: Call) -> Reply:
    """Answer counts of devices, resources and tasks, and who serves."""
    state = admin.state
    devices = list(state.devices.values())
    total, online = len(devices), state.online_count
    by_status = state.ledger.by_status()
    return Reply(
        {
            "cluster_stats": {
                "total_devices": total,
                "online_devices": online,
                "offline_devices": total - online,
                "health_percentage": round(100.0 * online / total, 1) if total else 0.0,
                "total_resources": figures.resource_totals(devices),
                **figures.breakdown(devices),
            },
            "tasks": {
                "by_status": by_status,
                "queued": by_status["queued"],
                "running": by_status["running"],
            },
            "server_info": {
                "version": admin.facts.version,
                "uptime": duration(_uptime(admin, call)),
                "host": admin.facts.host,
                "port": admin.facts.admin_port,
            },
        }
    )


@operation("cluster.metrics", {})
def metrics(admin: AdminContext, call: Call) -> Reply:
    """Answer what is measured of devices, tasks and requests."""
    state = admin.state
    devices = list(state.devices.values())
    groups = figures.breakdown(devices)
    totals = figures.resource_totals(devices)
    average_ms, rate, errors = state.stats.http.figures(call.now.mono)
    by_status = state.ledger.by_status()
    return Reply(
        {
            "devices": {
                "total": len(devices),
                "online": state.online_count,
                "by_role": groups["by_role"],
                "by_platform": groups["by_platform"],
            },
            "resources": {
                "total_cpu_cores": totals["cpu_cores"],
                "total_memory_gb": totals["memory_gb"],
                "total_storage_gb": totals["storage_gb"],
                "average_utilization": _cpu_utilization(admin),
            },
            "performance": {
                "average_response_time": average_ms,
                "request_rate": rate,
                "error_rate": errors,
                "dispatch_latency_ms": state.stats.dispatch_latency_ms(),
                "tasks_per_second": state.stats.tasks_per_second(state.clock.age_ms(call.now)),
            },
            "tasks": {
                "by_status": by_status,
                "by_priority": state.ledger.by_priority(),
                "backlog": by_status["queued"] + by_status["pending"],
            },
        }
    )


def _cpu_utilization(admin: AdminContext) -> float:
    loads = [
        device.metrics["cpu_percent"]
        for device in admin.state.devices.values()
        if device.online and isinstance(device.metrics.get("cpu_percent"), (int, float))
    ]
    return round(sum(loads) / len(loads), 2) if loads else 0.0


@operation("metrics", {})
def prometheus(admin: AdminContext, call: Call) -> Reply:
    """Answer the numbers behind `/metrics`."""
    state, stats = admin.state, admin.state.stats
    used, slots = figures.slot_figures(state)
    waiting = frozenset({TaskStatus.QUEUED, TaskStatus.PENDING})
    ages = {
        device.device_id: round(device.silent_for(call.now.mono), 3)
        for device in state.devices.values()
        if device.online
    }
    return Reply(
        {
            "version": admin.facts.version,
            "uptime_seconds": round(_uptime(admin, call), 3),
            "devices": figures.breakdown(list(state.devices.values()))["by_status"],
            "tasks": state.ledger.by_status(),
            "tasks_ended": {
                status.value: stats.ended_by_status[status.value] for status in sorted(TERMINAL)
            },
            "backlog": state.ledger.by_priority(waiting),
            "slots": {"used": round(used, 4), "total": slots},
            "heartbeat_age_seconds": ages,
            "task_duration_seconds": {
                "bounds": list(DURATION_BOUNDS),
                "counts": [stats.duration_buckets[i] for i in range(len(DURATION_BOUNDS))],
                "sum": round(stats.duration_sum, 6),
                "count": stats.duration_count,
            },
            "retries": dict(stats.retries),
            "passed_over": dict(stats.passed_over),
            "dropped_messages": dict(stats.dropped),
            "http": {"requests": stats.http.requests, "errors": stats.http.errors},
            "store_commits": admin.store.commits,
            "last_event": state.log.last,
            "events": state.log.recorded,
        }
    )


# --- configuration -------------------------------------------------------------------------------


@operation("cluster.config", {})
def cluster_config(admin: AdminContext, call: Call) -> Reply:
    """Answer the few settings that clients care for."""
    server, heartbeat = admin.state.settings.server, admin.state.settings.heartbeat
    return Reply(
        {
            "server": {
                "host": admin.facts.host,
                "port": admin.facts.admin_port,
                "max_connections": server.max_connections,
            },
            "heartbeat": {
                "interval": heartbeat.interval,
                "timeout": heartbeat.timeout,
                "max_missed": heartbeat.max_missed,
            },
            "features": {"task_scheduling": True, "api_enabled": False, "auth_required": False},
        }
    )


def _section(admin: AdminContext, name: str) -> dict[str, Any]:
    values = admin.state.settings.section(name)
    if name == "server":
        facts = admin.facts
        values.update(
            port=facts.admin_port, worker_port=facts.worker_port, event_port=facts.event_port
        )
    elif name == "database":
        values["url"] = admin.store.name
    return values


def _whole(admin: AdminContext) -> dict[str, Any]:
    return {name: _section(admin, name) for name in admin.state.settings.public()}


@operation("config.get", {"section": {"type": "string", "nullable": True, "default": None}})
def get_config(admin: AdminContext, call: Call) -> Reply:
    """Answer the settings of one section, or of all by section."""
    name = call.args["section"]
    return Reply(_whole(admin) if name is None else _section(admin, name))


@operation(
    "config.update",
    {
        "section": {"type": "string", "required": True, "allowed": list(MUTABLE_SECTIONS)},
        "values": {"type": "dict", "required": True},
    },
    changes=True,
)
def update_config(admin: AdminContext, call: Call) -> Reply:
    """Change settings of one section: all of them or none."""
    name, values = call.args["section"], call.args["values"]
    if not values:
        raise ValidationError("", "give at least one setting to change")
    merged = merge_section(getattr(admin.state.settings, name), values)
    kept = {key: value for key, value in public_view(merged).items() if key in _mutable(merged)}
    event = ev.ConfigChanged({name: merged}, {name: kept}, tuple(sorted(values)))
    admin.apply(event, call.now)
    return Reply(
        {
            "updated_fields": sorted(values),
            "updated_at": stamp(call.now.wall_ms),
            "current_config": _section(admin, name),
        }
    )


def _mutable(section: Any) -> frozenset[str]:
    return frozenset(spec.name for spec in specs(type(section)) if spec.mutable)


@operation("config.reset", {}, changes=True)
def reset_config(admin: AdminContext, call: Call) -> Reply:
    """Go back to the settings that this main node was started with."""
    sections = {name: getattr(admin.base, name) for name in MUTABLE_SECTIONS}
    event = ev.ConfigChanged(sections, {name: {} for name in sections}, ("*",))
    admin.apply(event, call.now)
    return Reply({"reset_at": stamp(call.now.wall_ms), "current_config": _whole(admin)})
