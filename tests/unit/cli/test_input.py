"""What a verb reads: words, files and standard input that cannot be sent name what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retire_cluster.cli.payloads import check_sendable
from retire_cluster.cli.session import Session, connection_flags, run_verb
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.text import json_text

posix = pytest.mark.skipif(sys.platform == "win32", reason="bytes as arguments")
UTF8 = {"PYTHONUTF8": "1"}
#: As under `LANG=C`: a byte that is no UTF-8 comes through, as half of a character.
LOOSE = {"PYTHONIOENCODING": "utf-8:surrogateescape"}


def run(
    *words: str | bytes, stdin: bytes = b"", environ: dict[str, str] | None = None
) -> tuple[int, str]:
    """A verb's exit code and standard error."""
    command = [sys.executable, "-m", "retire_cluster.cli.main", *words]
    done = subprocess.run(
        command, input=stdin, capture_output=True, timeout=30,
        env={**os.environ, **UTF8, **(environ or {})},
    )  # fmt: skip
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("environ", [{}, LOOSE])
def test_text_that_is_no_unicode_names_its_line_and_field(
    environ: dict[str, str], tmp_path: Path
) -> None:
    good, lone = b'{"message": "a"}\n', b'{"message": "\\ud800"}\n'
    code, said = run("map", "echo", "-", stdin=good + lone, environ=environ)
    assert code == 6
    assert "line 2 of -: message: character 1 is not valid Unicode (\\ud800)" in said
    assert "UTF-8" in said.partition(";")[2]
    listed = b'{"a": {"b": ["x", "y\\udfff"]}}'
    code, said = run("submit", "echo", "-", stdin=listed, environ=environ)
    assert code == 6
    assert "standard input: a.b[1]: character 2 is not valid Unicode" in said
    path = tmp_path / "in.json"
    path.write_bytes(lone)
    code, said = run("submit", "echo", f"@{path}", environ=environ)
    assert (code, f"{path}: message: character 1" in said) == (6, True)


def test_a_byte_that_is_no_text_names_its_line(tmp_path: Path) -> None:
    data = b'{"message": "a"}\n{"message": "\xff"}\n'
    code, said = run("map", "echo", "-", stdin=data, environ=LOOSE)
    assert (code, "line 2 of -: message: character 1 is not valid" in said) == (6, True)
    code, said = run("map", "echo", "-", stdin=data, environ={"PYTHONIOENCODING": "utf-8:strict"})
    assert (code, "line 2 is no UTF-8 text" in said) == (6, True)
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    code, said = run("map", "echo", str(path))
    assert (code, "line 2 is no UTF-8 text" in said) == (6, True)


@posix
def test_words_that_are_no_text_are_named() -> None:
    code, said = run("submit", "echo", b"message=a\xff")
    assert (code, "payload: message: character 2 is not valid Unicode (\\udcff)" in said) == (
        6,
        True,
    )
    code, said = run("submit", "echo", "a=1", "--metadata", b"by=\xff")
    assert (code, "metadata: by: character 1" in said) == (6, True)
    code, said = run("submit", "echo", "a=1", "--require", b"required_tags=a,\xff")
    assert (code, "requirements: required_tags[1]: character 1" in said) == (6, True)
    code, said = run("submit", b"ec\xff", "a=1")
    assert (code, "TYPE: character 3" in said) == (6, True)


def test_any_other_argument_that_cannot_be_sent_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(session: Session) -> int:
        return len(json_text.dumps(session.args.task_type))

    words = ["--cluster-port", "1", "--data-dir", str(tmp_path)]
    args = connection_flags().parse_args(words)
    args.task_type = ["echo", "ec\udcff"]
    assert run_verb(args, ask) == 6
    assert "task-type: character 3 is not valid Unicode (\\udcff)" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["18446744073709551616", "-9223372036854775809", "1e999"])
def test_a_number_that_64_bits_do_not_hold_names_its_line_and_field(number: str) -> None:
    code, said = run("map", "echo", "-", stdin=f'{{"n": {number}}}\n'.encode())
    assert (code, "line 1 of -: n: the number is beyond" in said) == (6, True)


def test_what_can_be_sent_passes() -> None:
    check_sendable({"a": [2**64 - 1, -(2**63), 0.5, True, None, "\U0001f600"], "b": {}}, "payload")
    with pytest.raises(ValidationError, match=r"payload: the name b\.c"):
        check_sendable({"b": {"c\udcff": 1}}, "payload")


@posix
@pytest.mark.parametrize("verb", ["map", "submit"])
def test_a_closed_standard_input_is_called_so(verb: str) -> None:
    script = 'exec "$@" <&-'
    command = [sys.executable, "-m", "retire_cluster.cli.main", verb, "echo", "-"]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert "standard input is closed" in done.stderr
