"""`--test`: one task of each kind that this worker offers, run the way its tasks are run.

What a device lacks shows only in a real task process: a folder that may not be executed from, a
sandbox without a network, a limit that is too tight. Nothing leaves this machine: `http_request`
asks a server of our own on loopback. An own type runs only with the `test_payload` that its author
gave it, for nobody else knows which payload does no harm; it was loaded in a task process before.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer
from typing import Any, NamedTuple

from retire_cluster.node.core.events import Ended
from retire_cluster.node.core.records import Attempt, Result
from retire_cluster.node.device.clock import monotonic
from retire_cluster.node.running.catalog import Catalog, Kind
from retire_cluster.node.running.runner import START_SECONDS, Runner
from retire_cluster.node.running.task_process import Plan, TaskProcess
from retire_cluster.node.tasks.base import Limits, TaskFailed
from retire_cluster.schemas.ids import TaskIds
from retire_cluster.schemas.vocabulary import Outcome

#: A sample task does next to nothing; this long says that the device cannot do it.
TASK_SECONDS = 30
#: Built-in type → payload. `http_request` gets the address of a server of the test's own; what has
#: an entry point has its payload in the catalog.
SAMPLES: dict[str, dict[str, Any]] = {
    "echo": {"test": True},
    "sleep": {"duration": 0},
    "system_info": {},
    "python_eval": {"expression": "6 * 7"},
    "command": {"command": [sys.executable, "-c", "print('it runs')"]},
}


class Tried(NamedTuple):
    """How one kind of task fared."""

    task_type: str
    ok: bool
    #: What to print.
    text: str


def try_all(
    catalog: Catalog,
    limits: Limits,
    plan: Plan,
    facts: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> Iterator[Tried]:
    """Run a task of each advertised kind, one after another."""
    wake = threading.Event()
    # The sample of http_request asks our own server, which is a private address.
    runner = Runner(
        slots=1,
        catalog=catalog,
        limits=replace(limits, private_addresses=True),
        start_process=lambda: TaskProcess(plan, own_types=catalog.has_own),
        facts=facts,
        clock=monotonic,
        wake=wake.set,
    )
    try:
        for number, info in enumerate(catalog.advertised(), 1):
            yield _try(runner, wake, catalog.kind(info.name), number)
    finally:
        runner.close()


def _try(runner: Runner, wake: threading.Event, kind: Kind, number: int) -> Tried:
    name = kind.info.name
    with ExitStack() as stack:
        try:
            payload = kind.sample if kind.entry_point else SAMPLES.get(name)
            if name == "http_request":
                payload = {"url": stack.enter_context(_own_server()), "timeout": TASK_SECONDS}
        except OSError as error:
            return Tried(name, False, f"no test: nothing can listen on loopback: {error}")
        if payload is None:
            return Tried(name, True, "loads; not run, for it has no test_payload")
        if kind.check is not None:
            try:
                kind.check(payload)
            except TaskFailed as refusal:
                return Tried(name, True, f"not run: {refusal.message}")
        result = _run(runner, wake, name, payload, number)
    if result is None:
        return Tried(name, False, "FAILED: it did not end")
    if result.outcome != Outcome.SUCCESS.value:
        return Tried(name, False, f"FAILED: {result.error_message or result.outcome}")
    return Tried(name, True, f"ran in {result.execution_seconds:.2f} s")


def _run(
    runner: Runner, wake: threading.Event, name: str, payload: Mapping[str, Any], number: int
) -> Result | None:
    text = json.dumps(payload).encode()
    attempt = Attempt((number, 1, number, 0), 0, TaskIds(0), name, TASK_SECONDS, text, True)
    runner.run([attempt], monotonic())
    end = monotonic() + START_SECONDS + 2 * TASK_SECONDS
    while (now := monotonic()) < end:
        wake.clear()
        for event in runner.collect(now):
            if isinstance(event, Ended):
                return event.results[0]
        due = runner.next_due()
        wake.wait(max(0.0, min(end, end if due is None else due) - monotonic()) + 0.001)
    return None


@contextmanager
def _own_server() -> Iterator[str]:
    """The address of a server that says `it runs` to whoever asks."""
    # Not HTTPServer: it asks the name server who this machine is.
    server = TCPServer(("127.0.0.1", 0), _Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # the name is http.server's
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"it runs\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        pass
