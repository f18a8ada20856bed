"""Who may speak to this main node: keys of devices, join tokens, keys of administrators.

The handshake asks `may_connect`; a device's messages are held against `device_of` again, each one,
because a handshake is asked once a connection and a key can be revoked later. Keys are public ones:
nothing here can be used to get in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from retire_cluster.broker.core.rows import AccessRow
from retire_cluster.schemas.keys import is_key
from retire_cluster.schemas.text.json_text import JSONError, dumps, loads

#: The sockets, as the handshake names them.
BUS, ADMIN, FEED = "bus", "admin", "feed"
#: A token that is over is still shown for so long.
TOKEN_KEPT_MS = 24 * 3_600_000
KEY_USE_STORED_MS = 60_000


@dataclass(frozen=True)
class Token:
    """A join token; its secret half is known to whoever was given the join string."""

    token_id: str
    #: Public key of the enrolment pair.
    key: str
    created_ms: int
    #: On the cluster's age (`records/clock.py`).
    expires_age_ms: int
    uses: int
    used: int = 0
    note: str = ""

    def state(self, age_ms: int) -> str:
        """Return `valid`, `used up` or `expired`."""
        if age_ms >= self.expires_age_ms:
            return "expired"
        return "valid" if self.used < self.uses else "used up"


@dataclass(frozen=True)
class AdminKey:
    """A key that may use the admin socket and the event feed from elsewhere."""

    name: str
    key: str
    created_ms: int


@dataclass
class Access:
    """All keys and tokens. They change by the verbs below only; each returns what to store."""

    #: Device id → its public key.
    devices: dict[str, str] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    admins: dict[str, AdminKey] = field(default_factory=dict)
    #: API keys by id, and when each was last used (epoch ms).
    key_uses: dict[str, int] = field(default_factory=dict)

    # --- asked -----------------------------------------------------------------------------------

    def may_connect(self, socket: str, key: str, age_ms: int) -> bool:
        """Return whether the handshake of this key on this socket succeeds."""
        if socket == BUS:
            return key in self.owners or self.token(key, age_ms) is not None
        return any(admin.key == key for admin in self.admins.values())

    def token(self, key: str, age_ms: int) -> Token | None:
        """Return the valid token with this enrolment key; None without one."""
        for token in self.tokens.values():
            if token.key == key and token.state(age_ms) == "valid":
                return token
        return None

    def device_of(self, key: str) -> str | None:
        """Return the id of the device with this key; None without one."""
        return self.owners.get(key)

    # --- changed ---------------------------------------------------------------------------------

    def enrol(self, device_id: str, key: str, wall_ms: int) -> AccessRow:
        """Give a device a key; its old one is forgotten."""
        old = self.devices.get(device_id)
        if old is not None:
            self.owners.pop(old, None)
        self.devices[device_id] = key
        self.owners[key] = device_id
        return _row("device", device_id, {"key": key, "at_ms": wall_ms})

    def put_token(self, token: Token) -> AccessRow:
        """Add a token, or replace the one with its id."""
        self.tokens[token.token_id] = token
        return _row("token", token.token_id, dict(vars(token)))

    def revoke_token(self, token_id: str) -> AccessRow:
        """Remove a token. Raises `KeyError`."""
        del self.tokens[token_id]
        return AccessRow("token", token_id, None)

    def put_admin(self, admin: AdminKey) -> AccessRow:
        """Add an administrator's key, or replace the one of that name."""
        self.admins[admin.name] = admin
        return _row("admin", admin.name, dict(vars(admin)))

    def revoke_admin(self, name: str) -> AccessRow:
        """Remove an administrator's key. Raises `KeyError`."""
        del self.admins[name]
        return AccessRow("admin", name, None)

    def note_uses(self, uses: Mapping[str, int]) -> list[AccessRow]:
        """Note when API keys were used (epoch ms); returns the rows to store."""
        rows = []
        for key_id, at_ms in uses.items():
            before = self.key_uses.get(key_id)
            if before is None or abs(at_ms - before) >= KEY_USE_STORED_MS:
                self.key_uses[key_id] = at_ms
                rows.append(_row("used", key_id, {"at_ms": at_ms}))
        return rows

    def prune(self, age_ms: int) -> list[AccessRow]:
        """Forget tokens that have been over for a day."""
        over = [
            token.token_id
            for token in self.tokens.values()
            if age_ms >= token.expires_age_ms + TOKEN_KEPT_MS
        ]
        return [self.revoke_token(token_id) for token_id in over]

    def load(self, rows: list[AccessRow]) -> list[str]:
        """Take over what the store kept; returns warnings about rows that are damaged."""
        warnings = []
        for row in rows:
            try:
                document: dict[str, Any] = loads(row.document or b"")
                if row.kind == "used":
                    self.key_uses[row.name] = int(document["at_ms"])
                    continue
                if not is_key(document["key"]):
                    raise ValueError("its key is none")
                if row.kind == "device":
                    self.enrol(row.name, document["key"], document["at_ms"])
                elif row.kind == "token":
                    self.put_token(Token(**document))
                else:
                    self.put_admin(AdminKey(**document))
            except (JSONError, KeyError, TypeError, ValueError) as error:
                warnings.append(f"the stored {row.kind} key {row.name!r:.60} is damaged: {error}")
        return warnings


def _row(kind: str, name: str, document: dict[str, Any]) -> AccessRow:
    return AccessRow(kind, name, dumps(document))
