"""Odd machines: start everything under each of a table of conditions.

    python tests/chaos/machines.py             all of the table; exit code 1 when one went wrong
    python tests/chaos/machines.py NAME ...    those

Under each, `up` with one worker gets ready, a task goes through it by the command line and a signal
ends it within ten seconds, without a trace in its log; or it ends at once with exit code 2 and one
line that says the cure. Conditions that need root or a tool which is not here say so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

COMMAND = [sys.executable, "-m", "retire_cluster.cli.main"]
ANY_PORTS = ["--port", "0", "--cluster-port", "0", "--worker-port", "0", "--event-port", "0"]
READY_SECONDS, STOP_SECONDS = 60.0, 10.0
#: Where a group for one condition is made: v1 by controller, v2 where it gives all of them away.
GROUPS = Path("/sys/fs/cgroup")
GROUP = "rc-odd-machine-"
#: Under these the three programs are also started apart.
APART = frozenset({
    "plain", "unknown-user", "no-proc", "64-descriptors", "host-name-no-utf8", "locale-c",
    "clock-1971", "half-a-processor", "256-mib-of-memory", "umask-077", "no-path",
})  # fmt: skip
APART_SMALL = frozenset({"unknown-user", "no-proc"})
STRANGER = ("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups")


def shell(before: str, *flags: str) -> tuple[str, ...]:
    """In namespaces of its own, a command of the shell first. `$D` is the scratch folder."""
    return ("unshare", *flags, "sh", "-c", f'{before}; exec "$@"', "sh")


def grouped(v1: Mapping[str, str], v2: Mapping[str, str]) -> tuple[str, ...]:
    """In control groups of its own with these limits, by file. `$D` is the scratch folder."""
    controllers = sorted({name.partition(".")[0] for name in v1})
    unified = (GROUPS / "cgroup.controllers").exists()
    folders = [GROUPS] if unified else [GROUPS / name for name in controllers]
    steps = ["set -e"]
    for folder in folders:
        made = f"{folder}/{GROUP}$(basename $D)"
        steps.append(f"mkdir -p {made}")
        for name, value in (v2 if unified else v1).items():
            if unified or name.startswith(f"{folder.name}."):
                steps.append(f"echo {value} > {made}/{name}")
        steps.append(f"echo $$ > {made}/cgroup.procs")
    return ("sh", "-c", "; ".join(steps) + '; exec "$@"', "sh")


def ungroup(scratch: Path) -> None:
    """Remove what `grouped` made."""
    for folder in (GROUPS, *GROUPS.glob("*/")):
        with contextlib.suppress(OSError):
            (folder / f"{GROUP}{scratch.name}").rmdir()


@dataclass(frozen=True)
class Condition:
    """One odd machine."""

    name: str
    #: Words before the command, for everything that is started.
    around: tuple[str, ...] = ()
    #: Words before `up` alone.
    before: tuple[str, ...] = ()
    environ: Mapping[str, str | None] = field(default_factory=dict)
    #: Part of the line that it has to end with; None: it has to work.
    says: str | None = None
    #: What its log has to contain when it works.
    logs: str = ""
    data_dir: str | None = "$D/data"
    #: In the set of every test run.
    small: bool = False
    #: Main node, API and worker are started one by one instead of by `up` (apart.py).
    apart: bool = False

    @property
    def needs(self) -> set[str]:
        """Programs it wants."""
        words = {self.around[0]} if self.around else set()
        text = " ".join(self.around)
        return (words | {tool for tool in ("ip", "mount") if f"{tool} " in text}) - {"env"}

    @property
    def root(self) -> bool:
        """Whether only root can make it."""
        return self.grouped or bool(self.needs & {"unshare", "setpriv"})

    @property
    def grouped(self) -> bool:
        """Whether it needs control groups that can be written."""
        return GROUP in " ".join(self.around)


def table() -> list[Condition]:
    """The conditions."""
    lo = "ip link set lo up"
    lan = f"{lo}; ip link add rc0 type veth peer name rc1 && ip link set rc1 up; ip link set rc0 up"
    open_bus = {"RETIRE_CLUSTER_SERVER_WORKER_HOST": None}
    mono = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1"}
    whole = [
        Condition("plain"),
        Condition("no-home", environ={"HOME": None, "USER": None, "LOGNAME": None}),
        Condition("unknown-user", around=STRANGER, environ={"HOME": None}, small=True),
        Condition("unknown-user-without-folder", around=STRANGER, environ={"HOME": None},
                  data_dir=None, says="no home folder", small=True),
        Condition("home-of-somebody-else", around=STRANGER, environ={"HOME": "/proc"},
                  data_dir=None, says="/proc/.local"),
        Condition("read-only-folder", data_dir="/proc/retire-cluster", says="/proc", small=True),
        Condition("folder-of-another-mount", around=shell(
            "mkdir $D/data && mount -t tmpfs -o ro none $D/data", "-m"), says="ead-only"),
        Condition("folder-is-a-file", around=shell("touch $D/data"), says="$D/data"),
        Condition("tiny-disk", around=shell(
            "mkdir $D/data && mount -t tmpfs -o size=256k,mode=700 none $D/data", "-m"),
            small=True),
        Condition("no-temporary-folder", environ={"TMPDIR": "/nowhere"}),
        Condition("64-descriptors", around=("prlimit", "--nofile=64:64"), small=True),
        Condition("no-proc", around=shell("mount -t tmpfs none /proc", "-m"), small=True),
        Condition("no-sys", around=shell("mount -t tmpfs none /sys", "-m")),
        Condition("host-name-no-utf8", around=shell(
            "printf 'caf\\351' > /proc/sys/kernel/hostname", "-u"), small=True),
        Condition("host-name-long", around=shell(
            "printf %064d 7 > /proc/sys/kernel/hostname", "-u")),
        Condition("host-name-odd", around=shell(
            "printf -- '-a b_' > /proc/sys/kernel/hostname", "-u")),
        Condition("locale-c", environ={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0",
                                       "PYTHONUTF8": "0"}),
        Condition("locale-unknown", environ={"LC_ALL": "xx_YY.KOI8-Q"}),
        Condition("output-latin-1", environ={"PYTHONIOENCODING": "latin-1"}),
        Condition("clock-1971", around=("faketime", "-f", "@1971-01-02 00:00:00"), environ=mono,
                  small=True),
        Condition("clock-2036", around=("faketime", "-f", "@2036-02-07 06:28:10"), environ=mono),
        Condition("clock-2105", around=("faketime", "-f", "@2105-01-01 00:00:00"), environ=mono),
        Condition("clock-fast", around=("faketime", "-f", "+0 x20"), environ=mono),
        Condition("no-route", around=shell(lo, "-n"), environ=open_bus),
        Condition("no-route-but-a-lan", around=shell(
            f"{lan}; ip addr add 10.78.0.1/24 dev rc0", "-n"), environ=open_bus,
            logs=r"--join rc1\."),
        Condition("ipv6-only", around=shell(
            f"{lan}; ip addr add fd00:78::1/64 dev rc0 nodad", "-n"), environ=open_bus,
            logs=r"--join rc1\.", small=True),
        Condition("no-loopback", around=shell("true", "-n"), says="ip link set lo up", small=True),
        Condition("closed-input", before=("sh", "-c", 'exec "$@" <&-', "sh")),
        Condition("closed-errors", before=("sh", "-c", 'exec "$@" 2>&-', "sh"), small=True),
        Condition("optimize-1", environ={"PYTHONOPTIMIZE": "1"}),
        # Its verbs say in one line what to set (test_odd_starts.py); `up` works.
        Condition("optimize-2", before=("env", "PYTHONOPTIMIZE=2")),
        Condition("relative-folder", data_dir="data", small=True),
        Condition("relative-folder-by-environment", data_dir=None,
                  environ={"RETIRE_CLUSTER_DATA_DIR": "here/data"}),
        Condition("folder-with-odd-letters", data_dir="$D/a b'é%s"),
        Condition("nice-19", around=("nice", "-n", "19")),
        Condition("umask-077", around=("sh", "-c", 'umask 077; exec "$@"', "sh")),
        Condition("half-a-processor", around=grouped(
            {"cpu.cfs_quota_us": "50000"}, {"cpu.max": "'50000 100000'"}),
            logs=r", 1 slots: ", small=True),
        Condition("one-of-the-processors", around=grouped(
            {"cpuset.cpus": "0", "cpuset.mems": "0"}, {"cpuset.cpus": "0"}),
            logs=r", 1 slots: "),
        Condition("256-mib-of-memory", around=grouped(
            {"memory.limit_in_bytes": str(256 << 20)}, {"memory.max": str(256 << 20)}),
            small=True),
        Condition("no-path", environ={"PATH": None}),
        Condition("empty-environment", around=("env", "-i", "HOME=/nowhere")),
    ]  # fmt: skip
    return whole + [
        replace(one, name=f"apart-{one.name}", apart=True, logs="", small=one.name in APART_SMALL)
        for one in whole
        if one.name in APART
    ]


class Skipped(Exception):
    """This machine cannot be made here."""


def run(condition: Condition, scratch: Path) -> str:
    """What went wrong, empty when nothing did. Raises `Skipped`."""
    for tool in sorted(condition.needs):
        if shutil.which(tool) is None:
            raise Skipped(f"{tool} is not installed")
    if condition.root and os.geteuid() != 0:
        raise Skipped("needs root")
    try:
        return _run(condition, scratch)
    finally:
        if condition.grouped:
            ungroup(scratch)


def _run(condition: Condition, scratch: Path) -> str:
    scratch.chmod(0o777)
    inner = [*put(condition.around, scratch)]
    told = scratch / "told.json"
    words = [condition.name, str(scratch), str(told)]
    # libfaketime and some Pythons do not go together: a sleep ends with EINVAL, or never.
    # Another user may not be let into the folders that Python is in.
    code = "import subprocess, sys, time; time.sleep(0.01); "
    code += "subprocess.check_call([sys.executable, '-c', 'import retire_cluster.cli'])"
    probe = [*inner, sys.executable, "-c", code]
    with contextlib.suppress(subprocess.TimeoutExpired):
        tried = subprocess.run(probe, env=environment(condition), capture_output=True, timeout=15)
        if tried.returncode:
            last = tried.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise Skipped(f"Python does not run so here: {''.join(last):.100}")
    found = scratch / "data"  # made by the probe, as it will be again
    if found.is_dir():
        found.rmdir()
    found.unlink(missing_ok=True)
    done = subprocess.run(
        [*inner, sys.executable, str(Path(__file__).resolve()), "--inside", *words],
        cwd=scratch, env=environment(condition), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, errors="replace", check=False,
        timeout=READY_SECONDS + 90,
    )  # fmt: skip
    if done.returncode == 0 and done.stdout.startswith("well"):
        return ""
    return (done.stdout + done.stderr)[-3000:] or f"exit code {done.returncode}"


def put(words: tuple[str, ...], scratch: Path) -> list[str]:
    """Words with the scratch folder in them."""
    return [word.replace("$D", str(scratch)) for word in words]


def environment(condition: Condition) -> dict[str, str]:
    """What the condition makes of a plain environment."""
    found = {k: v for k, v in os.environ.items() if not k.startswith("RETIRE_CLUSTER_")}
    found |= {"RETIRE_CLUSTER_SERVER_WORKER_HOST": "127.0.0.1", "NO_PROXY": "*"}
    for name, value in condition.environ.items():
        found.pop(name, None)
        if value is not None:
            found[name] = value
    return found


# ------------------------------------------------------- in there: one machine, by its own clock


def inside(name: str, scratch: Path) -> str:
    """Start, use and stop it here; what went wrong."""
    (condition,) = (one for one in table() if one.name == name)
    if condition.apart:
        script = Path(__file__).resolve().parent / "harness" / "apart.py"
        words = [sys.executable, str(script), str(scratch)]
        done = subprocess.run(words, cwd=scratch, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr
    folder = condition.data_dir and condition.data_dir.replace("$D", str(scratch))
    named = ["--data-dir", folder] if folder else []
    log = scratch / "up.log"
    with log.open("wb") as errors:
        up = subprocess.Popen(
            [*condition.before, *COMMAND, "up", *named, *ANY_PORTS], cwd=scratch,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    late = threading.Timer(READY_SECONDS, up.kill)
    late.daemon = True
    late.start()
    try:
        assert up.stdout is not None
        ready = up.stdout.readline().decode(errors="replace")
        late.cancel()
        if condition.says is not None:
            return refused(condition, scratch, up, ready, log)
        if not ready.startswith("ready http"):
            return f"not ready: {ready!r}\n{log.read_text('utf-8', 'replace')}"
        return used(condition, scratch, named, up, log)
    finally:
        if up.poll() is None:
            up.kill()
        up.wait()


def refused(
    condition: Condition, scratch: Path, up: subprocess.Popen[bytes], ready: str, log: Path
) -> str:
    """It had to end with one line."""
    if ready:
        return f"it works, which it cannot: {ready!r}"
    code = up.wait(STOP_SECONDS)
    lines = log.read_text("utf-8", "replace").splitlines()
    wanted = (condition.says or "").replace("$D", str(scratch))
    if code != 2 or len(lines) != 1 or wanted not in lines[0]:
        return f"exit code {code}, wanted one line with {wanted!r}:\n" + "\n".join(lines)
    return ""


def used(
    condition: Condition, scratch: Path, named: list[str], up: subprocess.Popen[bytes], log: Path
) -> str:
    """It had to work: a task goes through, a signal ends it, nothing strange is in its log."""
    words = [*COMMAND, "submit", "echo", "a=1", "--wait", *named]
    done = subprocess.run(
        words, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", check=False, timeout=60,
    )  # fmt: skip
    text = log.read_text("utf-8", "replace")
    if done.returncode or json.loads(done.stdout) != {"echo": {"a": 1}}:
        return f"submit: {done.returncode} {done.stdout} {done.stderr}\n{text}"
    if condition.logs:
        until = time.monotonic() + 10
        while not re.search(condition.logs, log.read_text("utf-8", "replace")):
            if time.monotonic() > until:
                return f"no {condition.logs!r} in its log:\n{text}"
            time.sleep(0.05)
    began = time.monotonic()
    up.send_signal(signal.SIGTERM)
    try:
        code = up.wait(3 * STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return "it does not stop"
    text = log.read_text("utf-8", "replace")
    if code or time.monotonic() - began > STOP_SECONDS * (20 if "x20" in str(condition) else 1):
        return f"its end: exit code {code} after {time.monotonic() - began:.1f} s\n{text}"
    if "Traceback" in text or " died " in text:
        return f"a fault in its log:\n{text}"
    return ""


def main(argv: list[str]) -> int:
    """Run the table, or some of it."""
    if argv[:1] == ["--inside"]:
        found = inside(argv[1], Path(argv[2]))
        print(found or "well")
        return 1 if found else 0
    wrong = 0
    for condition in table():
        if argv and condition.name not in argv:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="rc-odd-", ignore_cleanup_errors=True) as folder:
            try:
                found = run(condition, Path(folder))
                told = found and f"WRONG\n{found}"
                told = told or ("says so" if condition.says else "works")
                wrong += bool(found)
            except Skipped as reason:
                told = f"skipped: {reason}"
        print(f"{condition.name:<32} {time.monotonic() - began:5.1f} s  {told}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
