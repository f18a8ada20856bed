"""Callers without a key, over a real facade and main node: they occupy nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retire_cluster.api.admission.keys import key_of
from tests.integration.main_kit import MainNode, eventually, settings_for
from tests.integration.site_kit import Said, Site

TASKS = "/api/v1/tasks"
KEYS = [key_of("reader", scopes=["read"]), key_of("sender", scopes=["submit"])]
DAY = {"timeout_seconds": 86_400}
#: The document's own example.
DOCUMENTED = {
    "task_type": "echo", "payload": {"message": "Hello World"}, "priority": "normal",
    "requirements": {
        "min_cpu_cores": 2, "min_memory_gb": 4, "required_platform": "linux",
        "timeout_seconds": 300,
    },
    "metadata": {"created_by": "api_user"},
}  # fmt: skip


@pytest.fixture
def node(tmp_path: Path) -> Iterator[MainNode]:
    found = MainNode(settings_for(tmp_path))
    yield found
    found.stop()


@pytest.fixture
def site(node: MainNode) -> Iterator[Site]:
    # The tests' addresses come by a proxy.
    found = Site(node, *KEYS, trusted_proxies=("127.0.0.1",), stranger_tasks=8)
    yield found
    found.close()


def sleep(**more: Any) -> dict[str, Any]:
    return {"task_type": "sleep", "payload": {"duration": 60}, **more}


def submit(site: Site, count: int, key: str = "", of: str = "192.0.2.1", **more: Any) -> Said:
    """A batch of an address."""
    batch = {"tasks": [sleep(**more)] * count}
    return site.ask("POST", f"{TASKS}/batch", batch, key=key, **{"X-Forwarded-For": of})


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("priority", {"priority": "urgent"}), ("priority", {"priority": "high"}),
        ("requirements.timeout_seconds", {"requirements": DAY}),
        ("requirements.max_retries", {"requirements": {"max_retries": 10}}),
        ("delay_seconds", {"delay_seconds": 301}),
    ],
)  # fmt: skip
def test_nobody_without_a_key_submits_what_is_urgent_long_or_late(
    site: Site, field: str, more: dict[str, Any]
) -> None:
    for key in ("", "reader"):
        said = site.ask("POST", TASKS, sleep(**more), key=key)
        assert (said.status, said.code) == (403, "FORBIDDEN")
        assert said.json["error_details"]["field"] == field
        assert "send an API key with the scope submit" in said.json["message"]
    batch = {"tasks": [sleep(), sleep(**more)]}
    said = site.ask("POST", f"{TASKS}/batch", batch)
    assert (said.status, said.json["error_details"]["field"]) == (403, f"tasks.1.{field}")
    assert site.ask("POST", TASKS, sleep(**more), key="sender").status == 201


def test_the_quick_start_needs_no_key(site: Site) -> None:
    assert site.ask("POST", TASKS, DOCUMENTED).status == 201
    assert site.ask("POST", TASKS, {"task_type": "echo", "payload": {}}).status == 201


def test_strangers_have_few_tasks_at_a_time_and_others_are_not_kept_from_theirs(
    node: MainNode, site: Site
) -> None:
    assert submit(site, 2).status == 201
    said = submit(site, 1)
    assert (said.status, said.code) == (429, "RATE_LIMIT_EXCEEDED")
    assert "this address" in said.json["message"]
    assert said.json["message"].endswith("or send an API key with the scope submit")
    assert int(said.headers["Retry-After"]) > 0
    for address in ("2001:db8::1", "192.0.2.2", "192.0.2.3"):
        assert submit(site, 2, of=address).status == 201
    assert submit(site, 1, of="2001:db8::ffff").status == 429, "one network is one stranger"
    said = submit(site, 1, of="192.0.2.4")
    assert (said.status, "all callers" in said.json["message"]) == (429, True)
    # Whoever has a key is not concerned, and what has ended counts no more.
    assert submit(site, 50, key="sender", priority="urgent").status == 201
    device = node.device(slots=60)
    for _ in range(58):
        key = device.next_task()[0]
        device.started(key)
        device.finished(key)
    eventually(lambda: submit(site, 2).status == 201, "room for two more")


def test_strangers_tasks_are_still_counted_after_a_restart(tmp_path: Path) -> None:
    metadata = {"a": 1, "stranger": "192.0.2.9"}
    for expected in (201, 429):
        node = MainNode(settings_for(tmp_path))
        site = Site(node, *KEYS, trusted_proxies=("127.0.0.1",), stranger_tasks=8)
        try:
            assert submit(site, 2).status == expected
            # Nobody is taken for a stranger by what he wrote into his metadata.
            assert submit(site, 3, key="sender", metadata=metadata).status == 201
            assert submit(site, 1, of="192.0.2.9").status == 201
        finally:
            site.close()
            node.stop()


def test_without_authentication_this_machine_is_not_bounded_and_others_are(node: MainNode) -> None:
    site = Site(node, stranger_tasks=8)
    try:
        urgent = sleep(priority="urgent", requirements=DAY)
        assert site.ask("POST", f"{TASKS}/batch", {"tasks": [urgent] * 50}).status == 201
        said = site.ask("POST", TASKS, urgent, via="1.1 elsewhere")
        assert (said.status, "start the API with --auth" in said.json["message"]) == (403, True)
        answers = [site.ask("POST", TASKS, sleep(), via="1.1 elsewhere") for _ in range(3)]
        assert [answer.status for answer in answers] == [201, 201, 429]
        assert "start the API with --auth" in answers[2].json["message"]
    finally:
        site.close()


def test_none_at_all_may_be_the_owners_wish(node: MainNode) -> None:
    site = Site(node, *KEYS, stranger_tasks=0)
    try:
        assert site.ask("POST", TASKS, DOCUMENTED).status == 429
        assert site.ask("POST", TASKS, DOCUMENTED, key="sender").status == 201
    finally:
        site.close()
