"""S10 to S17: what reaches a device, and what its tasks reach from there."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.red import Attack, NotHere, Target, Went
from tests.command_kit import API, until
from tests.integration.node_kit import Bus, alive_with, python

#: Of `[policy]`: what a careful owner grants a task.
CAREFUL = "[policy]\nmemory_limit_mb = 200\noutput_limit_kb = 64\n"
_METADATA = (
    "http://169.254.169.254/latest/", "http://127.0.0.1:{port}/health", "http://127.1:{port}/health",
    "http://2130706433:{port}/health", "http://0x7f.1:{port}/health", "http://[::1]:{port}/health",
    "http://[::ffff:127.0.0.1]:{port}/health", "http://localhost:{port}/health",
    "http://0.0.0.0:{port}/health", "http://10.0.0.1/", "http://[64:ff9b::7f00:1]:{port}/health",
    "http://good.example\\@127.0.0.1:{port}/health", "file:///etc/passwd",
)  # fmt: skip
_ESCAPES = (
    "().__class__.__base__.__subclasses__()", "'{0.__class__}'.format(1)", "__import__('os')",
    "open('/etc/passwd')", "math.__loader__", "getattr(1, 'real')", "(lambda: 1)()",
    "[1 for __builtins__ in [1]]", "eval('1')", "(" * 3000 + ")" * 3000,
)  # fmt: skip
_ENDLESS = (
    "9**9**9**9", "'x' * 10**10", "math.factorial(10**7)", "[0] * 10**10", "1 << 10**10",
    "sum(x*y*z for x in range(10**5) for y in range(10**5) for z in range(10**5))",
)  # fmt: skip


@contextmanager
def main_node_gone_bad(
    target: Target, *flags: str, settings: str = "", python: str = sys.executable, **environ: str
) -> Iterator[tuple[Bus, Path]]:
    """A main node of the attacker's, and a real worker that joined it: its socket and folder."""
    bus, folder = Bus(), target.new_folder("device")
    words = ["--join", f"127.0.0.1:{bus.port}", "--data-dir", str(folder), "--slots", "2", *flags]
    config = folder.with_suffix(".toml")
    config.write_text(settings, "utf-8")
    words += ["--config", str(config)]
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        worker = subprocess.Popen(
            [python, "-m", "retire_cluster.node", *words],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**target.environ, **environ},
        )  # fmt: skip
    try:
        bus.welcome()
        yield bus, folder
    finally:
        worker.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(10)
        worker.kill()
        worker.wait()
        bus.close()
        bus.context.term()


def _command_uninvited(target: Target) -> str:
    mark = target.new_folder() / "made"
    with main_node_gone_bad(target) as (bus, _):
        for payload in ({"command": ["touch", str(mark)]}, {"command": f"touch {mark}"}):
            item = bus.run("command", payload).item
            if mark.exists() or item.outcome == "success":
                raise Went("a device that allows no command ran one")
            if item.cause != "policy_denied":
                raise Went(f"refused as {item.cause}, not policy_denied")
    return "policy_denied, no process"


def _no_shell(target: Target) -> str:
    mark = target.new_folder() / "made"
    for words in (("echo", f"; touch {mark}"), ("echo", f"$(touch {mark})"), ("echo", "`id`")):
        row = target.command(*words)
        if row["status"] != "success" or row["result_data"]["stdout"] != f"{words[1]}\n":
            raise Went(f"{words} printed {row['result_data']}")
    task_id = target.submit("command", {"command": f"touch {mark}"})
    with contextlib.suppress(TimeoutError):  # no device takes it
        target.outcome(task_id, 2)
    if mark.exists() or target.status(task_id) == "success":
        raise Went("a shell ran it")
    return "arguments stay arguments; a line for a shell is refused"


def _secrets_in_the_environment(target: Target) -> str:
    guarded = target.guarded
    row = guarded.command("sh", "-c", "printenv; tr '\\0' '\\n' < /proc/$PPID/environ; ls -l")
    text = json.dumps(row)
    files = [guarded.data_dir / "keys" / name for name in ("main.key", "admin.key")]
    secrets = [json.loads(path.read_bytes())["secret"] for path in files]
    if any(secret in text for secret in (guarded.api_key, *secrets)):
        raise Went("the environment holds a key")
    if "RETIRE_CLUSTER" in text:
        raise Went("the environment holds the worker's settings")
    return "no key, no setting"


def _limits(target: Target) -> str:
    with main_node_gone_bad(target, "--allow", "command", "--allow-root", settings=CAREFUL) as (
        bus,
        _,
    ):
        eat = f"x = bytearray({10**9}); x[::4096] = b'1' * len(x[::4096])"
        if bus.run("command", {"command": python(eat)}).item.outcome == "success":
            raise Went("1 GB where the owner grants 200 MB")
        flood = "head -c 300000000 /dev/zero | tr '\\0' x"
        size = len(json.dumps(bus.run("command", {"command": ["sh", "-c", flood]}).data))
        if size > 200_000:
            raise Went(f"{size} bytes of output where the owner grants 64 kB")
        mark = f"red-{os.getpid()}-{time.monotonic_ns()}"
        many = python(
            "import subprocess, sys",
            f"words = [sys.executable, '-c', 'import time; time.sleep(77)', {mark!r}]",
            "quiet = dict(stdin=-3, stdout=-3, stderr=-3)",
            "for n in range(60): subprocess.Popen(words, start_new_session=n % 2 > 0, **quiet)",
        )
        bus.run("command", {"command": many})
        try:
            until(lambda: not alive_with(mark), "their end", 10)
        except TimeoutError:
            raise Went(f"{len(alive_with(mark))} processes survive their task") from None
        beats = len(bus.beats)
        bus.until(lambda: len(bus.beats) > beats, "a heartbeat after it")
    return "1 GB, 300 MB of output, 60 processes: ended, cut, ended; heartbeats go on"


def _private_addresses(target: Target) -> str:
    port = target.api_port
    with main_node_gone_bad(target) as (bus, _):
        for pattern in _METADATA:
            item = bus.run("http_request", {"url": pattern.format(port=port)}).item
            if item.outcome == "success":
                raise Went(f"{pattern} was reached")
    return f"none of {len(_METADATA)} spellings reached"


def _eval_escapes(target: Target) -> str:
    for expression in _ESCAPES:
        row = target.outcome(target.submit("python_eval", {"expression": expression}))
        if row["status"] == "success":
            raise Went(f"{expression[:60]} gave {str(row['result_data'])[:80]}")
    for expression in _ENDLESS:
        payload = {"expression": expression}
        began = time.monotonic()
        row = target.outcome(
            target.submit("python_eval", payload, requirements={"timeout_seconds": 5}), 20
        )
        if row["status"] == "success":
            raise Went(f"{expression} gave {str(row['result_data'])[:80]}")
        if time.monotonic() - began > 12:
            raise Went(f"{expression} ran for {time.monotonic() - began:.0f} s")
    return f"{len(_ESCAPES)} refused, {len(_ENDLESS)} refused or ended"


def _secrets_in_logs(target: Target) -> str:
    guarded = target.guarded
    key, _ = guarded.new_api_key("read")
    secrets = [key, guarded.api_key, "hunter2-in-a-payload"]
    guarded.http("GET", f"{API}/config?api_key={key}", key=key)
    guarded.http("GET", f"{API}/config", headers={"Authorization": f"Bearer {key}"}, key=None)
    guarded.http("POST", f"{API}/tasks", {"task_type": "echo", "payload": {"a": secrets[2]}})
    for header in ("X-Request-ID", "User-Agent", "Referer"):
        guarded.http("GET", "/health", headers={header: "a\tforged\x85line\x0bhere"})
    device = guarded.device("box", guarded.known("box"))
    for odd in ({"hostname": "a\r\n2026-01-01 forged line"}, {"tags": ("\x1b[2Jforged\n",)}):
        device.hello(**odd)
        if device.read(5) is None:
            raise Went("its HELLO is not answered")
    guarded.witness()
    log = guarded.log()
    for secret in secrets:
        if secret in log:
            raise Went("a log holds a secret")
    if any(line.lstrip().startswith(("2026-01-01 forged", "forged")) for line in log.splitlines()):
        raise Went("a text from outside began a line of the log")
    if "\x1b" in log:
        raise Went("an escape reaches the terminal that reads the log")
    return "no secret, no forged line, no escape"


def _root_is_not_lent(target: Target) -> str:
    if os.geteuid() != 0:
        raise NotHere("only root's worker is meant")
    mark = target.new_folder() / "made"
    with main_node_gone_bad(target, "--allow", "command", RETIRE_CLUSTER_ALLOW_ROOT="0") as (
        bus,
        _,
    ):
        item = bus.run("command", {"command": ["touch", str(mark)]}).item
    if mark.exists() or item.outcome == "success":
        raise Went("root ran it without --allow-root")
    if item.cause != "policy_denied":
        raise Went(f"refused as {item.cause}, not policy_denied")
    return "policy_denied without --allow-root"


ATTACKS = [
    Attack("S10", "`command` where it is not allowed", _command_uninvited),
    Attack("S11", "arguments as a shell's", _no_shell),
    Attack("S12", "`printenv` in a task", _secrets_in_the_environment),
    Attack("S13", "memory, output, processes beyond limits", _limits, seconds=120),
    Attack("S14", "http_request to private addresses", _private_addresses),
    Attack("S15", "python_eval: escapes and endless sums", _eval_escapes, seconds=120),
    Attack("S16", "secrets and forged lines in logs", _secrets_in_logs),
    Attack("S17", "root's worker without --allow-root", _root_is_not_lent),
]
