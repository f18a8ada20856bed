"""Operations on the cluster: status, figures, configuration, events, the facade's counters."""

from __future__ import annotations

from typing import Any, Final

from retire_cluster.broker.admin import views
from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import Admin, Poll
from retire_cluster.broker.admin.devices import breakdown
from retire_cluster.broker.admin.registry import operation
from retire_cluster.broker.admin.timestamps import duration, stamp
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.records.event_log import Entry
from retire_cluster.broker.core.records.stats import DURATION_BOUNDS
from retire_cluster.conf.sections import SECTIONS
from retire_cluster.conf.settings import merge_section, public_view
from retire_cluster.conf.spec import specs
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.rest import requests
from retire_cluster.schemas.vocabulary import TERMINAL, TaskStatus

#: Without a tick for so long the scheduler counts as degraded.
TICK_SILENCE_SECONDS: Final = 10.0
#: Sections that may be changed while the cluster runs.
MUTABLE_SECTIONS: Final = tuple(
    name for name, section in SECTIONS.items() if any(spec.mutable for spec in specs(section))
)
EVENTS_AT_MOST: Final = 1_000


def _uptime(admin: Admin, call: Call) -> float:
    return call.now.mono - admin.facts.started.mono


@operation("broker.info", {})
def info(admin: Admin, call: Call) -> Reply:
    """Who answers here."""
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


def scheduler_health(admin: Admin, call: Call) -> str:
    """`healthy` while ticks arrive and tasks are taken."""
    if call.now.mono - admin.ticked_mono > TICK_SILENCE_SECONDS:
        return "unhealthy"
    return "degraded" if admin.refusing else "healthy"


@operation("health", {})
def health(admin: Admin, call: Call) -> Reply:
    """The broker's components."""
    server = "degraded" if admin.trouble.look(call.now.mono) else "healthy"
    components = {"cluster_server": server, "task_scheduler": scheduler_health(admin, call)}
    return Reply({"components": components})


@operation("cluster.status", {})
def status(admin: Admin, call: Call) -> Reply:
    """Counts of devices, resources and tasks; who serves."""
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
                "total_resources": views.resource_totals(devices),
                **breakdown(devices),
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
def metrics(admin: Admin, call: Call) -> Reply:
    """Measured figures."""
    state = admin.state
    devices = list(state.devices.values())
    groups = breakdown(devices)
    totals = views.resource_totals(devices)
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


def _cpu_utilization(admin: Admin) -> float:
    loads = [
        device.metrics["cpu_percent"]
        for device in admin.state.devices.values()
        if device.online and isinstance(device.metrics.get("cpu_percent"), (int, float))
    ]
    return round(sum(loads) / len(loads), 2) if loads else 0.0


@operation("metrics", {})
def prometheus(admin: Admin, call: Call) -> Reply:
    """The numbers behind `/metrics`."""
    state, stats = admin.state, admin.state.stats
    used, slots = views.slot_figures(state)
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
            "devices": breakdown(list(state.devices.values()))["by_status"],
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
def cluster_config(admin: Admin, call: Call) -> Reply:
    """The few settings that clients care for."""
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


def _section(admin: Admin, name: str) -> dict[str, Any]:
    values = admin.state.settings.section(name)
    if name == "server":
        facts = admin.facts
        values.update(
            port=facts.admin_port, worker_port=facts.worker_port, event_port=facts.event_port
        )
    elif name == "database":
        values["url"] = admin.store.name
    return values


def _whole(admin: Admin) -> dict[str, Any]:
    return {name: _section(admin, name) for name in admin.state.settings.public()}


@operation("config.get", {"section": {"type": "string", "nullable": True, "default": None}})
def get_config(admin: Admin, call: Call) -> Reply:
    """One section flat, or all of them."""
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
def update_config(admin: Admin, call: Call) -> Reply:
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
def reset_config(admin: Admin, call: Call) -> Reply:
    """Back to the settings this broker was started with."""
    sections = {name: getattr(admin.base, name) for name in MUTABLE_SECTIONS}
    event = ev.ConfigChanged(sections, {name: {} for name in sections}, ("*",))
    admin.apply(event, call.now)
    return Reply({"reset_at": stamp(call.now.wall_ms), "current_config": _whole(admin)})


# --- events --------------------------------------------------------------------------------------


@operation(
    "events.poll",
    {
        "since": {**requests.EVENTS_QUERY["since"], "nullable": True, "default": None},
        "wait_seconds": {"type": "finite", "min": 0, "max": 60, "default": 0},
        "gather_seconds": {"type": "finite", "min": 0, "max": 1, "default": 0},
        "limit": {"type": "strict_int", "min": 1, "max": EVENTS_AT_MOST, "default": EVENTS_AT_MOST},
        "type": {**requests.EVENTS_QUERY["type"], "nullable": True},
        "task_id": {**requests.EVENTS_QUERY["task_id"], "nullable": True},
        "device_id": {**requests.EVENTS_QUERY["device_id"], "nullable": True},
    },
)
def poll(admin: Admin, call: Call) -> Reply | None:
    """Events after a cursor; parked while there is none and time is left."""
    since = call.args["since"]
    parked = Poll(
        call.ticket,
        call.args,
        admin.state.log.last if since is None else since,
        call.now.mono + call.args["wait_seconds"],
    )
    answer = polled(admin, parked)
    if answer.data["events"] or answer.data["gap"] or call.args["wait_seconds"] <= 0:
        return answer
    admin.polls.append(parked)
    return None


def polled(admin: Admin, parked: Poll) -> Reply:
    """What a poll gets now."""
    log = admin.state.log
    wanted = _wanted(admin, parked.args)
    found, cursor = log.select(parked.since, parked.args["limit"], wanted)
    ids = admin.state.ids
    return Reply(
        {
            "events": [views.event(ids, entry) for entry in found],
            "next": cursor,
            "gap": log.gap(parked.since),
        }
    )


def _wanted(admin: Admin, args: dict[str, Any]) -> Any:
    type_, device_id, task = args.get("type"), args.get("device_id"), None
    if args.get("task_id"):
        read = admin.state.ids.read(args["task_id"])
        task = read[0] if read is not None else -1

    def test(entry: Entry) -> bool:
        return (
            (type_ is None or entry.type == type_ or entry.type.startswith(type_ + "."))
            and (task is None or entry.task == task)
            and (device_id is None or entry.device_id == device_id)
        )

    return test
