"""Two machines on one cable: network namespaces with a veth pair between them (Linux, root)."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

#: Interfaces' names differ on purpose: a zone means nothing on the other side of a cable.
MAIN_INTERFACE, DEVICE_INTERFACE = "br-lan", "wlan9"


def _can() -> bool:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return False
    if not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        return False
    return subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0


needs_networks = pytest.mark.skipif(not _can(), reason="needs root, iproute2 and util-linux")


class Place:
    """A network of its own, alive as long as the process that holds it."""

    def __init__(self) -> None:
        before = os.readlink("/proc/self/ns/net")
        self.holder = subprocess.Popen(["unshare", "-n", "sleep", "600"])
        end = time.monotonic() + 10
        while os.readlink(f"/proc/{self.holder.pid}/ns/net") == before:
            assert time.monotonic() < end, "no network namespace"
            time.sleep(0.01)

    def command(self, words: Sequence[str]) -> list[str]:
        """The command as it runs there."""
        return ["nsenter", "-t", str(self.holder.pid), "-n", *words]

    def run(self, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a command there to its end."""
        return subprocess.run(
            self.command(words), capture_output=True, text=True, timeout=timeout, check=False
        )

    def must(self, *words: str) -> None:
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}"

    def await_route(self, interface: str) -> None:
        """An interface has its link-local address and the route of it some time after it is up."""
        end = time.monotonic() + 10
        show = ("ip", "-6", "route", "show", "table", "all", "dev", interface)
        while not re.search(r"^local fe80::", found := self.run(*show).stdout, re.MULTILINE):
            assert time.monotonic() < end, f"{interface} has no link-local route:\n{found}"
            time.sleep(0.02)

    def close(self) -> None:
        self.holder.kill()
        self.holder.wait()


@contextlib.contextmanager
def cable(addresses: Sequence[str]) -> Iterator[tuple[Place, Place]]:
    """A main node's and a device's network, on one cable and with no route beyond it.

    :param addresses: networks such as `10.77.0.0/24`; the main node is .1, the device .2
    """
    main, device = Place(), Place()
    try:
        main.must(
            *("ip", "link", "add", MAIN_INTERFACE, "type", "veth"),
            *("peer", "name", DEVICE_INTERFACE, "netns", str(device.holder.pid)),
        )
        ends = ((main, MAIN_INTERFACE, "1"), (device, DEVICE_INTERFACE, "2"))
        for place, interface, last in ends:
            place.must("ip", "link", "set", "lo", "up")
            # Without duplicate detection, which takes seconds of "tentative".
            knob = Path(f"/proc/sys/net/ipv6/conf/{interface}/accept_dad")
            place.must("sh", "-c", f"echo 0 > {knob}")
            place.must("ip", "link", "set", interface, "up")
            for network in addresses:
                prefix, _, bits = network.partition("/")
                address = prefix.removesuffix("0") + last
                nodad = ["nodad"] if ":" in network else []
                place.must("ip", "address", "add", f"{address}/{bits}", "dev", interface, *nodad)
        for place, interface, _ in ends:
            place.await_route(interface)
        yield main, device
    finally:
        device.close()
        main.close()
