"""S39 to S43: who joins and what is installed; what keys, and callers without one, may do."""

from __future__ import annotations

import psutil

from tests.chaos.red import Attack, NotHere, Target, Went
from tests.command_kit import API, until
from tests.integration.cli.test_join_attacks import NOWHERE, Device, Middle, serving, wheel


def _changed_wheel(target: Target) -> str:
    folder = target.new_folder("middle")
    middle, device = Middle(folder), Device(folder)
    middle.files["/wheels/pyzmq-30.0-py3-none-any.whl"] = wheel("pyzmq", "30.0", "evil = 1")[1]
    with serving(middle.files, middle.port):
        code, said = device.run(middle.script, NOWHERE)
    if device.installed() or code != 2:
        raise Went(f"installed: {sorted(device.installed())}")
    if "was changed on its way here" not in said:
        raise Went(f"nothing installed, but it is not said why: {said[-200:]}")
    return "refused, nothing installed"


def _added_wheel(target: Target) -> str:
    folder = target.new_folder("middle")
    middle, device = Middle(folder), Device(folder)
    for name in ("pyzmq", "psutil"):
        file, content = wheel(name, "99.0", "evil = 1")
        middle.files[f"/wheels/{file}"] = content
    middle.listed()
    with serving(middle.files, middle.port):
        device.run(middle.script, NOWHERE)
    evil = [name for name in device.installed() if name.endswith("-99.0")]
    if evil:
        raise Went(f"installed: {evil}")
    return "not asked for"


def _line_in_ps(target: Target) -> str:
    process = target.worker("ps-worker")
    try:
        words = " ".join(psutil.Process(process.pid).cmdline())
    except psutil.Error:
        raise NotHere("command lines cannot be read here") from None
    if "rc1." in words:
        raise Went("the worker's command line has the join string")
    return "the joined worker's command line has no join string"


def _retry_anothers_command(target: Target) -> str:
    guarded = target.guarded
    key, _ = guarded.new_api_key("submit")
    task_id = guarded.submit("command", {"command": ["false"]})
    until(lambda: guarded.status(task_id) in ("failed", "cancelled"), "the command to fail")
    waiting = guarded.submit(
        "command", {"command": ["true"]}, requirements={"required_tags": ["nowhere"]}
    )
    for path, body in (
        (f"{API}/tasks/{task_id}/retry", {}),
        (f"{API}/tasks/{waiting}/cancel", {}),
        (f"{API}/tasks/cancel", {"task_ids": [waiting]}),
    ):
        answer = guarded.http("POST", path, body, key=key)
        if answer.status != 403:
            raise Went(f"{path} answered {answer.status} to a key with submit")
    if guarded.status(task_id) != "failed" or guarded.status(waiting) != "queued":
        raise Went("403, and yet it was done")
    return "403 for retry, cancel and cancel in bulk"


def _results_without_read(target: Target) -> str:
    reads = "[api]\nauth_reads = true\n"
    with target.another(settings=reads, api_key="key-0123456789-red") as closed:
        key, _ = closed.new_api_key("submit")
        task_id = closed.submit("echo", {"secret": 1})
        until(lambda: closed.status(task_id) == "success", "the echo")
        answer = closed.http("POST", f"{API}/tasks/results", {"task_ids": [task_id]}, key=key)
        if answer.status != 403:
            raise Went(f"POST /tasks/results answered {answer.status}")
    return "403"


def _urgent_sleeps(target: Target) -> str:
    guarded = target.guarded
    day = {"task_type": "sleep", "payload": {"duration": 86_400}}
    long = {**day, "requirements": {"timeout_seconds": 86_400}}
    for task in ({**day, "priority": "urgent"}, long):
        answer = guarded.http("POST", f"{API}/tasks", task, key=None)
        if answer.status != 403:
            raise Went(f"{task} answered {answer.status} to nobody")
    batch = {"tasks": [{"task_type": "sleep", "payload": {"duration": 5}}] * 1000}
    answer = guarded.http("POST", f"{API}/tasks/batch", batch, key=None)
    if answer.status != 429:
        raise Went(f"a thousand sleeps of nobody answered {answer.status}")
    echo = guarded.http("POST", f"{API}/tasks", {"task_type": "echo", "payload": {}}, key=None)
    if echo.status != 201:
        raise Went(f"the document's quick start answered {echo.status}")
    return "403, 429; an echo is taken"


ATTACKS = [
    Attack("S39", "a kept wheel changed on its way", _changed_wheel),
    Attack("S39", "a wheel added on its way", _added_wheel),
    Attack("S40", "the join line in ps", _line_in_ps),
    Attack("S41", "submit retries and cancels a command", _retry_anothers_command),
    Attack("S42", "results without read", _results_without_read),
    Attack("S43", "a thousand urgent days of nobody", _urgent_sleeps),
]
