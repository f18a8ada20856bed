"""`http_request` does not reach the device itself by addresses that are public (S26)."""

from __future__ import annotations

import json
import sys

import pytest

from tests.integration.netns_kit import Place, needs_networks

pytestmark = needs_networks

#: What each address comes to, in a network where they are this device's own, or are not.
ASKS = """
import json, sys
from retire_cluster.node.tasks import http_addresses
from retire_cluster.node.tasks.base import Denied
found = {}
for address in sys.argv[1:]:
    try:
        http_addresses.choose(address, 80, private_allowed=False)
        found[address] = "allowed"
    except Denied as error:
        found[address] = "own" if "own address" in error.message else error.message
    http_addresses.choose(address, 80, private_allowed=True)
print(json.dumps(found))
"""
OWN_4, SECOND_4, OWN_6, OTHERS = "9.9.9.1", "9.9.9.7", "2606:4700:77::1", "9.9.9.2"


def asked(place: Place, *addresses: str) -> dict[str, str]:
    done = place.run(sys.executable, "-c", ASKS, *addresses)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("binds_anything", [False, True])
def test_an_address_of_an_interface_is_refused_from_the_moment_it_is_there(
    binds_anything: bool,
) -> None:
    place = Place()
    try:
        place.must("ip", "link", "set", "lo", "up")
        if binds_anything:
            for version in ("ipv4", "ipv6"):
                knob = f"/proc/sys/net/{version}/ip_nonlocal_bind"
                place.must("sh", "-c", f"echo 1 > {knob}")
        names = (OWN_4, SECOND_4, f"::ffff:{OWN_4}", OWN_6, OTHERS)
        assert asked(place, *names) == dict.fromkeys(names, "allowed")
        for address in (f"{OWN_4}/32", f"{SECOND_4}/32"):
            place.must("ip", "address", "add", address, "dev", "lo")
        place.must("ip", "address", "add", f"{OWN_6}/64", "dev", "lo", "nodad")
        assert asked(place, *names) == {**dict.fromkeys(names, "own"), OTHERS: "allowed"}
    finally:
        place.close()
