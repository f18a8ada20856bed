"""Operations of REST facades (docs/protocol.md, Admin socket): what their processes share."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from retire_cluster.broker.admin.calls import Call, Reply
from retire_cluster.broker.admin.context import AdminContext
from retire_cluster.broker.admin.rate_limit import RequestLimits
from retire_cluster.broker.admin.registry import operation
from retire_cluster.conf.curve import Pair
from retire_cluster.schemas.keys import fingerprint

_DOMAIN = b"retire-cluster dashboard session"


def facade_identity(pair: Pair | None, salt: int, admin_port: int) -> tuple[str, bytes]:
    """Return `(id of this cluster, secret that dashboard sessions are signed with)`.

    Both follow from the main node's key, so they outlive its process. Without a key the sessions
    end with it: there is nothing else that only it knows.
    """
    if pair is None:
        text = f"{salt}:{admin_port}".encode()
        return hashlib.sha256(text).hexdigest()[:12], secrets.token_bytes(32)
    return (
        fingerprint(pair.public),
        hmac.new(pair.secret.encode("ascii"), _DOMAIN, hashlib.sha256).digest(),
    )


@operation("facade.identity", {})
def identity(admin: AdminContext, call: Call) -> Reply:
    """Answer the id of this cluster and what its facades sign dashboard sessions with."""
    facts = admin.facts
    return Reply({"cluster_id": facts.cluster_id, "session_secret": facts.session_secret.hex()})


@operation(
    "rate.hit",
    {
        "client": {"type": "string", "required": True, "minlength": 1, "maxlength": 300},
        "per_minute": {"type": "strict_int", "min": 1, "default": 60},
        "per_hour": {"type": "strict_int", "min": 1, "default": 1000},
        "burst": {"type": "strict_int", "min": 0, "default": 10},
    },
)
def hit(admin: AdminContext, call: Call) -> Reply:
    """Count one request of a client if it is allowed, and answer what it has left."""
    args = call.args
    limits = RequestLimits(args["per_minute"], args["per_hour"], args["burst"])
    return Reply(admin.windows.hit(args["client"], limits, call.now.mono, call.now.wall_ms))


@operation(
    "facade.report",
    {
        "facade": {"type": "string", "required": True, "maxlength": 200},
        "requests": {"type": "strict_int", "min": 0, "required": True},
        "errors": {"type": "strict_int", "min": 0, "required": True},
        "total_ms": {"type": "finite", "min": 0, "required": True},
    },
)
def report(admin: AdminContext, call: Call) -> Reply:
    """Record what a facade process served since its last report."""
    args = call.args
    admin.state.record_requests(call.now, args["requests"], args["errors"], args["total_ms"])
    return Reply({})
