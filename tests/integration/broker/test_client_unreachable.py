"""A main node that is not there is told as such, soon, and never as a stranger."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from retire_cluster.broker.client import AdminClient, NoAnswer
from retire_cluster.cli.target import Target
from retire_cluster.conf.curve import ClientKeys, Pair


@contextlib.contextmanager
def goes_away(after: int) -> Iterator[int]:
    """The port of a listener that ends so many connections in their handshake, and is gone then."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    port: int = server.getsockname()[1]

    def run() -> None:
        with contextlib.suppress(OSError):
            for _ in range(after):
                connection, _ = server.accept()
                with connection:
                    connection.recv(10)
        server.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield port
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


def some_keys() -> ClientKeys:
    """A pair, and the public key of some main node."""
    (public, secret), (server, _) = zmq.curve_keypair(), zmq.curve_keypair()
    return ClientKeys(Pair(public.decode(), secret.decode()), server.decode())


def told(client: AdminClient, seconds: float) -> str:
    """What a call raises."""
    try:
        with pytest.raises(NoAnswer) as caught:
            client.call("cluster.status", timeout_seconds=seconds)
    finally:
        client.close()
    return caught.value.message


def test_tooling_is_told_within_two_seconds_that_nothing_listens(tmp_path: Path) -> None:
    with goes_away(0) as port:
        pass
    target = Target("127.0.0.1", port, "--cluster-port", tmp_path)
    began = time.monotonic()
    assert told(target.client(10.0), 10.0).startswith(f"nothing listens at 127.0.0.1:{port}:")
    assert time.monotonic() - began < 3.0


@pytest.mark.parametrize("keyed", [True, False])
def test_a_main_node_that_goes_away_in_the_handshake_is_away_and_no_stranger(keyed: bool) -> None:
    found = some_keys()
    with goes_away(1) as port:
        client = AdminClient(
            port=port, keys=(lambda: found) if keyed else None, refused_seconds=0.2
        )
        assert told(client, 10.0).startswith(f"nothing listens at 127.0.0.1:{port}:")


@pytest.mark.parametrize(
    ("keyed", "words"), [(True, "is not the main node of this key"), (False, "asks for a key")]
)
def test_who_ends_each_handshake_is_told_at_once(keyed: bool, words: str) -> None:
    found = some_keys()
    began = time.monotonic()
    with goes_away(50) as port:
        assert words in told(AdminClient(port=port, keys=(lambda: found) if keyed else None), 10.0)
    assert time.monotonic() - began < 5.0


def test_a_main_node_that_starts_meanwhile_is_waited_for() -> None:
    with goes_away(0) as port:
        pass
    client = AdminClient(port=port, refused_seconds=5.0)
    context = zmq.Context()
    server = context.socket(zmq.ROUTER)
    server.setsockopt(zmq.RCVTIMEO, 5_000)

    def start() -> None:
        server.bind(f"tcp://127.0.0.1:{port}")
        server.recv_multipart()

    timer = threading.Timer(0.3, start)
    timer.start()
    try:
        assert "did not answer within 1.5 s" in told(client, 1.5)
    finally:
        timer.join(10)
        server.close(0)
        context.term()
