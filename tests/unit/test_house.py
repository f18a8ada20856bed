"""Each rule of the layout is broken once, in a small house, and that is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import house

Build = Callable[[dict[str, str]], house.Graph]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Makes a house of files: name → text."""

    def made(files: dict[str, str]) -> house.Graph:
        for name, text in files.items():
            file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        return house.modules(tmp_path)

    return made


def circles_of(graph: house.Graph) -> list[list[str]]:
    return house.circles({name: module.imports for name, module in graph.items()})


@pytest.mark.parametrize(
    "back",
    [
        "from retire_cluster.broker import one",
        "from retire_cluster.broker.one import thing",
        "import retire_cluster.broker.one",
        "def later():\n    from retire_cluster.broker import one",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
        "    from retire_cluster.broker import one",
        "import importlib\nimportlib.import_module('retire_cluster.broker.one')",
    ],
)
def test_a_circle_is_seen_wherever_the_import_hides(build: Build, back: str) -> None:
    over = "from retire_cluster.broker import three"
    graph = build(
        {
            "broker.one": "from retire_cluster.broker import two",
            "broker.two": over,
            "broker.three": back,
        }
    )
    assert circles_of(graph) == [["broker.one", "broker.three", "broker.two"]]
    assert circles_of(build({"broker.three": ""})) == []


def test_a_forbidden_import_is_seen_through_others_and_its_way_is_told(build: Build) -> None:
    graph = build(
        {
            "broker.core.state": "from retire_cluster.conf import keys",
            "conf.keys": "def late():\n    from retire_cluster.conf import curve",
            "conf.curve": "import zmq.auth",
            "node.core.session": "from logging import handlers",
            "node.shell": "import zmq",
        }
    )
    found = house.behind_doors(graph, ["broker.core", "node.core"], {"zmq", "logging.handlers"})
    assert found == [
        "broker.core.state > conf.keys > conf.curve > zmq.auth",
        "node.core.session > logging.handlers",
    ]
    assert house.behind_doors(graph, ["broker.core"], {"zm", "sqlite3"}) == []


def test_what_the_package_around_a_module_imports_is_reached_too(build: Build) -> None:
    graph = build({"broker.__init__": "import socket", "broker.core.state": ""})
    assert house.behind_doors(graph, ["broker.core"], {"socket"}) == [
        "broker.core.state > broker > socket"
    ]


def test_an_import_into_a_higher_room_is_seen(build: Build) -> None:
    up = "from retire_cluster.broker.admin import views"
    graph = build({"broker.core.state": up, "broker.admin.views": "", "broker.store.base": ""})
    order = ("broker.core", "broker.store", "broker.admin")
    assert house.upward(graph, order) == ["broker.core.state > broker.admin.views"]
    assert house.upward(graph, order[::-1]) == []


def test_a_crowded_folder_and_a_long_file_are_seen(build: Build, tmp_path: Path) -> None:
    build(
        {
            "broker.__init__": "",
            "broker.a": "x = 1\n" * 3,
            "broker.b": "x = 1\n" * 2,
            "broker.in.c": "",
        }
    )
    assert house.crowded(tmp_path, ["broker"], 1) == ["broker"]
    assert house.crowded(tmp_path, ["broker"], 2) == []
    assert house.long(tmp_path, ["broker"], 2) == ["broker/a.py"]
    assert house.long(tmp_path, ["broker"], 3) == []


def test_the_drawing_shows_rooms_arrows_and_circles(build: Build, tmp_path: Path) -> None:
    graph = build(
        {
            "broker.core.state": "from retire_cluster.schemas import ids",
            "broker.admin.views": "from retire_cluster.broker.core import state",
            "broker.admin.calls": "from retire_cluster.broker.admin import table",
            "broker.admin.table": "from retire_cluster.broker.admin import calls",
            "schemas.ids": "",
        }
    )
    lines = [line.strip() for line in house.drawing(graph, tmp_path).splitlines()]
    assert 'broker_admin["broker/admin"]' in lines
    assert "broker_admin --> broker_core" in lines
    assert "broker_ ==> schemas_" in lines
    assert 'circle0["import circle:<br/>admin.calls<br/>admin.table"]:::circle' in lines


def test_the_drawing_leaves_out_arrows_that_follow_from_others(
    build: Build, tmp_path: Path
) -> None:
    graph = build(
        {
            "broker.core.state": "",
            "broker.store.base": "from retire_cluster.broker.core import state",
            "broker.admin.views": "from retire_cluster.broker.store import base\n"
            "from retire_cluster.broker.core import state",
        }
    )
    lines = [line.strip() for line in house.drawing(graph, tmp_path).splitlines()]
    assert [line for line in lines if "-->" in line] == [
        "broker_admin --> broker_store",
        "broker_store --> broker_core",
    ]


def test_an_arrow_into_a_circle_of_rooms_stays_and_so_do_those_within() -> None:
    edges = {
        "top": {"a", "b", "low"},
        "a": {"b"},
        "b": {"a", "low"},
        "low": set[str](),
        "higher": {"top", "low"},
    }
    assert house.thinned(edges) == [
        ("a", "b"), ("b", "a"), ("b", "low"), ("higher", "top"), ("top", "a"), ("top", "b"),
    ]  # fmt: skip


@given(st.dictionaries(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef"))))
def test_what_reaches_what_is_the_same_by_the_arrows_that_are_drawn(
    edges: dict[str, set[str]],
) -> None:
    drawn: dict[str, set[str]] = {}
    for one, other in house.thinned(edges):
        assert other in edges[one]
        drawn.setdefault(one, set()).add(other)
    for name in edges:
        assert ahead_of(drawn, name) | {name} == ahead_of(edges, name) | {name}


def ahead_of(edges: dict[str, set[str]], name: str) -> set[str]:
    found: set[str] = set()
    ahead = [name]
    while ahead:
        new = edges.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found


def test_the_page_names_the_rooms_that_point_at_each_other(build: Build, tmp_path: Path) -> None:
    files = {
        "broker.server": "from retire_cluster.broker.admin import views",
        "broker.facts": "",
        "broker.admin.views": "from retire_cluster.broker import facts",
    }
    page = house.page(build(files), tmp_path)
    assert page.endswith("Rooms that point at each other:\n\n- `broker`, `broker/admin`")
    del files["broker.facts"]
    assert house.page(build({**files, "broker.admin.views": ""}), tmp_path).endswith("None.")
