"""`retire-cluster completion SHELL`: a script that completes verbs and flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from retire_cluster.cli import exits
from retire_cluster.cli.main import VERBS
from retire_cluster.cli.session import verb_parser
from retire_cluster.schemas.task_types import BUILTIN

_CONNECTION = (
    "--cluster-host",
    "--cluster-port",
    "--cluster-key",
    "--data-dir",
    "--config",
    "--json",
    "--help",
)
_TASK = (
    "--priority", "--requirement", "--require", "--timeout-seconds", "--retries", "--delay", "--in",
)  # fmt: skip
#: Words that may follow each verb.
WORDS: dict[str, tuple[str, ...]] = {
    "up": (
        "--host", "--port", "--cluster-port", "--worker-port", "--event-port", "--data-dir",
        "--workers", "--slots", "--allow", "--auth", "--api-key", "--no-rate-limit", "--no-cors",
        "--cors-origin", "--insecure", "--debug", "--config", "--help",
    ),
    "main": (
        "--host", "--port", "--worker-host", "--worker-port", "--event-port", "--data-dir",
        "--store", "--config", "--insecure", "--debug", "--help",
    ),
    "api": (
        "--host", "--port", "--cluster-host", "--cluster-port", "--auth", "--api-key", "--no-cors",
        "--cors-origin", "--no-rate-limit", "--data-dir", "--config", "--cluster-key",
        "--log-format", "--threads", "--debug", "--help",
    ),
    "worker": (
        "--join", "--plain", "--device-id", "--role", "--tag", "--slots", "--allow", "--data-dir",
        "--config", "--test", "--debug", "--help",
    ),
    "status": ("--devices", "--device", "--role", "--timeout", *_CONNECTION),
    "devices": (
        "ls", "show", "ping", "drain", "resume", "rm", "readmit", "--status", "--role",
        "--platform", "--tag", *_CONNECTION,
    ),
    "submit": (
        *BUILTIN, *_TASK, "--metadata", "--wait", "--timeout", *_CONNECTION,
    ),
    "tasks": (
        "ls", "show", "result", "logs", "cancel", "retry", "wait", "--raw", "--status", "--type",
        "--priority", "--device", "--all", "--yes", "--limit", "--timeout", *_CONNECTION,
    ),
    "explain": _CONNECTION,
    "map": (
        *BUILTIN, *_TASK, "--window", "--unordered", "--resume", "--retry-failed",
        "--cancel", "--cancel-on-interrupt", *_CONNECTION,
    ),
    "top": ("--interval", "--once", *_CONNECTION),
    "token": ("create", "ls", "revoke", "--uses", "--age", "--note", "--host", *_CONNECTION),
    "keys": ("create", "ls", "revoke", "--scope", "--note", *_CONNECTION),
    "admin-key": ("create", "ls", "revoke", "--out", *_CONNECTION),
    "service": (
        "install", "uninstall", "status", "up", "main", "api", "worker", "--name", "--system",
        "--user", "--data-dir", "--dry-run",
    ),
    "config": ("get", "set", "reset", *_CONNECTION),
    "doctor": _CONNECTION,
    "completion": ("bash", "zsh", "fish", "powershell"),
}  # fmt: skip

_HELP = """\
how to use it:
  bash   eval "$(retire-cluster completion bash)"     in ~/.bashrc
  zsh    eval "$(retire-cluster completion zsh)"      in ~/.zshrc, after compinit
  fish   retire-cluster completion fish > ~/.config/fish/completions/retire-cluster.fish
  PowerShell   retire-cluster completion powershell | Out-String | Invoke-Expression   in $PROFILE
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    import argparse

    parser = verb_parser(
        "completion",
        "Print a script that completes verbs and flags.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=WORDS["completion"])
    shell = parser.parse_args(argv).shell
    scripts = {"bash": bash, "zsh": zsh, "fish": fish, "powershell": powershell}
    print(scripts[shell](), file=sys.stdout)
    return exits.OK


def bash() -> str:
    """Return the script for bash."""
    cases = "\n".join(f'    {verb}) words="{" ".join(WORDS[verb])}";;' for verb in WORDS)
    return f"""\
_retire_cluster() {{
  local words="{" ".join(VERBS)}" here="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -gt 1 ]; then
    words=""
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$here"))
}}
complete -o default -F _retire_cluster retire-cluster"""


def zsh() -> str:
    """Return the script for zsh, which reads bash's."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash()}"


def fish() -> str:
    """Return the script for fish."""
    lines = ["complete -c retire-cluster -f"]
    for verb, entry in VERBS.items():
        text = entry.help.replace("'", "")
        lines.append(f"complete -c retire-cluster -n __fish_use_subcommand -a {verb} -d '{text}'")
    for verb, words in WORDS.items():
        condition = f"'__fish_seen_subcommand_from {verb}'"
        plain = " ".join(word for word in words if not word.startswith("--"))
        if plain:
            lines.append(f"complete -c retire-cluster -n {condition} -a '{plain}'")
        lines += [
            f"complete -c retire-cluster -n {condition} -l {word[2:]}"
            for word in words
            if word.startswith("--")
        ]
    return "\n".join(lines)


def powershell() -> str:
    """Return the script for PowerShell."""
    rows = "\n".join(
        f"        '{verb}' = @({', '.join(repr(word) for word in words)})"
        for verb, words in WORDS.items()
    )
    verbs = ", ".join(repr(verb) for verb in VERBS)
    return f"""\
Register-ArgumentCompleter -Native -CommandName retire-cluster -ScriptBlock {{
    param($here, $line, $position)
    $known = @{{
{rows}
    }}
    $words = @($line.CommandElements | ForEach-Object {{ $_.ToString() }})
    $done = if ($here) {{ $words.Count - 1 }} else {{ $words.Count }}
    $offer = if ($done -le 1) {{ @({verbs}) }} else {{ $known[$words[1]] }}
    $offer | Where-Object {{ $_ -like "$here*" }} | ForEach-Object {{
        [System.Management.Automation.CompletionResult]::new($_)
    }}
}}"""
