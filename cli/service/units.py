"""Service definitions as texts: systemd, launchd, Windows Task Scheduler, Termux:Boot. Pure."""

from __future__ import annotations

import plistlib
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from retire_cluster.cli.service import hardening

#: What may run as a service, and what people read of it.
ROLES: Final = {
    "up": "Retire-Cluster: main node, REST API and local workers",
    "main": "Retire-Cluster main node",
    "api": "Retire-Cluster REST API",
    "worker": "Retire-Cluster worker",
}


@dataclass(frozen=True)
class Service:
    """A part of the cluster as a service of the system."""

    #: One of `ROLES`.
    role: str
    #: Its name for the system.
    name: str
    #: The command line.
    command: tuple[str, ...]
    #: Folder that it may write to.
    data_dir: str
    #: Runs for the whole machine, else for one user.
    system: bool = False
    #: User of a system service; empty: root.
    user: str = ""

    @property
    def description(self) -> str:
        """What people read of it."""
        return ROLES[self.role]


def systemd(service: Service) -> str:
    """Return a unit file, hardened (hardening.py)."""
    command = " ".join(_systemd_word(word) for word in service.command)
    lines = [
        "[Unit]",
        f"Description={service.description}",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={command}",
        "Restart=always",
        "RestartSec=5",
        # A device that was removed (4) or cannot start as it is set up (2) stays down.
        "RestartPreventExitStatus=2 4",
        "SuccessExitStatus=130 143",
        "KillMode=mixed",
        "TimeoutStopSec=40",
        *hardening.systemd(
            service.role,
            system=service.system,
            user=service.user,
            data_dir=service.data_dir,
            command=service.command,
        ),
    ]
    if service.system:
        if service.user:
            lines.append(f"User={service.user}")
        lines.append(f"ReadWritePaths={_systemd_word(service.data_dir)}")
    lines += [
        "",
        "[Install]",
        f"WantedBy={'multi-user' if service.system else 'default'}.target",
        "",
    ]
    return "\n".join(lines)


def _systemd_word(word: str) -> str:
    """Return a word of ExecStart: `%` and `$` mean something to systemd, blanks separate."""
    text = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    if text and all(c.isalnum() or c in "@%+=:,./-_$" for c in text):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def launchd(service: Service) -> bytes:
    """Return a property list for `launchctl`."""
    document: dict[str, object] = {
        "Label": f"org.retire-cluster.{service.name}",
        "ProgramArguments": list(service.command),
        "RunAtLoad": True,
        # Starts again unless it ended well or was told to stay down.
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "ProcessType": "Background",
        "WorkingDirectory": service.data_dir,
        "StandardOutPath": f"{service.data_dir}/{service.name}.log",
        "StandardErrorPath": f"{service.data_dir}/{service.name}.log",
    }
    if service.system and service.user:
        document["UserName"] = service.user
    return plistlib.dumps(document)


def task_scheduler(service: Service, user: str) -> str:
    """Return a task for `schtasks /Create /XML`: from logon (or boot) on, without a time limit."""
    program, *words = service.command
    arguments = subprocess.list2cmdline(words)
    trigger = "BootTrigger" if service.system else "LogonTrigger"
    whose = "" if service.system else f"<UserId>{escape(user)}</UserId>"
    account = "S-1-5-19" if service.system else user  # LocalService: few rights
    kind = "" if service.system else "<LogonType>InteractiveToken</LogonType>"
    return f"""<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>{escape(service.description)}</Description>
  </RegistrationInfo>
  <Triggers>
    <{trigger}><Enabled>true</Enabled>{whose}</{trigger}>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>{escape(account)}</UserId>{kind}
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <StartWhenAvailable>true</StartWhenAvailable>
    <RestartOnFailure><Interval>PT1M</Interval><Count>999</Count></RestartOnFailure>
    <Enabled>true</Enabled>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{escape(program)}</Command>
      <Arguments>{escape(arguments)}</Arguments>
      <WorkingDirectory>{escape(service.data_dir)}</WorkingDirectory>
    </Exec>
  </Actions>
</Task>
"""


def termux_boot(service: Service) -> str:
    """Return a script for ~/.termux/boot: keeps the phone awake and starts again after a crash."""
    command = " ".join(shlex.quote(word) for word in service.command)
    log = shlex.quote(f"{service.data_dir}/{service.name}.log")
    return f"""#!/data/data/com.termux/files/usr/bin/sh
# {service.description}
termux-wake-lock
while :; do
    {command} >> {log} 2>&1
    code=$?
    case $code in 0|2|4) exit $code ;; esac
    sleep 10
done
"""


def plain_command(words: Sequence[str]) -> str:
    """Return a command line as people type it into sh."""
    return " ".join(shlex.quote(word) for word in words)
