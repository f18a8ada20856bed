"""Devices that speak another version of the wire are told so, whatever else their words mean.

A HELLO or ENROL of another protocol is never read beyond the few fields that keep their form for
ever (docs/protocol.md, Versions): its attempts and results might mean something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retire_cluster.schemas.protocol.messages import Reject
from retire_cluster.schemas.protocol.wire import ADMIN_PROTOCOL, PROTOCOL

GREETINGS = frozenset((b"HELLO", b"ENROL"))
_TEXT = 100


def fits(header: Mapping[str, Any]) -> bool:
    """Return whether a HELLO or ENROL is of the protocol that is spoken here."""
    found = header.get("protocol")
    return type(found) is int and found == PROTOCOL


def refusal(header: Mapping[str, Any], version: str = "") -> Reject:
    """Make the answer to one that is not. `version`: this main node's."""
    theirs = header.get("protocol")
    number = theirs if type(theirs) is int else 0
    name = word_of(header, "device_id") or "a device"
    theirs_is = word_of(header, "version")
    spoken = f"protocol {number}" if number else "no protocol that is known here"
    if theirs_is:
        spoken += f" (retire-cluster {theirs_is})"
    ours = f"protocol {PROTOCOL}" + (f" (retire-cluster {version})" if version else "")
    if number > PROTOCOL:
        cure = "update this main node: pip install --upgrade retire-cluster, then start it again"
    else:
        cure = (
            f"update the worker on {name}: pip install --upgrade retire-cluster there (or paste a"
            " new join line of this main node), then start it again"
        )
    text = f"{name} speaks {spoken}, this main node {ours}: {cure}"
    return Reject(word_of(header, "session"), "protocol", text, None, PROTOCOL)


def admin_refusal(theirs: object, version: str) -> str:
    """Return the error for callers that speak another admin protocol (docs/protocol.md)."""
    number = theirs if type(theirs) is int else 0
    spoken = f"admin protocol {number}" if number else "no admin protocol that is known here"
    if number > ADMIN_PROTOCOL:
        cure = (
            "update the main node's machine: pip install --upgrade retire-cluster, then restart it"
        )
    else:
        cure = "update this program: pip install --upgrade retire-cluster"
    return (
        f"this program speaks {spoken}, the main node {ADMIN_PROTOCOL} (retire-cluster {version}):"
        f" {cure}"
    )


def word_of(header: Mapping[str, Any], name: str) -> str:
    """Return a text of a HELLO or ENROL, cut to length; empty where there is none."""
    found = header.get(name)
    return found[:_TEXT] if isinstance(found, str) else ""
