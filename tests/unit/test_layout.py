"""The repository's layout is a contract: these tests fail when it drifts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
#: Folder → package: `http` → `retire_cluster.api`.
PACKAGES = {folder: name for name, folder in SETUPTOOLS["package-dir"].items()}

#: What each package may import of the others; `api` is narrower still, see below.
MAY_IMPORT = {
    "schemas": set[str](),
    "conf": {"schemas"},
    "broker": {"schemas", "conf"},
    "node": {"schemas", "conf"},
    "api": {"schemas", "conf", "broker"},
    "sdk": {"schemas"},
}
#: Python 3.10 has no tomllib; what imports it there falls back to tomli.
STANDARD_LIBRARY = sys.stdlib_module_names | {"tomllib"}
#: A device installs the base dependencies only.
DEVICE_MAY_IMPORT = {"zmq", "simpleeval", "urllib3", "tomli"}
#: And these where they exist, inside a `try`.
DEVICE_MAY_TRY = {"psutil", "orjson"}


def sources(package: str) -> Iterator[Path]:
    yield from (ROOT / SETUPTOOLS["package-dir"][f"retire_cluster.{package}"]).rglob("*.py")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports, names of `from` imports included."""
    for item in ast.walk(tree):
        if isinstance(item, ast.Import):
            yield from ((item.lineno, alias.name) for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            module = "." * item.level + (item.module or "")
            yield from ((item.lineno, f"{module}.{alias.name}") for alias in item.names)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"), str(file))


def name_of(requirement: str) -> str:
    name = re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> set[str]:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return {name_of(line) for line in lines if line and not line.startswith("#")}


def test_every_folder_with_code_is_packaged_and_no_other() -> None:
    folders = {file.parent for top in PACKAGES for file in (ROOT / top).rglob("*.py")}
    found = set()
    for folder in folders:
        top, *rest = folder.relative_to(ROOT).parts
        found.add(".".join([PACKAGES[top], *rest]))
    found.add("retire_cluster.api")
    assert found == set(SETUPTOOLS["packages"])


def test_every_package_but_the_api_says_what_it_is() -> None:
    for package in SETUPTOOLS["packages"]:
        if package == "retire_cluster.api":
            continue
        _, top, *rest = package.split(".")
        folder = ROOT / SETUPTOOLS["package-dir"][f"retire_cluster.{top}"]
        assert ast.get_docstring(parse(folder.joinpath(*rest, "__init__.py"))), package


def test_the_http_folder_never_shadows_the_standard_library() -> None:
    assert not (ROOT / "http" / "__init__.py").exists()
    assert not (ROOT / "tests" / "http").exists()
    for name in ("client", "server", "cookies", "cookiejar"):
        assert not (ROOT / "http" / f"{name}.py").exists()
    code = "import http.client; print(http.client.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert ROOT / "http" not in Path(found.strip()).parents


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_follow_the_dependency_direction(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    for file in sources(package):
        for line, name in imports(parse(file)):
            parts = name.split(".")
            assert not name.startswith("."), f"{file}:{line} relative import"
            assert parts[0] not in PACKAGES or parts[0] == "http", f"{file}:{line} {name}"
            if parts[0] == "retire_cluster":
                assert parts[1] in allowed, f"{file}:{line} {name}"


def test_the_api_knows_only_the_client_of_the_broker() -> None:
    for file in sources("api"):
        for line, name in imports(parse(file)):
            if name.startswith("retire_cluster.broker"):
                assert name.startswith("retire_cluster.broker.client"), f"{file}:{line} {name}"


def test_a_device_needs_nothing_beyond_the_base_install() -> None:
    declared = {name_of(line) for line in PYPROJECT["project"]["dependencies"]}
    assert declared == {"pyzmq", "simpleeval", "urllib3", "tomli"}
    for file in device_sources():
        tree = parse(file)
        guarded = {
            line
            for item in ast.walk(tree)
            if isinstance(item, ast.Try)
            for child in item.body
            for line, _ in imports(child)
        }
        for line, name in imports(tree):
            top = name.split(".")[0]
            if top in STANDARD_LIBRARY or top in DEVICE_MAY_IMPORT | {"retire_cluster"}:
                continue
            assert top in DEVICE_MAY_TRY, f"{file}:{line} imports {top}"
            assert line in guarded, f"{file}:{line} imports {top} outside a try"


def device_sources() -> set[Path]:
    """Everything of node/, and what that imports of schemas/ and conf/, however far."""
    found: set[Path] = set()
    ahead = list(sources("node"))
    while ahead:
        file = ahead.pop()
        if file in found:
            continue
        found.add(file)
        for _, name in imports(parse(file)):
            parts = name.split(".")
            folder = SETUPTOOLS["package-dir"].get(".".join(parts[:2]))
            if folder:
                places = (ROOT.joinpath(folder, *parts[2:end]) for end in range(3, len(parts) + 1))
                ahead += [p for place in places if (p := place.with_suffix(".py")).exists()]
    return found


def test_requirements_pin_every_declared_dependency_exactly_once_a_python() -> None:
    project = PYPROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    assert {name_of(requirement) for group in groups for requirement in group} <= pinned()
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    assert len(kept) == len(set(kept))
    for line in kept:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[^ ]+( ; .+)?", line), line


def test_static_tools_see_every_top_package() -> None:
    code = "import bootstrap, json; print(json.dumps(bootstrap.TYPING_LINKS))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    links = ast.literal_eval(found)
    assert {f"retire_cluster.{k}": v for k, v in links.items()} == SETUPTOOLS["package-dir"]


def test_modules_from_the_root_are_banned_for_ruff() -> None:
    banned = set(PYPROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"])
    assert banned == set(PACKAGES) - {"http"}
