"""One reading of hosts for flags, settings, bodies and join lines; this machine's own addresses."""

from __future__ import annotations

import argparse
import socket
from ipaddress import ip_address

import pytest

from retire_cluster.cli.verbs import token
from retire_cluster.conf import curve, joining
from retire_cluster.conf.loading import load
from retire_cluster.conf.machine import addresses
from retire_cluster.conf.machine.addresses import OwnAddress, ranked, zoned
from retire_cluster.conf.spec import SettingsError
from retire_cluster.node.link.sockets import Address, parse_join
from retire_cluster.schemas.errors import ValidationError
from retire_cluster.schemas.rest.requests import JOIN_TOKEN
from retire_cluster.schemas.rest.validation import validate
from retire_cluster.schemas.text.hosts import (
    HostError,
    bracketed,
    in_url,
    read_address,
    read_bound,
    read_host,
)

GOOD = {
    "nas": "nas",
    " nas.lan. ": "nas.lan",
    "my_pi-4": "my_pi-4",
    "192.168.1.10": "192.168.1.10",
    "fd00::1": "fd00::1",
    "[fd00::1]": "fd00::1",
    "FD00:0::1": "fd00::1",
    "::ffff:192.168.1.10": "192.168.1.10",
    "fe80::1%br-lan": "fe80::1%br-lan",
    "[fe80::1%25br-lan]": "fe80::1%br-lan",
    "fe80::1%12": "fe80::1%12",
}
#: What people write, and what the one line about it has to show.
BAD = {
    "http://nas:8081": "a URL: write the host alone, nas",
    "https://user@[fd00::1]:8081/ui/": "a URL: write the host alone, fd00::1",
    "nas:8081": "has a port: write the host alone, nas",
    "[fd00::1]:8082": "has a port: write the host alone, fd00::1",
    "a b": "a name (nas.lan), an IPv4 address (192.168.1.10) or an IPv6 address (fd00::10)",
    "": "is empty",
    "999.1.1.1": "is no host",
    "192.168.1": "is no host",
    "-nas": "is no host",
    "nas/": "is no host",
    "näs": "letters",
    "[nas]": "is no host",
    "fe80::1%": "the name of a network interface",
    "fe80::1%a b": "the name of a network interface",
    "a" * 300: "is no host",
    "nas\n": "",
    "nas\nlan": "is no host",
    "na\0s": "is no host",
}


@pytest.mark.parametrize(("text", "expected"), GOOD.items())
def test_a_host_is_read_the_same_everywhere(text: str, expected: str) -> None:
    assert read_host(text) == expected
    assert validate(JOIN_TOKEN, {"host": text})["host"] == text
    assert token.dialled(text) == expected
    assert load(None, {}, {"data_dir": "/x", "server.public_host": text}).server.public_host == (
        expected
    )
    port = read_address(f"{bracketed(expected)}:9", 8082)
    assert port == (expected, 9)
    server = curve.new_pair().public
    made = {"token": "00" * 16, "server_key": server, "worker_port": 8082}
    assert curve.read_join(joining.join_string(made, text)).host == expected


@pytest.mark.parametrize(("text", "words"), [row for row in BAD.items() if row[1]])
def test_what_is_no_host_gets_one_line_with_the_right_form(text: str, words: str) -> None:
    for read in (read_host, read_bound):
        with pytest.raises(HostError) as caught:
            read(text)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    if text:
        with pytest.raises(ValidationError) as refused:
            validate(JOIN_TOKEN, {"host": text})
        assert refused.value.details["field"] == "host"
    with pytest.raises(argparse.ArgumentTypeError):
        token.dialled(text)
    if text:
        with pytest.raises(SettingsError, match=r"server\.public_host"):
            load(None, {}, {"data_dir": "/x", "server.public_host": text})


@pytest.mark.parametrize("text", ["*", "0.0.0.0", "::", "[::]"])
def test_every_address_can_be_listened_on_but_not_dialled(text: str) -> None:
    assert read_bound(text) == text.strip("[]")
    with pytest.raises(HostError, match="stands for every address"):
        read_host(text)


@pytest.mark.parametrize("text", ["nas:0", "nas:65536", "nas:", "nas:x", "[fd00::1", "[fd00::1]x"])
def test_an_address_with_a_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(HostError):
        read_address(text, 8082)


def test_hosts_stand_in_brackets_before_a_port_and_their_zone_is_escaped_in_urls() -> None:
    assert str(Address("fe80::1%lan0", 8082)) == "[fe80::1%lan0]:8082"
    assert parse_join(str(Address("fe80::1%lan0", 8082))) == Address("fe80::1%lan0", 8082)
    assert in_url("fe80::1%lan0") == "[fe80::1%25lan0]"
    assert bracketed("nas") == in_url("nas") == "nas"


# --- this machine's addresses -----------------------------------------------------------------


def test_addresses_that_devices_reach_come_first_and_link_local_ones_last() -> None:
    found = [
        OwnAddress("docker0", "172.17.0.1", up=False),
        OwnAddress("br-0123456789ab", "172.18.0.1"),
        OwnAddress("eth0", "fe80::1%eth0"),
        OwnAddress("eth0", "2001:db8::77", temporary=True),
        OwnAddress("eth0", "fd00::1"),
        OwnAddress("eth0", "192.168.1.10"),
        OwnAddress("br-lan", "10.0.0.1"),
        OwnAddress("usb0", "169.254.3.4"),
    ]
    order = ranked(found, {"192.168.1.10"})
    assert order[:4] == ["192.168.1.10", "fd00::1", "2001:db8::77", "10.0.0.1"]
    assert order[4:] == ["172.18.0.1", "169.254.3.4", "fe80::1%eth0", "172.17.0.1"]
    # Without a default route the plain networks still come first.
    assert set(ranked(found)[:2]) == {"192.168.1.10", "10.0.0.1"}


def test_the_systems_list_has_no_loopback_and_names_zones() -> None:
    for own in addresses.own_addresses():
        plain = ip_address(own.address.partition("%")[0])
        assert not plain.is_loopback
        assert (plain.version == 6 and plain.is_link_local) == ("%" in own.address)


@pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="netlink is Linux's")
def test_the_fallbacks_find_what_the_system_lists() -> None:
    listed = {own.address for own in addresses._from_netlink()}
    routed = {own.address for own in addresses._from_names()}
    assert {a for a in routed if addresses._is_of_use(a)} <= listed
    psutil = pytest.importorskip("psutil")
    assert (
        {o.address for o in addresses._from_psutil()}
        == {
            row.address
            for rows in psutil.net_if_addrs().values()
            for row in rows
            if row.family in (socket.AF_INET, socket.AF_INET6)
        }
        == listed
    )


def test_damaged_lists_of_the_system_are_not_read_beyond_their_end() -> None:
    whole = addresses._HEADER.pack(40, 20, 0, 1, 0) + b"\2" + bytes(23)
    for cut in range(len(whole)):
        for kind, body in addresses._messages(whole[:cut]):
            assert kind == 20
            assert len(body) <= cut
    assert list(addresses._messages(b"\0" * 64)) == []


def test_a_link_local_address_is_dialled_by_an_interface_of_this_device() -> None:
    assert zoned("fd00::1", []) == "fd00::1"
    assert zoned("fe80::1%br-lan", ["wlan0"]) == "fe80::1%wlan0"
    assert zoned("fe80::1", ["wlan0"]) == "fe80::1%wlan0"
    assert zoned("fe80::1%eth0", ["eth0", "wlan0"]) == "fe80::1%eth0"
    with pytest.raises(ValueError, match=r"several interfaces \(eth0, wlan0\)"):
        zoned("fe80::1%br-lan", ["eth0", "wlan0"])


def test_where_a_socket_is_reached_follows_where_it_is_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(addresses, "lan_addresses", lambda: ["fd00::5", "10.0.0.5"])
    assert addresses.public_host("*") == "fd00::5"
    assert addresses.public_host("0.0.0.0") == "10.0.0.5"
    assert addresses.public_host("10.0.0.9") == "10.0.0.9"
    assert addresses.public_host("127.0.0.1") is None
    assert addresses.public_host("*", "nas.lan") == "nas.lan"
