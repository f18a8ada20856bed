"""A user without a home: one line with the cure, and never a folder that is called `~`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from retire_cluster.cli.joining import join_script
from retire_cluster.cli.service.command import ServiceError, plan
from retire_cluster.cli.service.units import Service
from retire_cluster.conf import neighbours
from retire_cluster.conf.loading import default_data_dir, load, read_settings
from retire_cluster.conf.machine import homefolder
from retire_cluster.conf.sections import Policy as Rules
from retire_cluster.conf.spec import SettingsError
from retire_cluster.node.device.policy import Policy

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows knows every user's folder")
#: HOME as it may be for a user id that no database knows; the last is what a `~` stays as.
HOMELESS: list[Mapping[str, str]] = [{}, {"HOME": ""}, {"HOME": "~"}, {"HOME": "relative"}]


@pytest.fixture
def _no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What Python says of an unknown user id: the `~` stays."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("RETIRE_CLUSTER_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_no_home")
@pytest.mark.parametrize("environ", HOMELESS)
def test_without_a_home_the_folder_has_to_be_named(environ: Mapping[str, str]) -> None:
    assert homefolder.home_folder("linux", environ) is None
    assert default_data_dir("linux", environ) is None
    with pytest.raises(SettingsError, match=r"no home folder .*--data-dir or RETIRE_CLUSTER"):
        load(None, environ, {})
    assert load(None, environ, {"data_dir": "/d"}).data_dir == Path("/d")
    named = {**environ, "XDG_DATA_HOME": "/x"}
    assert default_data_dir("linux", named) == Path("/x/retire-cluster")
    assert default_data_dir("linux", {**environ, "XDG_DATA_HOME": "x"}) is None


@pytest.mark.usefixtures("_no_home")
@pytest.mark.parametrize("folder", ["~", "~/keys", "~nobody-here/keys"])
def test_a_tilde_that_stands_for_nothing_is_refused_by_name(folder: str) -> None:
    with pytest.raises(SettingsError, match=r"data_dir: '~.*has no home folder.*whole path"):
        read_settings({"data_dir": folder}, None, {})
    with pytest.raises(ValueError, match=r"policy\.folders: '~.* has no home folder"):
        Policy.of(Rules(folders=(folder,)))


def test_a_folder_of_the_policy_is_one_place_whatever_the_worker_is_started_in() -> None:
    with pytest.raises(ValueError, match=r"policy\.folders: 'here/data' must be written from / on"):
        Policy.of(Rules(folders=("here/data",)))
    home = os.path.expanduser("~")
    assert Policy.of(Rules(folders=("~/data", "/srv"))).folders == (f"{home}/data", "/srv")


@pytest.mark.usefixtures("_no_home")
def test_services_and_the_installer_say_what_to_set() -> None:
    service = Service("worker", "rc", ("python",), "/data", False, "")
    with pytest.raises(ServiceError, match="no home folder"):
        plan("install", service, "systemd", {})
    assert plan("install", replace(service, system=True), "systemd", {})
    with pytest.raises(join_script.Stop, match="RETIRE_CLUSTER_HOME"):
        join_script.home()


@pytest.mark.usefixtures("_no_home")
def test_a_main_node_of_such_a_user_is_not_announced_and_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "environ", {})
    told = neighbours.announce(tmp_path, pid=1, admin_port=1, worker_port=2, encrypted=True)
    assert told is None
    assert neighbours.find("127.0.0.1", 1, "admin_port") is None
    assert os.listdir(tmp_path) == []
