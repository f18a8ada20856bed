"""Operations on keys and tokens (docs/protocol.md, Admin socket)."""

from __future__ import annotations

import secrets
from typing import Any, Final

from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.registry import operation
from retire_cluster.broker.admin.timestamps import stamp
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.devices.access import AdminKey, Token
from retire_cluster.conf import curve
from retire_cluster.schemas.errors import Forbidden, NotFound, ValidationError
from retire_cluster.schemas.keys import fingerprint, is_key
from retire_cluster.schemas.rights import SCOPES
from retire_cluster.schemas.vocabulary import DEVICE_ID_PATTERN, RESERVED_DEVICE_IDS

DEFAULT_TOKEN_SECONDS: Final = 3_600
_NAME: Final = {"type": "string", "required": True, "regex": r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}"}
_KEY: Final = {"type": "string", "required": True, "maxlength": 100}


@operation(
    "token.create",
    {
        "token_id": {**_NAME, "required": False, "nullable": True, "default": None},
        "uses": {"type": "integer", "min": 1, "max": 10_000, "default": 1},
        "age_seconds": {
            "type": "integer", "min": 60, "max": 30 * 86_400, "default": DEFAULT_TOKEN_SECONDS,
        },
        "note": {"type": "string", "maxlength": 200, "default": ""},
    },
    changes=True,
)  # fmt: skip
def create_token(admin: AdminContext, call: Call) -> Reply:
    """Make a join token and answer its secret, this once; replace one with the same id."""
    if not admin.facts.bus_encrypted:
        raise Forbidden(
            "The worker bus of this main node is not encrypted: devices join with HOST:PORT."
        )
    args = call.args
    secret = secrets.token_bytes(curve.TOKEN_BYTES)
    token = Token(
        token_id=args["token_id"] or secrets.token_hex(4),
        key=curve.pair_of_token(secret).public,
        created_ms=call.now.wall_ms,
        expires_age_ms=admin.state.clock.age_ms(call.now) + 1000 * args["age_seconds"],
        uses=args["uses"],
        note=args["note"],
    )
    admin.apply(ev.TokenMade(token), call.now)
    return Reply(
        {
            **_token_view(token, admin, call),
            "token": secret.hex(),
            "server_key": admin.facts.server_key,
            "worker_port": admin.facts.worker_port,
        }
    )


@operation("token.list", {})
def list_tokens(admin: AdminContext, call: Call) -> Reply:
    """Answer all tokens, newest first, without their secrets, which are not kept."""
    found = sorted(admin.state.access.tokens.values(), key=lambda t: t.created_ms, reverse=True)
    return Reply({"items": [_token_view(token, admin, call) for token in found]})


@operation("token.revoke", {"token_id": _NAME}, changes=True)
def revoke_token(admin: AdminContext, call: Call) -> Reply:
    """End a token at once; devices that have joined with it stay."""
    token_id: str = call.args["token_id"]
    if token_id not in admin.state.access.tokens:
        raise NotFound(f"There is no token {token_id!r}; see: retire-cluster token ls")
    admin.apply(ev.TokenRevoked(token_id), call.now)
    return Reply({"token_id": token_id, "revoked_at": stamp(call.now.wall_ms)})


def _token_view(token: Token, admin: AdminContext, call: Call) -> dict[str, Any]:
    age_ms = admin.state.clock.age_ms(call.now)
    return {
        "token_id": token.token_id,
        "state": token.state(age_ms),
        "uses": token.uses,
        "used": token.used,
        "created_at": stamp(token.created_ms),
        "expires_at": stamp(call.now.wall_ms + token.expires_age_ms - age_ms),
        "note": token.note,
    }


@operation("admin_key.add", {"name": _NAME, "public_key": _KEY}, changes=True)
def add_admin_key(admin: AdminContext, call: Call) -> Reply:
    """Let a key use the admin socket and the event feed from elsewhere."""
    name, key = call.args["name"], _key(call)
    if not admin.facts.server_key:
        raise Forbidden("The sockets of this main node are not encrypted: keys change nothing.")
    if name in admin.state.access.admins:
        raise ValidationError("name", f"{name!r} is taken; revoke it first")
    admin.apply(ev.AdminKeyAdded(AdminKey(name, key, call.now.wall_ms)), call.now)
    return Reply({"name": name, "server_key": admin.facts.server_key})


@operation("admin_key.list", {})
def list_admin_keys(admin: AdminContext, call: Call) -> Reply:
    """Answer the keys that may use the admin socket beside this machine's own."""
    found = sorted(admin.state.access.admins.values(), key=lambda key: key.name)
    return Reply(
        {
            "items": [
                {
                    "name": key.name,
                    "fingerprint": fingerprint(key.key),
                    "created_at": stamp(key.created_ms),
                }
                for key in found
            ]
        }
    )


@operation("admin_key.revoke", {"name": _NAME}, changes=True)
def revoke_admin_key(admin: AdminContext, call: Call) -> Reply:
    """Revoke a key: calls of connections that have it are refused from now on."""
    name: str = call.args["name"]
    if name not in admin.state.access.admins:
        raise NotFound(f"There is no admin key {name!r}; see: retire-cluster admin-key ls")
    admin.apply(ev.AdminKeyRevoked(name), call.now)
    return Reply({"name": name, "revoked_at": stamp(call.now.wall_ms)})


@operation(
    "device.authorise",
    {
        "device_id": {"type": "string", "required": True, "regex": DEVICE_ID_PATTERN},
        "public_key": _KEY,
        "trial": {"type": "boolean", "default": False},
    },
    changes=True,
)
def authorise(admin: AdminContext, call: Call) -> Reply:
    """Say which key a device has: it joins without a token. For devices set up beforehand.

    A trial says only whether that would do.
    """
    device_id, key = call.args["device_id"], _key(call)
    if device_id in RESERVED_DEVICE_IDS:
        raise ValidationError("device_id", f"{device_id!r} is a name of the REST API's own")
    admin.apply(ev.DeviceAuthorised(device_id, key, call.args["trial"]), call.now)
    return Reply({"device_id": device_id, "server_key": admin.facts.server_key})


@operation(
    "api_key.used",
    {
        "keys": {
            "type": "dict", "required": True, "maxlength": 1_000,
            "keysrules": {"type": "string", "regex": "[0-9a-f]{16}"},
            "valuesrules": {"type": "strict_int", "min": 0},
        },
    },
    changes=True,
)  # fmt: skip
def api_keys_used(admin: AdminContext, call: Call) -> Reply:
    """Record when API keys were last used, by id; the keys themselves stay with the facade."""
    admin.apply(ev.ApiKeysUsed(call.args["keys"]), call.now)
    return Reply({})


@operation(
    "api_key.changed",
    {
        "change": {"type": "string", "required": True, "allowed": ["created", "revoked"]},
        "key_ids": {
            "type": "list", "required": True, "minlength": 1, "maxlength": 1_000,
            "schema": {"type": "string", "regex": "[0-9a-f]{16}"},
        },
        "scopes": {
            "type": "list", "maxlength": 10, "default": [],
            "schema": {"type": "string", "allowed": list(SCOPES)},
        },
    },
    changes=True,
)  # fmt: skip
def api_keys_changed(admin: AdminContext, call: Call) -> Reply:
    """Record in the event log that API keys were made or revoked, by id, never by the key."""
    args = call.args
    event = ev.ApiKeysChanged(args["change"] == "created", args["key_ids"], args["scopes"])
    admin.apply(event, call.now)
    return Reply({})


@operation("api_key.uses", {})
def api_key_uses(admin: AdminContext, call: Call) -> Reply:
    """Answer when API keys were last used, by id, to the minute."""
    uses = admin.state.access.key_uses
    return Reply({"items": {key_id: stamp(at_ms) for key_id, at_ms in sorted(uses.items())}})


def _key(call: Call) -> str:
    key: str = call.args["public_key"]
    if not is_key(key):
        raise ValidationError("public_key", "must be a CURVE public key, 40 characters of Z85")
    return key
