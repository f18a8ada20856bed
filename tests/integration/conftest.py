"""Fixtures of the tests with real sockets and processes.

Tests are no packages, so the kit is loaded by path; under this name static tools find it too.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def _load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"tests.integration.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_node_kit = _load("node_kit")
bus = _node_kit.bus
start = _node_kit.start
without_walls = _node_kit.without_walls

_main_kit = _load("main_kit")
main_node = _main_kit.main_node
start_main = _main_kit.start_main

_sdk_kit = _load("sdk_kit")
facade = _sdk_kit.facade
cluster = _sdk_kit.cluster
