"""Fixtures of the tests with real sockets and processes.

Tests are no packages, so the kit is loaded by path; under this name static tools find it too.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_NAME = "tests.integration.node_kit"
_spec = importlib.util.spec_from_file_location(_NAME, Path(__file__).with_name("node_kit.py"))
assert _spec is not None
assert _spec.loader is not None
_kit = importlib.util.module_from_spec(_spec)
sys.modules[_NAME] = _kit
_spec.loader.exec_module(_kit)

bus = _kit.bus
start = _kit.start
