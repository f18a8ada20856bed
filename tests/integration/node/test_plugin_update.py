"""A package with own types is replaced while the worker runs, as `pip install -U` does."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from retire_cluster.node.device import editable_installs
from retire_cluster.node.running.package_watcher import Installed
from retire_cluster.node.walls import landlock
from retire_cluster.schemas.protocol import messages
from retire_cluster.schemas.protocol.messages import TypeInfo
from tests.integration.node.test_cuts import NO_FORK
from tests.integration.node_kit import Bus, Start, linux_only, opened, posix_only

CODE = """
import time
{slow}
def which(payload, context):
    if payload.get("file"):
        open(payload["file"] + ".begun", "w").close()
        while not __import__("os").path.exists(payload["file"]):
            time.sleep(0.02)
    return {version!r}
"""
#: An import this slow is done once, in a template that lives on.
SLOW = "time.sleep(0.05)\n"


def install(site: Path, version: str, name: str = "which", distribution: str = "updates") -> None:
    """As pip does: what was there goes, then the code comes, and its metadata last."""
    for old in site.glob(f"{distribution}-*.dist-info"):
        shutil.rmtree(old)
    site.mkdir(exist_ok=True)
    module = f"{distribution}_of_test"
    text = CODE.format(slow=SLOW, version=version).replace("which(", f"{name}(")
    draft = site / f"{module}.new"
    # Python's cache goes by size and second: another version is of another size.
    draft.write_text(text + "#" * (int(version.replace(".", "")) % 1000))
    os.replace(draft, site / f"{module}.py")
    info = site / f"{distribution}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    )
    (info / "entry_points.txt").write_text(
        f"[retire_cluster.task_types]\n{name} = {module}:{name}\n"
    )
    (info / "RECORD").write_text(f"{version}\n")


def own(hello: messages.Hello) -> dict[str, TypeInfo]:
    return {info.name: info for info in hello.task_types if info.distribution}


@posix_only
@pytest.mark.parametrize("fork", [True, False], ids=["forked", "inline"])
def test_once_a_worker_noticed_an_update_no_task_runs_the_old_version(
    bus: Bus, start: Start, tmp_path: Path, fork: bool
) -> None:
    site = tmp_path / "site"
    install(site, "1.0")
    if not fork:  # as on Windows and macOS
        (site / "sitecustomize.py").write_text(NO_FORK)
    worker = start("--allow-root", environ={"PYTHONPATH": str(site), **opened(tmp_path / "open")})
    info = own(bus.welcome())["which"]
    assert (info.distribution, info.distribution_version) == ("updates", "1.0")
    # Often enough for both slots to have a template.
    for _ in range(4):
        keys = bus.assign_all([("which", {})] * 4)
        assert [bus.result(key).data for key in keys] == ["1.0"] * 4
    gate = tmp_path / "open" / "gate"
    running = bus.assign("which", {"file": str(gate)})
    # Started is told before the import; only what runs the old code has to go on with it.
    bus.until(Path(f"{gate}.begun").exists, "the task has begun")

    install(site, "2.0")
    info = own(bus.welcome())["which"]  # it registers again
    assert info.distribution_version == "2.0"
    keys = bus.assign_all([("which", {})] * 12)
    # One slot still has the task that began before; then it has the others.
    assert bus.result(keys[0]).data == "2.0"
    gate.touch()
    assert bus.result(running).data == "1.0"
    assert [bus.result(key).data for key in keys] == ["2.0"] * 12
    keys = bus.assign_all([("which", {})] * 8)
    assert [bus.result(key).data for key in keys] == ["2.0"] * 8
    worker.kill()
    said = worker.communicate()[1]
    lines = [line for line in said.splitlines() if "own task types:" in line]
    assert len(lines) == 1, lines
    assert "updates 1.0 is 2.0 now; every task from here on runs what is there" in lines[0]


@posix_only
def test_own_types_that_come_and_go_are_told_without_a_restart(
    bus: Bus, start: Start, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    install(site, "1.0")
    start("--allow-root", environ={"PYTHONPATH": str(site)})
    assert set(own(bus.welcome())) == {"which"}
    install(site, "3", "another", "more")
    assert set(own(bus.welcome())) == {"which", "another"}
    assert bus.run("another", {}).data == "3"
    (site / "updates_of_test.py").unlink()
    shutil.rmtree(site / "updates-1.0.dist-info")
    assert set(own(bus.welcome())) == {"another"}
    ended = bus.run("which", {})
    assert (ended.item.outcome, ended.item.cause) == ("failed", "not_here")
    assert bus.run("another", {}).data == "3"


@posix_only
def test_a_saved_file_of_a_package_installed_in_place_is_noticed(
    bus: Bus, start: Start, tmp_path: Path
) -> None:
    site, project = tmp_path / "site", tmp_path / "pro ject"
    install(site, "1.0")
    code = (site / "updates_of_test.py").read_text()
    (site / "updates_of_test.py").unlink()
    package = project / "src" / "updates_of_test"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .inner import which\n")
    (package / "inner.py").write_text(code)
    url = {"url": project.as_uri(), "dir_info": {"editable": True}}
    (site / "updates-1.0.dist-info" / "direct_url.json").write_text(json.dumps(url))
    paths = f"{site}{os.pathsep}{project / 'src'}"
    start("--allow-root", environ={"PYTHONPATH": paths})
    assert set(own(bus.welcome())) == {"which"}
    assert bus.run("which", {}).data == "1.0"
    (package / "inner.py").write_text(code.replace("'1.0'", "'saved'"))
    assert set(own(bus.welcome())) == {"which"}
    assert bus.run("which", {}).data == "saved"


#: As a `.pth` in a folder that Python looks for those in.
PLACES = """
import os, sys
told = os.path.join(os.path.dirname(__file__), "places")
sys.path += open(told).read().splitlines() if os.path.exists(told) else []
"""


@linux_only
@pytest.mark.skipif(not landlock.abi(), reason="needs Landlock")
@pytest.mark.parametrize("named", [True, False], ids=["it says where", "nobody says where"])
def test_a_package_installed_in_place_while_a_worker_runs_is_open_or_the_setting_is_told(
    bus: Bus, start: Start, tmp_path: Path, named: bool
) -> None:
    site, project = tmp_path / "site", tmp_path / "home" / "thumbs"
    site.mkdir()
    (site / "sitecustomize.py").write_text(PLACES)
    worker = start("--allow-root", environ={"PYTHONPATH": str(site)})
    assert own(bus.welcome()) == {}
    project.parent.mkdir()
    install(project, "1.0")
    (project / "updates-1.0.dist-info").rename(tmp_path / "updates-1.0.dist-info")
    if named:
        url = {"url": project.as_uri(), "dir_info": {"editable": True}}
        (tmp_path / "updates-1.0.dist-info" / "direct_url.json").write_text(json.dumps(url))
    (site / "places").write_text(f"{project}\n")
    (tmp_path / "updates-1.0.dist-info").rename(site / "updates-1.0.dist-info")
    hello = bus.welcome()
    if named:
        assert set(own(hello)) == {"which"}, hello.left_out
        assert bus.run("which", {}).data == "1.0"
    else:
        (reason,) = hello.left_out
        assert str(project) in reason
        assert "policy.folders" in reason
    worker.kill()
    said = worker.communicate()[1]
    assert ("updates 1.0 is new; every task from here on runs what is there" in said) is named


@pytest.mark.parametrize(
    "text",
    [
        "", "[", "[]", "null", '{"dir_info": {"editable": true}}',
        '{"url": 5, "dir_info": {"editable": true}}', '{"url": "http://x/y", "dir_info": {}}',
        '{"url": "file:///", "dir_info": {"editable": false}}',
        '{"url": "file:///nowhere/\\u0000", "dir_info": {"editable": true}}',
    ],
)  # fmt: skip
def test_odd_words_of_where_a_package_lies_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "direct_url.json").write_text(text)
    assert editable_installs.sources(str(tmp_path)) == []


def test_of_a_large_package_so_many_files_are_looked_at(tmp_path: Path) -> None:
    url = {"url": tmp_path.as_uri(), "dir_info": {"editable": True}}
    (tmp_path / "direct_url.json").write_text(json.dumps(url))
    for number in range(editable_installs.MAX_FILES + 5):
        (tmp_path / f"m{number}.py").touch()
    assert len(editable_installs.sources(str(tmp_path))) == editable_installs.MAX_FILES


def test_only_a_change_that_stands_still_counts_and_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    install(site, "1.0")
    monkeypatch.syspath_prepend(str(site))
    installed = Installed()
    assert [installed.change() for _ in range(3)] == [""] * 3
    shutil.rmtree(site / "updates-1.0.dist-info")  # pip's first step
    assert installed.change() == ""
    install(site, "1.1")
    assert [installed.change() for _ in range(3)] == ["", "updates 1.0 is 1.1 now", ""]
    # Other files beside it are nothing.
    (site / "other.py").write_text("")
    assert [installed.change() for _ in range(2)] == ["", ""]
    # The same version with other code is another.
    install(site, "1.1")
    (site / "updates-1.1.dist-info" / "RECORD").write_text("other\n")
    again = ["", "the same versions with other files", ""]
    assert [installed.change() for _ in range(3)] == again
    # In place, without a new folder.
    (site / "updates-1.1.dist-info" / "METADATA").write_text("Name: updates\nVersion: 1.2\n")
    assert [installed.change() for _ in range(3)] == ["", "updates 1.1 is 1.2 now", ""]
    # Broken metadata harms nobody.
    (site / "updates-1.1.dist-info" / "METADATA").write_text("")
    broken = [installed.change() for _ in range(3)]
    assert "updates 1.2 is gone" in broken[1], broken
    install(site, "1.3")
    assert "updates 1.3 is new" in [installed.change() for _ in range(3)][1]
