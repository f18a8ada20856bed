"""An output that takes nothing more: one line where there is room for it, and the right code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
NO_ROOM = "the output cannot be written: No space left on device\n"


def run(*words: str, out: str, err: str | None, unbuffered: str = "") -> tuple[int, str]:
    """A verb's exit code and standard error, with files in place of its streams."""
    command = [sys.executable, "-m", "retire_cluster.cli.main", *words]
    with open(out, "w") as stdout, open(err or os.devnull, "w") as stderr:
        done = subprocess.run(
            command, stdout=stdout, stderr=stderr if err else subprocess.PIPE, timeout=30,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    return done.returncode, (done.stderr or b"").decode()


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["--help"], "retire-cluster"),
        (["help"], "retire-cluster"),
        ([], "retire-cluster"),
        (["status", "--help"], "retire-cluster status"),
        (["version"], "retire-cluster version"),
    ],
)
def test_a_full_disk_is_told_in_one_line(words: list[str], program: str, unbuffered: str) -> None:
    found = run(*words, out="/dev/full", err=None, unbuffered=unbuffered)
    assert found == (2, f"{program}: {NO_ROOM}")


@needs_full
@pytest.mark.parametrize(
    ("words", "code"), [(["bad"], 2), (["status", "--bad"], 2), (["submit", "echo", "{"], 6)]
)
def test_an_error_that_cannot_be_printed_keeps_its_exit_code(words: list[str], code: int) -> None:
    assert run(*words, out=os.devnull, err="/dev/full")[0] == code
    assert run(*words, out="/dev/full", err="/dev/full")[0] == code


def test_what_could_be_printed_is() -> None:
    assert run("--help", out=os.devnull, err=None) == (0, "")
    code, said = run("stauts", out=os.devnull, err=None)
    assert (code, "did you mean status?" in said) == (2, True)
