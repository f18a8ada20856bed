"""Loads what the acceptance tests share by path, under names by which static tools find it too."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def _load(name: str) -> None:
    path = Path(__file__).with_name(name.rpartition(".")[2] + ".py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


for _name in ("kit", "documents"):
    _load(f"tests.acceptance.{_name}")


@pytest.fixture(autouse=True)
def _what_a_failed_test_started_ends_with_it(request: pytest.FixtureRequest) -> Iterator[None]:
    """Left behind, it would fail whichever test runs when its handles are collected."""
    from tests.acceptance.kit import Process

    processes, failures = len(Process.started), request.session.testsfailed
    yield
    if request.session.testsfailed > failures:
        for process in reversed(Process.started[processes:]):
            process.stop()
        del Process.started[processes:]
