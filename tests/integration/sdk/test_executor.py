"""`Executor` against a small server that runs calls as a device does, in this process."""

from __future__ import annotations

import base64
import concurrent.futures
import itertools
import json
import math
import os
import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from retire_cluster.node.tasks.base import Context, Limits, TaskFailed
from retire_cluster.node.tasks.own_type import Traced
from retire_cluster.node.tasks.python_call import call
from retire_cluster.schemas.interpreter import own_python
from retire_cluster.sdk import CannotSend, Executor, RemoteError, ResultNotPlain
from retire_cluster.sdk import TaskFailed as EndedBadly
from retire_cluster.sdk.functions.results import BadAnswer, Reader
from tests.command_kit import until
from tests.integration.node_kit import posix_only
from tests.integration.sdk_kit import Facade, serving

CONTEXT = Context(
    task_id="t", attempt=1, timeout_seconds=9, limits=Limits(),
    tell=lambda percent, text: None, write_log=lambda text: None, is_cancelled=lambda: False,
)  # fmt: skip


class Calling(Facade):
    """Runs calls at once; while `hold` is set, not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = False
        self.held: dict[str, dict[str, Any]] = {}
        self.tasks: list[dict[str, Any]] = []
        #: Answers instead of the true ones.
        self.lie: Any = None

    def submit(self, task: dict[str, Any]) -> str:
        with self.changed:
            task_id = f"t{len(self.results)}"
            self.results[task_id] = {}
            self.tasks.append(task)
            self.held[task_id] = task
        if not self.hold:
            self.run(task_id)
        return task_id

    def run(self, task_id: str) -> None:
        task = self.held.pop(task_id)
        if self.lie is not None:
            self.end(task_id, "success", self.lie)
            return
        try:
            self.end(task_id, "success", call(task["payload"], CONTEXT))
        except Traced as error:
            self.end(task_id, "failed", error.failure.result)
            self.results[task_id] |= {
                "error_message": error.failure.message, "error_traceback": error.trace,
            }  # fmt: skip
        except TaskFailed as error:
            self.end(task_id, "failed", error.result)

    def begin(self, task_id: str) -> None:
        with self.changed:
            self.events.append({"type": "task.running", "task_id": task_id})
            self.changed.notify_all()

    def posts(self) -> list[str]:
        return [path for path in self.requests if "/tasks" in path and "results" not in path]


@pytest.fixture
def facade() -> Iterator[Calling]:
    with serving(Calling()) as server:
        yield server


@pytest.fixture
def executor(facade: Calling) -> Iterator[Executor]:
    with Executor(facade.url) as found:
        yield found


def test_a_call_is_a_future_of_concurrent_futures(executor: Executor) -> None:
    assert isinstance(executor, concurrent.futures.Executor)
    offset = 2
    future = executor.submit(lambda n: n + offset, 40)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(10) == 42
    futures = [executor.submit(math.sqrt, n) for n in (1, 4)]
    assert {each.result() for each in concurrent.futures.as_completed(futures, 10)} == {1.0, 2.0}


def test_a_thousand_calls_are_five_requests_at_most(executor: Executor, facade: Calling) -> None:
    futures = [executor.submit(math.sqrt, n * n) for n in range(1_000)]
    assert [future.result(30) for future in futures] == list(range(1_000))
    assert len(facade.posts()) <= 4


def test_a_single_call_is_not_kept_waiting(executor: Executor) -> None:
    executor.submit(math.sqrt, 4).result(10)
    began = time.monotonic()
    for _ in range(5):
        executor.submit(math.sqrt, 4).result(10)
    assert (time.monotonic() - began) / 5 < 0.3


def test_what_a_function_raises_is_told_by_its_type_message_and_trace(executor: Executor) -> None:
    def boom(n: int) -> float:
        return 1 / n

    with pytest.raises(RemoteError) as caught:
        executor.submit(boom, 0).result(10)
    assert (caught.value.type, caught.value.message) == ("ZeroDivisionError", "division by zero")
    assert "in boom" in caught.value.traceback
    assert str(caught.value).startswith("ZeroDivisionError: division by zero\n")
    assert pickle.loads(pickle.dumps(caught.value)).type == "ZeroDivisionError"


def test_a_result_that_is_no_plain_value_names_the_cure(executor: Executor) -> None:
    with pytest.raises(ResultNotPlain, match=r"trust_devices=True") as caught:
        executor.submit(lambda: {"a": [threading.Event]}).result(10)
    assert "result['a'][0]" in str(caught.value)


def test_where_devices_are_trusted_objects_and_exceptions_come_as_they_are(facade: Calling) -> None:
    class Own(Exception):
        pass

    def boom() -> None:
        raise Own("mine")

    with Executor(facade.url, trust_devices=True) as executor:
        assert executor.submit(slice, 1, 2).result(10) == slice(1, 2)
        with pytest.raises(Exception, match="mine") as caught:
            executor.submit(boom).result(10)
        assert type(caught.value).__name__ == "Own"
        assert isinstance(caught.value.__cause__, RemoteError)
        assert list(executor.map(slice, range(3))) == [slice(0), slice(1), slice(2)]


class Bomb:
    """Runs code where its pickle is opened."""

    went_off = False

    def __reduce__(self) -> Any:
        return exec, ("import tests.integration.sdk.test_executor as t; t.Bomb.went_off = True",)


LIES = [
    {"pickle": "BOMB", "python": own_python()},
    {"values": {"$py": "pickle", "value": "BOMB"}, "pickle": "BOMB", "python": own_python()},
    {"value": {"$py": "ndarray", "value": "BOMB"}, "values": {"$py": "ndarray", "value": "BOMB"}},
    {"value": {"$py": []}, "values": 3},
    [],
    "x",
]


@pytest.mark.parametrize("lie", LIES)
def test_a_pickle_that_nobody_asked_for_is_never_opened(facade: Calling, lie: Any) -> None:
    bomb = base64.b64encode(pickle.dumps(Bomb())).decode()
    facade.lie = json.loads(json.dumps(lie).replace("BOMB", bomb))
    with Executor(facade.url) as executor:
        with pytest.raises(BadAnswer):
            executor.submit(math.sqrt, 4).result(10)
        with pytest.raises(BadAnswer):
            list(executor.map(math.sqrt, [4], timeout=10))
    assert not Bomb.went_off


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0, 3.0]])
def test_a_device_that_gives_more_or_fewer_results_than_calls_moves_no_other_results(
    facade: Calling, values: list[float]
) -> None:
    facade.lie = {"values": values, "seconds": 0.1}
    with Executor(facade.url) as executor, pytest.raises(BadAnswer):
        list(executor.map(math.sqrt, [1, 4], chunksize=2, timeout=10))


def test_results_before_an_error_are_never_more_than_there_were_calls(facade: Calling) -> None:
    data = {"values": [1, 2, 3], "error": {"type": "ValueError", "message": "no"}}
    failure = EndedBadly({"status": "failed", "result_data": data})
    part = Reader(trust=False).failed_part(failure, 2)
    assert part.values == []
    assert isinstance(part.error, RemoteError)
    assert Reader(trust=False).failed_part(failure, 4).values == [1, 2, 3]


def test_an_exception_of_the_functions_own_by_the_name_of_ours_is_told_as_it_is(
    executor: Executor,
) -> None:
    class TooLarge(Exception):
        pass

    def boom() -> None:
        raise TooLarge("the boat")

    with pytest.raises(RemoteError, match="TooLarge: the boat") as caught:
        executor.submit(boom).result(10)
    assert type(caught.value) is RemoteError


def test_an_exception_that_takes_no_cause_is_told_as_text(facade: Calling) -> None:
    class Closed(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    def boom() -> None:
        raise Closed("shut")

    with Executor(facade.url, trust_devices=True) as executor:
        future = executor.submit(boom)
        with pytest.raises(RemoteError, match="Closed: shut"):
            future.result(10)


def test_a_pickle_of_another_python_is_not_opened_even_where_devices_are_trusted(
    facade: Calling,
) -> None:
    facade.lie = {"pickle": base64.b64encode(pickle.dumps(Bomb())).decode(), "python": "3.99"}
    with Executor(facade.url, trust_devices=True) as executor, pytest.raises(BadAnswer):
        executor.submit(math.sqrt, 4).result(10)
    assert not Bomb.went_off


def test_requirements_name_the_python_for_pickles_only(facade: Calling) -> None:
    with Executor(
        facade.url, requirements={"min_cpu_cores": 2}, timeout_seconds=7, retries=2, priority="low"
    ) as executor:
        executor.submit(math.sqrt, 4).result(10)
        executor.submit(lambda: 1).result(10)
    named, pickled = facade.tasks
    asked = {"min_cpu_cores": 2, "timeout_seconds": 7, "max_retries": 2}
    assert (named["requirements"], named["priority"]) == (asked, "low")
    assert named["payload"]["retry_errors"] is True
    assert pickled["requirements"] == {**asked, "required_python": pickled["payload"]["python"]}


def test_a_cancelled_call_is_done_at_once_and_cancelled_in_the_cluster(
    executor: Executor, facade: Calling
) -> None:
    facade.hold = True
    futures = [executor.submit(math.sqrt, n) for n in range(30)]
    until(lambda: len(facade.tasks) == 30)
    facade.begin("t0")
    until(futures[0].running)
    assert not futures[1].running()
    assert all(future.cancel() for future in futures)
    assert all(future.cancelled() and not future.running() for future in futures)
    with pytest.raises(concurrent.futures.CancelledError):
        futures[0].result(10)
    until(lambda: not facade.live())
    assert len([path for path in facade.requests if path.endswith("/cancel")]) <= 3


def test_map_takes_an_endless_input_lazily_and_break_cancels_what_is_left(
    facade: Calling,
) -> None:
    read = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    with Executor(facade.url, window=8) as executor:
        results = executor.map(math.sqrt, numbers(), chunksize=2)
        assert list(itertools.islice(results, 100)) == [math.sqrt(n) for n in range(100)]
        assert len(read) <= 100 + 2 * 8 + 2
        results.close()  # type: ignore[attr-defined]
        until(lambda: not facade.live())
        facade.hold = True
        results = executor.map(math.sqrt, numbers(), chunksize=2)
        until(lambda: facade.live() > 0)
        results.close()  # type: ignore[attr-defined]
        until(lambda: not facade.live())


def test_map_makes_chunks_that_fit(executor: Executor, facade: Calling) -> None:
    assert list(executor.map(pow, range(20_000), itertools.repeat(2))) == [
        n * n for n in range(20_000)
    ]
    assert len(facade.tasks) < 40
    assert len(facade.tasks[0]["payload"]["args"]) == 1


def test_map_cuts_chunks_that_are_too_large(executor: Executor, facade: Calling) -> None:
    texts = ["x" * 100_000] * 7
    assert list(executor.map(len, texts, chunksize=7)) == [100_000] * 7
    assert len(facade.tasks) == 4
    with pytest.raises(CannotSend, match=r"item 0 of the input \(from 0\): .*argument 1"):
        list(executor.map(len, ["x" * 300_000]))


def test_an_error_in_a_map_comes_after_the_results_before_it(executor: Executor) -> None:
    def numbers() -> Iterator[int]:
        yield from (4, 9)
        raise LookupError("the input is broken")

    results = executor.map(math.sqrt, [4, 9, -1, 16], chunksize=4)
    assert [next(results), next(results)] == [2.0, 3.0]
    with pytest.raises(RemoteError, match="ValueError"):
        next(results)
    results = executor.map(math.sqrt, numbers(), chunksize=2)
    assert [next(results), next(results)] == [2.0, 3.0]
    with pytest.raises(LookupError, match="the input is broken"):
        next(results)


def test_a_map_gives_up_in_time(executor: Executor, facade: Calling) -> None:
    facade.hold = True
    with pytest.raises(concurrent.futures.TimeoutError):
        list(executor.map(math.sqrt, [4], timeout=0.2))
    until(lambda: not facade.live())


def test_after_shutdown_nothing_is_taken_and_results_still_come(facade: Calling) -> None:
    facade.hold = True
    executor = Executor(facade.url)
    future = executor.submit(math.sqrt, 4)
    until(lambda: facade.held)
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(math.sqrt, 4)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(math.sqrt, [4])
    facade.run("t0")
    assert future.result(10) == 2.0
    executor.shutdown()


def test_shutdown_waits_or_cancels(facade: Calling) -> None:
    facade.hold = True
    executor = Executor(facade.url)
    futures = [executor.submit(math.sqrt, n) for n in range(3)]
    until(lambda: len(facade.held) == 3)

    def run_all() -> None:
        for name in list(facade.held):
            facade.run(name)

    threading.Timer(0.2, run_all).start()
    executor.shutdown(wait=True)
    assert all(future.done() for future in futures)
    interrupted = Executor(facade.url)
    future = interrupted.submit(math.sqrt, 4)
    interrupted.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert future.cancelled()
    until(lambda: not facade.live())


def test_a_refused_submission_is_raised_by_every_future(facade: Calling) -> None:
    executor = Executor(facade.url)
    executor.cluster.api._transport.limit_seconds = 0
    facade.limited_submissions = True
    futures = [executor.submit(math.sqrt, n) for n in range(5)]
    for future in futures:
        with pytest.raises(Exception, match=r".*"):
            future.result(10)
    executor.shutdown()


def test_a_task_that_ends_badly_without_the_functions_word_is_a_failed_task(
    executor: Executor, facade: Calling
) -> None:
    facade.hold = True
    future = executor.submit(math.sqrt, 4)
    until(lambda: facade.held)
    facade.end("t0", "timeout")
    with pytest.raises(EndedBadly) as caught:
        future.result(10)
    assert not isinstance(caught.value, RemoteError)
    assert caught.value.task_status == "timeout"


@posix_only
def test_a_forked_child_has_calls_of_its_own(executor: Executor) -> None:
    before = executor.submit(math.sqrt, 4)
    assert before.result(10) == 2.0
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            own = executor.submit(math.sqrt, 9).result(10)
            code = 0 if (own, before.result(10)) == (3.0, 2.0) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert executor.submit(math.sqrt, 16).result(10) == 4.0
