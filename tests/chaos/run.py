"""The long run: `python tests/chaos/run.py [--kills 10000 | --minutes N] [--only F1,F5]`.

Prints a table: what was promised, what was measured. Exit code 1 when a target was missed.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).resolve().parent
for _name in ("", ".chaos", ".integration", ".unit"):
    _folder = _HERE.parent / _name.lstrip(".")
    _name = "tests" + _name
    _kit = sys.modules.setdefault(_name, ModuleType(_name))
    _kit.__path__ = [str(_folder)]

from hypothesis import HealthCheck, settings  # noqa: E402 - with the kit that can now be found
from hypothesis.stateful import run_state_machine_as_test  # noqa: E402

from retire_cluster.node.system import task_folders  # noqa: E402
from tests.chaos import fuzz, odd  # noqa: E402
from tests.chaos.harness import measure  # noqa: E402
from tests.chaos.kills import Campaign  # noqa: E402
from tests.chaos.rig import Rig, eventually, rig  # noqa: E402
from tests.chaos.test_chaos_model import ClusterModel  # noqa: E402

#: Kills of one cluster; then a new one is made, so that no run profits from a small store.
ROUND = 400

Row = tuple[str, str, str, bool]


def kills(wanted: int, minutes: float, seed: int) -> Iterator[Row]:
    """F1 and the outcomes of F2."""
    until = time.monotonic() + 60 * minutes if minutes else float("inf")
    total: Counter[str] = Counter()
    acknowledged = lost = changed = wrong = unfinished = repeated = 0
    problems: list[str] = []
    while time.monotonic() < until and (minutes or sum(total.values()) < wanted):
        seed += 1
        left = ROUND if minutes else min(ROUND, wanted - sum(total.values()))
        with rig(seed=seed) as cluster:
            found = Campaign(cluster, seed=seed).run(left, longest_seconds=240)
        verdict = found.verdict
        total += found.kills
        acknowledged += verdict.acknowledged
        lost += verdict.lost
        changed += verdict.changed
        wrong += verdict.wrong
        unfinished += verdict.unfinished
        repeated += found.repeated_runs
        problems += [*verdict.problems, *found.surprises]
        print(
            f"  seed {seed}: {found.total} kills in {found.seconds:.0f} s, "
            f"{verdict.acknowledged} acknowledged, problems: {problems or 'none'}",
            flush=True,
        )
    by_victim = ", ".join(f"{name} {count}" for name, count in sorted(total.items()))
    print(f"  kills: {by_victim}; command tasks run again after a kill: {repeated}")
    count = sum(total.values())
    yield ("F1 acknowledged tasks lost", "0", f"{lost} of {acknowledged} ({count} kills)", not lost)
    clean = not (changed or wrong or unfinished or problems)
    text = f"{changed} changed, {wrong} wrong, {unfinished} unfinished"
    yield ("F2 outcomes that changed, were wrong or missing", "0", text, clean)


def frames(count: int, seed: int) -> Iterator[Row]:
    """F4, the part of the sockets."""
    with rig(settings=fuzz.SETTINGS) as cluster:
        cluster.start_broker()
        found = fuzz.fuzz(cluster, count, seed=seed)
        errors = cluster.log_of("broker").count('"level": "ERROR"')
    text = f"{len(found.internal)} internal, {errors} logged errors, alive: {found.alive}"
    good = not found.internal and not errors and found.alive
    yield (f"F4 {count} broken frames: 500s, exits", "0, 0", text, good)
    growth = found.rss_growth_mb
    yield ("F4 memory growth after warm-up", "< 20 MB", f"{growth:.1f} MB", growth < 20)


def every_order(wanted: int) -> Iterator[Row]:
    """F4, the state machine over the public operations; it shrinks and shows what it finds."""
    began = ClusterModel.steps
    examples = -(-wanted // 40)
    run_state_machine_as_test(
        ClusterModel,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    done = ClusterModel.steps - began
    text = f"none in {done} steps of {examples} runs"
    yield ("F4 orders of operations that break an invariant", "0", text, done >= wanted)


#: What the API means to do otherwise: some valid bodies do not fit the cluster's state, an empty
#: query value is none, wrong keys are limited (429) before they are refused (401), and a task that
#: was just made has no result yet (404).
_OTHERWISE = (
    "positive_data_acceptance,negative_data_rejection,ignored_auth,unsupported_method,"
    "ensure_resource_availability"
)


def api(cases: int, seconds: int, seed: int) -> Iterator[Row]:
    """F4, the part of the REST API, by schemathesis over our own OpenAPI document."""
    program = shutil.which("st")
    if program is None:
        print("  left out: pip install schemathesis (Python >= 3.11), in an environment of its own")
        return
    with rig(settings=measure.DEFAULTS) as cluster:
        cluster.start_broker()
        cluster.start_api("--auth", "--api-key", "key-of-the-chaos-run")
        cluster.start_device("box")
        cluster.await_online("box")
        eventually(lambda: _answers(cluster), "the facade is there")
        run = subprocess.run(
            [
                program, "run", f"http://127.0.0.1:{cluster.api_port}/api/v1/openapi.json",
                "-H", "X-API-Key: key-of-the-chaos-run", "--checks", "all",
                "--exclude-checks", _OTHERWISE, "--continue-on-failure", "--no-color",
                "--request-timeout", "40", "--exclude-path", "/api/v1/events",
                "--suppress-health-check", "all", "--max-time", str(seconds),
                "-n", str(cases), "--seed", str(seed), "--workers", "2",
            ],
            capture_output=True, text=True, cwd=cluster.folder, check=False,
        )  # fmt: skip
        log = cluster.log_of("api")
        alive = cluster.broker_answers() and _answers(cluster)
    summary = run.stdout.rpartition("= SUMMARY =")[2]
    print("\n".join(f"  {line}" for line in summary.splitlines() if line.strip()))
    served, broken = log.count("Request processed"), log.count('"status_code": 500')
    text = f"{broken} of {served} requests, alive: {alive}"
    yield ("F4 schemathesis, all checks: 500s", "0", text, alive and not broken)


def repairs() -> Iterator[Row]:
    """F5."""
    for interval, lease in ((1.0, 5.0), (5.0, 30.0)):
        with rig(settings=measure.DEFAULTS) as cluster:
            cluster.start_broker()
            found = measure.dead_device(cluster, interval, 3, lease)
        late = found["noticed_seconds"] - 3 * interval
        yield (
            f"F5 dead device noticed (interval {interval:g} s)",
            "3 heartbeats + 1 sweep",
            f"{found['noticed_seconds']:.1f} s (3 heartbeats + {late:.1f} s)",
            late <= 1.2,
        )
        after = found["requeued_after_lease_seconds"]
        yield (f"F5 its task waits again (lease {lease:g} s)", "lease + 1 s",
               f"lease + {after:.2f} s", after <= 1.2)  # fmt: skip
    with rig(settings=measure.DEFAULTS) as cluster:
        cluster.start_broker()
        found = measure.restart_with_backlog(cluster, 100_000)
    seconds = found["first_dispatch_seconds"]
    yield ("F5 restart with 100,000 queued to first dispatch", "≤ 2 s", f"{seconds:.2f} s",
           seconds <= 2)  # fmt: skip


def slow_clients() -> Iterator[Row]:
    """F6."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (8_192, hard))
    with rig(settings=measure.DEFAULTS) as cluster:
        cluster.start_broker()
        cluster.start_api()
        cluster.start_device("box")
        cluster.await_online("box")
        eventually(lambda: _answers(cluster), "the facade is there")
        found = measure.under_slow_clients(
            cluster, writers=500, readers=500, polls=100, idle=1_000, seconds=30
        )
    p99 = found["health_p99_ms"]
    text = f"p99 {p99:.0f} ms, {found['failures']} failures, {found['tasks_done']} tasks done"
    good = p99 < 250 and not found["failures"] and found["tasks_done"] > 0
    yield ("F6 /health beside 2,100 slow clients", "p99 < 250 ms, tasks flow", text, good)


def odd_tasks(wanted: int, seed: int) -> Iterator[Row]:
    """F8."""
    found = odd.Found()
    while found.odd_tasks < wanted and not found.problems:
        left = min(ROUND, wanted - found.odd_tasks)
        folder = Path(tempfile.mkdtemp(prefix="odd-"))
        try:
            with odd.device(folder) as device:
                device.run(found, odd.drawn(left, seed))
        finally:
            task_folders.remove(folder)  # it may be deeper than the standard library manages
        print(f"  seed {seed}: {found.odd_tasks} odd tasks, {dict(found.outcomes)}", flush=True)
        seed += 1
    for problem in found.problems:
        print(f"  {problem}")
    text = (
        f"{len(found.problems)} of {found.witnesses} beside {found.odd_tasks} odd tasks,"
        f" slowest {found.slowest_witness_seconds:.1f} s"
    )
    yield ("F8 witnesses harmed, devices changed", "0", text, not found.problems)
    growth = found.rss_growth_mb
    yield ("F8 the worker's memory", "< 20 MB more", f"{growth:.1f} MB", growth < 20)


def _answers(cluster: Rig) -> bool:
    try:
        return cluster.http("GET", "/health")[0] == 200
    except OSError:
        return False


def main() -> int:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=2_000, help="kills of F1 (2000)")
    parser.add_argument("--minutes", type=float, default=0.0, help="kill for so long instead")
    parser.add_argument("--frames", type=int, default=100_000, help="broken frames of F4 (100000)")
    parser.add_argument("--cases", type=int, default=100, help="API: examples an operation (100)")
    parser.add_argument("--seconds", type=int, default=480, help="API: at most so long (480)")
    parser.add_argument("--steps", type=int, default=20_000, help="MODEL: operations (20000)")
    parser.add_argument("--odd", type=int, default=2_000, help="F8: odd tasks (2000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", default="F1,F4,MODEL,API,F5,F6,F8", help="which figures, by commas"
    )
    args = parser.parse_args()
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "F1": lambda: kills(args.kills, args.minutes, args.seed),
        "F4": lambda: frames(args.frames, args.seed),
        "MODEL": lambda: every_order(args.steps),
        "API": lambda: api(args.cases, args.seconds, args.seed),
        "F5": repairs,
        "F6": slow_clients,
        "F8": lambda: odd_tasks(args.odd, args.seed),
    }
    rows: list[Row] = []
    for name in args.only.split(","):
        print(f"{name} …", flush=True)
        rows += parts[name]()
    print("\n| figure | target | measured | |\n|---|---|---|---|")
    for figure, target, measured, good in rows:
        print(f"| {figure} | {target} | {measured} | {'yes' if good else 'NO'} |")
    return 0 if all(row[3] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
