"""Operations on devices (docs/protocol.md, Admin socket)."""

from __future__ import annotations

from typing import Final

from retire_cluster.broker.admin import figures, views
from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.registry import operation
from retire_cluster.broker.admin.timestamps import stamp
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.model import Device
from retire_cluster.schemas.errors import DeviceNotFound
from retire_cluster.schemas.rest import requests
from retire_cluster.schemas.vocabulary import Role

DEVICE: Final = {"device_id": {"type": "string", "required": True, "maxlength": 200}}
#: A device counts as server grade from here on (docs/contract.md, Answers).
SERVER_CORES, SERVER_MEMORY_GB = 8, 16


@operation("device.list", requests.DEVICE_LIST_QUERY)
def list_devices(admin: AdminContext, call: Call) -> Reply:
    """Answer a page of devices, ordered by id."""
    args = call.args
    tags = frozenset(args.get("tags") or ())
    found = [
        device
        for _, device in sorted(admin.state.devices.items())
        if args["status"] in ("all", device.status.value)
        and args.get("role") in (None, device.role)
        and args.get("platform") in (None, device.platform)
        and tags <= device.tags
    ]
    page, size = args["page"], args["page_size"]
    start = (page - 1) * size
    pagination = {
        "page": page,
        "page_size": size,
        "total_items": len(found),
        "total_pages": -(-len(found) // size),
        "has_next": start + size < len(found),
        "has_previous": page > 1 and bool(found),
    }
    items = [views.device_brief(device, call.now) for device in found[start : start + size]]
    return Reply({"items": items, "pagination": pagination})


@operation("device.get", DEVICE)
def get(admin: AdminContext, call: Call) -> Reply:
    """Answer everything that is known of one device."""
    device = admin.state.devices[admin.device_id(call)]
    return Reply(views.device_detail(admin.state, device, call.now))


@operation("device.status", DEVICE)
def status(admin: AdminContext, call: Call) -> Reply:
    """Answer one device's state and load."""
    return Reply(views.device_status(admin.state.devices[admin.device_id(call)], call.now))


@operation(
    "device.ping",
    {**DEVICE, "timeout_seconds": {"type": "finite", "min": 0.1, "max": 10, "default": 1.5}},
    changes=True,
)
def ping(admin: AdminContext, call: Call) -> None:
    """Send a PING over the bus; answered when the device does, or the time is over."""
    device_id = admin.device_id(call)
    event = ev.PingRequested(call.ticket, device_id, call.args["timeout_seconds"])
    admin.apply(event, call.now)


@operation("device.remove", DEVICE, changes=True)
def remove(admin: AdminContext, call: Call) -> Reply:
    """Remove a device; its id may not come back until it is readmitted."""
    device_id = admin.device_id(call)
    was_online = admin.state.devices[device_id].online
    admin.apply(ev.DeviceRemoved(device_id), call.now)
    return Reply(
        {
            "device_id": device_id,
            "removed_at": stamp(call.now.wall_ms),
            "was_online": was_online,
            "removal_reason": "removed by request",
        }
    )


@operation("device.readmit", DEVICE, changes=True)
def readmit(admin: AdminContext, call: Call) -> Reply:
    """Let a removed device register again."""
    device_id: str = call.args["device_id"]
    if device_id not in admin.state.tombstones:
        raise DeviceNotFound(f"No device {device_id[:100]!r} was removed.")
    admin.apply(ev.DeviceReadmitted(device_id), call.now)
    return Reply({"device_id": device_id, "readmitted_at": stamp(call.now.wall_ms)})


@operation("device.drain", DEVICE, changes=True)
def drain(admin: AdminContext, call: Call) -> Reply:
    """Drain a device: it is given no new tasks."""
    return _drain(admin, call, drained=True)


@operation("device.resume", DEVICE, changes=True)
def resume(admin: AdminContext, call: Call) -> Reply:
    """End a drain."""
    return _drain(admin, call, drained=False)


def _drain(admin: AdminContext, call: Call, *, drained: bool) -> Reply:
    device_id = admin.device_id(call)
    admin.apply(ev.DrainRequested(device_id, drained), call.now)
    return Reply(views.device_status(admin.state.devices[device_id], call.now))


@operation("device.summary", {})
def summary(admin: AdminContext, call: Call) -> Reply:
    """Answer counts over all registered devices."""
    devices = list(admin.state.devices.values())
    return Reply(
        {
            "total_devices": len(devices),
            "online_devices": admin.state.online_count,
            "offline_devices": len(devices) - admin.state.online_count,
            **figures.breakdown(devices),
            "resource_totals": figures.resource_totals(devices),
            "capabilities": {
                "gpu_enabled": sum(d.capabilities.get("has_gpu") is True for d in devices),
                "mobile_devices": sum(d.role == Role.MOBILE.value for d in devices),
                "server_grade": sum(_server_grade(d) for d in devices),
            },
        }
    )


def _server_grade(device: Device) -> bool:
    return (
        figures.capability(device, "cpu_count") >= SERVER_CORES
        and figures.capability(device, "memory_total_gb") >= SERVER_MEMORY_GB
    )
