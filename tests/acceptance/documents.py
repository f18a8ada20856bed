"""Documents as tests read them: their code blocks, run as a reader would run them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.command_kit import plain_environment

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MODULE = Path(__file__).resolve().parents[2] / "sdk" / "js" / "retire-cluster.mjs"
#: Objects whose keys are data: only their values have a shape.
MAPS = {"by_role", "by_platform", "by_status"}
_CURL = 'curl() { command curl -sS --fail-with-body "$@" || return; echo; }\nset -eu\n'


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    #: The heading it stands below.
    heading: str
    #: The last line of prose before it.
    lead: str
    language: str
    text: str
    line: int

    @property
    def name(self) -> str:
        """For people: where it is and how it begins."""
        first = next((x for x in self.text.splitlines() if x.strip(" \t#{[")), "").strip()
        return f"{self.document}:{self.line} {self.language or 'plain'}: {first[:60]}"

    def at(self, port: int) -> str:
        """Its text for an API on this port."""
        return self.text.replace("localhost:8081", f"127.0.0.1:{port}")


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = path.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        headings = re.findall(r"^#+ (.+)$", re.sub(_FENCE, "", before), re.MULTILINE)
        prose = [line for line in re.sub(_FENCE, "", before).splitlines() if line.strip()]
        found.append(
            Block(
                path.name,
                headings[-1] if headings else "",
                prose[-1].strip() if prose else "",
                match[1],
                match[2],
                before.count("\n") + 1,
            )
        )
    return found


def bash(script: str, **environ: str) -> str:
    """Run a script to its end, our commands on its path; what it printed.

    Each `curl` must succeed, and ends its answer with a line feed.
    """
    if shutil.which("bash") is None or shutil.which("curl") is None:
        pytest.skip("bash or curl is not installed")
    return _run(["bash", "-c", _CURL + script], **environ)


def python(script: str) -> str:
    """Run a Python script to its end; what it printed."""
    return _run([sys.executable, "-c", script])


def javascript(script: str, folder: Path) -> str:
    """Run an ECMAScript module under Node to its end; what it printed."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    shutil.copy(_MODULE, folder)
    module = folder / "block.mjs"
    module.write_text(script, "utf-8")
    return _run(["node", str(module)])


def command_environment(**more: str) -> dict[str, str]:
    """An environment in which our commands are found by name."""
    found = plain_environment(**more)
    return {**found, "PATH": more.get("PATH") or f"{Path(sys.executable).parent}:{found['PATH']}"}


def _run(command: list[str], **environ: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=command_environment(**environ)
    )
    assert done.returncode == 0, (command[-1], done.stdout, done.stderr)
    return done.stdout


def has_shape(example: Any, found: Any, path: str = "") -> None:
    """Every key of the example is there, with a value of the example's type; null stands for any.

    A whole number in an example stands for any number.
    """
    if isinstance(example, Mapping):
        assert isinstance(found, Mapping), (path, found)
        if path.rpartition(".")[2] in MAPS and not set(example) <= set(found):
            for value in found.values():
                has_shape(next(iter(example.values()), value), value, f"{path}.*")
            return
        for name, value in example.items():
            assert name in found, f"{path}.{name} is missing in {sorted(found)}"
            has_shape(value, found[name], f"{path}.{name}")
    elif isinstance(example, list):
        assert isinstance(found, list), (path, found)
        assert found or not example, f"{path} is empty: nothing to compare"
        for item in found:
            has_shape(example[0], item, f"{path}[]")
    elif isinstance(example, bool) or isinstance(found, bool):
        assert type(example) is type(found), (path, found)
    elif isinstance(example, (int, float)):
        assert isinstance(found, (int, float)), (path, found)
    elif isinstance(example, str):
        assert isinstance(found, str), (path, found)
        if example.endswith("Z") and example[:4].isdigit():
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", found), (path, found)
