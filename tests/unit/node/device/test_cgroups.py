"""What a container is given counts as the device's: on file trees as the kernel lays them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retire_cluster.node.device import cgroups, probe
from retire_cluster.node.device.cgroups import Allowance, allowance, memory_used

HALF_A_GIB = 512 * 1024 * 1024
V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1_MOUNTS = (
    "31 23 0:27 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 23 0:28 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "33 23 0:29 {root} /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "34 23 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
)
V1_GROUPS = "4:cpuset:{at}\n3:memory:{at}\n2:cpu,cpuacct:{at}\n1:name=systemd:/init\n"


def tree(root: Path, *, mounts: str, groups: str, files: dict[str, str]) -> Path:
    proc = root / "proc" / "self"
    proc.mkdir(parents=True)
    (proc / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts)
    (proc / "cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", "utf-8")
    return root


def v2(root: Path, files: dict[str, str], at: str = "/", mounted: str = "/") -> Path:
    groups = f"0::{at}\n"
    return tree(root, mounts=V2_MOUNT.format(root=mounted), groups=groups, files=files)


def v1(root: Path, files: dict[str, str], at: str = "/", mounted: str = "/") -> Path:
    mounts, groups = V1_MOUNTS.format(root=mounted), V1_GROUPS.format(at=at)
    return tree(root, mounts=mounts, groups=groups, files=files)


def test_v2_half_a_processor_and_half_a_gibibyte(tmp_path: Path) -> None:
    files = {
        "cpu.max": "50000 100000",
        "memory.max": str(HALF_A_GIB),
        "cpuset.cpus.effective": "0-1",
    }
    assert allowance(v2(tmp_path, files)) == Allowance(0.5, 2, HALF_A_GIB)


def test_v2_max_is_no_limit(tmp_path: Path) -> None:
    files = {"cpu.max": "max 100000", "memory.max": "max"}
    assert allowance(v2(tmp_path, files)) == Allowance()


def test_v2_the_least_limit_of_all_levels_counts(tmp_path: Path) -> None:
    files = {
        "system.slice/cpu.max": "150000 100000",
        "system.slice/memory.max": str(4 * HALF_A_GIB),
        "system.slice/rc.service/cpu.max": "max 100000",
        "system.slice/rc.service/memory.max": str(2 * HALF_A_GIB),
        "system.slice/other.service/memory.max": "4096",
        "user.slice/cpu.max": "1000 100000",
    }
    root = v2(tmp_path, files, at="/system.slice/rc.service")
    assert allowance(root) == Allowance(1.5, None, 2 * HALF_A_GIB)


def test_v1_half_a_processor_and_half_a_gibibyte(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "50000",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": str(HALF_A_GIB),
        "cpuset/cpuset.cpus": "0,2-4",
    }
    assert allowance(v1(tmp_path, files)) == Allowance(0.5, 4, HALF_A_GIB)


def test_v1_minus_one_and_the_largest_page_are_no_limit(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    assert allowance(v1(tmp_path, files)) == Allowance()


@pytest.mark.parametrize("make", [v1, v2])
def test_a_container_that_sees_its_own_group_only(tmp_path: Path, make: object) -> None:
    # Docker without a namespace of its own: the path is the host's, the mount begins there.
    v1_files = {"memory/memory.limit_in_bytes": str(HALF_A_GIB)}
    files = v1_files if make is v1 else {"memory.max": str(HALF_A_GIB)}
    root = make(tmp_path, files, at="/docker/0123", mounted="/docker/0123")  # type: ignore[operator]
    assert allowance(root).memory_bytes == HALF_A_GIB


def test_a_path_of_another_namespace_stands_for_what_is_mounted(tmp_path: Path) -> None:
    root = v2(tmp_path, {"memory.max": str(HALF_A_GIB)}, at="/../../x", mounted="/docker/0123")
    assert allowance(root).memory_bytes == HALF_A_GIB


def test_both_versions_at_once(tmp_path: Path) -> None:
    mounts = V1_MOUNTS.format(root="/") + (
        "40 23 0:40 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    files = {
        "memory/rc/memory.limit_in_bytes": str(HALF_A_GIB),
        "unified/rc/memory.max": str(4 * HALF_A_GIB),
        "unified/rc/cpu.max": "25000 100000",
    }
    groups = V1_GROUPS.format(at="/rc") + "0::/rc\n"
    root = tree(tmp_path, mounts=mounts, groups=groups, files=files)
    assert allowance(root) == Allowance(0.25, None, HALF_A_GIB)


def test_without_proc_the_usual_place_is_read(tmp_path: Path) -> None:
    root = v2(tmp_path, {"memory.max": str(HALF_A_GIB), "cgroup.controllers": "cpu memory"})
    for name in ("mountinfo", "cgroup"):
        (root / "proc" / "self" / name).unlink()
    assert allowance(root).memory_bytes == HALF_A_GIB


@pytest.mark.parametrize(
    "text", ["", "x", "-5 100000", "0 0", "5.5", "50000 0", "1 2 3", "\0", "٣ ٣"]
)
def test_what_cannot_be_read_limits_nothing(tmp_path: Path, text: str) -> None:
    files = {"cpu.max": text, "memory.max": text, "cpuset.cpus.effective": text + ",-"}
    assert allowance(v2(tmp_path, files)) == Allowance()
    assert allowance(tmp_path / "nowhere") == Allowance()


def test_used_memory_is_that_of_the_tightest_limit_without_dropped_cache(tmp_path: Path) -> None:
    files = {
        "memory.max": str(4 * HALF_A_GIB),
        "memory.current": str(3 * HALF_A_GIB),
        "a/memory.max": str(HALF_A_GIB),
        "a/memory.current": "1000",
        "a/memory.stat": "anon 600\ninactive_file 300\nactive_file 100",
    }
    assert memory_used(v2(tmp_path, files, at="/a")) == 700
    v1_files = {
        "memory/memory.limit_in_bytes": str(HALF_A_GIB),
        "memory/memory.usage_in_bytes": "1000",
        "memory/memory.stat": "cache 10\ntotal_inactive_file 400",
    }
    assert memory_used(v1(tmp_path / "v1", v1_files)) == 600


def test_half_a_processor_is_one_slot_and_the_limit_is_the_devices_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = v2(tmp_path, {"cpu.max": "50000 100000", "memory.max": str(HALF_A_GIB)})
    found = allowance(root)
    monkeypatch.setattr(cgroups, "allowance", lambda: found)
    assert probe.cpu_count() == 1
    assert probe.memory_total_gb() == 0.5
    monkeypatch.setattr(cgroups, "allowance", lambda: Allowance(100.0, 100, 1 << 50))
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    assert probe.cpu_count() == (available or os.cpu_count())
