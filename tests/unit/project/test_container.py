"""Dockerfile and compose.yaml name files, commands, flags, settings and ports that are there."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.cli.main import VERBS
from retire_cluster.cli.up import plan
from retire_cluster.conf.sections import Api, Server
from retire_cluster.conf.settings import all_specs
from retire_cluster.node import cli as node_cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[3]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
COMPOSE = (ROOT / "compose.yaml").read_text("utf-8")
DATA_DIR = "RETIRE_CLUSTER_DATA_DIR"
PORTS = {Api().port, Server().worker_port, Server().join_port}


@dataclass(frozen=True)
class Line:
    """An instruction of the Dockerfile."""

    #: Number of the stage it stands in.
    stage: int
    word: str
    rest: str

    @property
    def flags(self) -> dict[str, str]:
        """Its own `--name=value` flags."""
        return dict(re.findall(r"(?:^|\s)--([a-z-]+)=(\S+)", self.rest.partition("CMD")[0]))

    @property
    def words(self) -> list[str]:
        """What follows the flags: a JSON list where it is one."""
        text = re.sub(r"^(?:--\S+\s+)*", "", self.rest)
        text = re.sub(r"^CMD\s+", "", text)
        found: list[str] = json.loads(text) if text.startswith("[") else text.split()
        return found


def read(text: str) -> list[Line]:
    """The instructions of a Dockerfile in order."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    found: list[Line] = []
    stage = -1
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            stage += word == "FROM"
            found.append(Line(stage, word, rest.strip()))
    return found


LINES = read((ROOT / "Dockerfile").read_text("utf-8"))
LAST = [line for line in LINES if line.stage == LINES[-1].stage]


def only(word: str) -> Line:
    """The one instruction of this kind in the image that is kept."""
    (found,) = (line for line in LAST if line.word == word)
    return found


def compose() -> dict[str, Any]:
    """compose.yaml as data."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    found: dict[str, Any] = yaml.safe_load(COMPOSE)
    return found


def test_the_context_holds_what_the_package_is_built_from_and_nothing_else() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in ignored
    kept = {line[1:] for line in ignored if line.startswith("!")}
    folders = set(PYPROJECT["tool"]["setuptools"]["package-dir"].values())
    project = PYPROJECT["project"]
    files = {"pyproject.toml", "requirements.lock", project["readme"], *project["license-files"]}
    assert kept == folders | files
    assert [name for name in sorted(kept) if not (ROOT / name).exists()] == []


def test_what_is_copied_is_there() -> None:
    copies = [line for line in LINES if line.word == "COPY"]
    assert len(copies) == 2
    names = {re.split(r" AS ", line.rest)[-1]: line.stage for line in LINES if line.word == "FROM"}
    for line in copies:
        *sources, _target = line.words
        origin = line.flags.get("from")
        for source in sources:
            if origin is None:
                assert (ROOT / source).exists()
            else:
                made = [run.rest for run in LINES if run.stage == names[origin]]
                assert any(f"venv {source}" in text for text in made)


def test_what_is_installed_is_what_the_lock_names() -> None:
    (install,) = (line.rest for line in LINES if "pip install" in line.rest)
    assert "--no-deps --require-hashes -r run.lock" in install
    assert "--no-deps --no-build-isolation ." in install
    versions = {
        re.findall(r"python:([\d.]+)-", line.rest)[0] for line in LINES if line.word == "FROM"
    }
    (version,) = versions
    assert f"Programming Language :: Python :: {version}" in PYPROJECT["project"]["classifiers"]


def test_it_starts_a_command_of_ours_with_flags_that_it_takes() -> None:
    (entry,) = only("ENTRYPOINT").words
    assert entry in PYPROJECT["project"]["scripts"]
    verb, *flags = only("CMD").words
    assert verb == "up"
    args = plan.parser().parse_args(flags)
    # Whoever reaches a published port is a stranger to the container.
    assert (args.host, args.auth) == ("0.0.0.0", True)


def test_it_runs_without_rights_and_keeps_its_data_in_the_volume() -> None:
    user = only("USER").rest
    assert user.isdecimal()
    assert user != "0"
    (made,) = (line.rest for line in LAST if line.word == "RUN")
    assert f"useradd --uid {user} " in made
    (folder,) = only("VOLUME").words
    assert f"{DATA_DIR}={folder}" in only("ENV").rest
    assert made.endswith(f"--mode=0700 {folder}")


def test_ports_are_those_that_settings_have_by_default() -> None:
    assert {int(word) for word in only("EXPOSE").words} == PORTS
    (asked,) = re.findall(r"127\.0\.0\.1:(\d+)/health", only("HEALTHCHECK").rest)
    assert int(asked) == Api().port
    published = [port.split(":") for port in compose()["services"]["main"]["ports"]]
    assert {int(port[-1]) for port in published} == PORTS
    # Join lines name the port inside: outside it has to be the same.
    assert all(port[-1] == port[-2] for port in published)
    # REST is plain HTTP.
    assert [port[0] for port in published if int(port[-1]) == Api().port] == ["127.0.0.1"]


def test_settings_in_the_environment_are_settings_of_ours() -> None:
    known = {spec.env for spec in all_specs()} | {DATA_DIR}
    named = set(re.findall(r"RETIRE_CLUSTER_\w+", COMPOSE + only("ENV").rest))
    assert {DATA_DIR, "RETIRE_CLUSTER_SERVER_PUBLIC_HOST"} <= named
    assert sorted(named - known) == []


def test_every_service_of_compose_is_the_image_confined() -> None:
    document = compose()
    services = document["services"]
    assert set(services) == {"main", "worker"}
    for name, service in services.items():
        assert service["image"] == services["main"]["image"]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        (volume,) = service["volumes"]
        kept, folder = volume.split(":")
        assert kept == name
        assert kept in document["volumes"]
        assert [folder] == only("VOLUME").words
    assert (ROOT / services["main"]["build"] / "Dockerfile").exists()
    verb, *flags = services["worker"]["command"]
    assert verb in VERBS
    node_cli.make_parser().parse_args(flags)
