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

# Tests are no packages; what they share is found as `tests.unit.broker.kit` and the like, wherever
# pytest is started from. The root itself stays off the path: it has an `http` folder.
_tests = sys.modules.setdefault("tests", ModuleType("tests"))
_tests.__path__ = [str(Path(__file__).parent)]

# A shell's background job ignores Ctrl-C, and so would all that is started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class WaitUntil(Protocol):
    """Waits for a condition; fails the test when it stays false."""

    def __call__(self, condition: Callable[[], object], timeout_seconds: float = 10) -> None: ...


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Let Hypothesis take its time: how fast it makes examples says nothing of the code.

    Its import takes half a second, for which only files that use it have to wait.
    """
    if isinstance(collector, pytest.Module) and b"hypothesis" in collector.path.read_bytes():
        from hypothesis import HealthCheck, settings

        slow = [HealthCheck.too_slow]
        settings.register_profile("steady", deadline=None, suppress_health_check=slow)
        settings.load_profile("steady")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Do without Hypothesis's summary, which imports it, where no test has used it."""
    plugins = session.config.pluginmanager
    alone = session.config.getoption("dist", "no") == "no"
    if alone and "hypothesis" not in sys.modules and plugins.has_plugin("hypothesispytest"):
        plugins.unregister(name="hypothesispytest")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make UTF-8 of what a test logged, with which it travels: it has no lone surrogates."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the folder of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """Return what looks at a condition every 10 ms until it holds."""

    def wait(condition: Callable[[], object], timeout_seconds: float = 10) -> None:
        until = time.monotonic() + timeout_seconds
        while not condition():
            if time.monotonic() > until:
                pytest.fail(f"still waiting after {timeout_seconds} s")
            time.sleep(0.01)

    return wait
