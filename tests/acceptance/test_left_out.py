"""An own type that cannot be offered is named to its owner and to a user of the main node."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.kit import Cluster
from tests.command_kit import until
from tests.integration.node.test_cuts import install

pytestmark = pytest.mark.slow

TYPES = """
def fine(payload, context):
    return 1

def wrong(payload, context):
    return 1

wrong.payload_schema = {"x": {"type": "strng"}}
number = 5
"""


def test_types_left_out_by_the_device_and_by_the_main_node_are_named(tmp_path: Path) -> None:
    install(tmp_path / "site", TYPES, "fine", "wrong", "number")
    cluster = Cluster(tmp_path / "main", "--no-rate-limit", RETIRE_CLUSTER_ALLOW_ROOT="1")
    try:
        environ = {"PYTHONPATH": str(tmp_path / "site"), "RETIRE_CLUSTER_ALLOW_ROOT": "1"}
        worker = cluster.join("shop", **environ)
        detail = cluster.rest.get("/devices/shop")
        assert "fine" in detail["task_types"]
        assert not {"wrong", "number"} & set(detail["task_types"])
        by_main, by_device = detail["task_types_left_out"]
        assert by_main.startswith("task type wrong is left out: its payload_schema uses rules")
        assert by_device.startswith("task type number (cuts_of_test:number): TypeError: is neither")
        assert {"name": "fine", "distribution": "cuts-of-test", "version": "1.0"} in detail[
            "own_task_types"
        ]
        assert detail["last_error"] is None
        until(lambda: by_main in worker.log.read_text(), "the worker's warning")
        assert "left out: task type number (cuts_of_test:number)" in worker.log.read_text()
        assert by_main in cluster.cli("doctor").stdout
        shown = cluster.cli("devices", "show", "shop").stdout
        assert by_device in shown
        assert "fine of cuts-of-test 1.0" in shown
        assert cluster.rest.result(cluster.rest.submit("fine", {}))["result_data"] == 1
    finally:
        cluster.close()
