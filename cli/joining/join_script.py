"""Makes this device a worker of a Retire-Cluster. Standard library only.

The main node hands this out as /join.py with the values below filled in; the pasted line has its
SHA-256. It makes a virtual environment, installs the worker into it, and starts it. Whatever it
installs has a digest in this file: a wheel that the main node keeps, or a file of the package
index. The join line comes by standard input and goes on so, where `ps` does not show it.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

BASE = ""
WHEEL = ""
SHA256 = ""
#: Wheels that the main node keeps, and the SHA-256 of each: it has nothing else to give.
KEPT: Dict[str, str] = {}
#: What the package index may give, as requirements of pip with hashes.
LOCK = ""

LEAST = (3, 10)
LIBRARIES = ("pyzmq", "simpleeval", "urllib3")
#: Better facts and faster JSON, where there are wheels for this device.
MORE = ("psutil", "orjson", "cloudpickle")
INDEX_SECONDS = 8
MOST_BYTES = 268_435_456
MOST_LINE_BYTES = 4096


HELP = """\
usage: join.py JOIN [FLAGS]

Makes this device a worker: a virtual environment in RETIRE_CLUSTER_HOME (else the user's data
folder), the worker in it, and its start.

  JOIN   the word that the main node printed (rc1...); better by standard input, where others on
         this machine do not see it: echo JOIN | ...
  FLAGS  those of retire-cluster-worker: --device-id ID, --role ROLE, --tag TAG, --slots N,
         --allow TYPE, --data-dir FOLDER, --test (shows what it would offer), ...
"""


class Stop(Exception):
    """It cannot go on; the text says why and what to do."""

    #: All that a command said which failed.
    output = ""


def say(text: str) -> None:
    """Print a line for the person at the terminal."""
    sys.stderr.write(f"join: {text}\n")
    sys.stderr.flush()


def check_python(version: Sequence[Any], has: Callable[[str], object]) -> None:
    """Stop where this Python is too old, naming one that is there or how to get one."""
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
    """Return the folder for the environment. Raises `Stop` for a user without a home."""
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


def fetch(path: str, digest: str) -> bytes:
    """Fetch a file of the main node; stop where it is not the one that is meant."""
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(BASE + path, timeout=60) as answer:
            content: bytes = answer.read(MOST_BYTES + 1)
    except OSError as error:
        raise Stop(f"{BASE}{path} cannot be fetched: {error}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise Stop(
            f"{path} was changed on its way here, or on the main node since its line was made;"
            " nothing was installed. Get a new line there: retire-cluster token create"
        )
    return content


def run(command: List[str], what: str) -> None:
    """Run a command; stop with its last words when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        text = done.stdout.decode("utf-8", "replace").strip()
        stop = Stop("{} failed: {}".format(what, "\n".join(text.splitlines()[-8:])))
        stop.output = text
        raise stop


def has_pip(python: str) -> bool:
    """Tell whether a Python can install packages."""
    return not subprocess.call([python, "-c", "import pip"], stderr=subprocess.DEVNULL)


def make_environment(folder: str) -> str:
    """Return the Python of a virtual environment in this folder."""
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
    """Return the names of what the worker imports on this Python."""
    return [*LIBRARIES, *(["tomli"] if sys.version_info < (3, 11) else [])]


def name_of(wheel: str) -> str:
    """Return the package that a wheel is of, in one spelling."""
    return wheel.partition("-")[0].lower().replace("_", "-").replace(".", "-")


def kept_wheels(names: Sequence[str], tags: Optional[Set[str]] = None) -> Dict[str, List[str]]:
    """Return the wheels of each package that the main node keeps and that fit (None: all do)."""
    found: Dict[str, List[str]] = {name: [] for name in names}
    for wheel in sorted(KEPT):
        if name_of(wheel) in found and (tags is None or fits(wheel, tags)):
            found[name_of(wheel)].append(wheel)
    return found


def fits(wheel: str, tags: Set[str]) -> bool:
    """Tell whether one of a wheel's tags is among these."""
    parts = wheel[: -len(".whl")].split("-")[-3:]
    if len(parts) < 3:
        return False
    pythons, abis, platforms = (part.lower().split(".") for part in parts)
    return any(f"{a}-{b}-{c}" in tags for a in pythons for b in abis for c in platforms)


def tags_of(python: str) -> Optional[Set[str]]:
    """Return what wheels a Python takes; None where its pip does not say."""
    code = "from pip._vendor.packaging.tags import sys_tags; print(*sys_tags())"
    done = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    words = done.stdout.decode("ascii", "replace").lower().split()
    return set(words) if not done.returncode and words else None


def need_index(python: str) -> None:
    """Stop where this Python's pip has nowhere to get the libraries from."""
    if not index_answers(python):
        raise Stop("no package index answers here (no internet?), and the main node keeps no"
                   " wheels: " + cure())  # fmt: skip


def index_answers(python: str) -> bool:
    """Tell whether this Python's pip finds a library, before an install tries for a minute.

    True as well where it complains of something else (TLS): the install then says of what.
    """
    asked = [python, "-m", "pip", "index", "versions", "--disable-pip-version-check", "--no-input"]
    asked += ["--retries", "0", "--timeout", str(INDEX_SECONDS), LIBRARIES[1]]
    done = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return not done.returncode or b"SSL" in done.stdout


def cure() -> str:
    """Return how libraries come to a device without internet."""
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


def locked(names: Sequence[str]) -> str:
    """Return the lines of the lock for these packages."""
    blocks: List[List[str]] = []
    for line in LOCK.splitlines():
        if line[:1] != " ":
            blocks.append([])
        blocks[-1].append(line)
    wanted = [one for one in blocks if one[0].partition("==")[0].lower() in names]
    return "".join(line + "\n" for one in wanted for line in one)


def install(python: str, folder: str) -> None:
    """Put the worker and its libraries into the environment. Raises `Stop`."""
    fetched = tempfile.mkdtemp(prefix="fetched-", dir=folder)
    try:
        worker = take(WHEEL, SHA256, fetched)
        tags = tags_of(python) if KEPT else None
        found = kept_wheels(libraries(), tags)
        say(f"installing {WHEEL}")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-input"]
        from_here = [*pip, "--no-index", "--find-links", fetched]
        here = all(found.values())
        if here:
            for wheels in found.values():
                for wheel in wheels:
                    take(wheel, KEPT[wheel], fetched)
        else:
            from_index(python, pip, fetched)
        try:
            run([*from_here, worker], "pip install")
        except Stop:
            if not here:
                raise
            # Of the right kind by their names, and yet they do not do.
            from_index(python, pip, fetched)
            run([*from_here, worker], "pip install")
        for name in MORE:
            more(name, pip, from_here, kept_wheels([name], tags)[name], fetched)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)


def take(wheel: str, digest: str, folder: str) -> str:
    """Return a wheel of the main node, checked, as a file in this folder."""
    content = fetch("/wheels/" + wheel, digest)
    path = os.path.join(folder, wheel)
    with open(path, "wb") as file:
        file.write(content)
    return path


def from_index(python: str, pip: List[str], folder: str) -> None:
    """Install the libraries from the package index, by the hashes of the lock."""
    if not index_answers(python):
        if not KEPT:
            need_index(python)
        raise Stop("the wheels that the main node keeps do not fit this device (Python {}.{}),"
                   " and no package index answers here: ".format(*sys.version_info[:2])
                   + cure())  # fmt: skip
    try:
        run([*pip, "--prefer-binary", *hashed(libraries(), folder)], "pip install")
    except Stop as stop:
        if "DO NOT MATCH THE HASHES" in stop.output:
            which = [line.strip() for line in stop.output.splitlines() if " from http" in line]
            raise Stop(
                "the package index gave another file than the one that this release was made with;"
                " nothing was installed. " + " ".join(which)
            ) from None
        if "No matching distribution" in stop.output:
            raise Stop(
                f"{stop}\nThe package index does not have that version for this device: " + cure()
            ) from None
        raise


def hashed(names: Sequence[str], folder: str) -> List[str]:
    """Return pip's flags for these packages, and no file of theirs that the lock does not name."""
    path = os.path.join(folder, "requirements.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.write(locked(names))
    return ["--require-hashes", "-r", path]


def more(
    name: str, pip: List[str], from_here: List[str], wheels: Sequence[str], folder: str
) -> None:
    """Install what a worker does without, if that is easily done."""
    try:
        for wheel in wheels:
            take(wheel, KEPT[wheel], folder)
    except Stop as stop:
        say(f"{stop} ({name} is left out)")
        return
    if wheels:
        command = [*from_here, name]
    else:
        command = [*pip, "--retries", "0", "--only-binary", ":all:", *hashed([name], folder)]
    subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def join_line(words: Sequence[str]) -> Tuple[str, List[str]]:
    """Return the join line, from the words or from standard input, and the other words."""
    if words and words[0][:1] != "-":
        return words[0], list(words[1:])
    line = b""
    if sys.stdin is not None and not sys.stdin.isatty():
        # By its number: nothing of what follows is read, and nothing is decoded.
        while len(line) < MOST_LINE_BYTES and b"\n" not in line:
            part = os.read(sys.stdin.fileno(), MOST_LINE_BYTES)
            if not part:
                break
            line += part
    # PowerShell and cmd add a mark, a blank, a carriage return.
    text = line.partition(b"\n")[0].decode("utf-8-sig", "replace").strip(" \t\r\"'")
    if not text:
        raise Stop("give the join line of the main node, then flags of retire-cluster-worker")
    return text, list(words)


def start(worker: List[str], line: str) -> int:
    """Start the worker, which reads the join line from its standard input."""
    if os.name == "nt":
        child = subprocess.Popen(worker, stdin=subprocess.PIPE)
        with contextlib.suppress(KeyboardInterrupt):  # the worker has been told, too
            child.communicate(line.encode() + b"\n")
        return child.wait()
    reader, writer = os.pipe()
    os.write(writer, line.encode("utf-8", "replace")[:MOST_LINE_BYTES] + b"\n")
    os.close(writer)
    if reader:
        os.dup2(reader, 0)
        os.close(reader)
    return os.execv(worker[0], worker)


def main(words: Sequence[str]) -> int:
    """Install and start the worker; return the exit code."""
    if "-h" in words or "--help" in words:
        sys.stdout.write(HELP)
        return 0
    try:
        check_python(sys.version_info, shutil.which)
        line, flags = join_line(words)
        folder = home()
        has_all = all(kept_wheels(libraries()).values())
        asked_early = has_pip(sys.executable)
        if not has_all and asked_early:
            need_index(sys.executable)  # before anything is made
        python = make_environment(folder)
        if not has_all and not asked_early:
            need_index(python)
        install(python, folder)
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
    os.environ.pop("RETIRE_CLUSTER_HOME", None)  # of this script, no setting of the worker
    return start([*command, "worker", "--join", "-", *flags], line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
