"""Plugins that harm whoever imports them: only they are left out, by name and with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retire_cluster.node.device.policy import Policy
from retire_cluster.node.running import description
from retire_cluster.node.running.description import own_types
from retire_cluster.node.running.leftovers import Leftovers
from retire_cluster.node.running.task_process import Plan
from retire_cluster.node.running.workplace import Workplace
from tests.integration.node.test_cuts import NO_FORK
from tests.integration.node_kit import Bus, Start, posix_only

FINE = """
def fine(payload, context):
    return 1
"""
MODULES = {
    "plug_fine": FINE,
    "plug_leaves": "import os\nos._exit(3)\n" + FINE,
    "plug_crashes": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n" + FINE,
    "plug_mute": "import sys\nsys.stdout.close()\nsys.stdout = sys.stderr = None\n" + FINE,
    "plug_none": "import sys\nsys.stdout = sys.stderr = None\n" + FINE,
    "plug_closed": "import os\nos.close(1)\n" + FINE,
    "plug_all_closed": "import os\nfor fd in range(3):\n    os.close(fd)\n" + FINE,
    "plug_slow": "import sys, time\ntime.sleep(0.1)\nsys.stdout.close()\n" + FINE,
    "plug_taken": "import os\nos.dup2(os.open(os.devnull, os.O_RDWR), 1)\n" + FINE,
    "plug_raises": "class Odd(BaseException):\n    def __str__(self): raise self\nraise Odd()\n",
    "plug_deep": FINE + "value = 1\nfor _ in range(200):\n    value = {'x': value}\n"
    "fine.payload_schema = value\n",
    "plug_cyclic": FINE
    + "fine.payload_schema = {}\nfine.payload_schema['x'] = fine.payload_schema\n",
    "plug_huge": FINE + "fine.payload_schema = {'x': {'default': 'y' * 200_000}}\n",
    "plug_text": FINE + "fine.payload_schema = 'integer'\n",
    "plug_object": FINE + "fine.payload_schema = {'x': {'type': object()}}\n",
    "plug_nan": FINE + "fine.payload_schema = {'x': {'min': {1, 2}}}\n",
    "plug_lone": FINE + "fine.description = 'caf\\udce9'\nfine.payload_schema = {'\\udce9': {}}\n",
    "plug_word": FINE + "fine.description = 'caf\\udce9'\n",
}
OFFERED = {"fine", "mute", "none", "closed", "all_closed", "slow", "taken", "word"}


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., dict[str, str]]:
    folder = tmp_path / "site"

    def install(distribution: str, modules: dict[str, str], rows: str = "") -> dict[str, str]:
        info = folder / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        rows = rows or "".join(f"{name.partition('_')[2]} = {name}:fine\n" for name in modules)
        (info / "entry_points.txt").write_text(f"[retire_cluster.task_types]\n{rows}")
        return {"PYTHONPATH": str(folder)}

    return install


@posix_only
@pytest.mark.parametrize("fork", [True, False], ids=["forked", "inline"])
def test_each_plugin_that_cannot_be_described_is_left_out_alone_and_by_name(
    bus: Bus, start: Start, site: Callable[..., dict[str, str]], fork: bool
) -> None:
    environ = site("plugs", MODULES)
    if not fork:  # as on Windows and macOS
        (Path(environ["PYTHONPATH"]) / "sitecustomize.py").write_text(NO_FORK)
    worker = start("--allow-root", environ=environ)
    hello = bus.welcome()
    own = {info.name: info for info in hello.task_types}
    names = {name.partition("_")[2] for name in MODULES}
    assert own.keys() & names == OFFERED
    assert own["word"].description == "caf\ufffd"
    told = " ".join(hello.left_out)
    for name in names - OFFERED:
        assert f"task type {name} (plug_{name}:fine): " in told, name
    # What is offered works, whatever its import did to its output; more than once.
    for name in sorted(OFFERED) * 2:
        ended = bus.run(name, {})
        assert (ended.item.outcome, ended.data) == ("success", 1), (name, ended.item)
    worker.kill()
    said = worker.communicate()[1]
    for name in names - OFFERED:
        assert f"left out: task type {name} (plug_{name}:fine): " in said, name
    assert "plug_leaves:fine): its import ended the process with exit code 3" in said
    assert "payload_schema has more than 65536 bytes" in said
    assert "nested deeper than 24 levels" in said


def plan(tmp_path: Path, environ: dict[str, str]) -> Plan:
    leftovers = Leftovers(tmp_path / "leftovers.json")
    return Plan(Workplace(tmp_path / "work"), environ, leftovers)


def test_an_endless_import_costs_its_own_time_and_type(
    tmp_path: Path, site: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = "import time\nwhile True:\n    time.sleep(1)\n"
    environ = site("plugs", {"plug_fine": FINE, "plug_endless": endless})
    monkeypatch.syspath_prepend(environ["PYTHONPATH"])
    found = own_types(Policy(), plan(tmp_path, environ), limit_seconds=3.0)
    assert "fine" in {kind.info.name for kind in found.types}
    (reason,) = [text for text in found.left_out if "endless" in text]
    assert "its import did not end within 3 s" in reason
    assert description.DESCRIBE_SECONDS >= 10


def test_of_two_types_of_one_name_the_first_distribution_counts_and_it_is_told(
    tmp_path: Path, site: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    site("zebra", {"plug_zebra": FINE}, "twice = plug_zebra:fine\n")
    environ = site("ant", {"plug_ant": FINE}, "twice = plug_ant:fine\n")
    monkeypatch.syspath_prepend(environ["PYTHONPATH"])
    found = own_types(Policy(), plan(tmp_path, environ))
    assert [kind.entry_point for kind in found.types if kind.info.name == "twice"] == [
        "plug_ant:fine"
    ]
    (reason,) = [text for text in found.left_out if "twice" in text]
    assert "zebra (plug_zebra:fine)" in reason
    assert "ant (plug_ant:fine) has that name too and comes first" in reason
