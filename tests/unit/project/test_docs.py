"""The documentation tells the truth about settings, operations and verbs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from retire_cluster.broker.admin.table import OPERATIONS
from retire_cluster.conf.settings import all_specs
from retire_cluster.conf.spec import Spec
from retire_cluster.schemas.protocol import messages
from retire_cluster.schemas.rest.endpoints import rights_table
from retire_cluster.schemas.vocabulary import TaskStatus

ROOT = Path(__file__).resolve().parents[3]
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text("utf-8")
EVENTS = (ROOT / "docs" / "events.md").read_text("utf-8")
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")


@pytest.mark.parametrize("spec", list(all_specs()), ids=lambda spec: spec.dotted)
def test_every_setting_is_documented_with_its_variable(spec: Spec) -> None:
    row = next(line for line in CONFIGURATION.splitlines() if f"`{spec.dotted}`" in line)
    assert f"`{spec.env}`" in row
    assert spec.help in row
    assert ("*live*" in row) == spec.mutable


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_admin_operation_is_documented(name: str) -> None:
    assert f"`{name}`" in PROTOCOL


def test_every_test_that_the_security_page_names_is_there(root: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "security.md").read_text("utf-8")))
    there = set()
    for path in (root / "tests").rglob("test_*.py"):
        there.update(re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE))
    assert len(named) > 20
    assert sorted(named - there) == []


def test_the_table_of_scopes_on_the_security_page_is_the_one_that_is_enforced(root: Path) -> None:
    text = (root / "docs" / "security.md").read_text("utf-8")
    assert rights_table() in text, "print schemas/rest/endpoints.py::rights_table anew"


def test_every_verb_of_the_bus_is_documented() -> None:
    verbs = {*messages._FROM_DEVICE, *messages._FROM_BROKER}
    missing = sorted(verb.decode() for verb in verbs if f"`{verb.decode()}`" not in PROTOCOL)
    assert missing == []


def test_every_type_of_event_is_documented() -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "broker").rglob("*.py"))
    kinds = set(re.findall(r'log\.add\(\s*"([a-z_]+\.[a-z]+)"', code))
    kinds |= {f"task.{status.value}" for status in TaskStatus} | {"device.changed"}
    assert len(kinds) > 14
    assert sorted(kind for kind in kinds if f"`{kind}`" not in EVENTS) == []
