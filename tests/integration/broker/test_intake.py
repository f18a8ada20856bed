"""What strangers and holders of a token may have a main node keep for them: little."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from retire_cluster.broker.net import intake
from retire_cluster.broker.net.crowd import Crowd, network_of, room_for
from retire_cluster.broker.net.intake import BEFORE_FIRST_BYTES, EACH_BYTES, MIB, too_much
from retire_cluster.schemas.protocol import wire
from tests.integration.broker.test_zap import Fort
from tests.integration.main_kit import eventually

pytestmark = pytest.mark.skipif(not intake.available(), reason="TCP_INFO is Linux's")
FLOOD = [sys.executable, "-m", "tests.integration.flood"]
#: What the main node may grow by meanwhile.
MOST_MIB = 250


@pytest.fixture
def fort(tmp_path: Path) -> Iterator[Fort]:
    node = Fort(tmp_path)
    yield node
    node.stop()


@dataclass(eq=False)
class Peer:
    """One connection, for the rules alone."""

    address: str


class Peak:
    """By how many MiB this process grew at most inside a `with` block."""

    def __enter__(self) -> Peak:
        self._process = psutil.Process()
        self._before = self._most = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            self._most = max(self._most, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def grown_mib(self) -> int:
        return (self._most - self._before) // MIB


def flood(*words: object) -> int:
    done = subprocess.run(
        [*FLOOD, *map(str, words)], capture_output=True, text=True, timeout=60, check=True
    )
    return int(done.stdout)


@pytest.mark.parametrize(("connections", "mib", "most"), [(40, 31, 100), (120, 4, MOST_MIB)])
def test_handshakes_of_strangers_are_cut_and_cost_little(
    fort: Fort, connections: int, mib: int, most: int
) -> None:
    with Peak() as peak:
        cut = flood("handshakes", fort.facts.worker_port, connections, mib * MIB)
        fort.call("cluster.status")
    print(f"{cut} of {connections} cut, {peak.grown_mib} MiB more")
    # Small ones may have come and gone between two looks: then they cost nothing either.
    assert mib <= 4 or cut == connections
    assert peak.grown_mib < most
    device = fort.socket("box", keys=fort.known("box"))
    device.join()


def test_a_token_holders_message_without_end_is_cut_and_costs_little(
    fort: Fort, caplog: pytest.LogCaptureFixture
) -> None:
    _, keys = fort.token()
    words = (fort.facts.worker_port, keys.server, *keys.pair, 700 * MIB)
    with Peak() as peak:
        cut = flood("multipart", *words)
        fort.call("cluster.status")
    print(f"{cut} cut, {peak.grown_mib} MiB more")
    assert cut == 1
    assert peak.grown_mib < MOST_MIB
    assert fort.dropped("connection_cut") >= 1
    assert "cut a connection of 127.0.0.1" in caplog.text


def test_what_honest_ones_send_is_never_cut(fort: Fort) -> None:
    """The largest batch as the first message, and many messages after it, large and small."""
    payload = b'{"a":"%s"}' % (b"x" * (250 * 1024))
    for _ in range(8):
        fort.submit(payload, count=60, task_type="echo")
    for _ in range(300):
        fort.call("broker.info")
    device = fort.socket("box", keys=fort.known("box"))
    device.join()
    for _ in range(2_000):
        device.socket.send_multipart(wire.encode(wire.BUS, b"NONSENSE", {}))
    gate = fort.broker._sockets.zap
    assert gate is not None

    def all_read() -> bool:
        meters = list(gate.intake._meters.values())
        read = sum(meter.delivered > 2_000 * intake.FRAME_BYTES for meter in meters)
        return read >= 2 and all(meter.held < 4096 for meter in meters)

    eventually(all_read, "everything was read, and nothing is thought to be held")
    assert fort.dropped("connection_cut") == 0
    assert len(gate.intake._meters) >= 2


def test_connections_that_ended_are_forgotten(fort: Fort) -> None:
    gate = fort.broker._sockets.zap
    assert gate is not None
    fort.call("cluster.status")  # the administrator's own is there
    before = len(gate.intake._meters)
    others = [fort.socket(f"box-{n}", keys=fort.known(f"box-{n}")) for n in range(20)]
    for device in others:
        device.join()
    assert len(gate.intake._meters) >= before + 20
    for device in others:
        device.close()
    fort._devices.clear()
    eventually(lambda: len(gate.intake._meters) <= before, "forgotten")


def test_connections_that_say_nothing_take_few_files_and_devices_come_in(fort: Fort) -> None:
    gate = fort.broker._sockets.zap
    assert gate is not None
    crowd, files = gate.intake.crowd, psutil.Process().num_fds()
    crowd.room = lambda: 200
    fort.socket("early", keys=fort.known("early")).join()
    words = ("idle", fort.facts.worker_port, 600)
    with subprocess.Popen(
        [*FLOOD, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as flooding:
        assert flooding.stdin is not None
        assert flooding.stdout is not None
        assert flooding.stdout.readline() == "all are open\n"
        eventually(lambda: fort.dropped("connection_cut") >= 500, "the oldest are given up")
        eventually(lambda: len(gate.intake._meters) <= 110, "and closed")
        more = psutil.Process().num_fds() - files
        for number in range(20):
            fort.socket(f"late-{number}", keys=fort.known(f"late-{number}")).join()
        assert fort.call("device.list")["pagination"]["total_items"] == 21
        meters = list(gate.intake._meters.values())
        spoken = [each for each in meters if each.delivered]
        told, _ = flooding.communicate("\n", timeout=20)
    print(f"{more} files more, {told.strip()} of 600 cut")
    assert more < 130
    assert int(told) >= 500
    assert len(spoken) == 1 + 21, "who has said something is let be"
    assert not any(each.cut for each in spoken)


def test_the_oldest_that_said_nothing_goes_of_the_address_that_has_most() -> None:
    crowd = Crowd[Peer](lambda: 8)
    many = [Peer("a") for _ in range(5)]
    assert [crowd.add(each) for each in many] == [None] * 4 + [many[0]]
    crowd.remove(many[0])
    others = [Peer(str(number)) for number in range(5)]
    assert [crowd.add(each) for each in others] == [None] * 4 + [many[1]]
    for each in (*many, *others):
        crowd.mark_active(each)
    crowd.remove(many[1])
    new = Peer("b")
    assert crowd.add(new) is new, "where all have spoken the newest goes"
    for each in (*many, *others, new):
        crowd.remove(each)
    assert len(crowd) == 0
    assert not crowd._silent
    assert (room_for(1_000, None), room_for(1_000, 1_256), room_for(1, 10)) == (1_512, 1_128, 64)
    assert network_of("2001:db8::1") == network_of("2001:db8::2") != network_of("2001:db9::1")


def meter(held_mib: float, delivered: int = 0) -> Any:
    return SimpleNamespace(held=int(held_mib * MIB), delivered=delivered, cut=False)


def test_each_and_all_together_are_bounded_and_the_largest_goes_first() -> None:
    def cut(*meters: Any) -> list[float]:
        return [each.held / MIB for each in too_much(meters)]

    assert cut(meter(1), meter(40, 1)) == []
    assert cut(meter(BEFORE_FIRST_BYTES / MIB + 1), meter(EACH_BYTES / MIB + 1, 1)) == [65, 25]
    assert cut(*[meter(10 + n / 8) for n in range(6)]) == [10.625, 10.5], "48 of strangers"
    assert cut(meter(20), *[meter(50 + n, 1) for n in range(5)]) == [54], "256 of all"


def test_a_system_that_counts_less_ends_nothing() -> None:
    """Before Linux 4.1 `tcp_info` ends earlier."""
    old = SimpleNamespace(getsockopt=lambda *_: bytes(104), detach=lambda: 7)
    with pytest.raises(OSError, match="does not count"):
        intake.Meter(7, "peer", cast(Any, old)).look()
