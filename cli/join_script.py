"""Makes this device a worker of a Retire-Cluster. Standard library only.

The main node hands this out as /join.py with the three values below filled in. It makes a virtual
environment, installs the worker into it (the wheel's SHA-256 is checked; its libraries come from
the main node where that keeps them, else from the package index), and starts it.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from typing import Any, Callable, List, Sequence

BASE = ""
WHEEL = ""
SHA256 = ""

LEAST = (3, 10)
LIBRARIES = ("pyzmq", "simpleeval", "urllib3")
INDEX_SECONDS = 8


HELP = """\
usage: join.py JOIN [FLAGS]

Makes this device a worker: a virtual environment in RETIRE_CLUSTER_HOME (else the user's data
folder), the worker in it, and its start.

  JOIN   the word that the main node printed (rc1...)
  FLAGS  those of retire-cluster-worker: --device-id ID, --role ROLE, --tag TAG, --slots N,
         --allow TYPE, --data-dir FOLDER, --test (shows what it would offer), ...
"""


class Stop(Exception):
    """It cannot go on; the text says why and what to do."""


def say(text: str) -> None:
    """A line for the person at the terminal."""
    sys.stderr.write(f"join: {text}\n")
    sys.stderr.flush()


def check_python(version: Sequence[Any], has: Callable[[str], object]) -> None:
    """Stops where this Python is too old, naming one that is there or how to get one."""
    if tuple(version[:2]) >= LEAST:
        return
    text = "this is Python {}.{}, and 3.10 or newer is needed. ".format(*version[:2])
    for minor in (13, 12, 11, 10, 14):
        name = f"python3.{minor}"
        if has(name):
            raise Stop(text + f"Paste the line again with {name} in place of python3.")
    if "com.termux" in os.environ.get("PREFIX", ""):
        raise Stop(text + "Run: pkg upgrade && pkg install python")
    raise Stop(
        text + "Get one from your system's packages or https://www.python.org/downloads/, then"
        " paste the line again with its name in place of python3."
    )


def home() -> str:
    """The folder that the environment is made in. Raises `Stop` for a user without a home."""
    chosen = os.environ.get("RETIRE_CLUSTER_HOME")
    if chosen:
        return os.path.abspath(chosen)
    if not os.path.isabs(os.path.expanduser("~")):
        raise Stop("this user has no home folder; set RETIRE_CLUSTER_HOME to one it may write to")
    if os.name == "nt":
        return os.path.join(
            os.environ.get("LOCALAPPDATA") or os.path.expanduser("~"), "retire-cluster"
        )
    shared = os.environ.get("XDG_DATA_HOME") or os.path.join(
        os.path.expanduser("~"), ".local", "share"
    )
    return os.path.join(shared, "retire-cluster")


def fetch(path: str) -> bytes:
    """A file of the main node."""
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(BASE + path, timeout=60) as answer:
            content: bytes = answer.read()
            return content
    except OSError as error:
        raise Stop(f"{BASE}{path} cannot be fetched: {error}") from None


def run(command: List[str], what: str) -> None:
    """Runs a command; stops with its last words when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
        raise Stop("{} failed: {}".format(what, "\n".join(lines[-8:])))


def has_pip(python: str) -> bool:
    """Whether a Python can install packages."""
    return not subprocess.call([python, "-c", "import pip"], stderr=subprocess.DEVNULL)


def make_environment(folder: str) -> str:
    """The Python of a virtual environment in this folder."""
    venv = os.path.join(folder, "venv")
    python = os.path.join(venv, "Scripts" if os.name == "nt" else "bin", "python")
    python += ".exe" if os.name == "nt" else ""
    if os.path.exists(python) and has_pip(python):
        return python
    os.makedirs(folder, exist_ok=True)
    say(f"making {venv}")
    try:
        run([sys.executable, "-m", "venv", "--clear", venv], "python -m venv")
    except Stop as stop:
        cure = ""
        if shutil.which("apt-get"):
            cure = "\nRun: sudo apt-get install -y python{}.{}-venv".format(*sys.version_info[:2])
        raise Stop(f"{stop}{cure}") from None
    return python


def libraries() -> List[str]:
    """Names of what the worker imports on this Python."""
    return [*LIBRARIES, *(["tomli"] if sys.version_info < (3, 11) else [])]


def kept_wheels() -> bool:
    """Whether the main node keeps the libraries."""
    kept = fetch("/wheels/").decode("utf-8", "replace")
    return all(name + "-" in kept for name in libraries())


def need_index(python: str) -> None:
    """Stops where this Python's pip has nowhere to get the libraries from."""
    if not index_answers(python):
        raise Stop("no package index answers here (no internet?), and the main node keeps no"
                   " wheels: " + cure())  # fmt: skip


def index_answers(python: str) -> bool:
    """Whether this Python's pip finds a library, within seconds; for an install it tries for a
    minute. True as well where its complaint is another one.
    """
    asked = [python, "-m", "pip", "index", "versions", "--disable-pip-version-check", "--no-input"]
    asked += ["--retries", "0", "--timeout", str(INDEX_SECONDS), LIBRARIES[1]]
    done = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return not done.returncode or b"SSL" in done.stdout


def cure() -> str:
    """How libraries come to a device without internet."""
    import sysconfig

    version = "{}.{}".format(*sys.version_info[:2])
    fit = f" --only-binary :all: --python-version {version}"
    system, _, machine = sysconfig.get_platform().partition("-")
    if system == "linux" and "com.termux" not in os.environ.get("PREFIX", ""):
        fit += f" --platform manylinux_2_28_{machine} --platform manylinux2014_{machine}"
    else:
        fit = ""
    return (
        "where there is internet, run `python3 -m pip download -d wheels{} {}`, copy what it got"
        " into DATA_DIR/wheels on the main node, and paste the line again"
    ).format(fit, " ".join(libraries()))


def install(python: str, folder: str, has_all: bool) -> None:
    """Puts the worker and its libraries into the environment."""
    wheel = fetch("/wheels/" + WHEEL)
    if hashlib.sha256(wheel).hexdigest() != SHA256:
        raise Stop("the worker's wheel was changed on its way here; nothing was installed")
    path = os.path.join(folder, WHEEL)
    with open(path, "wb") as file:
        file.write(wheel)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    here = ["--no-index", "--find-links", BASE + "/wheels/", "--trusted-host", host_of(BASE)]
    say(f"installing {WHEEL}")
    try:
        run(pip + (here if has_all else ["--prefer-binary"]) + [path], "pip install")
    except Stop:
        if not has_all:
            raise
        # What the main node keeps may be for another kind of device.
        if not index_answers(python):
            raise Stop("the wheels that the main node keeps do not fit this device (Python {}.{}),"
                       " and no package index answers here: ".format(*sys.version_info[:2])
                       + cure()) from None  # fmt: skip
        run([*pip, "--prefer-binary", path], "pip install")
    # Better facts and faster JSON, where there are wheels for this device.
    more = here if has_all else ["--only-binary", ":all:"]
    subprocess.call(
        pip + more + ["psutil", "orjson"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.unlink(path)


def host_of(url: str) -> str:
    """`HOST:PORT` of an address, for pip's --trusted-host."""
    return url.partition("://")[2].partition("/")[0]


def main(words: Sequence[str]) -> int:
    """Installs and starts the worker; the exit code."""
    if "-h" in words or "--help" in words:
        sys.stdout.write(HELP)
        return 0
    try:
        check_python(sys.version_info, shutil.which)
        if not words:
            raise Stop("give the join line of the main node, then flags of retire-cluster-worker")
        folder = home()
        has_all = kept_wheels()
        asked_early = has_pip(sys.executable)
        if not has_all and asked_early:
            need_index(sys.executable)  # before anything is made
        python = make_environment(folder)
        if not has_all and not asked_early:
            need_index(python)
        install(python, folder, has_all)
    except Stop as stop:
        say(str(stop))
        return 2
    except OSError as error:
        say(f"{error}; set RETIRE_CLUSTER_HOME to a folder that may be written")
        return 2
    command = [python, "-m", "retire_cluster.cli.main"]
    say("starting the worker; Ctrl-C ends it. Later: {} worker".format(" ".join(command)))
    say("to have it started by the system: {} service install worker".format(" ".join(command)))
    sys.stderr.flush()
    worker = [*command, "worker", "--join", *words]
    if os.name != "nt":
        os.execv(python, worker)
    return subprocess.call(worker)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
