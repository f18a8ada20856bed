"""What `bootstrap.py test`, `lint`, `unit` and the like run, once it has made the environment.

PYTHON tests/suite.py test [--fast] [PYTEST ARGUMENTS]
PYTHON tests/suite.py lint [FILES]
PYTHON tests/suite.py unit [PYTEST ARGUMENTS]      also integration, contract, acceptance, chaos
PYTHON tests/suite.py sim [ARGUMENTS OF tests/simulation/run.py]
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__" and sys.path[0] == str(ROOT / "tests"):
    sys.path[0] = str(ROOT)  # as `python -m pytest` has it
elif str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

import bootstrap  # noqa: E402

#: Targets that are a folder of tests.
FOLDERS = ("unit", "integration", "contract", "acceptance", "chaos")
#: The pure core, which the gate below holds to its branches: rooms, and single modules of others.
PURE_ROOMS = ("broker/core", "node/core")
PURE_MODULES = (
    "broker/store/recent",
    "broker/admin/submission/batch",
    "broker/admin/rate_limit",
    "broker/admin/views",
    "schemas/ids",
)
PURE_CORE = (
    *(f"{room}/**/*.py" for room in PURE_ROOMS),
    *(f"{module}.py" for module in PURE_MODULES),
)
LEAST_PURE_BRANCHES_PERCENT = 95.0
#: A part of a test run that takes longer hangs. It is far more than any takes.
STEP_SECONDS = 2400
#: Failed tests of real processes that are run again, alone, at most.
MOST_RUN_AGAIN = 12
#: What `-k` is given where one word of it must stand in the file that holds the test.
_WORDS = re.compile(r"\w+( (and|or) \w+)*")


class Step(NamedTuple):
    """One finished part of a test run."""

    name: str
    good: bool
    seconds: float


class Verdict(NamedTuple):
    """What pytest found."""

    passed: int
    failed: int
    #: Test name and reason of each skip.
    skips: list[tuple[str, str]]
    #: Names of those that failed.
    failures: list[str]


def main(args: Sequence[str]) -> int:
    """Run a target of the list above; return its exit code."""
    target, *given = args
    os.chdir(ROOT)
    if target in FOLDERS:
        import pytest  # the others do without the time it takes

        return int(pytest.main(["-q", *places(f"tests/{target}", given), *given]))
    return bootstrap.guarded(lambda: COMMANDS[target](given))


# ---------------------------------------------------------------- short targets


def lint(paths: Sequence[str]) -> int:
    """Run ruff on these files or folders, else on all, and mypy on all; return the worst code."""
    commands = (
        ("ruff", "check", *(paths or ["."])),
        ("ruff", "format", "--check", *(paths or ["."])),
        ("mypy",),
    )
    codes = [bootstrap.run([sys.executable, "-m", *words])[0] for words in commands]
    return max(codes)


def simulate(given: Sequence[str]) -> int:
    """Play seeds of the simulation; return the exit code."""
    return bootstrap.run([sys.executable, "tests/simulation/run.py", *given])[0]


def places(folder: str, given: Sequence[str]) -> list[str]:
    """Return where pytest looks for a target's tests: nothing, where the arguments name a place.

    With `-k WORD` only files that hold the word, for pytest imports each file in which it looks. A
    word that is in no file is looked for everywhere: a parameter's value can be made of parts.
    """
    if any(re.match(r"tests[/\\]", word) for word in given):
        return []
    sought = [after for word, after in itertools.pairwise(given) if word == "-k"]
    if len(sought) != 1 or not _WORDS.fullmatch(sought[0]) or "not" in sought[0].split():
        return [folder]
    words = [word.lower() for word in sought[0].split() if word not in ("and", "or")]
    found = []
    for file in sorted(Path(folder).rglob("test_*.py")):
        text = f"{file.as_posix()}\n{file.read_text('utf-8')}".lower()
        if any(word in text for word in words):
            found.append(file.as_posix())
    if found:
        print(f"files of {folder} that hold the word: {len(found)}", flush=True)
    return found or [folder]


# ---------------------------------------------------------------- everything CI runs


def test(args: Sequence[str]) -> int:
    """Run everything CI runs. The last line counts the tests; 0 only if all is well."""
    fast = "--fast" in args
    given = [arg for arg in args if arg != "--fast"]
    python = sys.executable
    # A run on another Python, which another such run has asked for.
    alone = os.path.abspath(sys.prefix) != bootstrap.DEFAULT_VENV
    steps: list[Step] = []

    def step(name: str, action: Callable[[], bool]) -> None:
        bootstrap.say(name)
        start = time.monotonic()
        good = action()
        steps.append(Step(name, good, time.monotonic() - start))

    def command(*parts: str) -> Callable[[], bool]:
        return command_of(python, "-m", *parts)

    if not alone:
        step("ruff check", command("ruff", "check", "--quiet", "."))
        step("ruff format", command("ruff", "format", "--quiet", "--check", "."))
        step("mypy", command("mypy"))
    folder = tempfile.mkdtemp(prefix="retire-cluster-test-")
    try:
        report = Path(folder, "junit.xml")
        selection = ["--ignore=tests/acceptance", "-m", "not slow"] if fast else []
        coverage = [] if given else [*measured(), "--cov-report="]
        # Most tests wait for processes of their own: one more worker than there are cores. In the
        # order of folders: by number of tests the few long ones would come last, and wait alone.
        workers = str((os.cpu_count() or 1) + 1)
        parallel = ["-n", workers, "--dist", "loadfile", "--no-loadscope-reorder"]
        parallel = [] if given else parallel
        pytest = ["pytest", "-q", f"--junitxml={report}", *selection, *coverage, *parallel, *given]
        step("pytest", command(*pytest))
        verdict = read_report(_read(report))
        if worth_a_second_run(verdict):
            again = Path(folder, "again.xml")
            steps[-1] = steps[-1]._replace(name="pytest, first run", good=True)
            second = ["pytest", "-q", "--last-failed", "--last-failed-no-failures=none"]
            second += [f"--junitxml={again}"]
            step("pytest, the failed ones alone", command(*second))
            verdict = after_second_run(verdict, read_report(_read(again)))
        else:
            verdict = verdict._replace(failures=[])
        if not given:
            step("coverage of the pure core", lambda: pure_core_is_covered(Path(folder)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not (fast or given or alone):
        if wine_is_here():
            step("Windows, by Wine", command_of(python, "tests/windows/run.py", "--chosen"))
        step("a smoke on every Python", command_of(python, bootstrap.INTERPRETERS, "smoke"))
    left_out = ["tests/acceptance and tests marked slow (--fast)"] if fast else []
    left_out += ["only passed when run again, alone: " + name for name in verdict.failures]
    left_out += ["the coverage gate (pytest was given arguments)"] if given else []
    left_out += ["ruff and mypy (the same on every Python)"] if alone else []
    if fast or given or alone:
        left_out.append("the tests of Windows")
    elif not wine_is_here():
        left_out.append("the tests of Windows (no Wine here: apt-get install wine wine64)")
    left_out += ["the smoke on every other Python"] if fast or given or alone else []
    print("\n".join(summary(steps, verdict, left_out)), flush=True)
    return 0 if all(one.good for one in steps) and not verdict.failed else 1


def wine_is_here() -> bool:
    """Tell whether there is a Wine, which tests/windows/run.py needs."""
    names = ("wine64", "/usr/lib/wine/wine64", "wine")
    return os.name != "nt" and any(shutil.which(name) for name in names)


def command_of(*words: str) -> Callable[[], bool]:
    """Return a command as a step of a test run."""
    return lambda: bootstrap.run(words, most_seconds=STEP_SECONDS)[0] == 0


def measured() -> list[str]:
    """Return what pytest-cov is to measure: what the gate reads, for measuring slows tests down."""
    modules = (f"retire_cluster.{module.replace('/', '.')}" for module in PURE_MODULES)
    return [f"--cov={source}" for source in (*PURE_ROOMS, *modules)]


def pure_core_is_covered(folder: Path) -> bool:
    """Tell whether tests take enough of the branches of the pure core; prints those they do not."""
    figures = folder / "coverage.json"
    coverage = [sys.executable, "-m", "coverage"]
    include = "--include=" + ",".join(PURE_CORE)
    bootstrap.run([*coverage, "report", include])
    bootstrap.run([*coverage, "json", "--quiet", include, "-o", str(figures)])
    percent = branch_percent(_read(figures))
    if percent is None:
        bootstrap.say("no module of the pure core was measured")
        return False
    wanted = LEAST_PURE_BRANCHES_PERCENT
    print(f"pure core: {percent:.1f} % of branches, {wanted:.0f} % wanted")
    return percent >= wanted


def branch_percent(figures: bytes) -> float | None:
    """Return the percentage of branches taken by a report of `coverage json`, None without any."""
    try:
        totals = json.loads(figures)["totals"]
        return 100.0 * int(totals["covered_branches"]) / int(totals["num_branches"])
    except (ValueError, KeyError, ZeroDivisionError):
        return None


def read_report(junit: bytes) -> Verdict:
    """Return what a JUnit report says; one that cannot be read is one failure."""
    try:
        cases = list(ElementTree.fromstring(junit).iter("testcase"))
    except ElementTree.ParseError:
        return Verdict(0, 1, [], [])
    skips: list[tuple[str, str]] = []
    failures: list[str] = []
    for case in cases:
        skipped = case.find("skipped")
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(name)
        elif skipped is not None:
            skips.append((name, " ".join(skipped.get("message", "").split())))
    passed = len(cases) - len(failures) - len(skips)
    return Verdict(passed, len(failures), skips, failures)


def worth_a_second_run(verdict: Verdict) -> bool:
    """Tell whether a few tests of real processes failed, which a busy machine can bring about.

    They run again, alone, and are listed by name; unit tests get no second chance.
    """
    few = 0 < len(verdict.failures) <= MOST_RUN_AGAIN
    return few and not any(name.startswith("tests.unit") for name in verdict.failures)


def after_second_run(first: Verdict, second: Verdict) -> Verdict:
    """Return what both runs say; `failures` names those that passed only the second time."""
    recovered = [name for name in first.failures if name not in second.failures]
    if second.passed != len(recovered) or second.passed + second.failed != first.failed:
        return first._replace(failures=[])  # not the same tests: the first run counts
    return Verdict(first.passed + len(recovered), second.failed, first.skips, recovered)


def summary(steps: Sequence[Step], verdict: Verdict, left_out: Sequence[str]) -> list[str]:
    """Return the last lines of a test run."""
    lines = ["", "steps:"]
    lines += [
        f"  {one.name:<28}{one.seconds:>8.1f} s  {'ok' if one.good else 'FAILED'}" for one in steps
    ]
    lines += [f"left out: {what}" for what in left_out]
    lines += [f"skipped: {name}: {reason}" for name, reason in verdict.skips]
    seconds = sum(one.seconds for one in steps)
    skipped = len(verdict.skips)
    lines.append(
        f"{verdict.passed} passed, {verdict.failed} failed, {skipped} skipped in {seconds:.2f}s"
    )
    return lines


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "test": test,
    "lint": lint,
    "sim": simulate,
}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
