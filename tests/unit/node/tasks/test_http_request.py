"""`http_request`: which addresses may be reached, and which payloads cannot work."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from retire_cluster.node.tasks import http_request
from retire_cluster.node.tasks.base import BadPayload, Denied, TaskFailed
from retire_cluster.node.tasks.http_addresses import choose, is_public, resolve


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255",
        "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1",
        "198.51.100.7", "203.0.113.9", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.88.99.1",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1",
        "2001::1", "2001:20::1", "3fff::1", "100::1", "5f00::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::808:808", "2002:7f00:1::1",
        "not an address", "",
    ],
)  # fmt: skip
def test_addresses_that_no_task_may_reach(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "192.1.0.1", "223.255.255.255",
        "2606:4700:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8", "64:ff9b::808:808",
        "2002:808:808::1",
    ],
)  # fmt: skip
def test_public_addresses_may_be_reached(address: str) -> None:
    assert is_public(address)


def test_one_private_address_of_a_name_is_enough_to_refuse_it() -> None:
    with pytest.raises(Denied, match=r"rebind\.example is at 127\.0\.0\.1"):
        choose(
            "rebind.example",
            80,
            private_allowed=False,
            look_up=lambda host, port: ["8.8.8.8", "127.0.0.1"],
        )


def test_the_connection_goes_to_the_address_that_was_judged() -> None:
    answers = iter([["8.8.8.8"], ["127.0.0.1"]])
    found = choose("x.example", 80, private_allowed=False, look_up=lambda host, port: next(answers))
    assert [(endpoint.host, endpoint.address) for endpoint in found] == [("x.example", "8.8.8.8")]


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "017700000001"])
def test_odd_spellings_of_loopback_are_seen_through(host: str) -> None:
    try:
        assert resolve(host, 80) == ["127.0.0.1"]
    except socket.gaierror:
        pytest.skip("this system's resolver does not take the spelling at all")
    with pytest.raises(Denied):
        choose(host, 80, private_allowed=False)


def test_the_owner_can_allow_private_addresses() -> None:
    (endpoint,) = choose("127.0.0.1", 81, private_allowed=True)
    assert (endpoint.address, endpoint.port) == ("127.0.0.1", 81)


def test_a_name_without_address_may_work_next_time() -> None:
    def fail(host: str, port: int) -> list[str]:
        raise socket.gaierror("nobody knows it")

    with pytest.raises(TaskFailed, match="nobody knows it") as error:
        choose("nowhere.example", 80, private_allowed=False, look_up=fail)
    assert error.value.cause == "error"
    with pytest.raises(TaskFailed, match="no address"):
        choose("nowhere.example", 80, private_allowed=False, look_up=lambda host, port: [])


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "url"),
        ({"url": 1}, "url"),
        ({"url": "example.com"}, "url"),
        ({"url": "file:///etc/passwd"}, "url"),
        ({"url": "gopher://x/"}, "url"),
        ({"url": "http://"}, "url"),
        ({"url": "http:///path"}, "url"),
        ({"url": "http://x y/"}, "url"),
        ({"url": "http://x/\r\nHost: y"}, "url"),
        ({"url": "http://good.example\\@127.0.0.1/"}, "url"),
        ({"url": "http://x:99999/"}, "url"),
        ({"url": "http://x:0/"}, "url"),
        ({"url": "http://[::1/"}, "url"),
        ({"url": "http://" + "ü" * 70 + "/"}, "url"),
        ({"url": "http://x/", "method": "get"}, "method"),
        ({"url": "http://x/", "headers": []}, "headers"),
        ({"url": "http://x/", "headers": {"a": 1}}, "headers"),
        ({"url": "http://x/", "headers": {"a b": "1"}}, "headers"),
        ({"url": "http://x/", "headers": {"": "1"}}, "headers"),
        ({"url": "http://x/", "headers": {"a": "1\r\nb: 2"}}, "headers"),
        ({"url": "http://x/", "headers": {"a": "Ā"}}, "headers"),
        ({"url": "http://x/", "headers": {"Host": "y"}}, "headers"),
        ({"url": "http://x/", "headers": {"transfer-encoding": "chunked"}}, "headers"),
        ({"url": "http://x/", "data": [1]}, "data"),
        ({"url": "http://x/", "timeout": 0}, "timeout"),
        ({"url": "http://x/", "timeout": True}, "timeout"),
        ({"url": "http://x/", "verify": False}, "verify"),
    ],
)
def test_a_payload_that_cannot_work_is_named(payload: dict[str, Any], field: str) -> None:
    with pytest.raises(BadPayload) as error:
        http_request.check(payload)
    assert error.value.message.startswith(f"payload.{field}: ")
    assert error.value.cause == "deterministic"


@pytest.mark.parametrize(
    ("payload", "expected"),
    [({}, True), ({"method": "HEAD"}, True), ({"method": "POST"}, False), ({"method": 1}, False)],
)
def test_only_get_and_head_may_run_twice(payload: dict[str, Any], expected: bool) -> None:
    assert http_request.is_repeatable(payload) is expected
