"""What this device's owner allows. Decided here, from local settings only, never from remote.

The built-in types but `command` are allowed, and own types too: to install one is to allow it.
Denial is an outcome of the attempt (`policy_denied`), reached before any process is made.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from retire_cluster.schemas.vocabulary import BUILTIN_TASK_TYPES

#: `--allow command:shell` allows the type and, for it, a shell.
SHELL = "command:shell"
_OFF_BY_DEFAULT = frozenset({"command"})

#: Variables of the worker that a task sees; everything else may hold a secret.
_PASSED = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM",
        "TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR",
        "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "USERPROFILE", "USERNAME",
        "HOMEDRIVE", "HOMEPATH", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA", "PROGRAMFILES",
        "PROGRAMFILES(X86)", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE",
        "PREFIX", "ANDROID_ROOT", "ANDROID_DATA", "ANDROID_ART_ROOT", "ANDROID_I18N_ROOT",
        "ANDROID_TZDATA_ROOT", "BOOTCLASSPATH", "TERMUX_VERSION", "TERMUX__PREFIX",
        "SSL_CERT_FILE", "SSL_CERT_DIR",
    }
)  # fmt: skip
#: Termux programs do not start without these.
_PASSED_ON_ANDROID = frozenset({"LD_PRELOAD", "LD_LIBRARY_PATH"})
#: What the interpreter of a task process needs to find this package again.
_FOR_PYTHON = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "VIRTUAL_ENV"})
_NEVER = "RETIRE_CLUSTER_"


@dataclass(frozen=True)
class Policy:
    """The owner's rules."""

    #: Types allowed beside those that are allowed anyway.
    allow: frozenset[str] = frozenset()
    #: Types never run here; wins over `allow`.
    deny: frozenset[str] = frozenset()
    #: `command` may be one text for a shell.
    shell: bool = False
    #: `http_request` may reach private addresses.
    private_addresses: bool = False
    #: The worker runs as root (or as an administrator that counts as such).
    is_root: bool = False
    #: Root may run `command` and own types.
    allow_root: bool = False
    #: Further variables of the worker that tasks may see.
    pass_environment: frozenset[str] = frozenset()

    @classmethod
    def make(
        cls,
        *,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        shell: bool = False,
        private_addresses: bool = False,
        is_root: bool = False,
        allow_root: bool = False,
        pass_environment: Iterable[str] = (),
    ) -> Policy:
        """A policy from settings, in which `command:shell` counts as two permissions."""
        names = set(allow)
        if SHELL in names:
            names = (names - {SHELL}) | {"command"}
            shell = True
        return cls(
            allow=frozenset(names),
            deny=frozenset(deny),
            shell=shell,
            private_addresses=private_addresses,
            is_root=is_root,
            allow_root=allow_root,
            pass_environment=frozenset(pass_environment),
        )

    def refusal(self, task_type: str) -> str | None:
        """Why this type is not run here, or None when it is."""
        if task_type in self.deny:
            return f"this device's owner has denied {task_type} (policy.deny)"
        if task_type in _OFF_BY_DEFAULT and task_type not in self.allow:
            return (
                f"this device's owner has not allowed {task_type}"
                f" (--allow {task_type} or policy.allow)"
            )
        if self.refused_for_root(task_type):
            return (
                f"this worker runs as root and does not run {task_type} so;"
                " start it as another user, or with --allow-root"
            )
        return None

    def refused_for_root(self, task_type: str) -> bool:
        """Whether only being root stands against this type."""
        dangerous = task_type == "command" or task_type not in BUILTIN_TASK_TYPES
        return self.is_root and not self.allow_root and dangerous

    def task_environment(
        self, environ: Mapping[str, str], *, android: bool = False
    ) -> dict[str, str]:
        """What a task sees of the worker's environment."""
        passed = _PASSED | self.pass_environment | (_PASSED_ON_ANDROID if android else frozenset())
        return {
            name: value
            for name, value in environ.items()
            if (name in passed or name.upper() in _PASSED or name.startswith("LC_"))
            and not name.startswith(_NEVER)
        }

    def process_environment(
        self, environ: Mapping[str, str], *, android: bool = False
    ) -> dict[str, str]:
        """What the task process itself gets: the same and what its interpreter needs."""
        found = self.task_environment(environ, android=android)
        found.update({k: v for k, v in environ.items() if k in _FOR_PYTHON})
        return found


def running_as_root() -> bool:
    """Whether this process has the powers of root."""
    return sys.platform != "win32" and os.geteuid() == 0
