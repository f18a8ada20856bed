"""Audit events of a real main node that ends, or is killed, and is started again."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.broker.client import AdminClient
from retire_cluster.cli.verbs import api_keys
from retire_cluster.schemas.protocol import wire
from tests.integration.main_kit import MainProcess, RawDevice, eventually


def told(client: AdminClient, *types: str, since: int = 0) -> list[dict[str, Any]]:
    found = client.call("events.poll", {"since": since})["events"]
    return [each for each in found if each["type"] in types]


def flood(main: MainProcess, device_id: str) -> None:
    device = RawDevice(main.ports["worker_port"], device_id)
    device.join()
    client = main.client
    assert client is not None

    def is_told() -> bool:
        device.socket.send_multipart(wire.encode(wire.BUS, b"NONSENSE", {}))
        found = told(client, "device.flooding")
        return any(each.get("device_id") == device_id for each in found)

    try:
        for _ in range(200):
            device.socket.send_multipart(wire.encode(wire.BUS, b"NONSENSE", {}))
        eventually(is_told, "the denial")
    finally:
        device.close()


def test_a_flood_is_told_though_nobody_says_anything_after_it(
    start_main: Callable[..., MainProcess],
) -> None:
    main = start_main()
    client = main.ready()
    device = RawDevice(main.ports["worker_port"], "burst")
    try:
        device.join()
        for _ in range(200):
            device.socket.send_multipart(wire.encode(wire.BUS, b"NONSENSE", {}))
        (flooded,) = eventually(lambda: told(client, "device.flooding"), "the denial")
        assert flooded["device_id"] == "burst"
    finally:
        device.close()


@pytest.mark.parametrize("kill", [False, True])
def test_acts_are_there_after_a_restart_and_denials_too(
    start_main: Callable[..., MainProcess], kill: bool
) -> None:
    main = start_main()
    client = main.ready()
    flood(main, "loud")
    client.call("config.update", {"section": "heartbeat", "values": {"interval": 9}})
    client.call("device.remove", {"device_id": "loud"})
    kinds = ["device.flooding", "config.changed", "device.removed"]
    if not kill:  # what is denied last is written by a sweep or at the end
        flood(main, "louder")
        kinds.append("device.flooding")
    before = told(client, *kinds)
    seen = client.call("events.poll", {"since": 0})["next"]
    assert [each["type"] for each in before] == kinds
    main.end(kill=kill)

    client = start_main().ready()
    page = client.call("events.poll", {"since": 0})
    assert page["events"] == before
    assert not page["gap"]
    assert told(client, *kinds, since=seen) == []
    client.call("device.readmit", {"device_id": "loud"})
    assert [each["type"] for each in told(client, *kinds, "device.readmitted", since=seen)] == [
        "device.readmitted"
    ]


def keys(*words: str) -> tuple[int, str, str]:
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        code = api_keys.main(words)
    return code, out.getvalue(), said.getvalue()


def test_keys_that_are_made_and_revoked_are_events_of_the_main_node_that_is_up(
    start_main: Callable[..., MainProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETIRE_CLUSTER_SERVER_CURVE", "false")
    main = start_main()
    main.ready()
    data = ("--data-dir", str(tmp_path / "data"))
    code, key, said = keys("create", "--scope", "read", *data)
    assert code == 0
    assert "events" not in said
    key_id = said.split()[0]
    assert keys("revoke", key_id, *data)[0] == 0
    main.end(kill=True)
    code, _, said = keys("create", *data)
    assert code == 0
    assert "no main node was told: its events do not tell of this" in said
    found = told(start_main().ready(), "api_key.created", "api_key.revoked")
    assert [(each["type"], each["data"]) for each in found] == [
        ("api_key.created", {"key": key_id, "scopes": ["read"]}),
        ("api_key.revoked", {"key": key_id}),
    ]
    assert key.strip() not in str(found)
