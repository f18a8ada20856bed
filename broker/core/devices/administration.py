"""What an administrator requests of devices: ping, remove, readmit, drain, other settings."""

from __future__ import annotations

from retire_cluster.broker.core import attempts
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.devices import membership
from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.instructions import ForgetDevices, Send, StoreConfig, StoreDevices
from retire_cluster.broker.core.placement import passing_over
from retire_cluster.broker.core.state import ClusterState, ParkedPing
from retire_cluster.schemas.protocol import messages as msg


def ping(state: ClusterState, event: ev.PingRequested, now: Now) -> None:
    """Ping a device; one that is offline does not answer at once."""
    device = state.devices[event.device_id]
    record = ParkedPing(
        event.ticket, event.device_id, now.mono, now.wall_ms, now.mono + event.timeout_seconds
    )
    if not device.online:
        state.emit(record.over(None, 0.0))
        return
    nonce = state.nonce()
    state.pings[nonce] = record
    state.emit(Send(device.routing, msg.Ping(device.session, nonce)))


def remove(state: ClusterState, event: ev.DeviceRemoved, now: Now) -> None:
    """Take a device out of the cluster; its work goes back to the queue free of charge."""
    device = state.devices[event.device_id]
    if device.online:
        text = f"{device.device_id} was removed from this cluster"
        state.emit(Send(device.routing, msg.Reject(device.session, "removed", text)))
    membership.take_offline(state, device, now)
    for task in list(device.attempts.values()):
        attempts.lose(state, task, "its device was removed", now, free=True)
    state.connections.pop(device.routing, None)
    state.challenges.pop(device.device_id, None)
    passing_over.leave(state, device, now)
    state.own_types.drop(event.device_id)
    del state.devices[event.device_id]
    state.restricting.discard(event.device_id)
    state.tombstones[event.device_id] = now.wall_ms
    state.emit(StoreDevices((device.row(removed_ms=now.wall_ms),)))
    state.log.add("device.removed", now.wall_ms, device_id=event.device_id)


def readmit(state: ClusterState, event: ev.DeviceReadmitted, now: Now) -> None:
    """Lift a tombstone: the device may register again, as a new one."""
    del state.tombstones[event.device_id]
    state.emit(ForgetDevices((event.device_id,)))
    state.log.add("device.readmitted", now.wall_ms, device_id=event.device_id)


def drain(state: ClusterState, event: ev.DrainRequested, now: Now) -> None:
    """Let a device finish what it has and give it nothing new, or end that."""
    device = state.devices[event.device_id]
    device.drained = event.drained
    if device.online:
        message: msg.Drain | msg.Resume = msg.Resume(device.session)
        if event.drained:
            message = msg.Drain.by_administrator(device.session)
        else:
            device.accepting, device.not_accepting_reason = True, ""
        state.emit(Send(device.routing, message))
    state.emit(StoreDevices((device.row(),)))
    membership.note_change(state, device, now)


def reconfigure(state: ClusterState, event: ev.ConfigChanged, now: Now) -> None:
    """Apply settings that were validated as a whole, and send devices their part."""
    state.settings = state.settings.with_sections(event.sections)
    retention = state.settings.retention
    state.log.resize(retention.event_rows, retention.audit_rows)
    state.config_version += 1
    state.emit(StoreConfig(event.persisted, state.config_version))
    config = state.heartbeat_config()
    for device in state.devices.values():
        if device.online:
            state.emit(Send(device.routing, msg.Config(device.session, config)))
    fields = list(event.updated_fields)
    state.log.add("config.changed", now.wall_ms, data={"updated_fields": fields})
