"""What a task's payload needs of a device beyond its type: a program, a function, an address.

A need is one text a task, as `program ffmpeg`; an empty one when nothing can be told beforehand. A
device tells in HELLO which needs its owner allows, so that a task goes where it may run. None of
that is secret: names of programs, never their arguments, never folders.
"""

from __future__ import annotations

import fnmatch
import hashlib
import ipaddress
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from retire_cluster.schemas.text import web_url
from retire_cluster.schemas.text.clean_text import clean

SHELL: Final = "a shell"
PRIVATE: Final = "a private address"
_PROGRAM: Final = "program "
_HOST: Final = "host "
_FUNCTION: Final = "function "
#: Types whose payload is looked at.
TYPES: Final = frozenset({"command", "http_request", "python_call"})
#: Needs that every device can be judged by.
ALWAYS_APART: Final = frozenset({SHELL, PRIVATE})
MAX_PROGRAMS: Final = 100
_MAX_CHARACTERS: Final = 200

#: Networks of private addresses, which a device's owner may or may not allow.
_NETWORKS: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
        "::1/128", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip


def of(task_type: str, payload: Mapping[str, Any]) -> str:
    """Return the need of a validated payload; empty for other types and odd payloads."""
    if task_type == "command":
        words = payload.get("command")
        if isinstance(words, str):
            return SHELL
        if isinstance(words, list) and words and isinstance(words[0], str):
            return _PROGRAM + clean(words[0])[:_MAX_CHARACTERS]
    elif task_type == "http_request":
        return _of_url(payload.get("url"))
    elif task_type == "python_call":
        # What one function lacks on a device, a package, another need not.
        digest = payload.get("digest") or _digest(payload.get("source") or payload.get("call"))
        words = [payload.get("name") or payload.get("function"), digest]
        text = " ".join(word for word in words if isinstance(word, str) and word)
        return _FUNCTION + clean(text)[-_MAX_CHARACTERS:] if text else ""
    return ""


def _digest(text: object) -> str:
    """Tell apart functions that are sent whole, also where their sender does not."""
    if not isinstance(text, str):
        return ""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _of_url(url: object) -> str:
    try:
        # Where no request can go, nothing is needed for it.
        host = web_url.split(url).hostname if isinstance(url, str) else None
    except ValueError:
        return ""
    if not host:
        return ""
    if host == "localhost" or host.endswith(".localhost") or _is_private(host):
        return PRIVATE
    return _HOST + clean(host)[:_MAX_CHARACTERS]


def _is_private(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return any(address.version == net.version and address in net for net in _NETWORKS)


def in_words(need: str) -> str:
    """Write a need for people, with somebody else's text escaped."""
    for kind in (_PROGRAM, _HOST, _FUNCTION):
        if need.startswith(kind):
            return f"{kind}{json.dumps(need[len(kind) :], ensure_ascii=True)[1:-1]}"
    return need


def refusal(need: str, allows: Mapping[str, Any]) -> str | None:
    """Say why a device with these `allows` does not run such a task; None when it may."""
    if need == SHELL:
        if allows.get("shell") is False:
            return "its owner allows no shell (--allow command:shell)"
    elif need == PRIVATE:
        if allows.get("private_addresses") is False:
            return "its owner allows no private addresses (policy.private_addresses)"
    elif need.startswith(_PROGRAM):
        programs = allows.get("programs")
        name = need[len(_PROGRAM) :]
        if programs is not None and not any(fnmatch.fnmatchcase(name, p) for p in programs):
            return f"its owner does not allow the {in_words(need)} (policy.commands)"
    return None


def permits(need: str, allows: Mapping[str, Any]) -> bool:
    """Tell whether these `allows` expressly permit such tasks."""
    if need == SHELL:
        return allows.get("shell") is True
    return need.startswith(_PROGRAM) and "shell" in allows and refusal(need, allows) is None


def told(
    task_type: str, *, shell: bool, programs: Sequence[str] | None, private_addresses: bool
) -> dict[str, Any]:
    """Return the `allows` of a task type's entry in HELLO.

    :param programs: patterns of the programs that `command` may run, None for any
    """
    if task_type == "command":
        found: dict[str, Any] = {"shell": shell}
        # A list that is cut would refuse what is allowed: none is told then.
        if programs is not None and len(programs) <= MAX_PROGRAMS:
            found["programs"] = list(programs)
        return found
    if task_type == "http_request":
        return {"private_addresses": private_addresses}
    return {}


def read_allows(value: object) -> dict[str, Any]:
    """Read what `told` makes; leave out what has another form."""
    if not isinstance(value, dict):
        return {}
    found: dict[str, Any] = {
        name: value[name]
        for name in ("shell", "private_addresses")
        if isinstance(value.get(name), bool)
    }
    programs = value.get("programs")
    if (
        isinstance(programs, list)
        and len(programs) <= MAX_PROGRAMS
        and all(isinstance(name, str) and len(name) <= _MAX_CHARACTERS for name in programs)
    ):
        found["programs"] = programs
    return found
