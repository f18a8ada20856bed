"""The umbrella command: verbs, missing extras, exit codes."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from retire_cluster.cli import entry, exits, main
from retire_cluster.cli.verbs import completion, version
from retire_cluster.conf.arguments import Parser
from retire_cluster.schemas.errors import BY_CODE, ClusterError, ValidationError
from retire_cluster.schemas.task_types import BUILTIN


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in main.VERBS)


def test_no_verb_is_a_usage_error() -> None:
    assert main.main([]) == 2


def test_an_unknown_verb_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["stauts"]) == 2
    assert "did you mean status?" in capsys.readouterr().err


def test_a_flag_before_the_verb_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--json"]) == 2
    assert "after the verb" in capsys.readouterr().err


def test_a_wrong_flag_of_a_verb_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["tasks", "ls", "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err


def test_help_imports_neither_sockets_nor_the_main_node() -> None:
    code = (
        "import sys; from retire_cluster.cli.main import main; main(['--help'])\n"
        "heavy = {'zmq', 'argparse', 'retire_cluster.broker', 'retire_cluster.conf'}\n"
        "sys.exit(sorted(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "retire_cluster.cli.main", "version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert f"{version.installed('retire-cluster')}\n" in done.stdout


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("falcon", 'pip install "retire-cluster[api]"'),
        ("cerberus", 'pip install "retire-cluster[api]"'),
        ("apscheduler.schedulers.background", 'pip install "retire-cluster[api]"'),
        ("zmq", 'pip install "retire-cluster"'),
    ],
)
def test_a_missing_library_is_one_line_that_names_the_extra(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(entry, "import_module", absent)
    assert entry.run_module("retire_cluster.api.cli", "retire-cluster-api", []) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert extra in captured.err


def test_a_broken_module_of_our_own_is_not_taken_for_a_missing_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError("No module named 'retire_cluster.x'", name="retire_cluster.x")

    monkeypatch.setattr(entry, "import_module", absent)
    with pytest.raises(ModuleNotFoundError):
        entry.run_module("retire_cluster.api.cli", "retire-cluster-api", [])


def test_the_console_scripts_are_the_contracts() -> None:
    names = {e.name for e in entry_points(group="console_scripts") if "retire_cluster" in e.value}
    assert names == {
        "retire-cluster",
        "retire-cluster-main",
        "retire-cluster-worker",
        "retire-cluster-api",
        "retire-cluster-status",
    }
    for name in ("broker", "worker", "api", "status"):
        assert callable(getattr(entry, name))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("CLUSTER_UNAVAILABLE", 3),
        ("UNAUTHORIZED", 4),
        ("FORBIDDEN", 4),
        ("DEVICE_NOT_FOUND", 5),
        ("TASK_NOT_FOUND", 5),
        ("NO_TASK_RESULT", 5),
        ("CANNOT_CANCEL_TASK", 6),
        ("PAYLOAD_TOO_LARGE", 6),
        ("IDEMPOTENCY_CONFLICT", 6),
        ("RATE_LIMIT_EXCEEDED", 8),
        ("QUEUE_FULL", 8),
    ],
)
def test_each_error_has_its_exit_code(code: str, expected: int) -> None:
    assert exits.for_error(BY_CODE[code]()) == expected


def test_a_validation_error_exits_6() -> None:
    assert exits.for_error(ValidationError("payload", "is required")) == 6


def test_no_error_exits_0() -> None:
    errors = [kind for kind in BY_CODE.values() if kind is not ValidationError]
    assert all(exits.for_error(kind()) != 0 for kind in errors)
    assert exits.for_error(ClusterError()) != 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion_knows_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in main.VERBS)


def test_completion_offers_only_flags_that_exist() -> None:
    for verb in (
        "up", "status", "submit", "devices", "tasks", "explain", "config", "doctor", "map", "top",
        "token", "keys", "admin-key", "service",
    ):  # fmt: skip
        code = f"from retire_cluster.cli.main import main; main([{verb!r}, '--help'])"
        text = _help_of(verb, code)
        for word in completion.WORDS[verb]:
            assert word in text, f"{verb} {word}"


def _help_of(verb: str, code: str) -> str:
    texts = [_output(code)]
    verbs = {
        "devices": ("ls", "show"),
        "tasks": ("ls", "logs", "wait", "cancel"),
        "config": ("get",),
        "token": ("create",),
        "keys": ("create",),
        "admin-key": ("create",),
        "service": ("install",),
    }
    texts += [
        _output(code.replace("'--help'", f"{word!r}, '--help'")) for word in verbs.get(verb, ())
    ]
    if verb in ("submit", "map"):
        texts.append(" ".join(BUILTIN))
    return "\n".join(texts)


def _output(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    return done.stdout


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["--worker", "3"], "--workers"), (["--prot=1"], "--port"), (["--zzzzzz"], None)],
    ids=["left off", "with a value", "nothing near"],
)
def test_a_mistyped_option_names_the_one_that_was_meant(
    words: list[str], meant: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = Parser(prog="tool", allow_abbrev=False)
    parser.add_argument("--workers")
    parser.add_argument("--port")
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(words)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert words[0] in said
    assert (f"did you mean {meant}?" in said) if meant else ("did you mean" not in said)
