"""Tasks, devices and events as the REST document shows them."""

from __future__ import annotations

import pytest

from retire_cluster.broker.admin import figures, views
from retire_cluster.broker.admin.timestamps import duration, optional_stamp, stamp
from retire_cluster.broker.core.placement import why_waiting
from retire_cluster.broker.core.rows import AttemptRow, OutcomeRow
from retire_cluster.schemas.protocol import messages as msg
from tests.unit.broker.kit import WALL_MS, Cluster

AT = "2023-11-14T22:13:20Z"


@pytest.mark.parametrize(
    ("epoch_ms", "text"),
    [
        (WALL_MS, AT),
        (WALL_MS + 7, "2023-11-14T22:13:20.007Z"),
        (0, "1970-01-01T00:00:00Z"),
        (1_999, "1970-01-01T00:00:01.999Z"),
    ],
)
def test_times_are_utc_and_end_in_z(epoch_ms: int, text: str) -> None:
    assert stamp(epoch_ms) == optional_stamp(epoch_ms) == text


def test_a_time_that_has_not_come_is_null() -> None:
    assert optional_stamp(None) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0m"),
        (59.9, "0m"),
        (60, "1m"),
        (3_600, "1h"),
        (9_000, "2h 30m"),
        (86_400, "1d"),
        (189_000, "2d 4h 30m"),
        (172_860, "2d 1m"),
    ],
)
def test_durations_leave_out_what_is_zero(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_submission_is_answered_as_queued_even_if_it_was_placed_in_the_same_turn(
    cluster: Cluster,
) -> None:
    _, key = cluster.give()
    view = views.new_task(cluster.state.ids, key[0], WALL_MS, "sleep", 3)
    assert view == {
        "task_id": cluster.public(key[0]),
        "task_type": "sleep",
        "status": "queued",
        "priority": "urgent",
        "created_at": AT,
        "assigned_device_id": None,
        "assigned_at": None,
        "started_at": None,
        "completed_at": None,
        "execution_time_seconds": None,
        "retry_count": 0,
    }


def test_a_live_task_shows_where_it_is(cluster: Cluster) -> None:
    member, key = cluster.give()
    cluster.pass_time(1)
    member.start()
    view = views.live_task(cluster.state.ids, cluster.task(key[0]), cluster.now)
    assert (view["status"], view["assigned_device_id"]) == ("running", "box")
    assert (view["assigned_at"], view["started_at"]) == (AT, "2023-11-14T22:13:21Z")
    assert view["completed_at"] is None


OUTCOME = OutcomeRow(
    1, "failed", "box", 2, WALL_MS, WALL_MS, WALL_MS, 0.12345678, "error", "no", 1, b'{"x":1}', b""
)


@pytest.mark.parametrize(
    ("details", "traceback", "logs", "truncated"),
    [
        (b"", None, "", None),
        (b'{"error_traceback":"T","logs":"L","truncated":true}', "T", "L", None),
        (b'{"logs":null,"truncated":{"logs":{"kept_bytes":"x"}}}', None, "", None),
        (
            b'{"truncated":{"logs":{"total_bytes":9,"kept_bytes":1,"missing":"end","x":1},"y":2}}',
            None,
            "",
            {"logs": {"total_bytes": 9, "kept_bytes": 1, "missing": "end"}},
        ),
        (b"{", None, "", None),
        (b"[1]", None, "", None),
    ],
)
def test_a_result_reads_its_details_and_survives_odd_ones(
    details: bytes, traceback: str | None, logs: str, truncated: object
) -> None:
    view, text = views.result("id", OUTCOME._replace(details=details))
    assert text == b'{"x":1}'
    assert view == {
        "task_id": "id",
        "status": "failed",
        "result_data": None,
        "execution_time_seconds": 0.123457,
        "worker_device_id": "box",
        "started_at": AT,
        "completed_at": AT,
        "error_message": "no",
        "error_traceback": traceback,
        "logs": logs,
        "truncated": truncated,
        "cause": "error",
    }


HISTORY = AttemptRow(1, 1, "a", "lost", "worker_lost", "gone", WALL_MS, None, WALL_MS, None)


def test_attempts_end_with_the_final_or_current_one(cluster: Cluster) -> None:
    found = views.attempts([HISTORY], None, OUTCOME)
    assert [(one["attempt"], one["status"]) for one in found] == [(1, "lost"), (2, "failed")]
    assert views.error_history(found) == [
        {
            "attempt": 1, "device_id": "a", "cause": "worker_lost", "error_message": "gone",
            "timestamp": AT,
        },
        {
            "attempt": 2, "device_id": "box", "cause": "error", "error_message": "no",
            "timestamp": AT,
        },
    ]  # fmt: skip
    _, key = cluster.give()
    (current,) = views.attempts([], cluster.task(key[0]), None)
    assert (current["attempt"], current["status"], current["ended_at"]) == (1, "assigned", None)


def test_a_task_cancelled_while_it_waited_has_no_attempt_of_its_own(cluster: Cluster) -> None:
    cancelled = OUTCOME._replace(status="cancelled", attempt=1, assigned_ms=None)
    assert len(views.attempts([HISTORY], None, cancelled)) == 1
    assert views.attempts([], None, cancelled._replace(attempt=0)) == []
    (number,) = cluster.submit()
    assert views.attempts([], cluster.task(number), None) == []
    assert views.attempts([], None, None) == []


def test_the_status_shows_progress_and_whether_it_may_be_retried(cluster: Cluster) -> None:
    member, key = cluster.give()
    task = cluster.task(key[0])
    brief = views.live_task(cluster.state.ids, task, cluster.now)
    view = views.task_status(brief, task, 1, None, AT)
    assert (view["progress"], view["is_terminal"], view["can_retry"]) == (None, False, False)
    member.start()
    items = (msg.ProgressItem(key, None, "working"),)
    member.say(msg.Progress(member.session, items))
    view = views.task_status(brief, task, 1, None, AT)
    assert view["progress"] == {"percent": None, "message": "working"}
    ended = {**brief, "status": "timeout"}
    view = views.task_status(ended, None, 1, None, AT)
    assert (view["is_terminal"], view["can_retry"]) == (True, True)


def test_a_waiting_task_says_who_could_run_it_and_why_the_others_cannot(
    cluster: Cluster,
) -> None:
    (number,) = cluster.submit(required_tags=["x"])
    task = cluster.task(number)
    assert why_waiting.queued_reason(cluster.state, task, cluster.now) == {
        "eligible_devices": 0, "busy_devices": 0, "rejected": {},
    }  # fmt: skip
    (number,) = cluster.submit(required_tags=["x"])
    cluster.device("busy", tags=("x",))
    cluster.place()
    task = cluster.task(number)
    for name in ("a", "b"):
        cluster.device(name)
    away = cluster.device("away", tags=("x",))
    away.say(msg.Goodbye(away.session))
    cluster.device("drains", tags=("x",), accepting=False)
    cluster.device("fine", tags=("x",))
    assert why_waiting.queued_reason(cluster.state, task, cluster.now) == {
        "eligible_devices": 2,
        "busy_devices": 1,
        "rejected": {"missing tag x": 2, "offline": 1, "draining": 1},
    }


def test_a_device_shows_everything_documented(cluster: Cluster) -> None:
    member, key = cluster.give(member=cluster.device(uptime_seconds=9_000.0, tags=("b", "a")))
    member.beat(metrics={"cpu_percent": 5.0}, rtt_ms=1.23456)
    view = views.device_detail(cluster.state, member.record, cluster.now)
    assert view["uptime"] == "2h 30m"
    assert view["tags"] == ["a", "b"]
    assert view["last_heartbeat"] == view["registered_at"] == AT
    assert view["running_tasks"] == [cluster.public(key[0])]
    assert view["task_types"] == ["command", "echo", "resize", "sleep"]
    assert view["metrics"]["cpu_percent"] == 5.0
    assert view["metrics"]["battery_percent"] is None
    assert [entry["timestamp"] for entry in view["metrics_history"]] == [AT]
    assert view["last_error"] is None
    status = views.device_status(member.record, cluster.now)
    assert status == {
        "device_id": "box",
        "status": "online",
        "is_online": True,
        "last_heartbeat": AT,
        "uptime": "2h 30m",
        "response_time_ms": 1.235,
        "current_load": {
            "running_tasks": 1, "slots": 1, "cpu_percent": 5.0, "memory_percent": None,
        },
        "accepting": True,
        "not_accepting_reason": None,
        "timestamp": AT,
    }  # fmt: skip


def test_why_a_device_takes_nothing(cluster: Cluster) -> None:
    member = cluster.device()
    record = member.record
    assert views.not_accepting_reason(record) is None
    record.accepting = False
    assert views.not_accepting_reason(record) == "draining"
    record.not_accepting_reason = "hot"
    assert views.not_accepting_reason(record) == "hot"
    record.drained = True
    assert views.not_accepting_reason(record) == "drained by the administrator"
    member.say(msg.Goodbye(member.session))
    assert views.not_accepting_reason(record) == "offline"


def test_resources_are_summed_without_odd_facts(cluster: Cluster) -> None:
    facts = [
        {"cpu_count": 8, "memory_total_gb": 15.504, "storage_total_gb": 1},
        {"cpu_count": "many", "memory_total_gb": True, "storage_total_gb": None},
        {},
    ]
    for number, one in enumerate(facts):
        cluster.device(f"d{number}", capabilities=one)
    devices = list(cluster.state.devices.values())
    assert figures.resource_totals(devices) == {"cpu_cores": 8, "memory_gb": 15.5, "storage_gb": 1}


def test_slot_figures_count_online_devices_only(cluster: Cluster) -> None:
    cluster.give()
    gone = cluster.device("gone", slots=4)
    gone.say(msg.Goodbye(gone.session))
    assert figures.slot_figures(cluster.state) == (1.0, 1)


def test_an_event_names_its_task_and_device_when_it_has_one(cluster: Cluster) -> None:
    _, key = cluster.give()
    entries = list(cluster.state.log.after(0))
    device, _, assigned = (views.event(cluster.state.ids, entry) for entry in entries)
    assert device == {
        "id": entries[0].id, "type": "device.online", "at": AT, "device_id": "box", "data": {},
    }  # fmt: skip
    assert assigned["task_id"] == cluster.public(key[0])
    assert assigned["device_id"] == "box"
    assert assigned["data"] == {"from": "queued", "attempt": 1}
