"""The SDK when programs stop early, fork, fail in callbacks, or the cluster does."""

from __future__ import annotations

import _thread
import asyncio
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from contextlib import aclosing
from typing import Any

import pytest

from retire_cluster.schemas.errors import ClusterError
from retire_cluster.sdk import AsyncCluster, Cluster, TaskFailed
from tests.integration.sdk_kit import Facade


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- after the end of the Cluster ----------------------------------------------------------------


def test_results_come_after_the_cluster_was_closed(facade: Facade) -> None:
    with Cluster(facade.url) as cluster:
        ended = cluster.submit("echo", {"n": 1})
        others = [cluster.submit("hang") for _ in range(3)]
    assert ended.result(10) == {"echo": {"n": 1}}
    for future in others:
        facade.end(future.task_id, "success", 7)
    assert others[0].result(10) == 7
    assert set(as_completed(others, 10)) == set(others)


def test_a_closed_cluster_stops_listening_once_nobody_holds_a_future(facade: Facade) -> None:
    with Cluster(facade.url) as cluster:
        future = cluster.submit("hang")
        other = cluster.submit("hang")
    thread = cluster._watcher._thread
    assert thread is not None
    del future
    facade.end(other.task_id, "success", 1)
    assert other.result(10) == 1
    until(lambda: not thread.is_alive())


FORKED = """
import os, sys
from retire_cluster.sdk import Cluster, TaskFailed
cluster = Cluster(sys.argv[1])
ended, hangs = cluster.submit("echo", {"n": 1}), cluster.submit("hang")
fails = cluster.submit("fail")
ended.result(10)
if os.fork() == 0:
    assert ended.result(10) == {"echo": {"n": 1}}
    assert not hangs.done()
    try:
        hangs.result(0.3)
    except TimeoutError:
        pass
    assert hangs.cancel()
    try:
        fails.result(10)
    except TaskFailed as error:
        assert error.task_status == "failed"
    assert isinstance(fails.exception(10), TaskFailed)
    try:
        hangs.add_done_callback(print)
    except RuntimeError as error:
        print(error)
    assert list(cluster.map("echo", [{"n": 2}])) == [{"echo": {"n": 2}}]
    print("child is well", flush=True)
    os._exit(0)
assert os.waitpid(-1, 0)[1] == 0
assert hangs.exception.__name__
print("parent is well")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="TimeoutError has another name in 3.10")
def test_in_a_forked_child_results_are_asked_for_and_its_own_tasks_work(facade: Facade) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, facade.url],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "in a forked child ask for its result()" in done.stdout
    assert done.stdout.endswith("child is well\nparent is well\n")


# --- map -----------------------------------------------------------------------------------------


def test_map_reads_its_input_as_there_is_room_and_cancels_what_is_left_on_break(
    cluster: Cluster, facade: Facade
) -> None:
    read = itertools.count()
    endless = ({"n": next(read)} for _ in itertools.repeat(None))
    for position, result in enumerate(cluster.map("echo", endless, buffersize=50)):
        assert result == {"echo": {"n": position}}
        if position == 120:
            break
    gc.collect()
    assert next(read) <= 121 + 50 + 1
    hanging = cluster.map("hang", ({} for _ in itertools.repeat(None)), buffersize=30)
    threading.Timer(0.1, facade.end, ("t" + str(len(facade.results) - 30), "success", 1)).start()
    for result in hanging:
        assert result == 1
        assert facade.live() >= 29
        break
    del hanging
    gc.collect()
    assert facade.live() == 0


def test_map_submits_many_at_a_time_also_while_its_tasks_end_one_by_one(
    cluster: Cluster, facade: Facade
) -> None:
    def end_one_by_one() -> None:
        for number in range(200):
            until(lambda number=number: f"t{number}" in facade.results)  # type: ignore[misc]
            facade.end(f"t{number}", "success", number)
            time.sleep(0.002)

    ending = threading.Thread(target=end_one_by_one)
    ending.start()
    assert list(cluster.map("hang", [{}] * 200, buffersize=40)) == list(range(200))
    ending.join()
    submissions = [path for path in facade.requests if path.endswith("/batch")]
    assert len(submissions) <= 1 + 160 // 20


def test_map_cancels_what_is_left_at_a_task_that_failed(cluster: Cluster, facade: Facade) -> None:
    first = threading.Timer(0.1, facade.end, ("t0", "failed"))
    first.start()
    with pytest.raises(TaskFailed):
        list(cluster.map("hang", ({"n": n} for n in range(20))))
    assert facade.live() == 0


def test_map_cancels_what_is_left_when_it_is_interrupted(cluster: Cluster, facade: Facade) -> None:
    timer = threading.Timer(0.3, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        list(cluster.map("hang", ({"n": n} for n in range(20))))
    assert len(facade.results) == 20
    assert facade.live() == 0


def test_a_submission_that_is_interrupted_midway_is_cancelled_too(
    cluster: Cluster, facade: Facade
) -> None:
    cluster.begin()
    facade.answer_late_seconds = 1.0
    timer = threading.Timer(0.4, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        cluster.map("hang", ({"n": n} for n in range(20)))
    assert len(facade.results) == 20
    assert facade.live() == 0


def test_a_map_that_nobody_began_to_take_is_cancelled_too(cluster: Cluster, facade: Facade) -> None:
    first = cluster.map("fail", [{}])
    second = cluster.map("hang", [{}] * 20)
    with pytest.raises(TaskFailed):
        list(zip(first, second, strict=True))
    del second
    gc.collect()
    assert len(facade.results) == 21
    assert facade.live() == 0


ENDING = """
import sys
from retire_cluster.sdk import Cluster
cluster = Cluster(sys.argv[1])
for result in cluster.map("hang", [{}] * 20):
    raise SystemExit("the program ends here") if sys.argv[2] == "exit" else KeyboardInterrupt
"""


@pytest.mark.parametrize("how", ["exit", "interrupt"])
def test_a_program_that_ends_within_its_loop_leaves_nothing_running(
    facade: Facade, how: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDING, facade.url, how], stderr=subprocess.PIPE, text=True
    ) as program:
        until(lambda: len(facade.results) == 20)
        facade.end("t0", "success", 1)
        _, told = program.communicate(timeout=30)
    assert ("the program ends here" if how == "exit" else "KeyboardInterrupt") in told
    assert program.returncode != 0
    assert facade.live() == 0


CHILD_ENDS = """
import os, sys
from retire_cluster.sdk import Cluster
cluster = Cluster(sys.argv[1])
for result in cluster.map("hang", [{}] * 20):
    if os.fork() == 0:
        sys.exit(0)
    assert os.wait()[1] == 0
    print("its child has ended", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_that_ends_takes_nothing_from_its_parents_map(facade: Facade) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CHILD_ENDS, facade.url],
        stdout=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        until(lambda: len(facade.results) == 20)
        facade.end("t0", "success", 1)
        assert program.stdout.readline() == "its child has ended\n"
        assert facade.live() == 19
        for number in range(1, 20):
            facade.end(f"t{number}", "success", 1)
        program.communicate(timeout=30)
    assert program.returncode == 0


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal to a thread here")
def test_who_interrupts_the_wait_for_the_limit_is_gone_soon_and_what_runs_is_cancelled(
    cluster: Cluster, facade: Facade, caplog: pytest.LogCaptureFixture
) -> None:
    results = cluster.map("hang", [{}] * 30, buffersize=20)
    facade.limited_submissions = True
    facade.end("t0", "success", 1)
    for number in range(1, 12):
        facade.end(f"t{number}", "success", 1)
    here = threading.get_ident()  # a real signal: only that ends a sleep
    timer = threading.Timer(1.0, lambda: signal.pthread_kill(here, signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(results)
    assert time.monotonic() - began < 15
    assert len(facade.results) == 20
    assert facade.live() == 0
    assert "may go on" in caplog.text


def test_submit_many_interrupted_midway_carries_what_the_cluster_took(
    cluster: Cluster, facade: Facade
) -> None:
    cluster.begin()
    facade.answer_late_seconds = 1.0
    threading.Timer(0.4, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        cluster.submit_many("hang", [{}] * 20)
    submitted = caught.value.submitted  # type: ignore[attr-defined]
    assert [future.task_id for future in submitted] == [f"t{n}" for n in range(20)]


def broken(good: int) -> Iterator[dict[str, Any]]:
    yield from ({"n": n} for n in range(good))
    raise LookupError("the input broke")


def test_what_maps_input_raises_comes_after_the_results_of_what_came_before(
    cluster: Cluster,
) -> None:
    results = cluster.map("echo", broken(7))
    assert [next(results) for _ in range(7)] == [{"echo": {"n": n}} for n in range(7)]
    with pytest.raises(LookupError, match="the input broke"):
        next(results)


def test_an_error_in_submit_many_carries_what_was_submitted(cluster: Cluster) -> None:
    with pytest.raises(LookupError) as caught:
        cluster.submit_many("echo", broken(1_500))
    submitted = caught.value.submitted  # type: ignore[attr-defined]
    assert len(submitted) == 1_500
    assert submitted[-1].result(10) == {"echo": {"n": 1_499}}


def test_large_payloads_go_in_submissions_that_fit(cluster: Cluster, facade: Facade) -> None:
    payloads = [{"text": "x" * 200_000} for _ in range(150)]
    assert len(cluster.submit_many("hang", payloads)) == 150
    assert len([path for path in facade.requests if path.endswith("/batch")]) == 3


def test_in_asyncio_map_is_lazy_and_cancels_what_is_left(facade: Facade) -> None:
    async def work() -> None:
        async with AsyncCluster(facade.url) as cluster:
            read = itertools.count()
            endless = ({"n": next(read)} for _ in itertools.repeat(None))
            async with aclosing(cluster.map("echo", endless, buffersize=20)) as results:
                async for result in results:
                    if result["echo"]["n"] == 50:
                        break
            assert next(read) <= 51 + 20 + 1
            waiting = asyncio.create_task(anext(cluster.map("hang", [{}] * 10)))
            while facade.live() < 10:
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            while facade.live():
                await asyncio.sleep(0.01)
            some = cluster.map("echo", broken(3))
            assert [(await anext(some))["echo"]["n"] for _ in range(3)] == [0, 1, 2]
            with pytest.raises(LookupError):
                await anext(some)
            with pytest.raises(LookupError) as caught:
                await cluster.submit_many("echo", broken(3))
            (first, *_) = caught.value.submitted  # type: ignore[attr-defined]
            assert await first == {"echo": {"n": 0}}

    asyncio.run(asyncio.wait_for(work(), 60))


# --- the thread that listens ---------------------------------------------------------------------


def test_answers_that_make_no_sense_do_not_end_the_waiting(
    cluster: Cluster, facade: Facade, caplog: pytest.LogCaptureFixture
) -> None:
    facade.odd_events = [{"events": [{"id": 1}], "next": 1}, {}]
    future = cluster.submit("hang")
    until(lambda: not facade.odd_events)
    facade.end(future.task_id, "success", 1)
    assert future.result(20) == 1
    assert "could not be followed" in caplog.text


def test_a_callback_that_exits_does_not_end_the_waiting(cluster: Cluster, facade: Facade) -> None:
    first, second = cluster.submit("hang"), cluster.submit("hang")
    first.add_done_callback(lambda _: sys.exit(3))
    facade.end(first.task_id, "success", 1)
    assert first.result(10) == 1
    facade.end(second.task_id, "success", 2)
    assert second.result(10) == 2


def test_a_thread_that_has_died_is_replaced(cluster: Cluster, facade: Facade) -> None:
    future = cluster.submit("hang")
    dead = threading.Thread(target=int)
    dead.start()
    dead.join()
    cluster._watcher._thread = dead
    facade.end(future.task_id, "success", 1)
    assert future.result(10) == 1
    cluster.submit("echo").result(10)
    assert cluster._watcher._thread is not dead


def test_a_key_that_is_revoked_ends_the_waiting_with_the_reason(
    cluster: Cluster, facade: Facade
) -> None:
    facade.odd_events = ["UNAUTHORIZED"] * 4
    future = cluster.submit("hang")
    with pytest.raises(ClusterError) as caught:
        future.result(30)
    assert caught.value.code == "UNAUTHORIZED"
