"""Output that was cut says so, with the counts, wherever a user looks at it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from retire_cluster.sdk import Cluster as Client
from tests.acceptance.kit import Cluster
from tests.integration.node_kit import posix_only

pytestmark = [pytest.mark.slow, posix_only]

SCRIPT = "head -c 1000000 /dev/zero | tr '\\0' x; echo END; echo all is well >&2"
CUT = {"stdout": {"total_bytes": 1_000_004, "kept_bytes": 262_144, "missing": "middle"}}
LINE = "stdout: 737,860 of 1,000,004 bytes are missing in the middle (policy.output_limit_kb)"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(
        tmp_path_factory.mktemp("cut"), "--allow", "command", RETIRE_CLUSTER_ALLOW_ROOT="1"
    )
    yield found
    assert found.close() == 0


def test_a_long_output_is_shown_with_both_ends_and_what_is_missing(cluster: Cluster) -> None:
    task_id = cluster.rest.submit("command", {"command": ["sh", "-c", SCRIPT]})
    result = cluster.rest.result(task_id)
    assert result["truncated"] == CUT
    stdout = result["result_data"]["stdout"]
    assert stdout.startswith("xxx")
    assert stdout.endswith("xxxEND\n")
    assert "[... 737860 of 1000004 bytes are missing here ...]" in stdout
    assert cluster.rest.get(f"/tasks/{task_id}")["result"]["truncated"] == CUT
    many = cluster.rest.post("/tasks/results", {"task_ids": [task_id]})
    assert many["results"][0]["truncated"] == CUT

    shown = cluster.cli("tasks", "show", task_id)
    assert shown.stdout.splitlines()[-1] == LINE
    printed = cluster.cli("tasks", "result", task_id)
    assert printed.stderr.splitlines()[-1] == LINE
    assert json.loads(printed.stdout)["stdout"] == stdout
    logs = cluster.cli("tasks", "logs", task_id)
    assert logs.stdout == stdout + "stderr:\nall is well\n"
    assert logs.stderr.splitlines()[-1] == LINE


def test_the_sdk_tells_what_is_missing_of_a_result(cluster: Cluster) -> None:
    with Client(f"{cluster.rest.url}/api/v1") as client:
        cut = client.submit("command", {"command": ["sh", "-c", SCRIPT]})
        whole = client.submit("echo", {})
        assert cut.result(30)["stdout"].startswith("xxx")
        assert cut.truncated == CUT
        assert whole.result(30) == {"echo": {}}
        assert whole.truncated is None
