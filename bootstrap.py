#!/usr/bin/env python3
"""From a bare checkout to a running cluster, or to a tested one. Standard library only.

    python3 bootstrap.py up ARGS...             makes .venv, installs, runs `retire-cluster up ARGS`
    python3 bootstrap.py test [--fast] ARGS...  everything CI runs; ARGS go to pytest
    python3 bootstrap.py test --on WHICH ARGS   the suite on another Python: 3.13, oldest, newest
    python3 bootstrap.py lint [FILES]           ruff, its format and mypy
    python3 bootstrap.py unit ARGS...           tests/unit by pytest; `-k NAME` in a second or two;
                                                likewise integration, contract, acceptance, chaos
    python3 bootstrap.py sim ARGS...            simulated clusters: --seeds N | --seed N --verbose
    python3 bootstrap.py install                only makes .venv ready for work on the code
    python3 bootstrap.py typing                 only makes the .typing tree for static tools
    python3 bootstrap.py audit                  known holes of the locked packages, by pip-audit

Progress goes to stderr. The syntax is that of Python 3.6, so that an old Python can say what to do.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Iterator, List, Mapping, Sequence, Tuple

ROOT = os.path.dirname(os.path.abspath(__file__))
DEFAULT_VENV = os.path.join(ROOT, ".venv")
#: Where packages are installed; `--venv FOLDER` before the command names another place.
VENV = DEFAULT_VENV
#: Runs the tests, by the Python of the environment.
SUITE = os.path.join(ROOT, "tests", "suite.py")
SUITE_TARGETS = ("test", "lint", "unit", "integration", "contract", "acceptance", "chaos", "sim")
INTERPRETERS = os.path.join(ROOT, "tests", "interpreters.py")
LEAST_PYTHON = (3, 10)
WINDOWS = os.name == "nt"
RUN_EXTRAS = ("api", "worker")
#: In requirements.lock, before what only work on the code needs.
DEVELOPMENT_MARK = b"# --- development ---"
TEST_EXTRAS = ("api", "worker", "dev")
#: Import name below `retire_cluster` -> folder, for static tools (and checked by the layout test).
TYPING_LINKS = {
    "broker": "broker",
    "node": "node",
    "api": "http",
    "cli": "cli",
    "sdk": "sdk",
    "schemas": "schemas",
    "conf": "conf",
}
LOCK_WAIT_SECONDS = 1800
STOP_SECONDS = 5
#: Signals that asked this process to end. A handler that raised could do so between the start of
#: a child and the note of its number, and leave it behind; so handlers only write here.
_asked_to_stop = []  # type: List[int]


class Failure(Exception):
    """Something a person can mend; the text is the one line they see."""


class Stopped(Exception):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


# ---------------------------------------------------------------- what to tell people


def say(text: str) -> None:
    """Print a progress line."""
    sys.stderr.write("bootstrap: " + text + "\n")
    sys.stderr.flush()


def package_command(
    environ: Mapping[str, str], os_release: str, version: Tuple[Any, ...], root: bool
) -> str:
    """Return the command that gives this system a Python with `venv` and `pip`."""
    if "com.termux" in environ.get("PREFIX", ""):
        return "pkg install python python-pip python-ensurepip-wheels"
    family = []  # type: List[str]
    for line in os_release.splitlines():
        name, _, value = line.partition("=")
        if name.strip() in ("ID", "ID_LIKE"):
            family += value.strip().strip("\"'").lower().split()
    numbered = "python{}.{}".format(version[0], version[1])
    for ids, command in (
        (("debian", "ubuntu"), "apt-get update && {sudo}apt-get install -y " + numbered + "-venv"),
        (("fedora", "rhel", "centos"), "dnf install -y python3 python3-pip"),
        (("alpine",), "apk add python3 py3-pip"),
        (("arch",), "pacman -S --needed python python-pip"),
        (("suse", "opensuse"), "zypper install -y python3 python3-pip"),
    ):
        if any(name in family for name in ids):
            sudo = "" if root else "sudo "
            return sudo + command.replace("{sudo}", sudo)
    return "install Python 3.10 or newer, with venv and pip, from https://www.python.org/downloads/"


def old_python_message(version: Tuple[Any, ...], newer: str, args: Sequence[str]) -> str:
    """Return what somebody with too old a Python reads."""
    found = "Retire-Cluster needs Python 3.10 or newer, this is {}.{}. ".format(*version[:2])
    if newer:
        return found + "Run: " + " ".join([newer, "bootstrap.py", *args])
    return found + "Get one from https://www.python.org/downloads/ or your system's packages."


def newer_python() -> str:
    """Return the name of a recent enough Python that runs here, or the empty text."""
    for minor in (13, 12, 11, 10, 14):
        name = "python3.{}".format(minor)
        if shutil.which(name) and _works(name, "import venv, ensurepip"):
            return name
    return ""


# ---------------------------------------------------------------- running things


def run(
    command: Sequence[str], quiet: bool = False, most_seconds: float = float("inf")
) -> Tuple[int, str]:
    """Run a command to its end, in a process group of its own.

    Returns the exit code and, when quiet, the output. When this process is asked to stop
    meanwhile, or the time is up, the whole group is ended first.
    """
    until = time.monotonic() + most_seconds
    child = subprocess.Popen(
        list(command),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        **_own_group(),
    )
    while True:
        try:
            output, _ = child.communicate(timeout=0.2)
            return child.returncode, (output or b"").decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            late = time.monotonic() > until
            if _asked_to_stop or late:
                end_group(child)
            raise_if_stopped()
            if late:
                say("not done after {:.0f} s, ended: {}".format(most_seconds, " ".join(command)))
                return 124, ""


def raise_if_stopped() -> None:
    """Raise `Stopped` once a signal has asked for it."""
    if _asked_to_stop:
        raise Stopped(_asked_to_stop[0])


def _own_group() -> Any:
    if WINDOWS:
        return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    return {"start_new_session": True}


def end_group(child: "subprocess.Popen[bytes]") -> None:
    """Interrupt a child and its descendants, then kill what is left of them."""
    if WINDOWS:
        subprocess.call(
            ["taskkill", "/T", "/F", "/PID", str(child.pid)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        child.kill()  # taskkill may be missing, or refuse
        child.wait()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold a lock that the system gives back however this process ends."""
    with open(path, "a+b") as handle:
        until = time.monotonic() + LOCK_WAIT_SECONDS
        told = False
        while not _try_lock(handle.fileno()):
            raise_if_stopped()
            if time.monotonic() > until:
                raise Failure("another bootstrap has held {} for too long; end it".format(path))
            if not told:
                say("another bootstrap is preparing .venv; waiting for it")
                told = True
            time.sleep(0.2)
        yield


def _try_lock(number: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# ---------------------------------------------------------------- the virtual environment


def venv_python() -> str:
    """Return the interpreter inside `.venv`."""
    return os.path.join(VENV, *(("Scripts", "python.exe") if WINDOWS else ("bin", "python")))


def make_stamp(texts: Sequence[bytes], root: str, version: Tuple[Any, ...]) -> Mapping[str, str]:
    """Return what an installation depends on: packages, the place, the Python that made it."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "big") + text)
    return {"packages": digest.hexdigest(), "place": "{}.{} {}".format(*version[:2], root)}


def read_stamp(text: bytes) -> Mapping[str, Any]:
    """Return a stamp as it was written, or an empty one."""
    try:
        stamp = json.loads(text.decode("utf-8"))
        return {name: stamp[name] for name in ("place", "packages", "extras")}
    except (ValueError, KeyError, TypeError):
        return {"place": "", "packages": "", "extras": []}


def prepare(extras: Sequence[str]) -> str:
    """Make `.venv` hold the project with these extras; return its Python. Raises `Failure`."""
    python = venv_python()
    path = os.path.join(VENV, "retire-cluster.json")
    with locked(VENV + ".lock"):
        texts = [_read(os.path.join(ROOT, n)) for n in ("pyproject.toml", "requirements.lock")]
        wanted = make_stamp(texts, ROOT, sys.version_info)
        found = read_stamp(_read(path))
        if (
            found["place"] == wanted["place"]
            and found["packages"] == wanted["packages"]
            and set(extras) <= set(found["extras"])
            and _works(python, "import zmq, retire_cluster.conf")
        ):
            return python
        began = time.monotonic()
        # Without its stamp, a .venv was left half made.
        if found["place"] != wanted["place"] or not _works(python, "import pip"):
            make_venv()
        with contextlib.suppress(OSError):
            os.unlink(path)
        say("installing Retire-Cluster with {} (up to a few minutes)".format(", ".join(extras)))
        install(python, extras)
        with open(path, "w") as file:
            json.dump({**wanted, "extras": sorted(extras)}, file)
        say(".venv is ready after {:.1f} s".format(time.monotonic() - began))
    return python


def make_venv() -> None:
    """Make `.venv` anew with the Python that runs this. Raises `Failure`."""
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        command = package_command(
            os.environ,
            _read("/etc/os-release").decode("utf-8", "replace"),
            sys.version_info,
            hasattr(os, "geteuid") and os.geteuid() == 0,
        )
        raise Failure("this Python lacks its venv or pip module. Run: " + command)
    say("making .venv with Python {}.{}.{}".format(*sys.version_info[:3]))
    with contextlib.suppress(OSError):
        if os.path.islink(VENV) or not os.path.isdir(VENV):
            os.unlink(VENV)
    code, output = run([sys.executable, "-m", "venv", "--clear", VENV], quiet=True)
    if code:
        raise Failure("making .venv failed: " + _last_line(output))


def install(python: str, extras: Sequence[str]) -> None:
    """Install exactly the files that requirements.lock names, then the checkout, editable."""
    locked_text = _read(os.path.join(ROOT, "requirements.lock"))
    if "dev" not in extras:
        locked_text = locked_text.partition(DEVELOPMENT_MARK)[0]
    chosen = os.path.join(VENV, "requirements.lock")
    with open(chosen, "wb") as file:
        file.write(locked_text)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    for what in (
        ["--require-hashes", "--no-deps", "--prefer-binary", "--requirement", chosen],
        ["--no-deps", "--no-build-isolation", "--editable", "."],
    ):
        code, output = run([*pip, *what], quiet=True)
        if code:
            sys.stderr.write(output)
            raise Failure("pip could not install (above): check the network, then run this again")


def make_typing_tree(root: str = ROOT) -> None:
    """Give static tools `.typing/retire_cluster/*`: they cannot follow the import hook."""
    folder = os.path.join(root, ".typing", "retire_cluster")
    os.makedirs(folder, exist_ok=True)
    for name in set(os.listdir(folder)) - set(TYPING_LINKS):
        os.unlink(os.path.join(folder, name))
    for name, target in TYPING_LINKS.items():
        link = os.path.join(folder, name)
        wanted = os.path.join(root, target)
        if os.path.isdir(link) and os.path.samefile(link, wanted):
            continue
        if os.path.lexists(link):
            os.unlink(link)
        if sys.platform == "win32":
            # A junction, unlike a symbolic link, needs no privilege.
            import _winapi

            _winapi.CreateJunction(wanted, link)
        else:
            os.symlink(os.path.join("..", "..", target), link)


def _works(python: str, code: str) -> bool:
    try:
        return run([python, "-c", code], quiet=True)[0] == 0
    except OSError:
        return False


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"


# ---------------------------------------------------------------- commands


def up(args: Sequence[str]) -> int:
    """Run `retire-cluster up`; return its exit code."""
    python = prepare(RUN_EXTRAS)
    # The folder somebody starts this from must not lend its modules to the cluster.
    safe = ["-P"] if sys.version_info >= (3, 11) else []
    return become([python, *safe, "-m", "retire_cluster.cli.main", "up", *args])


def suite(target: str, args: Sequence[str]) -> int:
    """Run a target of tests/suite.py, on another Python where that is asked for."""
    if target == "test" and any(arg == "--on" or arg.startswith("--on=") for arg in args):
        return run([sys.executable, INTERPRETERS, "suite", *args])[0]
    python = prepare(TEST_EXTRAS)
    make_typing_tree()
    return become([python, SUITE, target, *args])


def become(command: List[str]) -> int:
    """Run a command in place of this process (on Windows, below it)."""
    if WINDOWS:
        return _run_on_windows(command)
    sys.stdout.flush()
    sys.stderr.flush()
    # From here a signal ends this process by itself; one that came before is seen by the check.
    for number in _stop_signals():
        signal.signal(number, signal.SIG_DFL)
    raise_if_stopped()
    return os.execv(command[0], command)


def _run_on_windows(command: Sequence[str]) -> int:
    child = subprocess.Popen(list(command), **_own_group())
    patience = STOP_SECONDS + 4
    until = float("inf")
    while time.monotonic() < until:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(0.2)
        if _asked_to_stop and until == float("inf"):
            until = time.monotonic() + patience
            with contextlib.suppress(OSError):
                os.kill(child.pid, getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
    end_group(child)
    return child.returncode


def main(args: Sequence[str]) -> int:
    """Run a command of the list above; return its exit code."""
    if sys.version_info[:2] < LEAST_PYTHON:
        say(old_python_message(sys.version_info, newer_python(), args))
        return 2
    if args[:1] == ["--venv"] and len(args) > 1:
        global VENV
        VENV, args = os.path.abspath(args[1]), args[2:]
    word, rest = (args[0], args[1:]) if args else ("", [])
    if word == "up":
        return up(rest)
    if word in SUITE_TARGETS:
        return suite(word, rest)
    if word == "smoke" and not rest:
        return run([prepare(RUN_EXTRAS), os.path.join("tests", "smoke.py")])[0]
    if word == "install" and not rest:
        prepare(TEST_EXTRAS)
        make_typing_tree()
        return 0
    if word == "typing" and not rest:
        make_typing_tree()
        return 0
    if word == "audit" and not rest:
        return run([prepare(TEST_EXTRAS), os.path.join("tests", "supply_chain.py"), "audit"])[0]
    asked = word in ("help", "-h", "--help")
    (sys.stdout if asked else sys.stderr).write(__doc__ or "")
    return 0 if asked else 2


def guarded(action: Callable[[], int]) -> int:
    """Return the exit code of an action; what a person can mend, or asked for, becomes one line."""
    # SIGINT too: a shell's background job inherits it ignored.
    for number in _stop_signals():
        signal.signal(number, lambda received, frame: _asked_to_stop.append(received))
    try:
        return action()
    except Failure as failure:
        say(str(failure))
        return 1
    except OSError as error:
        say("{}; the checkout must be a folder this user may write".format(error))
        return 1
    except Stopped as stopped:
        say("stopped")
        return 128 + stopped.number


def _stop_signals() -> List[int]:
    names = ("SIGINT", "SIGTERM", "SIGBREAK")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
