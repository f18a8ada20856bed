"""`--test`: what this device offers, whether it can do it, whether the main node welcomes it."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import zmq

from retire_cluster.node.core import exit_codes
from retire_cluster.node.core.records import Introduction
from retire_cluster.node.device.policy import Policy
from retire_cluster.node.link.credentials import Credentials
from retire_cluster.node.link.sockets import REFUSED, UP, Dialer, Link
from retire_cluster.node.running.catalog import Catalog
from retire_cluster.node.running.task_process import Plan
from retire_cluster.node.selftest.samples import Tried
from retire_cluster.node.walls.confinement import LANDLOCK, Confinement
from retire_cluster.node.walls.task_cgroups import ending
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import (
    FromBroker,
    FromDevice,
    Reject,
    Welcome,
    read_from_broker,
)
from retire_cluster.schemas.text.clean_text import escaped

WAIT_SECONDS = 5.0


def check(
    dialer: Dialer,
    me: Introduction,
    capabilities: Mapping[str, Any],
    catalog: Catalog,
    keys: Credentials | None = None,
    plan: Plan | None = None,
    tried: Iterable[Tried] = (),
    wait_seconds: float = WAIT_SECONDS,
) -> int:
    """Print the report; the exit code. A join token is not used up.

    Nor does the main node know of this device afterwards, where it did not before.

    0 welcomed, 1 welcomed but a kind of task fails here, 2 refused, 3 no answer.
    """
    _show(me, capabilities, catalog)
    if plan is not None:
        show_containment(plan, catalog.policy)
    failed = show_tried(tried)
    code = _show_main_node(dialer, me, capabilities, keys, wait_seconds)
    if failed:
        sys.stderr.write(
            f"Tasks of these types fail on this device: {escaped(', '.join(failed))}."
            " Mend what is said above, or keep them off with policy.deny.\n"
        )
    return code or (exit_codes.FAILED if failed else exit_codes.OK)


def show_tried(tried: Iterable[Tried]) -> list[str]:
    """How each kind of task fared; the types that failed."""
    failed = []
    for one in tried:
        _line(f"task {one.task_type}", " ".join(one.text.split())[:500])
        if not one.ok:
            failed.append(one.task_type)
    return failed


def _show_main_node(
    dialer: Dialer,
    me: Introduction,
    capabilities: Mapping[str, Any],
    keys: Credentials | None,
    wait_seconds: float,
) -> int:
    session = secrets.token_hex(8)
    only_knock = keys is not None and (keys.enrolling or keys.borrowed)
    answer, trouble = _ask(dialer, me, capabilities, session, wait_seconds, only_knock)
    if trouble == UP:
        what = (
            "device: it is of its own user and machine" if keys and keys.borrowed else "join token"
        )
        _line("main node", f"{dialer.address} takes this {what}")
        return exit_codes.OK
    if trouble == REFUSED:
        what = "join token: it is used up, expired or revoked" if only_knock else "device's key"
        _line("main node", f"{dialer.address} refuses this {what}")
        sys.stderr.write("Make a join line on the main node: retire-cluster token create\n")
        return exit_codes.REFUSED
    if isinstance(answer, Welcome):
        _line("main node", f"{dialer.address} welcomes this device")
        for reason in answer.left_out:
            _line("not taken there", reason)
        return exit_codes.OK
    if isinstance(answer, Reject):
        _line("main node", f"{dialer.address} refuses: {answer.message or answer.code}")
        return exit_codes.REFUSED
    _line("main node", f"{dialer.address} does not answer ({trouble})")
    sys.stderr.write(
        "Check that the main node runs there and listens beyond its own machine"
        " (retire-cluster-main --worker-host), the port, and firewalls.\n"
    )
    return exit_codes.UNREACHABLE


def _show(me: Introduction, facts: Mapping[str, Any], catalog: Catalog) -> None:
    _line("device", f"{me.device_id} ({me.role}, {me.platform})")
    _line("tags", ", ".join(me.tags) or "none")
    _line("slots", str(me.slots))
    for name, value in facts.items():
        _line(name.replace("_", " "), str(value))
    _line("task types", ", ".join(info.name for info in me.task_types))
    for reason in catalog.left_out:
        _line("left out", reason)
    kept_back = catalog.kept_back()
    if kept_back:
        _line("not as root", ", ".join(kept_back))


def show_containment(plan: Plan, policy: Policy) -> None:
    """What this device can keep a task from, with the cure for what it cannot."""
    confinement, bounds = plan.confinement, plan.bounds
    whom = confinement.what
    if confinement == Confinement():
        whom += (
            ": a task can read what this worker can, its key too; see policy.user, policy.sandbox"
        )
    _line("tasks run as", whom)
    _line("walls", "; ".join((*confinement.shown(), ending(plan.groups))))
    if confinement.sandbox == LANDLOCK and confinement.program:
        _line(
            "stronger walls", "policy.sandbox = bwrap: bubblewrap is installed (docs/security.md)"
        )
    if confinement.reach.write:
        _line("folders opened", ", ".join(confinement.reach.write))
    mib = 1024 * 1024
    limits = {
        "memory": f"{bounds.memory_bytes // mib} MiB" if bounds.memory_bytes else "",
        "processor time": f"{bounds.cpu_seconds} s" if bounds.cpu_seconds else "",
        "file size": f"{bounds.file_bytes // mib} MiB" if bounds.file_bytes else "",
        "new processes": str(bounds.new_processes),
    }
    if sys.platform == "win32":
        limits = {}
    _line("limits", ", ".join(f"{k} {v}" for k, v in limits.items() if v) or "none on this system")
    if "command" in policy.allow:
        _line("commands", "; ".join(policy.commands) or "any program (see policy.commands)")


def _line(name: str, text: str) -> None:
    sys.stdout.write(f"{escaped(name) + ':':<18} {escaped(text)}\n")
    sys.stdout.flush()


def _ask(
    dialer: Dialer,
    me: Introduction,
    capabilities: Mapping[str, Any],
    session: str,
    wait_seconds: float,
    only_knock: bool,
) -> tuple[FromBroker | None, str]:
    trouble = "no answer"
    end = time.monotonic() + wait_seconds
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    link = None
    try:
        link = Link(dialer, context)
        poller = zmq.Poller()
        poller.register(link.socket, zmq.POLLIN)
        poller.register(link.monitor, zmq.POLLIN)
        while (left := end - time.monotonic()) > 0:
            poller.poll(int(min(left, 0.5) * 1000))
            for news in link.news():
                if news == REFUSED or (news == UP and only_knock):
                    return None, news
                if news == UP:
                    hello = me.hello(session, capabilities)
                    _send(link, replace(hello, accepting=False, trial=True))
                else:
                    trouble = news
            answer = _read(link)
            if answer is not None:
                return answer, ""
        return None, trouble
    except (zmq.ZMQError, ValueError) as error:
        return None, str(error)
    finally:
        if link is not None:
            link.close(linger_ms=500)
        context.term()


def _send(link: Link, message: FromDevice) -> None:
    verb, header = message.write()
    link.socket.send_multipart(wire.fold(wire.encode(wire.BUS, verb, header)), zmq.DONTWAIT)


def _read(link: Link) -> FromBroker | None:
    while True:
        try:
            frames = link.socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None
        try:
            message = wire.decode(wire.BUS, frames)
            record = read_from_broker(message.verb, message.header)
        except wire.WireError:
            continue
        if isinstance(record, (Welcome, Reject)):
            return record
