"""Where a worker gets its join line from, and how that stays out of lists of processes.

A token that is still good lets anybody in. On the command line every user of the machine can read
it for as long as the worker lives; so the worker also takes it from standard input or from a file,
and one that was started with it on the command line starts itself again without.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from retire_cluster.conf.usage import Unusable
from retire_cluster.node.system.supervision import SUPERVISED
from retire_cluster.schemas.text.join_string import looks_like_join

#: `--join -`: the line comes by standard input.
STANDARD_INPUT = "-"
MOST_BYTES = 4096


def from_standard_input() -> str:
    """The first line of standard input, which nothing reads after that. Raises `Unusable`."""
    line = b""
    try:
        while len(line) < MOST_BYTES and b"\n" not in line:
            part = os.read(0, MOST_BYTES - len(line))
            if not part:
                break
            line += part
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    except OSError as error:
        raise Unusable(f"--join -: standard input cannot be read: {error.strerror}") from None
    return _text(line, "--join -: standard input holds")


def from_file(path: str) -> str:
    """The first line of a file; nothing where there is none any more. Raises `Unusable`."""
    try:
        with Path(path).open("rb") as file:
            line = file.readline(MOST_BYTES)
    except FileNotFoundError:
        return ""  # a device that has joined needs no line
    except OSError as error:
        raise Unusable(f"--join-file: {path} cannot be read: {error.strerror}") from None
    return _text(line, f"--join-file: {path} holds")


def _text(line: bytes, what: str) -> str:
    text = line.partition(b"\n")[0].decode("utf-8-sig", "replace").strip(" \t\r\"'")
    if not text:
        raise Unusable(f"{what} no join line; make one: retire-cluster token create")
    return text


def without_line(words: Sequence[str]) -> tuple[list[str], str] | None:
    """A command line with `-` in place of its join string, and that; None where it has none."""
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--join" and equals and looks_like_join(value):
            return [*words[:index], "--join=-", *words[index + 1 :]], value
        if index and words[index - 1] in ("--join", "join") and looks_like_join(word):
            return [*words[:index], STANDARD_INPUT, *words[index + 1 :]], word
    return None


def hide() -> None:
    """Start this process again, under its number, where its command line holds a join string.

    To be called by commands only, before anything was opened. Windows shows other users' command
    lines to administrators only, and gives a new process another number: nothing is done there.
    """
    if os.name != "posix" or SUPERVISED in os.environ:
        return
    found = without_line(sys.orig_argv)
    if found is None or not sys.executable:
        return
    words, line = found
    reader, writer = os.pipe()
    os.write(writer, line.encode("utf-8", "surrogateescape")[: MOST_BYTES - 1] + b"\n")
    if reader:
        os.dup2(reader, 0)
        os.close(reader)
    os.set_inheritable(0, True)
    if writer:
        os.close(writer)
    os.execv(sys.executable, [sys.executable, *words[1:]])
