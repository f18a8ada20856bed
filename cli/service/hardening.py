"""What a systemd unit of ours gives up: see systemd.exec(5), and `systemd-analyze security`.

The main node and the REST API need a data folder and sockets. A worker gives up what no task of an
unprivileged user can need: its tasks are other people's programs, which may want any device, a
32-bit library, a debugger, or namespaces of their own (bubblewrap).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

#: Roles that run tasks, themselves or by their workers.
RUNS_TASKS: Final = frozenset(("up", "worker"))
_HOMES = ("/home", "/root", "/run/user")

_EVERY = ("LockPersonality=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes")
_NO_TASKS = (
    "UMask=0077",
    "MemoryDenyWriteExecute=yes",
    "RestrictNamespaces=yes",
    "SystemCallArchitectures=native",
    # The API keeps itself on one processor, hence @resources.
    "SystemCallFilter=@system-service @resources",
    "SystemCallFilter=~@privileged",
    "SystemCallErrorNumber=EPERM",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
    # What strangers can make it take is bounded; this is for what nobody thought of.
    "MemoryMax=75%",
)
_NO_TASKS_AND_SYSTEM = (
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "ProtectProc=invisible",
)
_TASKS = (
    # For a control group for each task (task_cgroups.py).
    "Delegate=yes",
    "SystemCallFilter=~@clock @cpu-emulation @module @obsolete @raw-io @reboot @swap",
    "SystemCallErrorNumber=EPERM",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
    # The machine stays usable whatever its tasks take. Of what runs here the system ends the
    # largest, which is a task mostly; the rest goes on, and what was committed is kept.
    "MemoryMax=90%",
    "OOMPolicy=continue",
)
_TASKS_AND_SYSTEM = (
    "ProtectSystem=full",
    "PrivateTmp=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectKernelModules=yes",
)
#: Only root could use them; for others they keep bubblewrap from a /proc of its own.
_TASKS_OF_ROOT = ("ProtectKernelLogs=yes", "ProtectKernelTunables=yes")


def systemd(
    role: str, *, system: bool, user: str, data_dir: str, command: Sequence[str]
) -> list[str]:
    """Return the lines for a unit's `[Service]`, without the folders that it may write to."""
    lines = list(_EVERY)
    if role not in RUNS_TASKS:
        lines += ["NoNewPrivileges=yes", *_NO_TASKS]
        if system:
            lines += [*_NO_TASKS_AND_SYSTEM, _home(data_dir, command)]
            # Root binds ports below 1024; the identities of others are nobody's business.
            lines.append("CapabilityBoundingSet=" + ("" if user else "CAP_NET_BIND_SERVICE"))
            lines += ["PrivateUsers=yes"] if user else []
        return lines
    lines += _TASKS
    if not system:
        return [*lines, "NoNewPrivileges=yes"]
    lines += _TASKS_AND_SYSTEM
    if user:
        return [*lines, "NoNewPrivileges=yes", "CapabilityBoundingSet="]
    lines += _TASKS_OF_ROOT
    if role == "worker":
        # It changes to policy.user for its tasks, where set-user-id files may be made and used.
        lines.remove("RestrictSUIDSGID=yes")
        return lines
    return [*lines, "NoNewPrivileges=yes"]


def _home(data_dir: str, command: Sequence[str]) -> str:
    """Hide homes, but where the program, its data or a word of its command line is in one."""
    for word in (data_dir, __file__, *map(os.path.realpath, command[:1]), *command):
        if any(PurePosixPath(word).is_relative_to(home) for home in _HOMES):
            return "ProtectHome=read-only"
    return "ProtectHome=yes"
