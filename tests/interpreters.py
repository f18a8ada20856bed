"""Every CPython of this machine: which there are, a smoke on each, the whole suite on chosen ones.

    python tests/interpreters.py list
    python tests/interpreters.py smoke             tests/smoke.py on each, one after the other
    python tests/interpreters.py suite --on WHICH [--on ...] [PYTEST ARGUMENTS]
                                                   the suite on WHICH: 3.13, oldest or newest

`bootstrap.py test` and `bootstrap.py test --on WHICH` run them. Each Python has an environment of
its own in build/python-X.Y, installed by requirements.lock and kept for the next time. They are
looked for on PATH, in pyenv and uv, and by the `py` launcher of Windows. Standard library only.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
#: What people have; a machine that lacks one is told so.
EXPECTED = ((3, 10), (3, 11), (3, 12), (3, 13), (3, 14))
LEAST = EXPECTED[0]
PROBE_SECONDS = 20
_PROBE = """
import importlib.util, json, os, platform, sys, sysconfig
found = all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))
free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
base = getattr(sys, "_base_executable", "") or sys.executable
print(json.dumps([platform.python_implementation(), list(sys.version_info[:3]), free, found, base]))
"""


class Python(NamedTuple):
    """One interpreter."""

    version: tuple[int, int, int]
    #: Built without the global lock.
    free_threaded: bool
    #: It has what makes an environment.
    complete: bool
    path: str

    @property
    def name(self) -> str:
        """Such as 3.13, or 3.13t without the global lock."""
        return f"{self.version[0]}.{self.version[1]}" + ("t" if self.free_threaded else "")

    @property
    def expected(self) -> bool:
        """Whether a failure on it is a fault: its packages are known to have files for it."""
        return self.version[:2] in EXPECTED and not self.free_threaded


def candidates(environ: Mapping[str, str]) -> list[str]:
    """Return where a Python may be, best first."""
    numbers = [f"3.{minor}" for minor in range(LEAST[1], 30)]
    names = ["python3", "python", *(f"python{number}" for number in numbers)]
    names += [f"python{number}t" for number in numbers]
    found = [sys.executable]
    for folder in environ.get("PATH", "").split(os.pathsep):
        found += filter(None, (shutil.which(name, path=folder) for name in names if folder))
    home = environ.get("HOME") or environ.get("USERPROFILE") or ""
    pyenv = environ.get("PYENV_ROOT") or (os.path.join(home, ".pyenv") if home else "")
    ends = ("bin/python3", "python.exe")
    if pyenv:
        found += [path for end in ends for path in _under(pyenv, "versions", "*", end)]
        found += [path for end in ends for path in _under(pyenv, "pyenv-win/versions", "*", end)]
    if home:
        for store in (".local/share/uv/python", "AppData/Roaming/uv/python"):
            found += [path for end in ends for path in _under(home, store, "*", end)]
    if launcher := shutil.which("py", path=environ.get("PATH")):
        found += launcher_paths(_output([launcher, "-0p"]))
    return list(dict.fromkeys(found))


def _under(*parts: str) -> list[str]:
    return sorted(glob.glob(os.path.join(glob.escape(parts[0]), *parts[1:])))


def launcher_paths(text: str) -> list[str]:
    """Return the programs that `py -0p` lists: ` -V:3.13 *  C:\\...\\python.exe`."""
    found = []
    for line in text.splitlines():
        _, colon, rest = line.strip().partition(":\\")
        if colon:
            drive = line.strip().partition(":\\")[0][-1:]
            found.append(f"{drive}:\\{rest}")
    return found


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")


def probe(path: str) -> Python | None:
    """Return what a program says of itself, None unless it is a CPython that runs and is new."""
    try:
        kind, version, free, complete, base = json.loads(_output([path, "-I", "-c", _PROBE]))
        found = Python((version[0], version[1], version[2]), bool(free), bool(complete), str(base))
    except (ValueError, TypeError, IndexError):
        return None
    return found if kind == "CPython" and found.version[:2] >= LEAST else None


def choose(found: Iterable[Python]) -> list[Python]:
    """Return one of each version, oldest first: one that makes environments, else the newest."""
    best: dict[tuple[tuple[int, ...], bool], Python] = {}
    for one in found:
        kind = (one.version[:2], one.free_threaded)
        known = best.get(kind)
        if known is None or (one.complete, one.version) > (known.complete, known.version):
            best[kind] = one
    return [best[kind] for kind in sorted(best)]


def absent(found: Iterable[Python]) -> list[str]:
    """Return the expected versions that this machine does not have."""
    there = {one.version[:2] for one in found if one.complete and not one.free_threaded}
    return [f"{major}.{minor}" for major, minor in EXPECTED if (major, minor) not in there]


def wanted(which: Sequence[str], found: Sequence[Python]) -> list[Python]:
    """Return the interpreters of these words. Raises `LookupError` with the text for a person."""
    usable = [one for one in found if one.complete]
    named = {one.name: one for one in usable}
    plain = [one for one in usable if not one.free_threaded]
    if plain:
        named |= {"oldest": plain[0], "newest": plain[-1]}
    chosen = []
    for word in which:
        if word not in named:
            have = ", ".join(one.name for one in usable) or "none"
            raise LookupError(f"no Python {word} with venv and pip here; there are: {have}")
        chosen.append(named[word])
    return list(dict.fromkeys(chosen))


def run(python: Python, *words: str) -> int:
    """Run bootstrap.py by this Python, in the environment kept for it; return the exit code."""
    folder = ROOT / "build" / f"python-{python.name}"
    folder.parent.mkdir(exist_ok=True)
    command = [python.path, str(ROOT / "bootstrap.py"), "--venv", str(folder), *words]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode


def smoke(found: Sequence[Python]) -> int:
    """Run the smoke on each; return 1 when it failed on a version that is expected to work."""
    failed = []
    for one in found:
        began = time.monotonic()
        if not one.complete:
            print(f"Python {one.name}: left out, {one.path} lacks venv or ensurepip")
        elif run(one, "smoke"):
            seconds = time.monotonic() - began
            told = "FAILED" if one.expected else "does not work (not judged)"
            print(f"Python {one.name}: {told}, {seconds:.1f} s: {one.path}")
            failed += [one] * one.expected
        sys.stdout.flush()
    for name in absent(found):
        print(f"Python {name}: not on this machine")
    sys.stdout.flush()
    return 1 if failed else 0


def main(argv: Sequence[str]) -> int:
    """Run a command of the list above; return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("command", choices=["list", "smoke", "suite"])
    parser.add_argument("--on", action="append", default=[], metavar="WHICH")
    args, rest = parser.parse_known_args(argv)
    found = choose(filter(None, map(probe, candidates(os.environ))))
    if args.command == "list":
        for one in found:
            print(f"{one.name}\t{'.'.join(map(str, one.version))}\t{one.path}")
        return 0
    if args.command == "smoke":
        return smoke(found)
    code = 0
    for one in wanted(args.on, found):
        print(f"Python {one.name}: {one.path}", flush=True)
        code = run(one, "test", *rest) or code
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LookupError as error:
        sys.exit(f"interpreters: {error.args[0]}")
