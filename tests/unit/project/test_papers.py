"""What the papers name is there: files, code, tests, sections, and where their links lead."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("broker", "node", "http", "cli", "sdk", "schemas", "conf", "tests", "bench", "docs")
CODE = ("broker", "node", "http", "cli", "sdk", "schemas", "conf", "bench")
PAPERS = {
    str(path.relative_to(ROOT)): path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.md"))
}
_CODE_SPAN = re.compile(r"`([^`\n]+)`")
#: `broker/core/state.py`, `tests/chaos/`, `broker/core/*.py`, `broker/server.py::Broker.turn`.
_PATH = re.compile(r"[\w.*-]+(?:/[\w.*-]+)*/?(?:::[\w.]+)?")
_FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
#: Names that look like modules and are groups of entry points.
ENTRY_POINTS = {"retire_cluster.task_types"}
#: Stands for a name of the reader's own.
PLACEHOLDER = "NAME"


def prose(paper: str) -> str:
    return _FENCE.sub("", PAPERS[paper].read_text("utf-8"))


def spans(paper: str) -> list[str]:
    return _CODE_SPAN.findall(prose(paper))


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@functools.cache
def headings(path: Path) -> list[str]:
    text = _FENCE.sub("", path.read_text("utf-8"))
    return [line.lstrip("# ") for line in text.splitlines() if re.match(r"#{1,6} ", line)]


def named_paths(paper: str) -> Iterator[tuple[str, str]]:
    """`(path, name inside it)` of every code span that is one of this repository's."""
    for span in spans(paper):
        if not _PATH.fullmatch(span) or PLACEHOLDER in span:
            continue
        path, _, name = span.partition("::")
        top = path.split("/", 1)[0]
        if name or ("/" in path and (top in FOLDERS or top.startswith("."))):
            yield path, name


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    """What a module defines: `name`, and `Class.name` of methods and attributes."""
    found: set[str] = set()

    def take(body: list[ast.stmt], prefix: str) -> None:
        for item in body:
            if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(prefix + item.name)
            if isinstance(item, ast.ClassDef):
                take(item.body, f"{prefix}{item.name}.")
            if isinstance(item, ast.Assign):
                targets = [t for each in item.targets for t in ast.walk(each)]
                found.update(prefix + t.id for t in targets if isinstance(t, ast.Name))
            elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                found.add(prefix + item.target.id)

    take(ast.parse(path.read_text("utf-8")).body, "")
    return frozenset(found)


@functools.cache
def all_tests() -> frozenset[str]:
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found.update(re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE))
        found.add(path.stem)
    return frozenset(found)


@pytest.mark.parametrize("paper", sorted(PAPERS))
def test_every_link_leads_somewhere(paper: str) -> None:
    lost = []
    for match in _LINK.finditer(prose(paper)):
        link = match[1] or match[2]
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (PAPERS[paper].parent / file).resolve() if file else PAPERS[paper]
        if not target.exists() or (anchor and anchor not in map(slug, headings(target))):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("paper", sorted(PAPERS))
def test_every_file_and_every_name_in_it_is_there(paper: str) -> None:
    missing = []
    for path, name in named_paths(paper):
        found = list(ROOT.glob(path)) if "*" in path else [ROOT / path]
        if not found or not all(each.exists() for each in found):
            missing.append(path)
        elif name and name not in names_in(found[0]):
            missing.append(f"{path}::{name}")
    assert missing == []


@pytest.mark.parametrize("paper", sorted(PAPERS))
def test_every_module_is_there(paper: str) -> None:
    missing = []
    for span in spans(paper):
        if not re.fullmatch(r"retire_cluster(\.\w+)+", span) or span in ENTRY_POINTS:
            continue
        top, *rest = span.split(".")[1:]
        place = ROOT.joinpath({"api": "http"}.get(top, top), *rest)
        inside = place.parent.with_suffix(".py")
        if place.is_dir() or place.with_suffix(".py").exists():
            continue
        if not (rest and inside.exists() and rest[-1] in names_in(inside)):
            missing.append(span)
    assert missing == []


@pytest.mark.parametrize("paper", sorted(PAPERS))
def test_every_test_is_there(paper: str) -> None:
    named = {span for span in spans(paper) if re.fullmatch(r"test_\w+", span)}
    own = {"test_payload"}  # an attribute of own task types
    assert sorted(named - own - all_tests()) == []


def test_the_house_and_its_rules_are_told_with_their_tests() -> None:
    for paper, tests, files in (
        ("docs/architecture.md", 15, 60),
        ("docs/contract.md", 20, 8),
        ("CONTRIBUTING.md", 10, 20),
    ):
        assert sum(span.startswith("test_") for span in spans(paper)) >= tests, paper
        assert sum(1 for _ in named_paths(paper)) >= files, paper


def test_what_the_code_cites_of_the_contract_is_a_section_of_it() -> None:
    sections = headings(ROOT / "docs" / "contract.md")
    cited = 0
    for folder in CODE:
        for file in (ROOT / folder).rglob("*.py"):
            text = re.sub(r"\s*\n[\s#:]*", " ", file.read_text("utf-8"))
            for match in re.finditer(r"contract\.md", text):
                before, after = text[: match.start()], text[match.end() :]
                assert before.endswith("docs/"), f"{file}: say docs/contract.md, and the section"
                assert any(after.startswith(f", {each}") for each in sections), (
                    f"{file}: {after[:40]!r} begins with no section of docs/contract.md"
                )
                cited += 1
    assert cited >= 9


def test_every_page_of_the_docs_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    pages = {path for path in PAPERS if re.fullmatch(r"docs/[\w-]+\.md|[A-Z]+\.md", path)}
    assert sorted(page for page in pages - {"README.md"} if f"({page})" not in text) == []


def test_every_decision_is_listed_and_built_alike() -> None:
    listed = (ROOT / "docs" / "decisions" / "README.md").read_text("utf-8")
    for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        assert f"({path.name})" in listed, f"{path.name} is not listed"
        parts = headings(path)[1:]
        assert parts == ["Context", "Decision", "Figures", "Consequences", "What would change it"]
