"""`Cluster` against the real facade's behaviour, played by a small HTTP server in memory."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError, as_completed, wait

import pytest

from retire_cluster.schemas.errors import ClusterError
from retire_cluster.sdk import AsyncCluster, AsyncTask, Cluster, TaskFailed
from tests.integration.sdk_kit import Facade


def test_a_submitted_task_is_a_future(cluster: Cluster) -> None:
    future = cluster.submit("echo", {"a": 1})
    assert future.result(10) == {"echo": {"a": 1}}
    assert future.done()


def test_an_end_that_is_heard_before_the_submissions_answer_is_not_lost(
    cluster: Cluster, facade: Facade
) -> None:
    facade.answer_late_seconds = 0.3
    assert cluster.submit("echo", {"a": 1}).result(10) == {"echo": {"a": 1}}


def test_a_failed_task_raises_with_its_result(cluster: Cluster) -> None:
    with pytest.raises(TaskFailed, match="it failed") as caught:
        cluster.submit("fail", {}).result(10)
    assert caught.value.task_status == "failed"


def test_map_gives_results_in_order_from_batches(cluster: Cluster, facade: Facade) -> None:
    results = list(cluster.map("echo", ({"n": n} for n in range(20)), timeout=20))
    assert results == [{"echo": {"n": n}} for n in range(20)]


def test_map_gives_up_in_time(cluster: Cluster) -> None:
    with pytest.raises(TimeoutError):
        list(cluster.map("hang", [{}], timeout=0.2))


def test_a_cancelled_task_is_a_cancelled_future(cluster: Cluster) -> None:
    future = cluster.submit("hang", {})
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(10)
    assert future.cancelled()
    assert future.cancel()
    assert future in wait([future], 1).done


def test_callbacks_and_as_completed_work(cluster: Cluster) -> None:
    called = threading.Event()
    futures = [cluster.submit("echo", {"n": n}) for n in range(3)]
    futures[0].add_done_callback(lambda _: called.set())
    assert set(as_completed(futures, 10)) == set(futures)
    assert called.wait(10)


def test_ends_among_lost_events_are_found(cluster: Cluster, facade: Facade) -> None:
    first = cluster.submit("hang", {})
    facade.lose_events = True
    facade.end(first.task_id, "success", 1)
    assert first.result(10) == 1


def test_a_refused_result_is_asked_for_again(cluster: Cluster, facade: Facade) -> None:
    facade.busy_results = 2
    assert cluster.submit("echo", {}).result(10) == {"echo": {}}


def test_no_future_polls(cluster: Cluster, facade: Facade) -> None:
    futures = [cluster.submit("hang", {}) for _ in range(5)]
    for future in futures:
        facade.end(future.task_id, "success", 1)
    assert [future.result(10) for future in futures] == [1] * 5
    assert not [path for path in facade.requests if path.endswith("/status")]
    assert not [path for path in facade.requests if path.endswith("/result")]


def test_a_closed_cluster_takes_nothing(cluster: Cluster) -> None:
    cluster.close()
    with pytest.raises(RuntimeError, match="closed"):
        cluster.submit("echo", {})


def test_results_come_many_at_a_time(cluster: Cluster, facade: Facade) -> None:
    assert len(list(cluster.map("echo", ({"n": n} for n in range(1_200)), timeout=60))) == 1_200
    asked = [path for path in facade.requests if "/results?wait=1" in path]
    assert not [path for path in facade.requests if path.endswith("/results")]
    # Seven an answer here, and no request for what has not ended.
    assert 1_200 / 7 <= len(asked) <= 1_200 / 7 + 60


def test_a_task_that_is_no_longer_kept_fails_alone(cluster: Cluster, facade: Facade) -> None:
    gone, kept = cluster.submit("hang", {}), cluster.submit("hang", {})
    del facade.results[gone.task_id]
    facade.lose_events = True
    facade.end(kept.task_id, "success", 1)
    assert kept.result(10) == 1
    with pytest.raises(ClusterError):
        gone.result(10)


# --- asyncio -------------------------------------------------------------------------------------


def test_asyncio_awaits_tasks_maps_and_takes_them_as_they_end(facade: Facade) -> None:
    async def work() -> None:
        async with AsyncCluster(f"http://127.0.0.1:{facade.server_address[1]}/api/v1") as cluster:
            task = await cluster.submit("echo", {"a": 1})
            assert await task == {"echo": {"a": 1}}
            assert await task == {"echo": {"a": 1}}
            assert task.done()
            payloads = [{"n": n} for n in range(1_000)]
            found = [result async for result in cluster.map("echo", payloads)]
            assert found == [{"echo": payload} for payload in payloads]
            slow, quick = await cluster.submit_many("hang", [{}, {}])
            facade.end(quick.task_id, "success", 2)
            ended = cluster.as_completed([slow, quick])
            assert await anext(ended) is quick
            facade.end(slow.task_id, "failed")
            assert await anext(ended) is slow
            with pytest.raises(TaskFailed, match="it failed"):
                await slow
            both: list[int] = list(await asyncio.gather(quick, quick))
            assert both == [2, 2]

    asyncio.run(work())
    assert threading.active_count() < 60


def test_in_asyncio_giving_up_a_wait_leaves_the_task_and_cancelling_it_ends_it(
    facade: Facade,
) -> None:
    async def work() -> None:
        async with AsyncCluster(f"http://127.0.0.1:{facade.server_address[1]}/api/v1") as cluster:
            task = await cluster.submit("hang")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(task.result(), 0.05)
            assert not task.done()
            assert await task.cancel()
            with pytest.raises(TaskFailed, match="was cancelled") as caught:
                await task
            assert caught.value.task_status == "cancelled"
            await cluster.close()
            with pytest.raises(RuntimeError, match="closed"):
                await cluster.submit("echo")

    asyncio.run(work())


def test_a_loop_that_is_closed_before_the_end_is_no_matter(facade: Facade) -> None:
    url = f"http://127.0.0.1:{facade.server_address[1]}/api/v1"
    cluster = AsyncCluster(url)

    async def begin() -> AsyncTask:
        return await cluster.submit("hang")

    task = asyncio.run(begin())
    facade.end(task.task_id, "success", 1)
    deadline = time.monotonic() + 10
    while not task.done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    asyncio.run(cluster.close())
