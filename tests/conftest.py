"""Shared by every test: kits that can be imported, the checkout, and waiting for conditions."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Protocol

import pytest
from hypothesis import HealthCheck, settings

# Tests are no packages; what they share is found as `tests.unit.broker.kit` and the like, wherever
# pytest is started from. The root itself stays off the path: it has an `http` folder.
_tests = sys.modules.setdefault("tests", ModuleType("tests"))
_tests.__path__ = [str(Path(__file__).parent)]

# How fast examples are made says something of the machine and nothing of the code.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


# A shell's background job ignores Ctrl-C, and so would all that is started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class WaitUntil(Protocol):
    """Waits for a condition; fails the test when it stays false."""

    def __call__(self, condition: Callable[[], object], timeout_seconds: float = 10) -> None: ...


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged travels from its worker as UTF-8, which has no lone surrogates."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """Looks at a condition every 10 ms until it holds."""

    def wait(condition: Callable[[], object], timeout_seconds: float = 10) -> None:
        until = time.monotonic() + timeout_seconds
        while not condition():
            if time.monotonic() > until:
                pytest.fail(f"still waiting after {timeout_seconds} s")
            time.sleep(0.01)

    return wait
