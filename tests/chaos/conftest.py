"""Chaos tests share a kit of modules; tests are no packages, so it is made importable here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

# `from tests.chaos.rig import Rig` works here and in `run.py`, wherever either is started from.
_kit = sys.modules.setdefault("tests.chaos", ModuleType("tests.chaos"))
_kit.__path__ = [str(Path(__file__).parent)]
