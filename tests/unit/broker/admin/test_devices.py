"""Operations on devices."""

from __future__ import annotations

from typing import Any

import pytest

from retire_cluster.schemas import errors
from retire_cluster.schemas.protocol import messages as msg
from tests.unit.broker.kit import Cluster, wrong

AT = "2023-11-14T22:13:20Z"

DEVICE_OPS = [
    "device.get", "device.status", "device.remove", "device.drain", "device.resume",
    "device.readmit", "device.ping",
]  # fmt: skip


@pytest.mark.parametrize("op", DEVICE_OPS)
def test_an_unknown_device_is_not_found(cluster: Cluster, op: str) -> None:
    with pytest.raises(errors.DeviceNotFound):
        cluster.call(op, {"device_id": "nobody"})
    assert wrong(cluster, op, {}).field == "device_id"


def test_devices_are_listed_by_id_filtered_and_in_pages(cluster: Cluster) -> None:
    cluster.device("c", tags=("x", "y"), role="mobile", platform="android")
    cluster.device("a", tags=("x",))
    gone = cluster.device("b")
    gone.say(msg.Goodbye(gone.session))

    def names(**args: Any) -> list[str]:
        items = cluster.call("device.list", args).data["items"]
        return [item["device_id"] for item in items]

    assert names() == names(status="all") == ["a", "b", "c"]
    assert names(status="online") == ["a", "c"]
    assert names(status="offline") == ["b"]
    assert names(role="mobile") == names(platform="android") == ["c"]
    assert names(tags=["x"]) == ["a", "c"]
    assert names(tags=["x", "y"]) == ["c"]
    assert names(page=2, page_size=2) == ["c"]
    found = cluster.call("device.list", {"page": 2, "page_size": 2}).data["pagination"]
    assert found == {
        "page": 2, "page_size": 2, "total_items": 3, "total_pages": 2, "has_next": False,
        "has_previous": True,
    }  # fmt: skip
    empty = cluster.call("device.list", {"role": "storage", "page": 3}).data["pagination"]
    assert (empty["total_pages"], empty["has_previous"]) == (0, False)


def test_draining_and_resuming_answer_the_devices_status(cluster: Cluster) -> None:
    cluster.device()
    found = cluster.call("device.drain", {"device_id": "box"}).data
    assert (found["accepting"], found["not_accepting_reason"]) == (
        False, "drained by the administrator",
    )  # fmt: skip
    assert cluster.call("device.resume", {"device_id": "box"}).data["accepting"] is True
    assert cluster.call("device.get", {"device_id": "box"}).data["accepting"] is True


def test_removing_and_readmitting_answer_when(cluster: Cluster) -> None:
    cluster.device()
    assert cluster.call("device.remove", {"device_id": "box"}).data == {
        "device_id": "box", "removed_at": AT, "was_online": True,
        "removal_reason": "removed by request",
    }  # fmt: skip
    with pytest.raises(errors.DeviceNotFound):
        cluster.call("device.get", {"device_id": "box"})
    found = cluster.call("device.readmit", {"device_id": "box"}).data
    assert found == {"device_id": "box", "readmitted_at": AT}


def test_a_ping_is_parked_until_the_device_answers(cluster: Cluster) -> None:
    cluster.device()
    assert cluster.park("device.ping", {"device_id": "box", "timeout_seconds": 3}) is None
    assert cluster.state.next_deadline() == cluster.mono + 3
    assert wrong(cluster, "device.ping", {"device_id": "box", "timeout_seconds": 11}).field == (
        "timeout_seconds"
    )


def test_the_summary_counts_devices(cluster: Cluster) -> None:
    big = {"cpu_count": 8, "memory_total_gb": 16, "has_gpu": True}
    cluster.device("big", capabilities=big)
    cluster.device("nearly", capabilities={**big, "memory_total_gb": 15.9, "has_gpu": "yes"})
    cluster.device("phone", role="mobile", platform="android", capabilities={"cpu_count": 4})
    gone = cluster.device("gone")
    gone.say(msg.Goodbye(gone.session))
    found = cluster.call("device.summary").data
    assert (found["total_devices"], found["online_devices"], found["offline_devices"]) == (4, 3, 1)
    assert found["by_role"] == {"worker": 3, "mobile": 1}
    assert found["by_platform"] == {"linux": 3, "android": 1}
    assert found["by_status"] == {"online": 3, "offline": 1}
    assert found["capabilities"] == {"gpu_enabled": 1, "mobile_devices": 1, "server_grade": 1}
    assert found["resource_totals"]["cpu_cores"] == 24
