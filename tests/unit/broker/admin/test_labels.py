"""The words by which lists tell tasks apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from retire_cluster.broker.admin.labels import MOST_CHARACTERS, label
from retire_cluster.broker.store.memory import MemoryStore
from retire_cluster.broker.store.sqlite import SQLiteStore
from retire_cluster.schemas.text.json_text import dumps
from tests.unit.broker.kit import MakeCluster, submit


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (b'{"message":"Hello World"}', "Hello World"),
        (b'{"command":["ffmpeg","-i","in.mp4","out.webm"]}', "ffmpeg -i in.mp4 out.webm"),
        (b'{"expression":"sum(range(10))","variables":{"n":3}}', "sum(range(10)) 3"),
        (b'{"duration":2.5,"deep":[true,null,-1e3]}', "2.5 true -1e3"),
        (b'{"a":"caf\\u00e9 \\"x\\"\\n\\ttabs","b":"\\ud83d\\ude42"}', 'café "x" tabs 🙂'),
        (b'{"key":"a:b","k\\":":"v"}', "a:b v"),
        (b"{}", ""),
        (b"", ""),
        (b"\xff\xfe not json", ""),
        (b'{"cut":"within a tex', "within a tex"),
        (b'{"cut":"within an escape \\u00', "within an escape \\u00"),
    ],
)
def test_without_a_name_a_task_is_told_by_its_payloads_first_words(
    payload: bytes, shown: str
) -> None:
    assert label(b'{"requirements":{},"metadata":{}}', payload) == shown


def test_a_name_in_its_metadata_is_its_name() -> None:
    document = dumps({"requirements": {}, "metadata": {"name": "night render\n 7"}})
    assert label(document, b'{"a":"b"}') == "night render 7"
    for metadata in ({"name": 5}, {"name": ""}, {"other": {"name": "x"}}):
        assert label(dumps({"requirements": {}, "metadata": metadata}), b'{"a":"b"}') == "b"
    assert label(b'damaged "name"', b'{"a":"b"}') == "b"


def test_a_label_is_short_whatever_the_payload_weighs() -> None:
    text = label(b"{}", dumps({"text": "word " * 50_000}))
    assert len(text) == MOST_CHARACTERS
    assert text.endswith("…")
    assert len(label(dumps({"metadata": {"name": "n" * 9_000}}), b"{}")) == MOST_CHARACTERS


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_lists_tell_tasks_apart_waiting_and_ended(
    make_cluster: MakeCluster, kind: str, tmp_path: Path
) -> None:
    store = SQLiteStore(tmp_path / "cluster.db") if kind == "sqlite" else MemoryStore()
    cluster = make_cluster(store=store)
    echo = {"task_type": "echo"}
    submit(cluster, {**echo, "metadata": {"name": "first"}}, echo)
    submit(cluster, echo, payload=dumps({"n": 3, "text": "x" * 100_000}))
    submit(cluster, echo, payload=b'{"message": "ended"}')
    (last,) = cluster.call("task.list", {"page_size": 1}).data["items"]
    cluster.call("task.cancel", {"task_id": last["task_id"]})
    items = cluster.call("task.list").data["items"]
    found = [item.get("label") for item in items]
    assert found == ["ended", f"3 {'x' * (MOST_CHARACTERS - 3)}…", None, "first"]
