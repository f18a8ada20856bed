"""Membership of devices: registration, heartbeats, silence, leaving."""

from __future__ import annotations

from dataclasses import replace

from retire_cluster.broker.core import attempts
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.devices import enrolment, event_throttle, versions
from retire_cluster.broker.core.devices.hello_checks import cleaned, find_fault, find_type_fault
from retire_cluster.broker.core.devices.type_registry import bounded
from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.instructions import (
    Send,
    StoreDevices,
)
from retire_cluster.broker.core.model import Device
from retire_cluster.broker.core.placement import passing_over
from retire_cluster.broker.core.state import Challenge, ClusterState
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.wire import PROTOCOL
from retire_cluster.schemas.text.clean_text import plain

#: How long a device that seems to live elsewhere may take to answer for itself.
CHALLENGE_SECONDS = 1.0


def receive(state: ClusterState, event: ev.FromDevice, now: Now) -> None:
    """Handle a device's message: HELLO registers, all else counts only within a session."""
    message, routing = event.message, event.routing
    if isinstance(message, msg.Enrol):
        enrolment.enrol(state, event, message, now)
        return
    if isinstance(message, msg.Hello):
        _hello(state, event, message, now)
        return
    device = state.connections.get(routing)
    if event.key is not None and enrolment.refuse_wrong_key(state, event.key, device, routing, now):
        return
    if device is None or device.session != message.session:
        state.stats.dropped["unknown_session"] += 1
        state.emit(Send(routing, msg.Reject(message.session, "register", "say HELLO again")))
        return
    device.last_seen_mono = now.mono
    if isinstance(message, msg.Heartbeat):
        _beat(state, device, message, now)
    elif isinstance(message, msg.Started):
        attempts.record_started(state, device, message, now)
    elif isinstance(message, msg.Progress):
        attempts.record_progress(state, device, message, now)
    elif isinstance(message, msg.ConfigAck):
        _knows_config(state, device, message.version)
    elif isinstance(message, msg.Pong):
        _pong(state, device, message, now)
    elif isinstance(message, msg.Drain):
        device.accepting, device.not_accepting_reason = False, plain(message.reason) or "draining"
        note_change(state, device, now)
    else:
        _goodbye(state, device, message, now)


# --- HELLO ---------------------------------------------------------------------------------------


def _hello(state: ClusterState, event: ev.FromDevice, hello: msg.Hello, now: Now) -> None:
    routing = event.routing

    def refuse(code: str, text: str, retry_after_seconds: float | None = None) -> None:
        state.stats.dropped[f"rejected_{code}"] += 1
        state.emit(Send(routing, msg.Reject(hello.session, code, text, retry_after_seconds)))

    if hello.protocol != PROTOCOL:
        state.stats.dropped["rejected_protocol"] += 1
        state.emit(Send(routing, versions.refusal(vars(hello))))
        return
    if fault := find_fault(hello):
        refuse("bad_hello", fault)
        return
    if event.key is not None and state.access.device_of(event.key) != hello.device_id:
        # Who proves one device's key and says it is another is no mistake of ours to repeat.
        enrolment.log_impersonation(state, event.key, hello.device_id, now)
        refuse("wrong_key", f"the key of this connection is not the one of {hello.device_id}")
        return
    if hello.device_id in state.tombstones:
        refuse(
            "removed",
            f"{hello.device_id} was removed from this cluster; on the main node: "
            f"retire-cluster devices readmit {hello.device_id}",
        )
        return
    hello = cleaned(hello)
    device = state.devices.get(hello.device_id)
    if device is not None and device.online:
        lively = device.silent_for(now.mono) < device.config.interval * device.config.max_missed
        if device.instance != hello.instance and lively and device.routing != routing:
            _challenge(state, device, hello, event, now)
            return
    elif state.online_count >= state.settings.server.max_connections:
        refuse(
            "max_connections",
            f"{state.online_count} devices are online, as many as server.max_connections allows",
            10.0,
        )
        return
    register(state, hello, routing, event.address, now)


def _challenge(
    state: ClusterState, device: Device, hello: msg.Hello, event: ev.FromDevice, now: Now
) -> None:
    deadline_mono = now.mono + CHALLENGE_SECONDS
    waiting = state.challenges.get(device.device_id)
    if waiting is not None and waiting.hello.instance == hello.instance:
        # A newcomer that repeats itself must not put off its own turn.
        deadline_mono = waiting.deadline_mono
    nonce = state.nonce()
    state.challenges[device.device_id] = Challenge(
        hello, event.routing, event.address, nonce, deadline_mono
    )
    state.emit(Send(device.routing, msg.Ping(device.session, nonce)))


def register(state: ClusterState, hello: msg.Hello, routing: bytes, address: str, now: Now) -> None:
    """Register a device, and settle what it holds against what it was given."""
    kept, beyond = bounded(hello.task_types)
    faults = {info.name: fault for info in kept if (fault := find_type_fault(info))}
    reasons = [*faults.values(), *beyond]
    if hello.trial:
        left_out, config = msg.first_left_out(reasons), state.heartbeat_config()
        state.emit(Send(routing, msg.Welcome(hello.session, state.epoch, (), (), config, left_out)))
        return
    device = state.devices.get(hello.device_id)
    if device is None:
        device = Device(hello.device_id, now.wall_ms, state.heartbeat_config())
        state.devices[hello.device_id] = device
    was_online = device.online
    previous = state.connections.get(routing)
    if previous is not None and previous is not device:
        take_offline(state, previous, now)  # the connection changed its device id
        previous.routing, previous.session = b"", ""
    state.connections.pop(device.routing, None)
    # Who waited to take over from the one before does not take over from this one.
    state.challenges.pop(device.device_id, None)
    if not was_online:
        state.online_count += 1
    if reasons:
        # One type costs itself, never its device.
        kept = tuple(info for info in kept if info.name not in faults)
        hello = replace(hello, task_types=kept)
    if hello.instance != device.instance:
        passing_over.forget(state, device, now)
    elif device.notes or device.records or device.refused:
        known = device.types
        changed = {info.name for info in hello.task_types if known.get(info.name) != info}
        if changed:
            passing_over.forget_types(state, device, changed, now)
    device.register(hello, routing, now.mono)
    its_own = [reason[:500] for reason in hello.left_out]
    device.left_out = msg.first_left_out([*reasons, *its_own])
    device.walls = tuple(plain(wall)[:100] for wall in hello.walls)
    if any("programs" in info.allows for info in hello.task_types):
        state.restricting.add(device.device_id)
    else:
        state.restricting.discard(device.device_id)
    device.ip_address = address
    state.connections[routing] = device
    state.own_types.put(device)
    keep, abandon = _settle(state, device, hello, now)
    config = state.heartbeat_config()
    if not keep or config.timeout >= device.config.timeout:
        # WELCOME carries the settings in force; they hold from now on. But while it is on its way
        # the device relies on a longer lease for what it has: that one holds until it beats.
        device.config = config
    for cls in state.classes.values():
        cls.judge(device)
    state.emit(
        Send(
            routing,
            msg.Welcome(
                hello.session,
                state.epoch,
                keep,
                abandon,
                state.heartbeat_config(),
                msg.first_left_out(reasons),
            ),
        )
    )
    if device.drained:
        state.emit(Send(routing, msg.Drain.by_administrator(hello.session)))
    state.emit(StoreDevices((device.row(),)))
    kind = "device.changed" if was_online else "device.online"
    state.log.add(kind, now.wall_ms, device_id=device.device_id)
    state.note_room(device)


def _settle(
    state: ClusterState, device: Device, hello: msg.Hello, now: Now
) -> tuple[tuple[msg.AttemptKey, ...], tuple[msg.AttemptKey, ...]]:
    held = {entry.key: entry for entry in hello.held}
    unsent = set(hello.unsent)
    keep: list[msg.AttemptKey] = []
    for task in list(device.attempts.values()):
        key = task.key
        if key in held:
            attempts.confirm(state, held[key], task, now)
            keep.append(key)
        elif key in unsent:
            task.confirmed_mono = now.mono
            keep.append(key)
        else:
            attempts.lose(state, task, "its device started anew without it", now)
    kept = set(keep)
    abandon = tuple(key for key in (*held, *unsent) if key not in kept)
    return tuple(keep), abandon


# --- within a session ----------------------------------------------------------------------------


def _beat(state: ClusterState, device: Device, heartbeat: msg.Heartbeat, now: Now) -> None:
    accepted = device.accepting
    device.beat(heartbeat, now.mono, now.wall_ms)
    ack = msg.HeartbeatAck(device.session, heartbeat.beat, state.config_version)
    state.emit(Send(device.routing, ack))
    if not device.online:
        come_back(state, device, now)
    if heartbeat.held is not None:
        _reconcile(state, device, heartbeat.held, now)
    _knows_config(state, device, heartbeat.config_version)
    if heartbeat.config_version != state.config_version:
        state.emit(Send(device.routing, msg.Config(device.session, state.heartbeat_config())))
    if heartbeat.obeys_administrator and not device.drained:
        # The RESUME never reached it.
        state.emit(Send(device.routing, msg.Resume(device.session)))
    if device.accepting != accepted:
        note_change(state, device, now)


def _knows_config(state: ClusterState, device: Device, version: int) -> None:
    """Judge a device by the settings that it acknowledged, if they are the newest.

    Stored at once: a restarted broker must not give its work away before the device lets go.
    """
    if version == state.config_version != device.config.version:
        device.config = state.heartbeat_config()
        state.emit(StoreDevices((device.row(),)))


def _reconcile(state: ClusterState, device: Device, held: tuple[msg.Held, ...], now: Now) -> None:
    """Settle what a device holds against what it was given, after lost messages or a lost lease."""
    strange = []
    for entry in held:
        task = state.tasks.get(entry.key[0])
        if (
            task is not None
            and task.device is device
            and task.dispatch is not None
            and task.key == entry.key
        ):
            attempts.confirm(state, entry, task, now)
        else:
            strange.append(entry.key)
    if strange:
        state.emit(Send(device.routing, msg.Abandon(device.session, tuple(strange))))
    patience = device.config.timeout
    for task in list(device.attempts.values()):
        if now.mono - task.confirmed_mono > patience:
            attempts.lose(state, task, "its device does not have it", now)


def come_back(state: ClusterState, device: Device, now: Now) -> None:
    """Bring a silent device back online in the same session."""
    device.online = True
    device.gone_s = None
    if device.device_id not in state.own_types.devices:
        state.own_types.put(device)
    state.online_count += 1
    for cls in state.classes.values():
        cls.judge(device)
    state.log.add("device.online", now.wall_ms, device_id=device.device_id)
    state.note_room(device)


def take_offline(state: ClusterState, device: Device, now: Now) -> None:
    """Take a device offline; its attempts stay its own until the lease is over."""
    if not device.online:
        return
    device.online = False
    device.gone_s = state.clock.age_seconds(now)
    device.dirty = True
    state.online_count -= 1
    state.free.pop(device.device_id, None)
    for cls in state.classes.values():
        cls.forget(device)
    state.log.add("device.offline", now.wall_ms, device_id=device.device_id)


def note_change(state: ClusterState, device: Device, now: Now) -> None:
    """Note and log that a device takes work or no longer does."""
    state.note_room(device)
    event_throttle.log_change(state, device, now)


def _pong(state: ClusterState, device: Device, message: msg.Pong, now: Now) -> None:
    challenge = state.challenges.get(device.device_id)
    if challenge is not None and challenge.nonce == message.nonce:
        del state.challenges[device.device_id]
        text = f"another worker with the id {device.device_id} is connected and alive"
        reject = msg.Reject(challenge.hello.session, "duplicate", text, 10.0)
        state.emit(Send(challenge.routing, reject))
        return
    ping = state.pings.get(message.nonce)
    if ping is not None and ping.device_id == device.device_id:
        del state.pings[message.nonce]
        elapsed = 1000 * (now.mono - ping.sent_mono)
        state.emit(ping.over(elapsed, elapsed))


def _goodbye(state: ClusterState, device: Device, message: msg.Goodbye, now: Now) -> None:
    take_offline(state, device, now)
    reason = plain(message.reason) or "its device said goodbye"
    for task in list(device.attempts.values()):
        attempts.lose(state, task, reason, now, free=True)
    state.connections.pop(device.routing, None)
    device.routing, device.session = b"", ""
    state.emit(StoreDevices((device.row(),)))
