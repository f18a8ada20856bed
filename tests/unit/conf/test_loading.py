"""Flags win over the environment, that over TOML, that over defaults; mistakes get one line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from retire_cluster.conf.loading import default_data_dir, load, read_settings
from retire_cluster.conf.settings import all_specs
from retire_cluster.conf.spec import SettingsError

HOME = {"HOME": "/home/ada"}


def test_nothing_given_is_all_defaults() -> None:
    made = load(None, HOME, {}, platform="linux")
    assert made.data_dir == Path("/home/ada/.local/share/retire-cluster")
    assert made.source_of("api.port") == "default"
    assert not made.sources


def test_flags_win_over_environment_over_file_over_default() -> None:
    text = "[api]\nport = 1\nthreads = 2\nhost = 'file'\n"
    environ = {"RETIRE_CLUSTER_API_PORT": "3", "RETIRE_CLUSTER_API_HOST": "env"}
    made = load(text, environ, {"api.port": 4, "api.host": None}, source="rc.toml")
    assert (made.api.port, made.api.host, made.api.threads) == (4, "env", 2)
    assert made.api.rate_limit_burst == 10
    assert made.source_of("api.port") == "command line"
    assert made.source_of("api.host") == "RETIRE_CLUSTER_API_HOST"
    assert made.source_of("api.threads") == "rc.toml"


def test_lists_come_from_commas_and_keys_from_lines() -> None:
    environ = {
        "RETIRE_CLUSTER_WORKER_TAGS": "attic, slow,",
        "RETIRE_CLUSTER_API_KEY": "one,with comma\ntwo",
    }
    made = load(None, environ, {})
    assert made.worker.tags == ("attic", "slow")
    assert made.api.keys == ("one,with comma", "two")


def test_an_empty_variable_counts_as_unset() -> None:
    environ = {"RETIRE_CLUSTER_API_PORT": "", "RETIRE_CLUSTER_API_KEY": " "}
    made = load("[api]\nport = 5\n", environ, {})
    assert made.api.port == 5
    assert made.api.keys == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[heartbeat]\nintervall = 1\n", "heartbeat.intervall: is no setting; did you mean heart"),
        ("[hartbeat]\n", "hartbeat: is no section; did you mean heartbeat? (from rc.toml)"),
        ("server = 1\n", "server: must be a section: write [server]"),
        ("[api]\nport = '1'\n", "api.port: must be an integer from 0 to 65535, not '1'"),
        ("[api]\nport = 1.0\n", "api.port: must be an integer"),
        ("[api]\nauth = 1\n", "api.auth: must be true or false, not 1"),
        ("[worker]\ntags = 'a'\n", "worker.tags: must be a list of texts, not 'a'"),
        ("[worker]\ntags = [1]\n", "worker.tags: must be a list of texts"),
        ("[worker]\nrole = 'boss'\n", "worker.role: must be one of worker, compute"),
        ("[heartbeat]\ntimeout = 5\n", "heartbeat.timeout: must be at least interval"),
        ("data_dir = 3\n", "data_dir: must be the path of a folder (from rc.toml)"),
        (
            'data_dir = "a\\u0000b"\n',
            "data_dir: must be a path without a NUL character (from rc.toml)",
        ),
        ("[api\n", "rc.toml: is not valid TOML:"),
        ("[api]\nport = " + "9" * 5000, "rc.toml: is not valid TOML:"),
    ],
)
def test_a_mistake_in_the_file_gets_one_line(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)) as caught:
        load(text, {}, {}, source="rc.toml")
    assert "\n" not in str(caught.value)
    assert "rc.toml" in str(caught.value)


def test_a_mistake_in_the_environment_names_the_variable() -> None:
    with pytest.raises(SettingsError, match=r"api\.port: .* 'x' \(from RETIRE_CLUSTER_API_PORT\)"):
        load(None, {"RETIRE_CLUSTER_API_PORT": "x"}, {})


def test_an_unknown_variable_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match="did you mean RETIRE_CLUSTER_API_PORT"):
        load(None, {"RETIRE_CLUSTER_API_PROT": "1"}, {})


def test_variables_of_tests_and_of_others_are_left_alone() -> None:
    environ = {"RETIRE_CLUSTER_TEST_SEED": "1", "PATH": "/bin", "RC_TASK_ID": "x"}
    assert load(None, environ, {}).sources == {}


def test_root_is_allowed_by_its_short_variable() -> None:
    assert load(None, {"RETIRE_CLUSTER_ALLOW_ROOT": "1"}, {}).policy.allow_root is True


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"api\.prt: is no setting; did you mean api\.port"):
        load(None, {}, {"api.prt": 1})


def test_a_conflict_names_all_its_sources() -> None:
    with pytest.raises(SettingsError, match=r"from RETIRE_CLUSTER_HEARTBEAT_INTERVAL and rc\.toml"):
        load(
            "[heartbeat]\ntimeout = 20\n",
            {"RETIRE_CLUSTER_HEARTBEAT_INTERVAL": "10"},
            {},
            source="rc.toml",
        )


@pytest.mark.parametrize(
    ("platform", "environ", "expected"),
    [
        ("linux", HOME, "/home/ada/.local/share/retire-cluster"),
        ("linux", {**HOME, "XDG_DATA_HOME": "/data"}, "/data/retire-cluster"),
        ("android", HOME, "/home/ada/.local/share/retire-cluster"),
        ("darwin", HOME, "/home/ada/Library/Application Support/retire-cluster"),
        ("win32", {"LOCALAPPDATA": "C:/L"}, "C:/L/retire-cluster"),
        ("win32", {"USERPROFILE": "C:/U"}, "C:/U/AppData/Local/retire-cluster"),
    ],
)
def test_data_lives_where_the_platform_keeps_it(
    platform: str, environ: dict[str, str], expected: str
) -> None:
    assert default_data_dir(platform, environ) == Path(expected)


def test_the_data_folder_is_set_like_any_other_setting(tmp_path: Path) -> None:
    environ = {"RETIRE_CLUSTER_DATA_DIR": "/from/env"}
    text = "data_dir = '/from/file'\n"
    assert load(text, {}, {}).data_dir == Path("/from/file")
    made = load(text, environ, {})
    assert (made.data_dir, made.source_of("data_dir")) == (
        Path("/from/env"),
        "RETIRE_CLUSTER_DATA_DIR",
    )
    assert load(text, environ, {"data_dir": tmp_path}).data_dir == tmp_path


def test_a_named_file_is_read_with_or_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rc.toml"
    path.write_bytes(b"\xef\xbb\xbf[api]\nport = 7\n")
    assert read_settings({}, path, {}).api.port == 7
    assert read_settings({}, None, {"RETIRE_CLUSTER_CONFIG": str(path)}).api.port == 7


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read"), (b"\xff", "is not UTF-8"), (b"#" * (1 << 20) + b"#", "larger")],
)
def test_a_file_that_is_none_gets_one_line(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "rc.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=reason) as caught:
        read_settings({}, path, {})
    assert caught.value.field == str(path)


def test_the_example_shows_every_setting_with_its_default(root: Path) -> None:
    text = (root / "conf" / "retire-cluster.example.toml").read_text("utf-8")
    assert load(text, HOME, {}).sources == {}
    active = re.sub(r"(?m)^#(?=[a-z_]+ = )", "", text)
    made = load(active, HOME, {})
    assert made == load("data_dir = '~/.local/share/retire-cluster'", HOME, {})
    assert set(made.sources) == {spec.dotted for spec in all_specs()} | {"data_dir"}


def test_the_example_tells_what_each_setting_does(root: Path) -> None:
    text = (root / "conf" / "retire-cluster.example.toml").read_text("utf-8")
    for spec in all_specs():
        assert f"# {spec.help}" in text, spec.dotted
        if spec.env != f"RETIRE_CLUSTER_{spec.section}_{spec.name}".upper():
            assert spec.env in text


def test_a_relative_data_folder_is_absolute_from_the_moment_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rc.toml"
    file.write_text("data_dir = 'by-file'\n", "utf-8")
    assert read_settings({"data_dir": "by-flag"}, None, {}).data_dir == tmp_path / "by-flag"
    by_environment = read_settings({}, None, {"RETIRE_CLUSTER_DATA_DIR": "../by-env"})
    assert by_environment.data_dir == tmp_path.parent / "by-env"
    assert read_settings({}, file, {}).data_dir == tmp_path / "by-file"


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps the folder one is in")
def test_a_relative_data_folder_in_a_folder_that_is_gone_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SettingsError, match="relative to a folder that is gone"):
        read_settings({"data_dir": "data"}, None, {})
    assert read_settings({"data_dir": "/data"}, None, {}).data_dir == Path("/data")
