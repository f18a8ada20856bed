"""Real facades over real main nodes on one host: who is signed in where, and who waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from retire_cluster.broker.admin.facade import facade_identity
from retire_cluster.conf import curve
from tests.integration.main_kit import PATIENCE_SECONDS, MainNode, eventually, settings_for
from tests.integration.site_kit import Site

API = "/api/v1"


Start = Callable[..., Site]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[MainNode]]:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    found = [MainNode(settings_for(folder)) for folder in folders]
    yield found
    for node in found:
        node.stop()


@pytest.fixture
def start(nodes: list[MainNode]) -> Iterator[Start]:
    sites: list[Site] = []

    def begin(number: int, *keys: str, **options: Any) -> Site:
        sites.append(Site(nodes[number], *keys, **options))
        return sites[-1]

    yield begin
    for site in sites:
        site.close()


def sign_in(browser: requests.Session, site: Site, key: str) -> None:
    answer = browser.post(f"{site.url}/ui/login", json={"key": key}, timeout=30)
    assert answer.status_code == 200, answer.text


def test_two_clusters_of_a_host_are_signed_in_side_by_side_and_see_no_key(start: Start) -> None:
    first, second = start(0, "key-of-one", auth=True), start(1, "key-of-two", auth=True)
    with requests.Session() as browser:  # like a browser's, its cookies go to every port
        sign_in(browser, first, "key-of-one")
        sign_in(browser, second, "key-of-two")
        for _ in range(15):
            for site in (first, second):
                answer = browser.get(f"{site.url}{API}/config", timeout=30)
                assert answer.status_code == 200, answer.text
                assert "set-cookie" not in answer.headers
        assert len(browser.cookies) == 2
        assert not [c.value for c in browser.cookies if "key-of" in (c.value or "")]
        browser.post(f"{first.url}/ui/logout", json={}, timeout=30)
        assert browser.get(f"{first.url}{API}/config", timeout=30).status_code == 401
        assert browser.get(f"{second.url}{API}/config", timeout=30).status_code == 200


def test_all_facades_of_a_main_node_know_its_sessions(start: Start) -> None:
    first, second = start(0, "shared", auth=True), start(0, "shared", auth=True)
    without = start(0, "another", auth=True)
    with requests.Session() as browser:
        sign_in(browser, first, "shared")
        assert browser.get(f"{second.url}{API}/config", timeout=30).status_code == 200
        # One that does not take this key does not take its sessions either.
        assert browser.get(f"{without.url}{API}/config", timeout=30).status_code == 401


def test_a_clusters_identity_follows_from_its_key_and_outlives_its_process() -> None:
    pair, other = curve.new_pair(), curve.new_pair()
    assert facade_identity(pair, 1, 8080) == facade_identity(pair, 2, 9090)
    assert facade_identity(pair, 1, 8080)[0] != facade_identity(other, 1, 8080)[0]
    assert facade_identity(pair, 1, 8080)[1] != facade_identity(other, 1, 8080)[1]
    one, two = facade_identity(None, 1, 8080), facade_identity(None, 1, 8080)
    assert one[0] == two[0] != facade_identity(None, 1, 8090)[0]
    assert one[1] != two[1], "a secret that others can compute is none"


def test_a_script_that_used_up_its_requests_does_not_blank_the_dashboard(start: Start) -> None:
    site = start(0, rate_limit=True, rate_limit_per_minute=3, rate_limit_burst=0)
    ask = f"{site.url}{API}/tasks"
    codes = [requests.get(ask, timeout=30).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    mark = {"X-Requested-With": "retire-cluster-dashboard"}
    answer = requests.get(ask, headers=mark, timeout=30)
    assert (answer.status_code, answer.headers["X-RateLimit-Limit"]) == (200, "12")


# --- results that are waited for ------------------------------------------------------------------


def test_waiting_for_results_costs_nothing_of_the_budget_and_ends_with_the_tasks(
    start: Start, nodes: list[MainNode]
) -> None:
    site = start(0, rate_limit=True, rate_limit_per_minute=2, rate_limit_burst=0)
    node = nodes[0]
    device = node.device()
    ids = node.submit(count=2)
    keys = [device.next_task()[0]]
    url = f"{site.url}{API}/tasks"
    answers: list[requests.Response] = []

    def wait() -> None:
        body = {"task_ids": ids}
        answers.append(requests.post(f"{url}/results?wait=30", json=body, timeout=60))
        answers.append(requests.get(f"{url}/{ids[0]}/result?wait=30", timeout=60))

    thread = threading.Thread(target=wait)
    thread.start()
    device.started(keys[0])
    device.finished(keys[0], result=b'{"n":1}')
    keys.append(device.next_task()[0])
    assert not answers, "one of the two still runs"
    device.started(keys[1])
    device.finished(keys[1], result=b'{"n":2}')
    thread.join(PATIENCE_SECONDS)
    many, one = answers
    assert [each["result_data"] for each in many.json()["data"]["results"]] == [{"n": 1}, {"n": 2}]
    assert many.json()["data"]["unfinished"] == []
    assert one.json()["data"]["result_data"] == {"n": 1}
    assert "X-RateLimit-Limit" not in many.headers
    asked = [one, *(requests.get(f"{url}/{ids[0]}/result?wait=1", timeout=30) for _ in range(2))]
    assert [each.status_code for each in asked] == [200, 200, 429], "given out before: counted"


def test_a_wait_that_is_over_says_what_has_not_ended(start: Start, nodes: list[MainNode]) -> None:
    site = start(0)
    ids = nodes[0].submit(count=2)
    began = time.monotonic()
    answer = requests.post(
        f"{site.url}{API}/tasks/results?wait=1", json={"task_ids": ids}, timeout=30
    )
    assert answer.json()["data"] == {"results": [], "unfinished": ids, "omitted": []}
    assert time.monotonic() - began >= 1
    missing = requests.get(f"{site.url}{API}/tasks/{ids[0]}/result?wait=1", timeout=30)
    assert missing.json()["error_code"] == "NO_TASK_RESULT"
    wrong = requests.get(f"{site.url}{API}/tasks/{ids[0]}/result?wait=61", timeout=30)
    assert wrong.json()["error_details"]["field"] == "wait"


def test_waiting_for_results_leaves_threads_to_others(start: Start, nodes: list[MainNode]) -> None:
    site = start(0)
    (task_id,) = nodes[0].submit()
    url = f"{site.url}{API}/tasks/{task_id}/result?wait=30"
    threads = [threading.Thread(target=requests.get, args=(url,), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    # Two places of eight threads are taken then: whoever comes next is answered at once.
    eventually(lambda: len(list(nodes[0].broker.state.waits.all)) == 2, "two are parked")
    assert requests.get(url, timeout=60).elapsed.total_seconds() < 20
    nodes[0].call("task.cancel", task_id=task_id)
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
