"""Who imports whom: circles, doors between rooms, and the drawing in docs/architecture.md.

    python tests/house.py           draws it anew
    python tests/house.py COMMIT    prints the drawing of a commit

A room is a folder with code. Every import counts, those inside functions and for types too.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
#: Folder → its name below `retire_cluster`, the lowest first.
PACKAGES = {
    "schemas": "schemas",
    "conf": "conf",
    "broker": "broker",
    "node": "node",
    "http": "api",
    "sdk": "sdk",
    "cli": "cli",
}
DRAWING = "docs/architecture.md"
BEGIN, END = "<!-- drawn by tests/house.py -->", "<!-- end of the drawing -->"


class Module(NamedTuple):
    """One file of code."""

    file: Path
    #: Our modules that it names, without `retire_cluster.`.
    imports: frozenset[str]
    #: Dotted names from elsewhere, names of `from` imports included.
    foreign: frozenset[str]


Graph = Mapping[str, Module]


def modules(root: Path) -> dict[str, Module]:
    """Return the modules of a checkout by their names without `retire_cluster.`."""
    files = {}
    for folder, package in PACKAGES.items():
        for file in sorted((root / folder).rglob("*.py")):
            parts = [package, *file.relative_to(root / folder).with_suffix("").parts]
            files[".".join(parts).removesuffix(".__init__")] = file
    return {name: _read(name, file, files) for name, file in files.items()}


def _read(name: str, file: Path, files: Mapping[str, Path]) -> Module:
    ours, foreign = set(), set()
    for dotted in named(ast.parse(file.read_text("utf-8"), str(file))):
        if not dotted.startswith("retire_cluster."):
            foreign.add(dotted)
            continue
        target = dotted.removeprefix("retire_cluster.")
        while target and target not in files:
            target = target.rpartition(".")[0]
        if target not in ("", name):
            ours.add(target)
    return Module(file, frozenset(ours), frozenset(foreign))


def named(tree: ast.AST) -> Iterator[str]:
    """Yield dotted names of all that is imported anywhere in a module, by `import_module` too."""
    for item in ast.walk(tree):
        if isinstance(item, ast.Import):
            yield from (alias.name for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            yield from (f"{item.module}.{alias.name}" for alias in item.names)
        elif isinstance(item, ast.Call) and item.args:
            function = item.func.attr if isinstance(item.func, ast.Attribute) else ""
            function = item.func.id if isinstance(item.func, ast.Name) else function
            what = item.args[0]
            if function in ("import_module", "__import__") and isinstance(what, ast.Constant):
                yield str(what.value)


def circles(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return groups of names that reach each other (Tarjan: strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return sorted(found)


def reached(graph: Graph, start: str) -> dict[str, str]:
    """Return by which way a module imports each name from elsewhere, itself or through ours."""
    ways = {start: start}
    found: dict[str, str] = {}
    ahead = [start]
    while ahead:
        name = ahead.pop(0)
        for foreign in graph[name].foreign:
            found.setdefault(foreign, f"{ways[name]} > {foreign}")
        # The packages around a module are run before it.
        around = {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}
        for other in sorted(graph[name].imports | (around & graph.keys())):
            if other not in ways:
                ways[other] = f"{ways[name]} > {other}"
                ahead.append(other)
    return found


def behind_doors(graph: Graph, rooms: Sequence[str], forbidden: Iterable[str]) -> list[str]:
    """Return how modules of these rooms reach what they must not."""
    return sorted(
        way
        for name in graph
        if name.startswith(tuple(f"{room}." for room in rooms))
        for foreign, way in reached(graph, name).items()
        if any(f"{foreign}.".startswith(f"{word}.") for word in forbidden)
    )


def upward(graph: Graph, order: Sequence[str]) -> list[str]:
    """Return imports from a room into one that stands after it; `order` begins with the lowest."""

    def level(name: str) -> int:
        return next((n for n, room in enumerate(order) if f"{name}.".startswith(f"{room}.")), -1)

    return sorted(
        f"{name} > {other}"
        for name, module in graph.items()
        for other in module.imports
        if -1 < level(name) < level(other)
    )


def crowded(root: Path, folders: Iterable[str], most: int) -> list[str]:
    """Return folders with more modules than may be; an `__init__.py` is not counted."""
    counts: dict[str, int] = {}
    for folder in folders:
        for file in (root / folder).rglob("*.py"):
            if file.name != "__init__.py":
                room = file.parent.relative_to(root).as_posix()
                counts[room] = counts.get(room, 0) + 1
    return sorted(room for room, count in counts.items() if count > most)


def long(root: Path, folders: Iterable[str], most: int) -> list[str]:
    """Return files of code with more lines than may be."""
    return sorted(
        file.relative_to(root).as_posix()
        for folder in folders
        for file in (root / folder).rglob("*.py")
        if len(file.read_text("utf-8").splitlines()) > most
    )


# --- the drawing ---------------------------------------------------------------------------------


def drawing(graph: Graph, root: Path) -> str:
    """Return the rooms as a Mermaid flow chart: an arrow goes from a room to one that it imports.

    Rooms within rooms count as theirs; arrows that follow from others are left out; import circles
    are named in red.
    """
    room_of = {name: _room(module.file, root) for name, module in graph.items()}
    inside = rooms(graph, root)
    between: dict[str, set[str]] = {package: set() for package in PACKAGES.values()}
    for name, module in graph.items():
        package = _package(room_of[name])
        between[package] |= {_package(room_of[other]) for other in module.imports} - {package}
    around = circles({name: module.imports for name, module in graph.items()})
    lines = ["flowchart TD"]
    for package in reversed(PACKAGES.values()):
        lines.append(f'  subgraph {package}_["{package}"]')
        own = sorted(room for room in inside if _package(room) == package)
        lines += [f'    {_id(room)}["{room}"]' for room in own]
        lines.append("  end")
    lines += [f"  {_id(a)} --> {_id(b)}" for a, b in thinned(inside)]
    lines += [f"  {a}_ ==> {b}_" for a, b in thinned(between)]
    for number, circle in enumerate(around):
        room = room_of[circle[0]]
        names = "<br/>".join(name.removeprefix(_package(room) + ".") for name in circle)
        lines.append(f'  circle{number}["import circle:<br/>{names}"]:::circle')
        lines.append(f"  {_id(room)} -.- circle{number}")
    if around:
        lines.append("  classDef circle stroke:#c00,color:#c00")
    return "\n".join(lines)


def page(graph: Graph, root: Path) -> str:
    """Return what stands between the marks: the drawing, and which rooms point at each other."""
    both = circles(rooms(graph, root))
    named = "\n".join("- " + ", ".join(f"`{room}`" for room in circle) for circle in both)
    chart = f"```mermaid\n{drawing(graph, root)}\n```"
    return f"{chart}\n\nRooms that point at each other:\n\n{named or 'None.'}"


def thinned(edges: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Return the arrows without those that follow from others: what reaches what stays the same.

    Names that reach each other are taken as one, and no arrow among them is left out.
    """
    group = {name: name for name in {*edges}.union(*edges.values())}
    group |= {name: circle[0] for circle in circles(edges) for name in circle}
    ahead: dict[str, set[str]] = {name: set() for name in group.values()}
    for name, others in edges.items():
        ahead[group[name]] |= {group[other] for other in others} - {group[name]}

    @functools.cache
    def behind(name: str) -> frozenset[str]:
        return frozenset(ahead[name]).union(*(behind(other) for other in ahead[name]))

    return sorted(
        (name, other)
        for name, others in edges.items()
        for other in others
        if not any(group[other] in behind(third) for third in ahead[group[name]])
    )


def rooms(graph: Graph, root: Path) -> dict[str, set[str]]:
    """Return which rooms of its package each room imports; the package's own folder is one."""
    edges: dict[str, set[str]] = {}
    for module in graph.values():
        room = _room(module.file, root)
        others = {_room(graph[other].file, root) for other in module.imports} - {room}
        edges.setdefault(room, set()).update(o for o in others if _package(o) == _package(room))
    return edges


def _package(room: str) -> str:
    return room.split("/")[0]


def _room(file: Path, root: Path) -> str:
    top, *rest = file.parent.relative_to(root).parts
    return "/".join([PACKAGES[top], *rest[:1]])


def _id(name: str) -> str:
    return re.sub(r"\W", "_", name)


def drawn(text: str) -> str:
    """Return what stands between a document's marks. Raises `ValueError` without them."""
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()


def main(args: Sequence[str]) -> int:
    """Draw the house into the document, or print that of a commit; return the exit code."""
    if args:
        with tempfile.TemporaryDirectory() as folder:
            packed = subprocess.run(
                ["git", "archive", args[0], *PACKAGES], cwd=ROOT, check=True, capture_output=True
            )
            subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
            print(drawing(modules(Path(folder)), Path(folder)))
        return 0
    file = ROOT / DRAWING
    text = file.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    fresh = page(modules(ROOT), ROOT)
    file.write_text(f"{before}{BEGIN}\n{fresh}\n{END}{rest.partition(END)[2]}", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
