"""The Python SDK against a small real HTTP server."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

import pytest

from retire_cluster.schemas.errors import ClusterUnavailable, ValidationError
from retire_cluster.sdk import RetireClusterAPI
from retire_cluster.sdk.pipeline import Batches
from retire_cluster.sdk.transport import Transport
from tests.integration.sdk_kit import serving

#: Status, headers, body (a text is sent as it is).
Answer = tuple[int, dict[str, str], Any]


class Facade(ThreadingHTTPServer):
    """Answers from a list, or by a function of the request; remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []
        self.asked: list[dict[str, Any]] = []
        self.decide: Callable[[str, str], Answer] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/api/v1"


class Handler(BaseHTTPRequestHandler):
    server: Facade

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(
            {
                "method": self.command,
                "path": self.path,
                "headers": {name.lower(): value for name, value in self.headers.items()},
                "body": json.loads(body) if body else None,
            }
        )
        if self.server.decide is not None:
            status, headers, answer = self.server.decide(self.command, self.path)
        else:
            status, headers, answer = self.server.answers.pop(0)
        text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def facade() -> Iterator[Facade]:
    with serving(Facade()) as server:
        yield server


def ok(data: Any) -> Answer:
    return (200, {}, {"status": "success", "data": data})


BUSY: Answer = (429, {"Retry-After": "0"}, {"status": "error", "error_code": "RATE_LIMIT_EXCEEDED"})
JUST_ENDED: Answer = (
    409, {"Retry-After": "1"}, {"status": "error", "error_code": "TASK_JUST_ENDED"},
)  # fmt: skip
AWAY: Answer = (503, {"Retry-After": "0"}, {"status": "error", "error_code": "CLUSTER_UNAVAILABLE"})


def test_the_documents_lines_work_as_printed(facade: Facade) -> None:
    facade.answers = [ok({"cluster_stats": {}}), (201, {}, {"status": "success"})]
    api = RetireClusterAPI(facade.url)
    status = api.get_cluster_status()
    task = api.submit_task("echo", {"message": "Hello"})
    assert status["data"] == {"cluster_stats": {}}
    assert task["status"] == "success"
    assert facade.asked[0]["path"] == "/api/v1/cluster/status"
    assert facade.asked[1]["body"] == {"task_type": "echo", "payload": {"message": "Hello"}}
    assert facade.asked[1]["headers"]["content-type"] == "application/json"
    assert "x-api-key" not in facade.asked[1]["headers"]


def test_the_key_and_further_fields_are_sent(facade: Facade) -> None:
    facade.answers = [ok({})]
    RetireClusterAPI(facade.url + "/", "secret").submit_task(
        "echo", {}, priority="high", metadata={"a": 1}, idempotency_key="k1"
    )
    asked = facade.asked[0]
    assert asked["headers"]["x-api-key"] == "secret"
    assert asked["headers"]["idempotency-key"] == "k1"
    assert asked["path"] == "/api/v1/tasks"
    assert asked["body"]["priority"] == "high"
    assert "idempotency_key" not in asked["body"]


@pytest.mark.parametrize("answer", [BUSY, AWAY])
def test_a_refused_submission_is_sent_again_under_the_same_key(
    facade: Facade, answer: Answer
) -> None:
    facade.answers = [answer, answer, ok({"task_id": "t"})]
    assert RetireClusterAPI(facade.url).submit_task("echo", {})["data"] == {"task_id": "t"}
    keys = {asked["headers"]["idempotency-key"] for asked in facade.asked}
    assert len(facade.asked) == 3
    assert len(keys) == 1


def test_two_submissions_have_two_keys(facade: Facade) -> None:
    facade.answers = [ok({}), ok({})]
    api = RetireClusterAPI(facade.url)
    api.submit_task("echo", {})
    api.submit_task("echo", {})
    assert len({asked["headers"]["idempotency-key"] for asked in facade.asked}) == 2


def test_a_cancel_is_not_sent_again_after_503_but_after_429(facade: Facade) -> None:
    facade.answers = [BUSY, AWAY]
    answer = RetireClusterAPI(facade.url).cancel_task("t")
    assert answer["error_code"] == "CLUSTER_UNAVAILABLE"
    assert len(facade.asked) == 2


def test_a_retry_in_the_moment_of_the_tasks_end_is_made_again(facade: Facade) -> None:
    conflict = {"status": "error", "error_code": "CANNOT_RETRY_TASK"}
    facade.answers = [JUST_ENDED, JUST_ENDED, ok({"status": "queued"}), (409, {}, conflict)]
    api = RetireClusterAPI(facade.url)
    assert api.retry_task("t")["data"]["status"] == "queued"
    assert len(facade.asked) == 3
    assert api.retry_task("t")["error_code"] == "CANNOT_RETRY_TASK"
    facade.answers = [JUST_ENDED]
    impatient = RetireClusterAPI(facade.url, retry_seconds=0)
    assert impatient.retry_task("t")["error_code"] == "TASK_JUST_ENDED"


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")
def test_the_javascript_module_makes_such_a_retry_again_too(facade: Facade) -> None:
    facade.answers = [JUST_ENDED, ok({"status": "queued"}), (409, {}, {"error_code": "OTHER"})]
    module = (files("retire_cluster.sdk") / "js" / "retire-cluster.mjs").as_uri()  # type: ignore[attr-defined]
    script = f"""
      import {{ RetireClusterAPI }} from {json.dumps(module)};
      const api = new RetireClusterAPI(process.argv.at(-1));
      console.log((await api.retryTask('t')).data.status);
      console.log((await api.retryTask('t')).error_code);
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script, facade.url],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["queued", "OTHER"]


def test_waiting_out_ends_and_returns_the_last_answer(facade: Facade) -> None:
    facade.answers = [(429, {"Retry-After": "3600"}, BUSY[2])]
    answer = RetireClusterAPI(facade.url).get_cluster_status()
    assert answer["error_code"] == "RATE_LIMIT_EXCEEDED"
    assert len(facade.asked) == 1


def test_an_errors_envelope_is_returned_not_raised(facade: Facade) -> None:
    facade.answers = [(404, {}, {"status": "error", "error_code": "TASK_NOT_FOUND"})]
    assert RetireClusterAPI(facade.url).get_task("x")["error_code"] == "TASK_NOT_FOUND"


def test_an_answer_that_is_no_json_becomes_an_error_envelope(facade: Facade) -> None:
    facade.answers = [(502, {}, "<html>bad gateway</html>")]
    answer = RetireClusterAPI(facade.url).get_cluster_status()
    assert answer["status"] == "error"
    assert "502" in answer["message"]


def test_ids_cannot_leave_their_place_in_the_path(facade: Facade) -> None:
    facade.answers = [ok({})]
    RetireClusterAPI(facade.url).get_device("../config?x=1")
    assert facade.asked[0]["path"] == "/api/v1/devices/..%2Fconfig%3Fx%3D1"


def test_nobody_listening_raises_with_a_hint() -> None:
    pauses: list[float] = []
    transport = Transport("http://127.0.0.1:9/api/v1", pause=pauses.append)
    with pytest.raises(ClusterUnavailable, match=r"127\.0\.0\.1:9.*retire-cluster up"):
        transport.send("GET", "/cluster/status", headers={})
    assert len(pauses) == 2


@pytest.mark.parametrize("url", ["", "localhost:8081", "ftp://x/api", "/api/v1"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        RetireClusterAPI(url)


def test_an_address_without_the_interfaces_path_is_told_what_it_lacks(facade: Facade) -> None:
    here = {"status": "error", "error_code": "NOT_FOUND", "message": "There is nothing here"}
    facade.answers = [(404, {}, here), (404, {}, here), (404, {}, "<html>")]
    root = facade.url.removesuffix("/api/v1")
    answer = RetireClusterAPI(root).get_task_types()
    assert answer["message"].startswith("There is nothing here; base_url ")
    assert f"is it {root}/api/v1?" in answer["message"]
    assert RetireClusterAPI(facade.url).get_task_types() == here
    assert f"is it {root}/api/v1?" in RetireClusterAPI(root + "/").get_task_types()["message"]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (
            {"a": {"b": [1, float("nan")]}},
            r"payload\.a\.b\[1\]: nan is no number in JSON; send null",
        ),
        ({"a": -float("inf")}, r"payload\.a: -inf is no number"),
        ({"a": {1}}, r"payload\.a: is a set, .* give a list"),
        ({"a": b"x"}, r"payload\.a: is a bytes, .* base64"),
        ({"a": {(1, 2): 3}}, r"payload\.a: has a name that is a tuple"),
        ({"a": "\U0001f600 \ud800"}, r"payload\.a: is not valid Unicode"),
        ({"a": {"\udcff": 1}}, r"payload\.a: the name '\\udcff' is not valid"),
    ],
)
def test_what_json_does_not_have_is_named_and_nothing_is_sent(
    payload: dict[str, Any], message: str, facade: Facade
) -> None:
    with pytest.raises(ValidationError, match=message):
        RetireClusterAPI(facade.url).submit_task("echo", payload)
    batches = Batches([payload])
    assert batches.take(1) == []
    with pytest.raises(ValidationError, match=message):
        raise batches.error or AssertionError("nothing was refused")
    assert facade.asked == []


def test_what_has_no_end_is_refused_and_whole_characters_are_not(facade: Facade) -> None:
    endless: dict[str, Any] = {}
    endless["again"] = [endless]
    with pytest.raises(ValidationError, match="cannot be sent as JSON"):
        RetireClusterAPI(facade.url).submit_task("echo", endless)
    assert facade.asked == []
    facade.answers = [ok({"task_id": "t1"})]
    payload = {"a": "\U0001f600", "b": "\\ud800", "c": (1, None)}
    RetireClusterAPI(facade.url).submit_task("echo", payload)
    assert facade.asked[0]["body"]["payload"] == {**payload, "c": [1, None]}


NOT_YET: Answer = (404, {}, {"status": "error", "error_code": "NO_TASK_RESULT"})


def test_waiting_is_a_long_poll_for_the_result_and_nothing_else(facade: Facade) -> None:
    facade.answers = [NOT_YET, ok({"result_data": 42})]
    answer = RetireClusterAPI(facade.url).wait("t1", 20)
    assert answer["data"] == {"result_data": 42}
    paths = [asked["path"].partition("?wait=") for asked in facade.asked]
    assert [path for path, _, _ in paths] == ["/api/v1/tasks/t1/result"] * 2
    assert all(10 < float(wait) <= 25 for _, _, wait in paths)


def test_waiting_gives_up_in_time(facade: Facade) -> None:
    facade.decide = lambda method, path: NOT_YET
    with pytest.raises(TimeoutError, match="t1"):
        RetireClusterAPI(facade.url).wait("t1", 0.2)


def test_waiting_for_an_unknown_task_returns_its_error(facade: Facade) -> None:
    facade.answers = [(404, {}, {"status": "error", "error_code": "TASK_NOT_FOUND"})]
    assert RetireClusterAPI(facade.url).wait("t1", 5)["error_code"] == "TASK_NOT_FOUND"


def test_who_waits_for_the_limit_is_told_once_and_until_when(
    facade: Facade, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    transport = Transport(
        facade.url, limit_seconds=4_000, clock=lambda: sum(pauses), pause=pauses.append
    )
    spent = (429, {"Retry-After": "1742"}, BUSY[2])
    facade.answers = [spent, BUSY, BUSY, ok({}), BUSY, ok({})]
    for _ in range(2):
        assert transport.send("GET", "/tasks", headers={}).status == 200
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "waiting 1742 s, until " in told[0]
    assert pauses[0] == 1742


def test_a_facade_that_answered_before_is_waited_for_and_that_is_told_once(
    facade: Facade, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    transport = Transport(facade.url, clock=lambda: sum(pauses), pause=pauses.append)
    facade.answers = [ok({})]
    transport.send("GET", "/tasks", headers={})
    facade.shutdown()
    facade.server_close()
    with pytest.raises(ClusterUnavailable):
        transport.send("GET", "/tasks", headers={})
    assert 80 < sum(pauses) <= 90
    assert len([r for r in caplog.records if "does not answer" in r.getMessage()]) == 1


def test_an_address_where_nobody_ever_answered_is_given_up_soon() -> None:
    pauses: list[float] = []
    transport = Transport("http://127.0.0.1:9/api/v1", pause=pauses.append)
    with pytest.raises(ClusterUnavailable):
        transport.send("GET", "/tasks", headers={})
    assert sum(pauses) <= 1


JAVASCRIPT = """
import { RetireClusterAPI } from MODULE;
const api = new RetireClusterAPI(process.argv[1], 'secret');
const status = await api.getClusterStatus();
const task = await api.submitTask('echo', { message: 'Hello' }, { priority: 'high' });
const result = await api.waitForTask(task.data.task_id, { timeoutSeconds: 20 });
const seen = [];
for await (const event of api.watch({ since: 5 })) { seen.push(event.type); break; }
console.log(JSON.stringify({ status: status.data, result: result.data, seen }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")
def test_the_javascript_class_does_the_same(facade: Facade) -> None:
    submissions = iter([BUSY, ok({"task_id": "t1"})])
    results = iter([AWAY, NOT_YET, ok({"result_data": 42})])

    def decide(method: str, path: str) -> Answer:
        if path.endswith("/cluster/status"):
            return ok({"cluster_stats": {}})
        if method == "POST":
            return next(submissions)
        if "/result?wait=" in path:
            return next(results)
        events = [{"type": "task.success"}] if "since=5" in path else []
        return ok({"events": events, "next": 6 if events else 5})

    facade.decide = decide
    module = (files("retire_cluster.sdk") / "js" / "retire-cluster.mjs").as_uri()  # type: ignore[attr-defined]
    script = JAVASCRIPT.replace("MODULE", json.dumps(module))
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script, facade.url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "status": {"cluster_stats": {}},
        "result": {"result_data": 42},
        "seen": ["task.success"],
    }
    posts = [asked for asked in facade.asked if asked["method"] == "POST"]
    assert len(posts) == 2
    assert posts[0]["headers"]["idempotency-key"] == posts[1]["headers"]["idempotency-key"]
    assert posts[1]["body"] == {
        "task_type": "echo",
        "payload": {"message": "Hello"},
        "priority": "high",
    }
    assert posts[1]["headers"]["x-api-key"] == "secret"
