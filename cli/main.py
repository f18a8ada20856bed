"""The umbrella command `retire-cluster`.

A table of verbs; a verb's module is imported when it is asked for, so that `--help` is quick and a
device without the main node's libraries has the verbs that work there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from retire_cluster.cli import entry


class Verb(NamedTuple):
    """One verb of the umbrella command."""

    #: Module and function that take the arguments after the verb.
    module: str
    function: str
    help: str


_CLI = "retire_cluster.cli"
VERBS: Final = {
    "up": Verb(
        f"{_CLI}.up.command", "main", "everything at once: main node, REST facade, local workers"
    ),
    "main": Verb("retire_cluster.broker.cli", "main", "the main node alone"),
    "api": Verb("retire_cluster.api.cli", "main", "the REST facade alone"),
    "worker": Verb("retire_cluster.node.cli", "main", "a worker on this device"),
    "join": Verb(f"{_CLI}.joining.command", "main", "join LINE: a worker on this device"),
    "token": Verb(
        f"{_CLI}.verbs.token", "main", "create | ls | revoke: join lines for new devices"
    ),
    "keys": Verb(f"{_CLI}.verbs.api_keys", "main", "create | ls | revoke: keys for the REST API"),
    "admin-key": Verb(f"{_CLI}.verbs.admin_key", "main", "create | ls | revoke: tooling elsewhere"),
    "status": Verb(f"{_CLI}.verbs.status", "umbrella", "how the cluster is"),
    "top": Verb(f"{_CLI}.verbs.top", "main", "the cluster as it works, redrawn"),
    "devices": Verb(
        f"{_CLI}.verbs.devices", "main", "ls | show | ping | drain | resume | rm | readmit"
    ),
    "submit": Verb(
        f"{_CLI}.verbs.submit", "main", "submit TYPE [k=v ... | @file.json | -] [--wait]"
    ),
    "map": Verb(f"{_CLI}.map.command", "main", "map TYPE FILE.jsonl: a task for every line"),
    "tasks": Verb(
        f"{_CLI}.verbs.tasks", "main", "ls | show | result | logs | cancel | retry | wait"
    ),
    "explain": Verb(f"{_CLI}.verbs.explain", "main", "why a task waits: device by device"),
    "config": Verb(f"{_CLI}.verbs.config", "main", "get | set | reset"),
    "doctor": Verb(f"{_CLI}.verbs.doctor", "main", "look for what is wrong, with the cure"),
    "service": Verb(
        f"{_CLI}.service.command", "main", "install | uninstall | status: start at boot"
    ),
    "version": Verb(f"{_CLI}.verbs.version", "main", "versions of this installation"),
    "completion": Verb(
        f"{_CLI}.verbs.completion", "main", "completion bash | zsh | fish | powershell"
    ),
}
_SPELLINGS: Final = {"--version": "version", "-V": "version", "device": "devices", "task": "tasks"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        if len(words) > 1 and words[0] == "help":
            return main([words[1], "--help"])
        return entry.guarded("retire-cluster", partial(_show_usage, 0 if words else 2))
    name = _SPELLINGS.get(words[0], words[0])
    verb = VERBS.get(name)
    if verb is None:
        return entry.guarded("retire-cluster", partial(_refuse, name))
    if argv is None and name in ("worker", "join"):
        entry.hide_join_line()
    return entry.run_module(verb.module, f"retire-cluster {name}", words[1:], verb.function)


def _show_usage(code: int) -> int:
    print(usage())
    return code


def _refuse(name: str) -> int:
    entry.say(f"retire-cluster: {_unknown(name)}")
    return 2


def usage() -> str:
    """Return the text of `retire-cluster --help`."""
    size = max(map(len, VERBS))
    lines = [
        "usage: retire-cluster VERB ...",
        "",
        *(f"  {name.ljust(size)}  {verb.help}" for name, verb in VERBS.items()),
        "",
        "`retire-cluster VERB --help` says more. Verbs that ask the cluster take --json.",
        "Exit codes: 0 ok, 1 task failed, 2 usage, 3 unreachable, 4 not allowed, 5 not found,",
        "            6 invalid, 7 timed out, 8 rate-limited or queue full, 130 interrupted.",
    ]
    return "\n".join(lines)


def _unknown(name: str) -> str:
    import difflib

    if name.startswith("-"):
        return f"flags go after the verb, as in `retire-cluster status {name}`"
    near = difflib.get_close_matches(name, VERBS, n=1)
    hint = f"did you mean {near[0]}?" if near else "see retire-cluster --help"
    return f"there is no verb {name!r}; {hint}"


if __name__ == "__main__":
    sys.exit(main())
