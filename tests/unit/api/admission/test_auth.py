"""Keys, the loopback rule, scopes, guessing; whose address and origin counts."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.api.admission.auth import Authorizer, Identity, network_of, presented_key
from retire_cluster.api.admission.keys import (
    ApiKeyFileError,
    ApiKeyRing,
    generate,
    key_of,
    read_keys,
    write_keys,
)
from retire_cluster.api.admission.peers import Hosts, Origins, Peer, Peers
from retire_cluster.api.admission.tickets import LIFETIME_SECONDS, NO_KEY, Tickets
from retire_cluster.conf.machine.addresses import local_names
from retire_cluster.schemas.errors import Forbidden, RateLimitExceeded, Unauthorized
from retire_cluster.schemas.rest.endpoints import ENDPOINTS

NEAR, FAR = Peer("127.0.0.1", loopback=True), Peer("192.0.2.7", loopback=False)
REMOVE = ENDPOINTS["DELETE", "/api/v1/devices/{device_id}"]
STATUS = ENDPOINTS["GET", "/api/v1/cluster/status"]
HEALTH = ENDPOINTS["GET", "/health"]
METRICS = ENDPOINTS["GET", "/metrics"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def access(*keys: str, reads: bool = False, clock: Clock | None = None) -> Authorizer:
    ring = ApiKeyRing(map(key_of, keys))
    return Authorizer(ring, required=bool(keys), reads=reads, monotonic=clock or Clock())


# --- who may -------------------------------------------------------------------------------------


def test_without_authentication_only_this_machine_may_change_things() -> None:
    gate = access()
    gate.check(gate.identify(NEAR, None), REMOVE)
    with pytest.raises(Unauthorized, match="--auth"):
        gate.check(gate.identify(FAR, None), REMOVE)
    gate.check(gate.identify(FAR, None), STATUS)


def test_without_authentication_a_key_changes_nothing() -> None:
    gate = access()
    assert gate.identify(FAR, "whatever").client == "address:192.0.2.7"


def test_with_authentication_a_valid_key_is_needed_from_everywhere() -> None:
    gate = access("first", "second")
    for key in ("first", "second"):
        gate.check(gate.identify(FAR, key), REMOVE)
    refused: tuple[str | None, ...] = ("wrong", None, "firs", "first ")
    for presented in refused:
        with pytest.raises(Unauthorized):
            gate.check(gate.identify(NEAR, presented), REMOVE)
    gate.check(gate.identify(FAR, None), STATUS)


def test_auth_reads_closes_everything_but_health() -> None:
    gate = access("key", reads=True)
    gate.check(gate.identify(FAR, None), HEALTH)
    for operation in (STATUS, METRICS):
        with pytest.raises(Unauthorized):
            gate.check(gate.identify(NEAR, None), operation)
        gate.check(gate.identify(NEAR, "key"), operation)


def test_harmless_types_need_no_key_and_others_do() -> None:
    gate = access("key")
    stranger, owner = gate.identify(FAR, None), gate.identify(FAR, "key")
    gate.check_submission(stranger, {"echo", "sleep", "system_info"})
    for task_type in ("python_eval", "http_request", "command", "own.type"):
        with pytest.raises(Unauthorized, match=task_type):
            gate.check_submission(stranger, {"echo", task_type})
        gate.check_submission(owner, {"echo", task_type})


def test_a_key_may_do_what_its_scopes_say() -> None:
    ring = ApiKeyRing([key_of("reader", scopes=["read"]), key_of("sender", scopes=["submit"])])
    gate = Authorizer(ring, required=True, reads=True)
    reader, sender = gate.identify(FAR, "reader"), gate.identify(FAR, "sender")
    gate.check(reader, STATUS)
    with pytest.raises(Forbidden, match="admin"):
        gate.check(reader, REMOVE)
    with pytest.raises(Forbidden, match="read"):
        gate.check(sender, STATUS)
    with pytest.raises(Forbidden, match="submit:dangerous"):
        gate.check_submission(sender, {"command"})


def test_ten_wrong_keys_a_minute_are_counted_and_valid_keys_never_locked_out() -> None:
    clock = Clock()
    gate = access("key", clock=clock)
    for _ in range(10):
        assert gate.identify(FAR, "guess").wrong_key
    with pytest.raises(RateLimitExceeded) as caught:
        gate.identify(FAR, "guess")
    assert 0 < (caught.value.retry_after or 0) <= 60
    assert gate.identify(FAR, "key").key
    assert gate.identify(FAR, None).key is None
    assert gate.identify(Peer("192.0.2.8", loopback=False), "guess").wrong_key
    clock.now += 61
    assert gate.identify(FAR, "guess").wrong_key


def test_one_ipv6_subscriber_is_one_guesser() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") == "2001:db8::/64"
    assert network_of("192.0.2.1") == "192.0.2.1"


def test_limits_and_idempotency_count_by_key_else_by_address() -> None:
    key = key_of("k")
    assert Identity(FAR, key).client == f"key:{key.key_id}"
    assert Identity(FAR, key).owner == key.key_id
    assert Identity(FAR, None).client == "address:192.0.2.7"
    assert Identity(FAR, None).owner == "anonymous:192.0.2.7"


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"HTTP_X_API_KEY": "k"}, "k"),
        ({"HTTP_AUTHORIZATION": "Bearer k"}, "k"),
        ({"HTTP_AUTHORIZATION": "bearer  k "}, "k"),
        ({"HTTP_AUTHORIZATION": "Basic k"}, None),
        ({"HTTP_AUTHORIZATION": "Bearer"}, None),
        ({"HTTP_X_API_KEY": "", "HTTP_AUTHORIZATION": "Bearer k"}, "k"),
        ({}, None),
    ],
)
def test_a_key_comes_in_either_header(environ: dict[str, str], key: str | None) -> None:
    assert presented_key(environ) == key


@given(st.text())
def test_any_text_can_be_presented_as_a_key(text: str) -> None:
    assert ApiKeyRing([key_of("key")]).find(text) is None or text == "key"


# --- kept keys -----------------------------------------------------------------------------------


def test_kept_keys_are_hashes_in_a_file_of_its_owner_only(tmp_path: Path) -> None:
    path, key = tmp_path / "deep" / "api-keys.json", generate()
    write_keys(path, [key_of(key, note="mine")])
    assert key not in path.read_text("utf-8")
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (kept,) = read_keys(path)
    assert kept == key_of(key, note="mine")
    assert [entry.name for entry in path.parent.iterdir()] == ["api-keys.json"]


def test_a_changed_key_file_counts_from_the_next_request_on(tmp_path: Path) -> None:
    path = tmp_path / "api-keys.json"
    ring = ApiKeyRing([key_of("given")], path)
    assert ring.find("later") is None
    write_keys(path, [key_of("later", scopes=["read"])])
    found = ring.find("later")
    assert found is not None
    assert found.scopes == ("read",)
    assert ring.find("given") is not None
    path.write_text("{")
    assert ring.find("later") is not None, "a damaged file takes nobody's key away"
    write_keys(path, [])
    assert ring.find("later") is None


def test_the_last_use_of_a_key_is_told_once() -> None:
    access = Authorizer(ApiKeyRing([key_of("key")]), required=True, clock=lambda: 12.5)
    access.identify(NEAR, "key")
    access.identify(NEAR, "wrong")
    assert access.take_uses() == {key_of("key").key_id: 12_500}
    assert access.take_uses() == {}


def test_generated_keys_are_long_and_differ() -> None:
    assert len({generate() for _ in range(50)}) == 50
    assert len(generate()) >= 40


@pytest.mark.parametrize(
    "content", ["", "[]", '{"keys":[{}]}', '{"keys":[{"digest":"zz"}]}', '{"keys":5}',
    json.dumps({"keys": [{"digest": "00" * 32, "scopes": ["root"]}]})],
)  # fmt: skip
def test_a_broken_key_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content, "utf-8")
    with pytest.raises(ApiKeyFileError, match=r"keys\.json"):
        read_keys(path)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_key_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text("{}", "utf-8")
    path.chmod(0)
    with pytest.raises(ApiKeyFileError):
        read_keys(path)


def test_no_key_file_is_no_keys(tmp_path: Path) -> None:
    assert read_keys(tmp_path / "keys.json") == []


# --- tickets -------------------------------------------------------------------------------------


def test_a_ticket_is_good_for_a_minute_and_only_as_issued() -> None:
    clock = Clock()
    tickets = Tickets(clock, b"secret")
    ticket, expires_at = tickets.issue()
    assert expires_at == 1000 + LIFETIME_SECONDS
    assert tickets.key_of(ticket) == NO_KEY
    assert tickets.key_of(tickets.issue("0123abcd")[0]) == "0123abcd"
    assert tickets.key_of(ticket + "x") is None
    assert tickets.key_of("9" + ticket) is None
    assert Tickets(clock, b"other").key_of(ticket) is None
    clock.now += LIFETIME_SECONDS
    assert tickets.key_of(ticket) is None


@given(st.text())
def test_any_text_can_be_tried_as_a_ticket(text: str) -> None:
    assert Tickets(Clock(), b"secret").key_of(text) is None


# --- whose address -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False), ("::ffff:192.0.2.1", False), ("", False), ("nonsense", False),
    ],
)  # fmt: skip
def test_loopback_is_this_machine_in_every_spelling(address: str, loopback: bool) -> None:
    assert Peers().of({"REMOTE_ADDR": address}).loopback is loopback


@pytest.mark.parametrize(
    "header",
    [*("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_REAL_IP", "HTTP_X_FORWARDED_FOR"),
     *("HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_ANYTHING")],
)  # fmt: skip
def test_a_forwarded_request_is_not_of_this_machine(header: str) -> None:
    found = Peers().of({"REMOTE_ADDR": "127.0.0.1", header: "127.0.0.1"})
    assert (found.address, found.loopback) == ("127.0.0.1", False)


def test_a_forwarded_address_counts_only_from_a_trusted_proxy() -> None:
    environ = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": "127.0.0.1, 192.0.2.9, 10.0.0.2"}
    assert Peers().of(environ).address == "10.0.0.1"
    trusting = Peers(["10.0.0.0/8"]).of(environ)
    assert (trusting.address, trusting.loopback) == ("192.0.2.9", False)


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("192.0.2.9:1234", "192.0.2.9"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("unknown", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("evil, ", "10.0.0.1"),
    ],
)
def test_a_forwarded_address_is_read_in_every_spelling(forwarded: str, address: str) -> None:
    environ = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": forwarded}
    assert Peers(["10.0.0.1"]).of(environ).address == address


@given(st.text(max_size=40))
def test_any_forwarded_header_gives_some_peer(text: str) -> None:
    environ = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": text}
    assert Peers(["10.0.0.1"]).of(environ).address


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost:8081", True), ("127.0.0.1:8081", True), ("192.168.1.5", True), ("", True),
        ("[::1]:8081", True), ("pi", True), ("PI.local:80", True), ("pi.home.arpa.", True),
        ("cluster.localhost", True), ("evil", False), ("evil.local", False), ("evil.lan:80", False),
        ("evil.pi.local", False), ("pi.evil", False), ("local", False), (".local", False),
        ("evil.example:8081", False), ("127.0.0.1.evil.example", False), ("local.evil.com", False),
        ("panel.example", True), ("Panel.Example:443", True), ("x.panel.example", False),
    ],
)  # fmt: skip
def test_names_that_a_stranger_may_own_are_not_ours(host: str, known: bool) -> None:
    hosts = Hosts(["panel.example"], lambda: local_names("pi"))
    assert hosts.is_known(host) is known


def test_a_machine_is_called_by_its_name_and_that_on_local_networks_only() -> None:
    assert {"nas", "nas.local", "nas.lan", "nas.home.arpa"} < local_names("NAS.local.")
    assert {"pi.example.com", "pi", "pi.local"} < local_names("pi.example.com")
    public = local_names("", "cluster.example")
    assert public == {"cluster.example"}
    assert "nas" in local_names("box", "nas.lan")
    assert local_names("", "192.0.2.1") == frozenset()


@pytest.mark.parametrize("forwarded", [None, "unknown", "", "_hidden", "evil, ", "127.0.0.1.evil"])
def test_whoever_a_proxy_does_not_name_is_a_stranger(forwarded: str | None) -> None:
    environ = {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_PROTO": "https"}
    if forwarded is not None:
        environ["HTTP_X_FORWARDED_FOR"] = forwarded
    found = Peers(["127.0.0.1"]).of(environ)
    assert (found.address, found.loopback, found.through_proxy) == ("127.0.0.1", False, True)
    assert not Peers(["127.0.0.1"]).of({"REMOTE_ADDR": "127.0.0.1"}).loopback
    told = Peers(["127.0.0.1"]).of({**environ, "HTTP_X_FORWARDED_FOR": "127.0.0.2"})
    assert told.loopback, "a proxy that names this machine is believed"


# --- origins -------------------------------------------------------------------------------------

HOST = {"HTTP_HOST": "box:8081"}


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({}, False),
        ({"HTTP_ORIGIN": "http://box:8081"}, False),
        ({"HTTP_ORIGIN": "https://box:8081"}, False),
        ({"HTTP_ORIGIN": "http://evil:8081"}, True),
        ({"HTTP_ORIGIN": "http://box"}, True),
        ({"HTTP_ORIGIN": "null"}, True),
        ({"HTTP_ORIGIN": ""}, True),
        ({"HTTP_ORIGIN": "file://"}, True),
        ({"HTTP_SEC_FETCH_SITE": "cross-site"}, True),
        ({"HTTP_SEC_FETCH_SITE": "same-origin", "HTTP_ORIGIN": "http://BOX:8081"}, False),
        ({"HTTP_SEC_FETCH_SITE": "none"}, False),
        ({"HTTP_ORIGIN": "https://panel.example:443", "HTTP_SEC_FETCH_SITE": "cross-site"}, False),
    ],
)
def test_foreign_is_what_is_neither_ours_nor_allowed(
    headers: dict[str, str], foreign: bool
) -> None:
    origins = Origins(["https://panel.example"])
    assert origins.is_foreign({**HOST, **headers}) is foreign


def test_default_ports_are_the_same_origin() -> None:
    environ = {"HTTP_HOST": "box", "HTTP_ORIGIN": "http://box:80"}
    assert not Origins().is_foreign(environ)


def test_a_proxys_host_counts_only_from_a_trusted_proxy() -> None:
    environ: dict[str, Any] = {
        **HOST, "HTTP_ORIGIN": "https://public", "HTTP_X_FORWARDED_HOST": "public",
    }  # fmt: skip
    assert Origins().is_foreign(environ)
    assert not Origins().is_foreign(environ, through_proxy=True)


def test_cors_answers_the_allowed_and_nobody_else() -> None:
    origins = Origins(["https://panel.example"])
    assert origins.cors_value("https://panel.example") == "https://panel.example"
    assert origins.cors_value("https://evil.example") is None
    assert Origins(["*"]).cors_value("https://any.example") == "*"
    assert Origins(["https://panel.example"], enabled=False).cors_value(
        "https://panel.example"
    ) is None  # fmt: skip
    assert Origins().cors_value("https://panel.example") is None
