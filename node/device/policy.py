"""What this device's owner allows. Decided here, from local settings only, never from remote.

The built-in types but `command` and `python_call` are allowed, and own types too: to install one is
to allow it. Types and commands are judged before any process is made; which addresses and folders a
task reaches is judged in its process (http_addresses.py, working_folder.py). A denied attempt fails
with the cause `policy_denied`.
"""

from __future__ import annotations

import fnmatch
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retire_cluster.conf import sections
from retire_cluster.conf.machine.homefolder import expanded
from retire_cluster.conf.usage import Unusable
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.vocabulary import OFF_BY_DEFAULT

#: `--allow command:shell` allows the type and, for it, a shell.
SHELL = "command:shell"

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


def whole_path(folder: str) -> str:
    """A folder of `policy.folders`, whole. Raises `Unusable` for one that names no one place."""
    try:
        found = expanded(folder)
    except LookupError as error:
        raise Unusable(f"policy.folders: {error.args[0]}") from None
    if not os.path.isabs(found):
        raise Unusable(f"policy.folders: {folder!r:.200} must be written from / on")
    return found


def missing(folders: Iterable[str]) -> list[str]:
    """What is wrong with whole paths of `policy.folders` that are not there, one text for each."""
    found = []
    for folder in folders:
        if os.path.isdir(folder):
            continue
        words = f"policy.folders: there is no folder {folder!r:.200} on this device"
        parts = shlex.split(folder) if " " in folder and not set(folder) & set("'\"\\") else []
        if len(parts) > 1 and all(os.path.isabs(part) for part in parts):
            words += (
                '; several are a list in the settings file (["/a", "/b"]), and go with commas into'
                " RETIRE_CLUSTER_POLICY_FOLDERS (/a,/b)"
            )
        found.append(words)
    return found


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
    #: Root may run `command`, `python_call` and own types.
    allow_root: bool = False
    #: Further variables of the worker that tasks may see.
    pass_environment: frozenset[str] = frozenset()
    #: What `command` may run, as templates; empty: any program.
    commands: tuple[str, ...] = ()
    #: Where `command` may be told to run, empty: anywhere (see working_folder.py).
    folders: tuple[str, ...] = ()
    #: Tasks may use the network.
    network: bool = True
    #: Tasks run as another, unprivileged user.
    other_user: bool = False

    @classmethod
    def of(
        cls, rules: sections.Policy, *, also: Iterable[str] = (), is_root: bool = False
    ) -> Policy:
        """The policy of settings, in which `command:shell` counts as two permissions.

        Raises `Unusable` for a folder that names no one place.

        :param also: types allowed beside those of the settings
        :param is_root: whether the worker runs as root
        """
        names = {*rules.allow, *also}
        asks_shell = SHELL in names
        return cls(
            allow=frozenset(names - {SHELL} | ({"command"} if asks_shell else set())),
            deny=frozenset(rules.deny),
            shell=rules.shell or asks_shell,
            private_addresses=rules.private_addresses,
            is_root=is_root,
            allow_root=rules.allow_root,
            pass_environment=frozenset(rules.pass_environment),
            commands=rules.commands,
            folders=tuple(map(whole_path, rules.folders)),
            network=rules.network != "none",
            other_user=bool(rules.user),
        )

    def refusal(self, task_type: str) -> str | None:
        """Why this type is not run here, or None when it is."""
        if task_type in self.deny:
            return f"this device's owner has denied {task_type} (policy.deny)"
        if task_type in OFF_BY_DEFAULT and task_type not in self.allow:
            return (
                f"this device's owner has not allowed {task_type}"
                f" (--allow {task_type} or policy.allow)"
            )
        if task_type == "http_request" and not self.network:
            return "this device's owner lets no task use the network (policy.network)"
        if self.refused_for_root(task_type):
            return (
                f"this worker runs as root and does not run {task_type} so;"
                " start it as another user, name one for tasks (policy.user), or start it with"
                " --allow-root"
            )
        return None

    def refused_for_root(self, task_type: str) -> bool:
        """Whether only being root stands against this type."""
        dangerous = task_type in OFF_BY_DEFAULT or task_type not in BUILTIN
        return self.is_root and not self.allow_root and not self.other_user and dangerous

    def command_refusal(self, payload: Mapping[str, Any]) -> str | None:
        """Why this payload of `command` is not run here, or None when it is."""
        words = payload.get("command")
        if self.commands:
            if not isinstance(words, list):
                return "this device runs only the commands of policy.commands, and no shell"
            if not any(fits(template, words) for template in self.commands):
                return f"this device's owner has not allowed {words[0]!r:.80} so (policy.commands)"
            if payload.get("env"):
                # Variables such as LD_PRELOAD would make another program of an allowed one.
                return "this device's owner has not allowed env with policy.commands"
        return None

    def programs(self) -> tuple[str, ...]:
        """Patterns of the programs that `commands` names; the words after them are left out."""
        found = dict.fromkeys(words[0] for words in map(_words, self.commands) if words)
        return tuple(found)

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
        if "PYTHONPATH" in found:
            # Written for the folder that the worker was started in; its tasks work in others.
            folders = filter(None, found["PYTHONPATH"].split(os.pathsep))
            found["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, folders))
        return found


def fits(template: str, words: Sequence[str]) -> bool:
    """Whether a command is one of a template's: each word by its pattern, a last `*` for the rest.

    A program is compared as it is written: `ffmpeg` does not stand for `/tmp/ffmpeg`.
    """
    patterns = _words(template)
    if not patterns or not words:
        return False
    if patterns[-1] == "*" and len(patterns) > 1:
        patterns.pop()
        if len(words) < len(patterns):
            return False
        words = words[: len(patterns)]
    return len(words) == len(patterns) and all(
        fnmatch.fnmatchcase(word, pattern) for word, pattern in zip(words, patterns, strict=True)
    )


def _words(template: str) -> list[str]:
    """A template's patterns; none for one that cannot be read."""
    try:
        return shlex.split(template)
    except ValueError:
        return []


def running_as_root() -> bool:
    """Whether this process has the powers of root."""
    return sys.platform != "win32" and os.geteuid() == 0
