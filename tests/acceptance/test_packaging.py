"""What is built installs and imports away from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

import pytest

COMMANDS = {
    "retire-cluster",
    "retire-cluster-main",
    "retire-cluster-worker",
    "retire-cluster-api",
    "retire-cluster-status",
}
#: Folders and files that a build reads; everything else of a checkout must not matter.
BUILT_FROM = ("broker", "node", "http", "cli", "sdk", "schemas", "conf")
BUILD_FILES = ("pyproject.toml", "README.md", "LICENSE")


def run(command: Sequence[str], cwd: Path) -> str:
    environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python_of(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.fixture(scope="module")
def checkout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that building leaves nothing behind in the real one."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in BUILT_FROM:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(root / folder, copy / folder, ignore=ignored)
    for name in BUILD_FILES:
        if (root / name).exists():
            shutil.copy(root / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), "."], checkout)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, and borrows the dependencies of this one."""
    python = install(wheel, tmp_path_factory.mktemp("installed") / "venv")
    # Named in a .pth file, a folder's own .pth files stay unread: no editable hook comes along.
    lent = distribution("pyzmq").locate_file("")
    (site_of(python) / "lent.pth").write_text(f"{lent}\n", "utf-8")
    return python


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel and its base dependencies only."""
    python = install(wheel, tmp_path_factory.mktemp("device") / "venv")
    for name in ("pyzmq", "simpleeval", "urllib3", *(("tomli",) * (sys.version_info < (3, 11)))):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            source, target = Path(str(found.locate_file(top))), site_of(python) / top
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    return python


def site_of(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(run([str(python), "-c", code], python.parent).strip())


def install(wheel: Path, venv: Path) -> Path:
    run([sys.executable, "-m", "venv", "--without-pip", str(venv)], venv.parent)
    python = python_of(venv)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    run([*pip, "--no-deps", "--disable-pip-version-check", "--no-index", str(wheel)], venv)
    return python


def test_the_wheel_holds_every_module_and_no_test(wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in BUILT_FROM:
        package = "api" if folder == "http" else folder
        for file in (checkout / folder).rglob("*.py"):
            inside = file.relative_to(checkout / folder).as_posix()
            assert f"retire_cluster/{package}/{inside}" in names
    assert "retire_cluster/__init__.py" not in names
    assert "retire_cluster/api/__init__.py" not in names
    tops = {name.split("/")[0] for name in names}
    assert len(tops) == 2
    assert "retire_cluster" in tops


def test_the_wheel_holds_all_data_files(wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in BUILT_FROM:
        package = "api" if folder == "http" else folder
        for file in (checkout / folder).rglob("*"):
            if file.is_file() and file.suffix not in (".py", ".pyc"):
                inside = file.relative_to(checkout / folder).as_posix()
                assert f"retire_cluster/{package}/{inside}" in names


def test_the_source_distribution_builds_the_same_wheel(
    checkout: Path, wheel: Path, tmp_path: Path
) -> None:
    code = "import sys; from setuptools import build_meta as b; b.build_sdist(sys.argv[1])"
    run([sys.executable, "-c", code, str(tmp_path)], checkout)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        if sys.version_info >= (3, 12):
            archive.extractall(tmp_path, filter="data")
        else:
            archive.extractall(tmp_path)
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), "."], unpacked)
    (second,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(second) as other:
        assert set(one.namelist()) == set(other.namelist())


def test_every_module_imports_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    code = (
        "import importlib, json, pathlib, retire_cluster\n"
        "home = pathlib.Path(list(retire_cluster.__path__)[0])\n"
        "names = sorted('.'.join(f.relative_to(home.parent).with_suffix('').parts)\n"
        "               for f in home.rglob('*.py'))\n"
        "# One that starts when imported is for gunicorn.\n"
        "names = [n.removesuffix('.__init__') for n in names\n"
        "         if not n.endswith(('.wsgi', '.__main__'))]\n"
        "for name in names: importlib.import_module(name)\n"
        "import http.client, retire_cluster.conf.settings as s\n"
        "print(json.dumps([len(names), s.__file__, http.client.__file__]))\n"
    )
    count, settings, client = json.loads(run([str(installed), "-c", code], tmp_path))
    assert count > 10
    assert Path(settings).is_relative_to(installed.parent.parent)
    assert "retire_cluster" not in client


def test_the_example_file_travels_with_the_package(installed: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.resources import files\n"
        "print((files('retire_cluster.conf') / 'retire-cluster.example.toml').is_file())"
    )
    assert run([str(installed), "-c", code], tmp_path).strip() == "True"


def test_every_command_is_there_and_answers_help(installed: Path, tmp_path: Path) -> None:
    suffix = ".exe" if os.name == "nt" else ""
    for command in COMMANDS:
        path = installed.with_name(command + suffix)
        assert path.exists()
        assert run([str(path), "--help"], tmp_path).strip()


def test_a_command_whose_extra_is_missing_names_it_in_one_line(
    device: Path, tmp_path: Path
) -> None:
    suffix = ".exe" if os.name == "nt" else ""
    for command in ("retire-cluster-api", "retire-cluster-main"):
        path = str(device.with_name(command + suffix))
        done = subprocess.run([path], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "retire-cluster[api]" in done.stderr


def test_a_device_needs_only_the_base_install(device: Path, tmp_path: Path) -> None:
    name = "retire-cluster-worker" + (".exe" if os.name == "nt" else "")
    assert "--join" in run([str(device.with_name(name)), "--help"], tmp_path)


def test_the_version_is_that_of_the_metadata(installed: Path, tmp_path: Path) -> None:
    code = "from importlib.metadata import version; print(version('retire-cluster'))"
    assert run([str(installed), "-c", code], tmp_path).strip() == "0.1.0"
