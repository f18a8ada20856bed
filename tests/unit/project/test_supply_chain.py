"""The lock file, and what is said of it."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tests.supply_chain import (
    DEVELOPMENT_MARK,
    DEVICE,
    DEVICE_LOCK,
    LOCK,
    PINS,
    ROOT,
    RUN_MARK,
    Locked,
    judge,
    read_lock,
    run_closure,
    sbom,
    write_device_lock,
    write_lock,
)

TEXT = LOCK.read_text("utf-8")
LOCKED = read_lock(TEXT)
PINNED = read_lock(PINS.read_text("utf-8"))


def test_the_lock_has_every_pin_and_each_has_the_hashes_of_its_files() -> None:
    pins = {(one.name, one.version, one.marker) for one in PINNED}
    assert {(one.name, one.version, one.marker) for one in LOCKED} == pins, (
        "requirements.txt changed: python tests/supply_chain.py lock"
    )
    assert len(LOCKED) == len(PINNED)
    for one in LOCKED:
        assert one.sha256, one.name
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in one.sha256), one.name
        assert len(set(one.sha256)) == len(one.sha256)


def test_devices_get_the_same_files_as_the_lock_has() -> None:
    text = DEVICE_LOCK.read_text("utf-8")
    assert text == write_device_lock(LOCKED), "python tests/supply_chain.py lock"
    names = {canonicalize_name(one.name) for one in read_lock(text)}
    assert names == DEVICE
    project: Any = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]}
    assert needed <= names
    assert "://" not in text


def test_no_address_is_in_the_lock() -> None:
    assert "://" not in TEXT
    assert "--index-url" not in TEXT


def test_what_up_needs_comes_first_and_nothing_else_does() -> None:
    head, run, development = re.split(f"{re.escape(RUN_MARK)}|{re.escape(DEVELOPMENT_MARK)}", TEXT)
    assert read_lock(head) == []
    first = {canonicalize_name(one.name) for one in read_lock(run)}
    later = {canonicalize_name(one.name) for one in read_lock(development)}
    assert run_closure(frozenset(first | later)) <= first
    assert not first & later
    assert {"pyzmq", "falcon", "waitress", "cerberus", "apscheduler", "orjson"} <= first
    assert {"pytest", "mypy", "ruff", "hypothesis"} <= later
    assert "tomli" in first, "only old Pythons need it, and the lock is for all of them"


def test_bootstrap_and_the_container_install_by_the_lock() -> None:
    for name in ("bootstrap.py", "Dockerfile"):
        text = (ROOT / name).read_text("utf-8")
        assert "--require-hashes" in text
        assert DEVELOPMENT_MARK.strip() in text


def test_a_lock_is_read_as_it_was_written() -> None:
    packages = [
        Locked("A-b", "1.0", 'python_version < "3.11"', ("0" * 64, "f" * 64)),
        Locked("c", "2", "", ("a" * 64,)),
    ]
    text = write_lock(packages, frozenset({"c"}))
    assert read_lock(text) == [packages[1], packages[0]]


def test_the_list_for_scanners_names_every_package_and_is_always_the_same() -> None:
    document = sbom(LOCKED)
    assert document == sbom(read_lock(TEXT))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    components = document["components"]
    assert len(components) == len(LOCKED)
    assert len({one["bom-ref"] for one in components}) == len(components)
    project: Any = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert document["metadata"]["component"]["version"] == project["version"]


@pytest.mark.parametrize(
    ("report", "code", "said"),
    [
        ("", 0, "no advisory service answered; nothing was checked"),
        ("<html>", 0, "no advisory service answered; nothing was checked"),
        ({"dependencies": [{"name": "a", "skip_reason": "not found"}]}, 0, "0 of 1 packages"),
        ({"dependencies": [{"name": "a", "version": "1", "vulns": []}]}, 0, "1 of 1 packages"),
        (
            {"dependencies": [{"name": "a", "version": "1", "vulns": [
                {"id": "CVE-1", "fix_versions": ["2"]}]}]},
            1, "a 1: CVE-1, mended in 2",
        ),
    ],
    ids=["silence", "no JSON", "unknown package", "sound", "hole"],
)  # fmt: skip
def test_only_a_known_hole_fails_and_what_was_not_checked_is_not_called_sound(
    report: Any, code: int, said: str
) -> None:
    text = report if isinstance(report, str) else json.dumps(report)
    lines, found = judge(text)
    assert found == code
    assert said in "\n".join(lines)
