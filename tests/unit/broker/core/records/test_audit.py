"""What an administrator did and what was denied is known after the main node was started again."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.cluster import handle
from retire_cluster.broker.core.devices.access import AdminKey, Token
from retire_cluster.broker.core.records import audit
from retire_cluster.broker.core.records import event_log as feed
from retire_cluster.broker.store.sqlite import SQLiteStore
from retire_cluster.schemas.protocol import messages as msg
from tests.unit.broker.kit import Cluster, MakeCluster, only, settings_with, wrong

KEY_ID = "0123456789abcdef"


def token(name: str = "guests") -> Token:
    return Token(name, "t" * 40, 0, 1 << 50, 100)


def every_act(cluster: Cluster) -> None:
    cluster.do(ev.TokenMade(token()))
    enrol = msg.Enrol("s", "phone", "p" * 40)
    cluster.do(ev.FromDevice(b"r", enrol, "192.0.2.1", "t" * 40))
    cluster.do(ev.TokenRevoked("guests"))
    cluster.do(ev.AdminKeyAdded(AdminKey("ann", "a" * 40, 0)))
    cluster.do(ev.AdminKeyRevoked("ann"))
    cluster.do(ev.DeviceAuthorised("tablet", "x" * 40))
    cluster.device("gone")
    cluster.call("device.remove", {"device_id": "gone"})
    cluster.call("device.readmit", {"device_id": "gone"})
    cluster.call("config.update", {"section": "heartbeat", "values": {"interval": 7}})
    made = {"change": "created", "key_ids": [KEY_ID], "scopes": ["read"]}
    cluster.call("api_key.changed", made)
    cluster.call("api_key.changed", {"change": "revoked", "key_ids": [KEY_ID]})


def deny(cluster: Cluster, source: str) -> None:
    enrol = msg.Enrol("s", "phone", "p" * 40)
    cluster.do(ev.FromDevice(b"r", enrol, "192.0.2.1", source * 40))


def shown(cluster: Cluster, since: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while page := cluster.call("events.poll", {"since": since}).data:
        since = page["next"]
        found += page["events"]
        if not page["events"]:
            break
    return found


def kept_apart(cluster: Cluster, since: int = 0) -> list[dict[str, Any]]:
    return [each for each in shown(cluster, since) if each["type"] in audit.ACTS | audit.DENIALS]


def small(tmp_path: Path, acts: int = 100) -> Cluster:
    settings = settings_with(retention={"audit_rows": acts, "event_rows": 100})
    return Cluster(settings, store=SQLiteStore(tmp_path / "cluster.db"))


def rows(cluster: Cluster) -> list[tuple[int, str]]:
    store = cluster.store
    assert isinstance(store, SQLiteStore)
    return store._db.execute("select denial, type from audit order by id").fetchall()


def test_every_act_of_an_administrator_outlives_the_process(tmp_path: Path) -> None:
    for store in (None, SQLiteStore(tmp_path / "cluster.db")):
        cluster = Cluster(store=store)
        every_act(cluster)
        before = kept_apart(cluster)
        assert {each["type"] for each in before} == audit.ACTS
        cluster.restart()
        assert kept_apart(cluster) == before
        cluster.reboot()
        assert shown(cluster) == before


def test_an_act_is_in_the_commit_of_what_it_tells(cluster: Cluster) -> None:
    found = cluster.do(ev.TokenMade(token()))
    (told,) = only(ins.StoreAudit, found)
    assert only(ins.StoreAccess, found)
    assert [(row.type, row.data) for row in told.rows] == [("token.created", {"token": "guests"})]
    assert not only(ins.StoreAudit, cluster.do(ev.Tick("devices")))


def test_a_turn_that_is_not_committed_leaves_no_event_behind(cluster: Cluster) -> None:
    cluster.do(ev.TokenMade(token()))
    handle(cluster.state, ev.TokenRevoked("guests"), cluster.now)  # and the store refuses it
    cluster.restart()
    assert [each["type"] for each in kept_apart(cluster)] == ["token.created"]
    cluster.do(ev.TokenRevoked("guests"))
    assert [each["type"] for each in kept_apart(cluster)] == ["token.created", "token.revoked"]


def test_denials_are_written_by_a_sweep_and_never_by_who_is_denied(cluster: Cluster) -> None:
    for number in range(300):
        enrol = msg.Enrol("s", "phone", "p" * 40)
        event = ev.FromDevice(b"r", enrol, "192.0.2.1", f"{number:040}")
        assert not [each for each in cluster.do(event) if isinstance(each, ins.WRITES)]
    (write,) = only(ins.StoreAudit, cluster.tick("devices"))
    assert len(write.rows) == 300
    assert not only(ins.StoreAudit, cluster.tick())
    before = kept_apart(cluster)
    cluster.restart()
    assert kept_apart(cluster) == before


def test_denials_before_an_act_are_written_with_it(cluster: Cluster) -> None:
    deny(cluster, "a")
    cluster.do(ev.TokenMade(token()))
    before = kept_apart(cluster)
    cluster.restart()
    assert kept_apart(cluster) == before
    assert [each["type"] for each in before] == ["device.refused", "token.created"]


def test_the_table_is_bounded_and_denials_push_nothing_out(tmp_path: Path) -> None:
    cluster = small(tmp_path, acts=100)
    for number in range(150):
        cluster.do(ev.DeviceAuthorised(f"box-{number}", f"{number:040}"))
    for number in range(audit.DENIALS_KEPT + 200):
        enrol = msg.Enrol("s", "phone", "p" * 40)
        cluster.do(ev.FromDevice(b"r", enrol, "192.0.2.1", f"{number:040}"))
        if number % 300 == 0:
            cluster.tick("devices")
    cluster.tick("devices")
    found = rows(cluster)
    assert found.count((0, "device.authorised")) == 100
    assert found.count((1, "device.refused")) == len(found) - 100 == audit.DENIALS_KEPT
    before = kept_apart(cluster)
    cluster.restart()
    assert len(before) == 100 + audit.DENIALS_KEPT
    assert shown(cluster) == before
    assert before[0]["device_id"] == "box-50"


def test_fewer_rows_are_kept_when_the_setting_says_so_also_at_a_start(tmp_path: Path) -> None:
    cluster = small(tmp_path, acts=500)
    for number in range(300):
        cluster.do(ev.DeviceAuthorised(f"box-{number}", f"{number:040}"))
    cluster.call("config.update", {"section": "retention", "values": {"audit_rows": 200}})
    assert len(rows(cluster)) == 200
    cluster.base = settings_with(retention={"audit_rows": 100})
    cluster.call("config.reset")
    cluster.restart()
    assert len(kept_apart(cluster)) == 100
    cluster.do(ev.TokenMade(token()))
    assert len(rows(cluster)) == 100


def test_a_cursor_of_before_finds_no_row_twice_and_none_missing(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    cluster.do(ev.TokenMade(token("one")))
    seen = cluster.call("events.poll", {"since": 0}).data["next"]
    cluster.do(ev.TokenMade(token("two")))
    cluster.restart()
    cluster.device("box")
    told = cluster.call("events.poll", {"since": seen}).data
    kinds = [(each["type"], each["data"].get("token")) for each in told["events"]]
    assert kinds == [("token.created", "two"), ("device.online", None)]
    assert shown(cluster, told["next"]) == []
    cluster.restart()
    assert shown(cluster, told["next"]) == []
    now = cluster.call("events.poll").data
    assert (now["events"], now["gap"]) == ([], False)
    assert [each["data"]["token"] for each in shown(cluster)] == ["one", "two"]
    assert not cluster.call("events.poll", {"since": 0}).data["gap"]


def test_a_cursor_of_another_epoch_is_not_told_of_what_was_before_this_one() -> None:
    log = feed.EventLog(1 << 40)
    log.acts.add(feed.Entry(5, "token.created", 1, 0, 0, None, {}), is_stored=True)
    log.add("device.online", 2, device_id="box")
    found, cursor = log.select((1 << 40) + 77, 10, lambda entry: True)
    assert [entry.type for entry in found] == ["device.online"]
    assert cursor == log.last
    assert log.gap((1 << 40) + 77)


def test_ids_rise_beyond_every_stored_row_though_the_mark_is_older(tmp_path: Path) -> None:
    path = tmp_path / "cluster.db"
    store = SQLiteStore(path)
    cluster = Cluster(store=store)
    cluster.do(ev.TokenMade(token()))
    store._db.execute("update meta set value = 1 where name = 'epoch'")
    store._db.execute("delete from meta where name = 'mark'")
    newest = cluster.state.log.last
    assert store.load(lambda known: known + 1, 100).epoch == newest + 1


def test_a_damaged_row_is_left_out_and_said(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "cluster.db")
    cluster = Cluster(store=store)
    every_act(cluster)
    before = kept_apart(cluster)
    with sqlite3.connect(tmp_path / "cluster.db") as other:
        other.execute("update audit set device = 'else' where type = 'device.removed'")
        other.execute("update audit set data = x'ff' where type = 'token.revoked'")
    other.close()
    cluster.restart()
    gone = {"device.removed", "token.revoked"}
    assert kept_apart(cluster) == [each for each in before if each["type"] not in gone]
    assert len([line for line in cluster.warnings if "a damaged row of audit" in line]) == 2


def test_whoever_makes_or_ends_api_keys_has_an_event_made_of_each(cluster: Cluster) -> None:
    other = "f" * 16
    made = {"change": "created", "key_ids": [KEY_ID], "scopes": ["read", "submit"]}
    cluster.call("api_key.changed", made)
    cluster.call("api_key.changed", {"change": "revoked", "key_ids": [KEY_ID, other]})
    assert cluster.events("api_key.") == [
        ("api_key.created", {"key": KEY_ID, "scopes": ["read", "submit"]}),
        ("api_key.revoked", {"key": KEY_ID}),
        ("api_key.revoked", {"key": other}),
    ]
    wrong(cluster, "api_key.changed", {"change": "lost", "key_ids": [KEY_ID]})
    wrong(cluster, "api_key.changed", {"change": "created", "key_ids": ["x\x1b"]})
    wrong(cluster, "api_key.changed", {"change": "created", "key_ids": []})
