"""The red team: `python -m tests.chaos.redteam [--only S23,S24]`.

Every attack of docs/security.md is done for real against a `retire-cluster up` of its own, and one
table says which held, which went through and which cannot be tried on this machine. Exit code 1
when one went through or could not be judged. Attacks are the `ATTACKS` of `tests/chaos/red/*.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pkgutil
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from retire_cluster.node.system import process_tree
from tests.chaos import red
from tests.chaos.red import Attack, NotHere, Target, Went

HELD, WENT, NOT_HERE, UNCLEAR = "held", "went through", "not possible here", "unclear"
#: The usual cluster: as the quick start makes it, and its device's owner lets commands run.
FLAGS = ("--workers", "1", "--slots", "4", "--allow", "command", "--allow-root")
_LONGEST_TEXT = 200


class OutOfTimeError(BaseException):
    """An attack took longer than it may; no `except Exception` of its own swallows this."""


@dataclass(frozen=True)
class Row:
    """What became of one attack."""

    attack: Attack
    verdict: str
    seen: str
    seconds: float

    @property
    def good(self) -> bool:
        """Whether nothing has to be mended."""
        return self.verdict in (HELD, NOT_HERE)


def attacks() -> list[Attack]:
    """All of them, by number."""
    found: list[Attack] = []
    for module in pkgutil.iter_modules(red.__path__, "tests.chaos.red."):
        found += getattr(importlib.import_module(module.name), "ATTACKS", ())
    return sorted(found, key=lambda attack: attack.order)


def chosen(all_of_them: Sequence[Attack], only: str) -> list[Attack]:
    """Those whose numbers are named, by commas; all for none. Raises `ValueError`."""
    wanted = {word.strip().upper() for word in only.split(",") if word.strip()}
    known = {attack.number for attack in all_of_them}
    if unknown := sorted(wanted - known):
        raise ValueError(f"there is no attack {', '.join(unknown)}")
    return [attack for attack in all_of_them if not wanted or attack.number in wanted]


def judge(attack: Attack, target: Target) -> Row:
    """Do it, then see whether the cluster still serves a stranger to all of this."""
    began = time.monotonic()
    before = {process.pid for process in process_tree.descendants(os.getpid())}
    try:
        with _at_most(attack.seconds):
            seen = attack.run(target)
        verdict = HELD
    except Went as went:
        verdict, seen = WENT, str(went)
    except NotHere as missing:
        verdict, seen = NOT_HERE, str(missing)
    except OutOfTimeError:
        verdict, seen = WENT, f"not over within {attack.seconds:g} s"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # pytest's failures, which the kit may raise, are no Exception
        verdict, seen = UNCLEAR, f"{type(error).__name__}: {error}"
        traceback.print_exc()
    target.release()
    _end_what_is_new(before)
    if verdict == HELD:
        try:
            target.witness()
        except Went as went:
            verdict, seen = WENT, f"{seen}; but {went}"
    return Row(attack, verdict, seen, time.monotonic() - began)


def run(
    wanted: Sequence[Attack], make: Callable[[], Target], tell: Callable[[Row], None]
) -> list[Row]:
    """Every attack in turn; a cluster that was hurt or used up gives way to a new one."""
    rows: list[Row] = []
    target: Target | None = None
    try:
        for attack in wanted:
            if attack.fresh and target is not None:
                target.close()
                target = None
            target = target or make()
            row = judge(attack, target)
            rows.append(row)
            tell(row)
            if attack.fresh or not row.good:
                target.close()
                target = None
    finally:
        if target is not None:
            target.close()
    return rows


def table(rows: Sequence[Row]) -> str:
    """One line an attack."""
    lines = ["| | attack | | what was seen | s |", "|---|---|---|---|---|"]
    for row in rows:
        seen = " ".join(row.seen.split()).replace("|", "/")
        if len(seen) > _LONGEST_TEXT:
            seen = seen[: _LONGEST_TEXT - 1] + "…"
        verdict = row.verdict if row.good else row.verdict.upper()
        lines.append(
            f"| {row.attack.number} | {row.attack.name} | {verdict} | {seen} | {row.seconds:.1f} |"
        )
    return "\n".join(lines)


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def over(number: int, frame: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, over)
    # Again and again: a `finally` of the attack's may hang as well.
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _end_what_is_new(before: set[int]) -> None:
    """Kill what an attack left as children of ours; what is below a cluster is its own to end."""
    me = os.getpid()
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:  # the children of the dead become ours
        kept = before | Target.roots
        left = [p.pid for p in process_tree.descendants(me) if p.parent == me and p.pid not in kept]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.waitpid(pid, 0)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for clusters, removed with all that attacks left in it.

    Others may go through it: workers run tasks as other users.
    """
    made = Path(tempfile.mkdtemp(prefix="red-"))
    made.chmod(0o711)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def main() -> int:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="S1,S2", help="these numbers (all)")
    parser.add_argument("--list", action="store_true", help="say which there are")
    args = parser.parse_args()
    try:
        wanted = chosen(attacks(), args.only)
    except ValueError as error:
        parser.error(str(error))
    if args.list:
        print("\n".join(f"{attack.number:4} {attack.name}" for attack in wanted))
        return 0
    process_tree.become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of every `finally`
    started = time.monotonic()
    with folder() as place:
        count = iter(range(1_000_000))

        def tell(row: Row) -> None:
            print(f"  {row.attack.number} {row.attack.name}: {row.verdict}", flush=True)

        rows = run(wanted, lambda: Target(place / f"up-{next(count)}", *FLAGS), tell)
    left = [process.pid for process in process_tree.descendants(os.getpid())]
    process_tree.kill_all(left)
    print(f"\n{table(rows)}\n")
    counts = ", ".join(
        f"{sum(row.verdict == verdict for row in rows)} {verdict}"
        for verdict in (HELD, WENT, NOT_HERE, UNCLEAR)
    )
    print(f"{len(rows)} attacks in {time.monotonic() - started:.0f} s: {counts}")
    if left:
        print(f"{len(left)} processes were left behind, and ended")
    return 0 if all(row.good for row in rows) and not left else 1


if __name__ == "__main__":
    sys.exit(main())
