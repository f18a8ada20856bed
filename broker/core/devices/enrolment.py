"""Enrolment: how keys and tokens come to be known, and how a wrong key is refused."""

from __future__ import annotations

import re
from dataclasses import replace

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.events import Now
from retire_cluster.broker.core.instructions import ForgetDevices, Send, StoreAccess
from retire_cluster.broker.core.model import Device
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.schemas.errors import Forbidden, ValidationError
from retire_cluster.schemas.keys import fingerprint, is_key
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.vocabulary import DEVICE_ID_PATTERN, RESERVED_DEVICE_IDS


def refuse_wrong_key(
    state: ClusterState, key: str, device: Device | None, routing: bytes, now: Now
) -> bool:
    """Refuse a message unless its key is that of the device on its connection; True if refused.

    A handshake is asked once, a key can be replaced later: so this is asked for each message.
    """
    if device is None or state.access.device_of(key) == device.device_id:
        return False
    log_impersonation(state, key, device.device_id, now)
    text = f"the key of this connection is not the one of {device.device_id}"
    state.emit(Send(routing, msg.Reject("", "wrong_key", text)))
    return True


def log_impersonation(state: ClusterState, key: str, device_id: str, now: Now) -> None:
    """Count a message from a key that is not the device's, and log it once a minute a key."""
    state.stats.dropped["wrong_key"] += 1
    times = state.denials.times("device.impersonated", key, now.mono)
    if times:
        data = {
            "key": fingerprint(key), "key_of": state.access.device_of(key), "times": times
        }  # fmt: skip
        state.log.add(
            "device.impersonated", now.wall_ms, device_id=cleaned_id(device_id), data=data
        )


def cleaned_id(device_id: str) -> str | None:
    """Return a claimed device id if it has the form of one, else None."""
    return device_id if re.fullmatch(DEVICE_ID_PATTERN, device_id) else None


def enrol(state: ClusterState, event: ev.FromDevice, enrol_: msg.Enrol, now: Now) -> None:
    """Give a device with a valid join token its key (ENROL). Repeating it changes nothing."""
    access, device_id, key = state.access, enrol_.device_id, enrol_.public_key

    def refuse(code: str, text: str) -> None:
        state.stats.dropped[f"rejected_{code}"] += 1
        times = state.denials.times("device.refused", event.key or "", now.mono)
        if times:
            data = {"code": code, "address": event.address, "times": times}
            state.log.add("device.refused", now.wall_ms, device_id=cleaned_id(device_id), data=data)
        state.emit(Send(event.routing, msg.Reject(enrol_.session, code, text)))

    if event.key is None:
        refuse("bad_hello", "this worker bus is not encrypted: join with HOST:PORT")
        return
    if not re.fullmatch(DEVICE_ID_PATTERN, device_id) or not is_key(key):
        refuse("bad_hello", "device_id or public_key is not of its form")
        return
    if device_id in RESERVED_DEVICE_IDS:
        refuse("bad_hello", f"{device_id!r} is a name of the REST API's own; choose another")
        return
    token = next((token for token in access.tokens.values() if token.key == event.key), None)
    known = access.devices.get(device_id)
    if known == key and device_id not in state.tombstones and token is not None:
        # The answer was lost: said again, not counted again.
        state.emit(Send(event.routing, msg.Enrolled(enrol_.session, device_id)))
        return
    if token is None or token.state(state.clock.age_ms(now)) != "valid":
        refuse("token", "the join token is used up, expired or revoked; make a new one on the main"
               " node: retire-cluster token create")  # fmt: skip
        return
    if access.owners.get(key, device_id) != device_id or any(
        t.key == key for t in access.tokens.values()
    ):
        refuse("bad_hello", "this key is already another one's")
        return
    if known not in (None, key) and device_id not in state.tombstones:
        refuse(
            "taken",
            f"{device_id} is in this cluster with another key; choose another name with"
            f" --device-id, or on the main node: retire-cluster devices rm {device_id}",
        )
        return
    rows = [
        access.enrol(device_id, key, now.wall_ms),
        access.put_token(replace(token, used=token.used + 1)),
    ]
    state.emit(StoreAccess(rows))
    if state.tombstones.pop(device_id, None) is not None:
        state.emit(ForgetDevices((device_id,)))
    state.log.add("device.enrolled", now.wall_ms, device_id=device_id,
                  data={"token": token.token_id, "key": fingerprint(key)})  # fmt: skip
    state.emit(Send(event.routing, msg.Enrolled(enrol_.session, device_id)))


# --- asked by an administrator -------------------------------------------------------------------


def add_token(state: ClusterState, event: ev.TokenMade, now: Now) -> None:
    """Add a join token, and forget those that are long over."""
    rows = [*state.access.prune(state.clock.age_ms(now)), state.access.put_token(event.token)]
    state.emit(StoreAccess(rows))
    state.log.add("token.created", now.wall_ms, data={"token": event.token.token_id})


def revoke_token(state: ClusterState, event: ev.TokenRevoked, now: Now) -> None:
    """Remove a join token. Raises `KeyError`."""
    state.emit(StoreAccess((state.access.revoke_token(event.token_id),)))
    state.log.add("token.revoked", now.wall_ms, data={"token": event.token_id})


def add_admin_key(state: ClusterState, event: ev.AdminKeyAdded, now: Now) -> None:
    """Add a key that may use the admin socket."""
    state.emit(StoreAccess((state.access.put_admin(event.admin),)))
    state.log.add("admin_key.created", now.wall_ms, data={"name": event.admin.name})


def revoke_admin_key(state: ClusterState, event: ev.AdminKeyRevoked, now: Now) -> None:
    """Remove a key from the admin socket, for open connections too. Raises `KeyError`."""
    state.emit(StoreAccess((state.access.revoke_admin(event.name),)))
    state.log.add("admin_key.revoked", now.wall_ms, data={"name": event.name})


def authorise_device(state: ClusterState, event: ev.DeviceAuthorised, now: Now) -> None:
    """Give a device a key on behalf of an administrator, without a token.

    Raises `ValidationError`, or `Forbidden` for a device that was removed.
    """
    access = state.access
    if event.device_id in state.tombstones:
        raise Forbidden(
            f"{event.device_id} was removed from this cluster; let it in again with:"
            f" retire-cluster devices readmit {event.device_id}"
        )
    if access.owners.get(event.key, event.device_id) != event.device_id:
        raise ValidationError("public_key", "is already another device's")
    if access.devices.get(event.device_id) != event.key and not event.trial:
        state.emit(StoreAccess((access.enrol(event.device_id, event.key, now.wall_ms),)))
        data = {"key": fingerprint(event.key)}
        state.log.add("device.authorised", now.wall_ms, device_id=event.device_id, data=data)


def record_key_uses(state: ClusterState, event: ev.ApiKeysUsed, now: Now) -> None:
    """Record when API keys were last used."""
    if rows := state.access.note_uses(event.uses):
        state.emit(StoreAccess(rows))


def record_key_changes(state: ClusterState, event: ev.ApiKeysChanged, now: Now) -> None:
    """Log an event for each API key that was made or revoked."""
    for key_id in event.key_ids:
        if event.are_new:
            data = {"key": key_id, "scopes": list(event.scopes)}
            state.log.add("api_key.created", now.wall_ms, data=data)
        else:
            state.log.add("api_key.revoked", now.wall_ms, data={"key": key_id})
