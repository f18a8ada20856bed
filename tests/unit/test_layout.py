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

from tests import house

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


#: The rooms of each package, the lowest first: a room imports none that stands after it.
ROOMS = {
    "schemas": ("schemas.text", "schemas.protocol", "schemas.rest"),
    "broker": ("broker.core", "broker.store", "broker.admin", "broker.net"),
    "node": (
        "node.system", "node.device", "node.walls", "node.tasks", "node.process", "node.core",
        "node.running", "node.link", "node.selftest",
    ),
    "api": ("api.content", "api.main_node", "api.admission", "api.serving", "api.resources"),
    "cli": ("cli.joining", "cli.up", "cli.verbs", "cli.map", "cli.service"),
    "sdk": ("sdk.functions",),
}  # fmt: skip
#: Rooms that are pure: the same whatever the time, the network and the disk.
PURE_ROOMS = ("broker.core", "node.core")
#: What a pure room does not reach, by whatever way; nor does it import a clock itself.
IMPURE = {
    "zmq", "sqlite3", "socket", "socketserver", "selectors", "select", "ssl", "subprocess",
    "threading", "multiprocessing", "concurrent", "asyncio", "logging.handlers", "logging.config",
}  # fmt: skip
CLOCKS = {"time", "datetime"}
MOST_MODULES = 20
MOST_LINES = 500
#: What breaks a rule still, by the rule's name. It may only shrink.
STILL: dict[str, set[str]] = {
    "rooms and roots": {
        "broker broker/admin broker/net",
        "schemas schemas/protocol schemas/text",
        "sdk sdk/functions",
    },
}
GRAPH = house.modules(ROOT)
TESTED_FOLDERS = (*house.PACKAGES, "tests", "bench")


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
    files = [file for top in PACKAGES for file in (ROOT / top).rglob("*")]
    folders = {file.parent for file in files if file.suffix in (".py", ".mjs")}
    found = set()
    for folder in folders:
        top, *rest = folder.relative_to(ROOT).parts
        found.add(".".join([PACKAGES[top], *rest]))
    found.add("retire_cluster.api")
    assert found == set(SETUPTOOLS["packages"])


def test_every_package_but_the_api_says_what_it_is() -> None:
    for package in SETUPTOOLS["packages"]:
        if package in ("retire_cluster.api", "retire_cluster.sdk.js"):  # no `__init__.py`
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


# --- rooms and doors -----------------------------------------------------------------------------


def left(rule: str, found: list[str]) -> None:
    """A rule is broken by what is listed and by nothing else."""
    known = STILL.get(rule, set())
    assert set(found) - known == set(), f"{rule}: new"
    assert known - set(found) == set(), f"{rule}: gone, so strike it off the list"


def test_no_import_goes_in_a_circle() -> None:
    found = house.circles({name: module.imports for name, module in GRAPH.items()})
    left("circle", [" ".join(circle) for circle in found])


def test_the_pure_rooms_reach_no_socket_no_store_no_process_and_no_thread() -> None:
    left("impure", house.behind_doors(GRAPH, PURE_ROOMS, IMPURE))


def test_the_pure_rooms_have_no_clock() -> None:
    left(
        "clock",
        sorted(
            f"{name} > {foreign}"
            for name, module in GRAPH.items()
            if name.startswith(tuple(f"{room}." for room in PURE_ROOMS))
            for foreign in module.foreign
            if foreign.split(".")[0] in CLOCKS
        ),
    )


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_point_one_way(package: str) -> None:
    left(f"{package}'s rooms", house.upward(GRAPH, ROOMS[package]))


def test_no_room_and_no_packages_own_folder_point_at_each_other() -> None:
    found = house.circles(house.rooms(GRAPH, ROOT))
    left("rooms and roots", [" ".join(circle) for circle in found])


def test_every_room_has_its_place_in_the_order() -> None:
    folders = {
        ".".join(name.split(".")[:2])
        for name, module in GRAPH.items()
        if len(module.file.relative_to(ROOT).parts) > 2
    }
    listed = {room for rooms in ROOMS.values() for room in rooms}
    assert folders - listed == {"api.ui", "conf.machine"}  # one without code, one alone
    assert listed <= folders


def test_no_folder_has_too_many_modules() -> None:
    left("crowded", house.crowded(ROOT, TESTED_FOLDERS, MOST_MODULES))


def test_no_module_is_too_long() -> None:
    left("long", house.long(ROOT, TESTED_FOLDERS, MOST_LINES))


def test_the_drawing_of_the_house_is_what_the_code_is() -> None:
    text = (ROOT / house.DRAWING).read_text("utf-8")
    assert house.drawn(text) == house.page(GRAPH, ROOT), "run: python tests/house.py"
