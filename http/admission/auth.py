"""Identify clients and check their rights: keys, sessions, and the loopback rule without keys."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from retire_cluster.api.admission.keys import ApiKey, ApiKeyRing
from retire_cluster.api.admission.local_users import ClientConnection, LocalUsers, connection_of
from retire_cluster.api.admission.peers import Peer
from retire_cluster.api.admission.sessions import Sessions
from retire_cluster.schemas import rights
from retire_cluster.schemas.errors import (
    ClusterError,
    Forbidden,
    RateLimitExceeded,
    Unauthorized,
)
from retire_cluster.schemas.rest.endpoints import Endpoint
from retire_cluster.schemas.rights import Door

WRONG_KEYS_PER_MINUTE = 10
_REMEMBERED_ADDRESSES = 10_000
_HOW_TO_SEND = "send it as X-API-Key: KEY or Authorization: Bearer KEY"
#: What the dashboard's pages send with each request.
DASHBOARD_HEADER = "HTTP_X_REQUESTED_WITH"
DASHBOARD = "retire-cluster-dashboard"
CHALLENGE = 'Bearer realm="retire-cluster"'
#: What a user of this machine is told who is not the one that runs the cluster.
OTHER_USER = (
    "authentication is off, and this is open to the user that runs the cluster and to root only:"
    " run it as that user, or use a key (retire-cluster keys create, and --auth for the API);"
    ' api.local_users = "all" opens it to everybody on this machine'
)


@dataclass(frozen=True)
class Identity:
    """The client of one request, as far as it is known."""

    peer: Peer
    #: The valid key it presented, or None.
    key: ApiKey | None
    #: It presented a key that is not valid.
    wrong_key: bool = False
    #: It is the dashboard: signed in, or on this machine without authentication.
    dashboard: bool = False
    #: Name of a cookie of this cluster that is worth nothing (any more).
    bad_cookie: str = ""
    #: Its cookie could not be judged: the main node is silent.
    unknown: ClusterError | None = None
    #: What it came by, where whose process that is may still be asked.
    connection: ClientConnection | None = None

    @property
    def client(self) -> str:
        """Name what rate limits count by: the key, else the address (an IPv6 network of 64 bits).

        The dashboard's is another than its key's or address's, so that scripts never blank it.
        """
        of = f"key:{self.key.key_id}" if self.key else f"address:{network_of(self.peer.address)}"
        return f"dashboard:{of}" if self.dashboard else of

    @property
    def owner(self) -> str:
        """Name whose idempotency keys these are: of a key, or of an address without one."""
        return self.key.key_id if self.key else f"anonymous:{self.peer.address}"


def network_of(address: str) -> str:
    """Return the address, or for IPv6 its /64, which one subscriber has to himself."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network(f"{address}/64", strict=False))


def presented_key(environ: Mapping[str, Any]) -> str | None:
    """Return the key that a WSGI request carries in a header, if any."""
    key = str(environ.get("HTTP_X_API_KEY", "")).strip()
    if key:
        return key
    scheme, _, value = str(environ.get("HTTP_AUTHORIZATION", "")).strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip() or None
    return None


class Authorizer:
    """Decide on every request who its client is and whether it may do what it asks.

    :param keys: the accepted keys
    :param required: authentication is on
    :param reads: with authentication on, reading needs a key too
    :param sessions: knows the cookies of signed-in browsers; None: there are none
    :param local_users: those of this machine who may do everything while authentication is off;
        None: all
    :param monotonic: clock in seconds, for the count of wrong keys
    :param clock: epoch seconds, for when a key was last used
    """

    def __init__(
        self,
        keys: ApiKeyRing,
        *,
        required: bool,
        reads: bool = False,
        sessions: Sessions | None = None,
        local_users: LocalUsers | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.keys = keys
        self._sessions = sessions
        self._local_users = local_users
        self._clock = clock
        self._uses: dict[str, int] = {}
        self.required = required
        self.reads = required and reads
        self._wrong = _WrongKeys(monotonic)

    def of_request(self, peer: Peer, environ: Mapping[str, Any]) -> Identity:
        """Identify the client of a WSGI request by its key, else its cookie. Raises as `identify`.

        A cookie that is worth nothing counts as none: nobody guesses sessions of 256 bits, and a
        browser sends an ended one with every request.
        """
        if not self.required:
            own = environ.get(DASHBOARD_HEADER) == DASHBOARD
            connection = connection_of(environ) if peer.loopback else None
            return Identity(peer, None, dashboard=own and peer.loopback, connection=connection)
        presented = presented_key(environ)
        if presented is not None or self._sessions is None:
            return self.identify(peer, presented)
        try:
            signed = self._sessions.read(environ)
        except ClusterError as error:
            return Identity(peer, None, unknown=error)
        if signed is None:
            return Identity(peer, None)
        key = self.keys.by_id(signed.key_id) if signed.key_id is not None else None
        if key is None:
            return Identity(peer, None, bad_cookie=signed.name)
        self._uses[key.key_id] = int(self._clock() * 1000)
        return Identity(peer, key, dashboard=True)

    def identify(self, peer: Peer, presented: str | None) -> Identity:
        """Identify the client of a request from `peer` that carries this key (None: none).

        Raises `RateLimitExceeded` when wrong keys came from that address too often; valid keys are
        never locked out.
        """
        if presented is None or not self.required:
            return Identity(peer, None)
        key = self.keys.find(presented)
        if key is None:
            self._wrong.count(network_of(peer.address))
        else:
            self._uses[key.key_id] = int(self._clock() * 1000)
        return Identity(peer, key, wrong_key=key is None)

    def take_uses(self) -> dict[str, int]:
        """Take key ids and when each was last used (epoch ms) since the last call."""
        taken, self._uses = self._uses, {}
        return taken

    def check(self, identity: Identity, endpoint: Endpoint) -> None:
        """Raise `Unauthorized` or `Forbidden` unless this client may do what `endpoint` does.

        What tasks of their type need is asked where the type is known: `check_submission`, and the
        main node by what `caller` tells it.
        """
        right = endpoint.right
        if right.door is Door.CLOSED or (
            self.reads and right.door is Door.READS and not right.late
        ):
            self._need(identity, right.scope)

    def check_reading(self, identity: Identity) -> None:
        """Raise like `check` unless this client may read."""
        if self.reads:
            self._need(identity, rights.READ)

    def of_ticket(self, peer: Peer, key_id: str) -> Identity:
        """Identify the client a ticket was made for; `key_id` is unknown where it had no key."""
        return Identity(peer, self.keys.by_id(key_id))

    def still_valid(self, identity: Identity) -> bool:
        """Tell whether the key of a client that was let in has not been revoked since."""
        return identity.key is None or self.keys.by_id(identity.key.key_id) is not None

    def check_submission(self, identity: Identity, task_types: set[str]) -> None:
        """Raise `Unauthorized` or `Forbidden` unless this client may submit tasks of these types.

        Types beside the harmless ones run code or reach out, so they need what the document's
        protected endpoints need (docs/contract.md, Authentication).
        """
        dangerous = sorted(t for t in task_types if rights.of_type(t) == rights.DANGEROUS)
        if dangerous:
            self._need(identity, rights.DANGEROUS, f"Submitting {', '.join(dangerous[:5])}")

    def is_stranger(self, identity: Identity) -> bool:
        """Tell whether this client submits as anybody may, and not by a right of its own."""
        if not self.required:
            return not self.is_owner(identity)
        return identity.key is None or not identity.key.may(rights.SUBMIT)

    def is_owner(self, identity: Identity) -> bool:
        """Tell whether this client may do everything because authentication is off."""
        return not self.required and identity.peer.loopback and not self.is_other_user(identity)

    def is_other_user(self, identity: Identity) -> bool:
        """Tell whether authentication is off and this client another user of this machine."""
        if self.required or self._local_users is None or not identity.peer.loopback:
            return False
        through_proxy = identity.peer.through_proxy
        return not self._local_users.may(identity.connection, through_proxy=through_proxy)

    def caller(self, identity: Identity) -> dict[str, Any]:
        """Return the arguments by which the main node judges what this client does to tasks.

        None are needed for a client that may do everything to all types.
        """
        if identity.key is None or identity.key.may(rights.DANGEROUS):
            return {}
        return {"caller": {"scopes": list(identity.key.scopes)}}

    def _need(self, identity: Identity, scope: str, what: str = "This") -> None:
        if not self.required:
            if not identity.peer.loopback:
                raise Unauthorized(
                    f"{what} is open to this machine only while authentication is off; start the"
                    " API with --auth (or --api-key KEY) and send the key"
                )
            if self.is_other_user(identity):
                raise Forbidden(f"{what} was refused: {OTHER_USER}", details={"scope": scope})
        elif identity.key is None:
            if identity.unknown is not None:
                raise identity.unknown
            reason = "the API key is not valid" if identity.wrong_key else "it needs an API key"
            raise Unauthorized(f"{what} was refused: {reason}; {_HOW_TO_SEND}")
        elif not identity.key.may(scope):
            raise Forbidden(
                f"{what} needs a key with the scope {scope}",
                details={"scope": scope, "scopes": list(identity.key.scopes)},
            )


class _WrongKeys:
    """Count wrong keys by address over the last minute, so that guessing is slow."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = Lock()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def count(self, address: str) -> None:
        """Count one more. Raises `RateLimitExceeded` after `WRONG_KEYS_PER_MINUTE` of them."""
        now = self._monotonic()
        with self._lock:
            times = self._times.setdefault(address, deque())
            self._times.move_to_end(address)
            while times and times[0] <= now - 60:
                times.popleft()
            if len(times) >= WRONG_KEYS_PER_MINUTE:
                raise RateLimitExceeded(
                    "Too many wrong API keys from this address",
                    retry_after=max(1.0, times[0] + 60 - now),
                )
            times.append(now)
            if len(self._times) > _REMEMBERED_ADDRESSES:
                self._times.popitem(last=False)
