"""The cluster's own processes show other programs of their user neither memory nor environment.

Tasks of `up`'s local workers may be such programs, and where the kernel has no Landlock nothing
else stands in their way.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cli.test_networks import ANY_PORT, CLI, process, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
#: Runs a command without the capabilities by which root looks into any process (prctl(2),
#: PR_CAPBSET_DROP of SYS_PTRACE, SYS_ADMIN, PERFMON); whoever lacks them keeps nobody else out.
ORDINARY = (
    sys.executable,
    "-c",
    "import ctypes, os, sys\n"
    "for one in (19, 21, 38): ctypes.CDLL(None).prctl(24, one, 0, 0, 0)\n"
    "os.execv(sys.argv[1], sys.argv[1:])",
)
#: Looks at every process whose command line names a folder.
LOOK = """
import os, sys
for entry in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{entry}/cmdline", "rb").read()
        if sys.argv[1].encode() not in words or int(entry) == os.getpid():
            continue
        print("saw", entry)
        open(f"/proc/{entry}/environ", "rb").read()
        print("read", entry, words)
    except OSError:
        pass
"""


def test_no_process_of_up_can_be_looked_into(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    command = [*ORDINARY, *CLI, "up", "--workers", "1", *ANY_PORT, "--data-dir", str(folder)]
    with process(command, tmp_path) as (up, log):
        until(log, "(ready http)", up)
        looked = subprocess.run(
            [*ORDINARY, sys.executable, "-c", LOOK, str(folder)],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    lines = looked.stdout.splitlines()
    assert len([line for line in lines if line.startswith("saw")]) >= 4, lines
    assert [line for line in lines if line.startswith("read")] == []
