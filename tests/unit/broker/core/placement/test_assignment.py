"""Who gets which task: urgent first, nobody blocked by a head, spread, batches of small work."""

from __future__ import annotations

import pytest

from retire_cluster.broker.core import instructions as ins
from retire_cluster.broker.core.model import SLOT_UNITS
from retire_cluster.broker.core.rows import DispatchRow
from retire_cluster.schemas.protocol.messages import Held
from tests.unit.broker.kit import WALL_MS, Cluster, MakeCluster, only, settings_with


def test_a_placement_is_stored_before_it_is_sent(cluster: Cluster) -> None:
    member = cluster.device()
    (number,) = cluster.submit()
    found = cluster.place()
    task = cluster.task(number)
    assert task.dispatch is not None
    epoch, token = cluster.state.epoch, task.dispatch.token
    row = DispatchRow(1, epoch, token, "box", WALL_MS, ((number, 1),))
    assert found == [
        ins.StoreDispatch(row),
        ins.SendAssign(member.routing, member.session, task.dispatch, (task,)),
    ]
    assert 0 <= token < 2**53
    assert cluster.status(number) == "assigned"


def test_without_work_or_without_room_nothing_happens(cluster: Cluster) -> None:
    assert cluster.place() == []
    cluster.device()
    assert cluster.place() == []
    cluster.submit(2)
    assert len(cluster.place()) == 2
    assert cluster.place() == []


def test_urgent_work_goes_first(cluster: Cluster) -> None:
    order = [cluster.submit(priority=word)[0] for word in ("low", "high", "normal", "urgent")]
    member = cluster.device(slots=1)
    done = []
    for _ in order:
        cluster.place()
        done += list(member.record.attempts)
        member.finish()
    assert done == [order[3], order[1], order[2], order[0]]


def test_urgent_work_goes_first_across_requirement_classes(cluster: Cluster) -> None:
    low = cluster.submit(3, priority="low", min_cpu_cores=1)
    urgent = cluster.submit(2, priority="urgent", required_tags=["x"])
    normal = cluster.submit(2)
    member = cluster.device(slots=1, tags=("x",))
    done = []
    for _ in range(7):
        cluster.place()
        done += list(member.record.attempts)
        member.finish()
    assert done == [*urgent, *normal, *low]


def test_a_task_that_nobody_can_run_delays_nothing(cluster: Cluster) -> None:
    (stuck,) = cluster.submit(priority="urgent", gpu_required=True)
    (fine,) = cluster.submit(priority="low")
    member = cluster.device()
    cluster.place()
    assert list(member.record.attempts) == [fine]
    assert cluster.status(stuck) == "queued"


def test_a_class_whose_devices_are_all_busy_steps_aside_until_one_has_room(
    cluster: Cluster,
) -> None:
    tagged = cluster.device("tagged", tags=("x",))
    plain = cluster.device("plain")
    numbers = cluster.submit(3, priority="urgent", required_tags=["x"])
    others = cluster.submit(2, priority="low")
    cluster.place()
    assert list(tagged.record.attempts) == numbers[:1]
    assert list(plain.record.attempts) == others[:1]
    assert [cls.blocked for cls in cluster.state.waiting.values()].count(True) == 1
    tagged.finish()
    cluster.place()
    assert list(tagged.record.attempts) == numbers[1:2]


def test_work_spreads_over_devices(cluster: Cluster) -> None:
    members = [cluster.device(f"d{number}", slots=4) for number in range(4)]
    cluster.submit(8)
    cluster.place()
    assert [len(member.record.attempts) for member in members] == [2, 2, 2, 2]


def test_a_device_gets_no_more_than_its_slots(cluster: Cluster) -> None:
    member = cluster.device(slots=3)
    numbers = cluster.submit(10)
    found = cluster.place()
    assert list(member.record.attempts) == numbers[:3]
    # One message, one lease for all of them.
    (order,) = only(ins.SendAssign, found)
    assert [task.number for task in order.tasks] == numbers[:3]
    assert order.dispatch.open == 3


def test_small_work_goes_in_batches_shared_evenly(cluster: Cluster) -> None:
    members = [cluster.device(f"d{number}", slots=1) for number in range(3)]
    cluster.submit(600, task_type="echo")
    found = cluster.place()
    assert [len(member.record.attempts) for member in members] == [200, 200, 200]
    assert len(only(ins.SendAssign, found)) == 3
    assert all(member.record.free_units == SLOT_UNITS - 200 for member in members)


def test_a_message_holds_at_most_512_assignments(cluster: Cluster) -> None:
    cluster.device(slots=3)
    cluster.submit(1_200, task_type="echo")
    sizes = [len(order.tasks) for order in only(ins.SendAssign, cluster.place())]
    assert sizes == [512, 512, 176]


def test_small_work_of_a_class_stops_where_an_older_task_of_its_rank_waits(
    cluster: Cluster,
) -> None:
    first = cluster.submit(5, task_type="echo")
    middle = cluster.submit(1, task_type="echo", min_cpu_cores=1)
    last = cluster.submit(5, task_type="echo")
    member = cluster.device(slots=1)
    cluster.place()
    assert list(member.record.attempts) == [*first, *middle, *last]


def test_a_stream_of_small_work_does_not_keep_a_whole_slot_from_better_ranked_work(
    cluster: Cluster,
) -> None:
    member = cluster.device(slots=1)
    cluster.submit(512, task_type="echo", priority="low")
    cluster.place()
    (urgent,) = cluster.submit(priority="urgent")
    for _ in range(40):
        cluster.submit(20, task_type="echo", priority="low")
        member.finish(*member.keys[:20])
        cluster.place()
        if urgent in member.record.attempts:
            break
    assert list(member.record.attempts) == [urgent]


def test_small_urgent_work_still_fills_what_lesser_work_waits_for(cluster: Cluster) -> None:
    member = cluster.device(slots=1)
    cluster.submit(1, task_type="echo")
    cluster.place()
    (low,) = cluster.submit(priority="low")
    urgent = cluster.submit(10, task_type="echo", priority="urgent")
    cluster.place()
    assert set(urgent) <= set(member.record.attempts)
    assert cluster.status(low) == "queued"
    member.finish()
    cluster.place()
    assert cluster.status(low) == "assigned"


def test_only_the_device_nearest_to_a_whole_slot_is_kept_from_small_work(
    cluster: Cluster,
) -> None:
    near, far = cluster.device("near"), cluster.device("far")
    cluster.submit(2, task_type="echo", required_tags=[])
    cluster.place()
    assert (len(near.record.attempts), len(far.record.attempts)) == (1, 1)
    cluster.submit(1, task_type="echo")
    cluster.place()
    (waiting,) = cluster.submit(priority="urgent")
    cluster.submit(30, task_type="echo", priority="low")
    before = {one.device_id: len(one.record.attempts) for one in (near, far)}
    cluster.place()
    grown = [
        one.device_id for one in (near, far) if len(one.record.attempts) > before[one.device_id]
    ]
    assert len(grown) == 1
    assert cluster.status(waiting) == "queued"


@pytest.mark.parametrize("how", ["drained", "device drains", "offline", "removed"])
def test_a_device_that_takes_nothing_gets_nothing(cluster: Cluster, how: str) -> None:
    member = cluster.device()
    if how == "drained":
        cluster.call("device.drain", {"device_id": "box"})
    elif how == "device drains":
        member.beat(accepting=False, not_accepting_reason="on battery")
    elif how == "offline":
        cluster.pass_time(16)
        cluster.tick("liveness")
    else:
        cluster.call("device.remove", {"device_id": "box"})
    cluster.submit()
    assert cluster.place() == []


def test_changing_slots_and_types_changes_what_fits(cluster: Cluster) -> None:
    member, _ = cluster.give(2)
    cluster.submit(5)
    rows = tuple(Held(key, False, 0.0) for key in member.keys)
    member.join(slots=1, held=rows)
    assert member.record.free_units == -SLOT_UNITS
    assert cluster.place() == []
    member.join(slots=4, held=rows)
    cluster.place()
    assert len(member.record.attempts) == 4


def test_a_batch_cancelled_in_part_frees_its_lease_when_the_rest_has_ended(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(settings_with(heartbeat={"interval": 1.0}))
    member = cluster.device(slots=3)
    numbers = cluster.submit(3)
    cluster.place()
    cluster.call("task.cancel", {"task_id": cluster.public(numbers[0])})
    assert cluster.tick("upkeep") == []
    member.finish()
    assert cluster.tick("upkeep") == [ins.ForgetDispatches((1,))]
    assert cluster.tick("upkeep") == []
