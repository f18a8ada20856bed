"""Join strings, key files and who may connect."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.broker.core.devices.access import Access, AdminKey, Token
from retire_cluster.broker.core.rows import AccessRow
from retire_cluster.conf import curve
from retire_cluster.conf.curve import Invitation, KeyFileError
from retire_cluster.conf.machine.ownership import Foreign, check_folder
from retire_cluster.node.link import credentials
from retire_cluster.schemas.keys import is_key
from retire_cluster.schemas.text.join_string import looks_like_join

#: Always the same: names of tests are made of it.
SERVER = curve.pair_of_token(b"a main node")
TOKEN = bytes(range(16))
WORD = curve.write_join(Invitation("192.0.2.7", 8082, SERVER.public, TOKEN))
root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root can give files away"
)
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")


@pytest.mark.parametrize("host", ["192.0.2.7", "pi.local", "fe80::1%eth0"])
def test_a_join_string_is_one_word_that_carries_everything(host: str) -> None:
    invitation = Invitation(host, 65535, SERVER.public, TOKEN)
    word = curve.write_join(invitation)
    assert looks_like_join(word)
    assert len(word.split()) == 1
    assert curve.read_join(f"  {word[:30]}\n{word[30:]}\n") == invitation


@given(st.integers(4, len(WORD) - 1), st.sampled_from("Aaz09-_"))
def test_a_mistyped_join_string_is_told_as_one(position: int, letter: str) -> None:
    wrong = WORD[:position] + letter + WORD[position + 1 :]
    if wrong != WORD:
        with pytest.raises(ValueError, match=r"cut or mistyped.*token create"):
            curve.read_join(wrong)


@pytest.mark.parametrize("word", [WORD[:-1], WORD[:70], WORD + "A", "rc1." + "A" * 80])
def test_a_cut_join_string_is_told_as_one(word: str) -> None:
    with pytest.raises(ValueError, match="cut or mistyped"):
        curve.read_join(word)


def test_a_join_string_of_another_version_says_so() -> None:
    assert looks_like_join("rc2." + WORD[4:])
    with pytest.raises(ValueError, match="another version"):
        curve.read_join("rc2." + WORD[4:])


@pytest.mark.parametrize("text", ["rc1.lan", "rc1.lan:8082", "192.0.2.7", "", "rcx." + WORD[4:]])
def test_a_host_is_not_taken_for_a_join_string(text: str) -> None:
    assert not looks_like_join(text)


def test_the_pair_of_a_token_is_always_the_same_and_of_no_other_token() -> None:
    assert curve.pair_of_token(TOKEN) == curve.pair_of_token(TOKEN)
    assert curve.pair_of_token(TOKEN) != curve.pair_of_token(bytes(16))
    assert is_key(curve.pair_of_token(TOKEN).public)


# --- files ---------------------------------------------------------------------------------------


def test_keys_are_made_once_and_only_their_owner_may_read_them(tmp_path: Path) -> None:
    first = curve.server_pair(tmp_path)
    tooling = curve.client_keys(tmp_path / curve.ADMIN_KEY)
    assert curve.server_pair(tmp_path) == first
    assert curve.client_keys(tmp_path / curve.ADMIN_KEY) == tooling
    assert tooling is not None
    assert tooling.server == first.public
    if os.name == "posix":
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()}
        assert modes == {0o600}


def test_tooling_follows_a_main_node_whose_key_is_new(tmp_path: Path) -> None:
    curve.server_pair(tmp_path)
    before = curve.client_keys(tmp_path / curve.ADMIN_KEY)
    (tmp_path / curve.MAIN_KEY).unlink()
    new = curve.server_pair(tmp_path)
    after = curve.client_keys(tmp_path / curve.ADMIN_KEY)
    assert before is not None
    assert after == (before.pair, new.public)


@posix
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o666, 0o000])
def test_a_key_of_ours_whose_mode_a_task_changed_is_closed_again_and_told(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    pair = curve.server_pair(tmp_path)
    for name in (curve.MAIN_KEY, curve.ADMIN_KEY):
        (tmp_path / name).chmod(mode)
    check_folder(tmp_path)
    assert curve.server_pair(tmp_path) == pair
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()}
    assert modes == {0o600}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, "once a file"
    if mode:
        assert all("may have read it" in text and "delete the file" in text for text in told)
    caplog.clear()
    assert curve.server_pair(tmp_path) == pair
    assert not caplog.records


@posix
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o000, 0o300, 0o500])
def test_a_data_folder_of_ours_whose_mode_a_task_changed_is_closed_again_and_told(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    folder.mkdir(0o700)
    pair = curve.server_pair(folder)
    (folder / "keys").chmod(mode)
    folder.chmod(mode)
    check_folder(folder)
    for path in (folder, folder / "keys"):
        assert path.stat().st_mode & 0o7777 == 0o700 or mode == 0o1777
        assert not path.stat().st_mode & 0o077
        assert any(f"{path} had the mode" in text for text in caplog.messages)
    assert curve.server_pair(folder) == pair


@root
def test_an_open_data_folder_that_somebody_else_put_a_file_into_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(0o700)
    curve.server_pair(folder)
    folder.chmod(0o777)
    planted = folder / "cluster.db"
    planted.touch()
    os.chown(planted, 65_534, -1)
    with pytest.raises(Foreign, match=r"cluster\.db belongs to .*chmod 700"):
        check_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o777


@root
def test_a_key_that_somebody_else_put_there_is_refused_with_the_cure(tmp_path: Path) -> None:
    pair = curve.server_pair(tmp_path)
    for name in (curve.MAIN_KEY, curve.ADMIN_KEY):
        os.chown(tmp_path / name, 65_534, -1)
        with pytest.raises(KeyFileError, match=f"{name.name} belongs to .*chown"):
            curve.server_pair(tmp_path)
        os.chown(tmp_path / name, 0, -1)
    assert curve.server_pair(tmp_path) == pair


@root
def test_a_data_folder_that_somebody_else_made_or_may_fill_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    check_folder(folder)
    folder.mkdir(0o700)
    check_folder(folder)
    os.chown(folder, 65_534, -1)
    with pytest.raises(Foreign, match=r"data belongs to .*chown"):
        check_folder(folder)
    os.chown(folder, 0, -1)
    folder.chmod(0o1777)
    with pytest.raises(Foreign, match="chmod o-w"):
        check_folder(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"public": "x", "secret": "y"}', "\x00"])
def test_a_damaged_key_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.key"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(KeyFileError, match=r"some\.key is no key file"):
        curve.read_key_file(path)


def test_a_devices_key_file_is_no_admin_key(tmp_path: Path) -> None:
    curve.write_key_file(tmp_path / "x.key", SERVER)
    with pytest.raises(KeyFileError, match="no admin key"):
        curve.client_keys(tmp_path / "x.key")
    assert curve.client_keys(tmp_path / "none.key") is None


# --- a device's credentials ----------------------------------------------------------------------


def test_a_device_enrols_once_and_needs_no_line_afterwards(tmp_path: Path) -> None:
    address, first = credentials.find(tmp_path, WORD)
    assert first is not None
    assert str(address) == "192.0.2.7:8082"
    assert first.enrolling
    assert first.current().pair == curve.pair_of_token(TOKEN)
    first.note_enrolled()
    assert first.current() == (first.pair, SERVER.public)
    again, later = credentials.find(tmp_path, "")
    assert later is not None
    assert (again, later.pair, later.enrolling) == (address, first.pair, False)


def test_a_crash_before_the_answer_keeps_the_key_that_was_told(tmp_path: Path) -> None:
    _, first = credentials.find(tmp_path, WORD)
    assert first is not None
    first.settle("dev", asked=False)
    _, second = credentials.find(tmp_path, WORD)
    assert second is not None
    assert first.pair == second.pair
    assert second.enrolling


def test_a_refused_key_tries_the_token_then_stays_with_its_own(tmp_path: Path) -> None:
    _, found = credentials.find(tmp_path, WORD)
    assert found is not None
    found.note_enrolled()
    assert found.note_refused(), "the token of the line may let it in again"
    assert found.enrolling
    assert not found.note_refused()
    assert found.current().pair == found.pair
    assert not found.note_refused()


def test_a_line_of_another_cluster_brings_nothing_of_the_old_one(tmp_path: Path) -> None:
    _, first = credentials.find(tmp_path, WORD)
    assert first is not None
    first.note_enrolled()
    other = curve.write_join(Invitation("192.0.2.8", 1, curve.new_pair().public, TOKEN))
    _, second = credentials.find(tmp_path, other)
    assert second is not None
    assert second.enrolling
    assert second.pair != first.pair
    second.settle("dev", asked=False)
    # Until the other one has let it in, the device is what it was.
    _, after = credentials.find(tmp_path, "")
    assert after is not None
    assert (after.pair, str(after.address)) == (first.pair, "192.0.2.7:8082")
    second.note_enrolled()
    _, moved = credentials.find(tmp_path, "")
    assert moved is not None
    assert (moved.pair, str(moved.address)) == (second.pair, "192.0.2.8:1")


def test_a_main_node_that_moved_is_remembered_once_it_said_welcome(tmp_path: Path) -> None:
    _, first = credentials.find(tmp_path, WORD)
    assert first is not None
    first.settle("dev", asked=False)
    first.note_enrolled()
    _, moving = credentials.find(tmp_path, "192.0.2.9:9000")
    assert moving is not None
    moving.settle("dev", asked=False)
    assert str(credentials.find(tmp_path, "")[0]) == "192.0.2.7:8082"
    moving.note_welcomed()
    assert str(credentials.find(tmp_path, "")[0]) == "192.0.2.9:9000"


def test_a_key_stands_for_one_name(tmp_path: Path) -> None:
    _, first = credentials.find(tmp_path, WORD)
    assert first is not None
    assert first.settle("old", asked=False) == "old"
    first.note_enrolled()
    _, later = credentials.find(tmp_path, "")
    assert later is not None
    assert later.settle("whatever-the-folder-says", asked=False) == "old"
    with pytest.raises(ValueError, match="known as old to its main node"):
        later.settle("new", asked=True)
    _, anew = credentials.find(tmp_path, WORD)
    assert anew is not None
    assert anew.settle("new", asked=True) == "new"
    assert anew.enrolling
    assert anew.pair != first.pair


def test_without_a_line_and_a_key_the_device_is_told_what_to_paste(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="token create"):
        credentials.find(tmp_path, "")
    assert credentials.find(tmp_path, "192.0.2.7")[1] is None
    with pytest.raises(ValueError, match="--plain"):
        credentials.find(tmp_path, WORD, plain=True)


# --- who is known --------------------------------------------------------------------------------


def key(seed: int) -> str:
    return curve.pair_of_token(bytes([seed]) * 16).public


def test_a_token_opens_the_bus_until_its_time_or_uses_are_over() -> None:
    access = Access()
    access.put_token(Token("t", key(1), created_ms=0, expires_age_ms=100, uses=2, used=1))
    assert access.may_connect("bus", key(1), 99)
    assert not access.may_connect("bus", key(1), 100)
    assert not access.may_connect("admin", key(1), 0)
    access.put_token(Token("t", key(1), created_ms=0, expires_age_ms=100, uses=2, used=2))
    assert not access.may_connect("bus", key(1), 0)


def test_a_token_long_over_is_forgotten() -> None:
    access = Access()
    access.put_token(Token("t", key(1), created_ms=0, expires_age_ms=100, uses=1))
    assert access.prune(100) == []
    assert access.prune(100 + 86_400_000) == [AccessRow("token", "t", None)]
    assert access.tokens == {}


def test_the_last_use_of_an_api_key_is_stored_once_a_minute() -> None:
    access = Access()
    (row,) = access.note_uses({"0123456789abcdef": 1_000})
    assert access.note_uses({"0123456789abcdef": 60_999}) == []
    assert len(access.note_uses({"0123456789abcdef": 61_000})) == 1
    found = Access()
    assert found.load([row]) == []
    assert found.key_uses == {"0123456789abcdef": 1_000}


def test_what_was_stored_is_read_back_and_damaged_rows_are_told() -> None:
    access = Access()
    rows = [
        access.enrol("box", key(1), 5),
        access.enrol("box", key(2), 6),
        access.put_token(Token("t", key(3), created_ms=0, expires_age_ms=100, uses=1)),
        access.put_admin(AdminKey("ann", key(4), 7)),
    ]
    found = Access()
    broken = [
        AccessRow("device", "x", b"{"),
        AccessRow("token", "y", b'{"key": 1}'),
        AccessRow("admin", "z", b'{"key": "' + key(5).encode() + b'"}'),
    ]
    warnings = found.load([*rows, *broken])
    assert found == access
    assert found.device_of(key(1)) is None, "a replaced key is forgotten"
    assert [name in text for name, text in zip("xyz", warnings, strict=True)] == [True] * 3
