"""A second process with the id of a living device."""

from __future__ import annotations

from retire_cluster.broker.core import instructions as ins
from retire_cluster.schemas.protocol import messages as msg
from tests.unit.broker.kit import Cluster, challenge, rejected, sent


def test_a_second_process_with_a_living_devices_id_is_refused(cluster: Cluster) -> None:
    old, new, nonce = challenge(cluster)
    (answer,) = old.say(msg.Pong(old.session, nonce))
    assert isinstance(answer, ins.Send)
    assert answer.routing == new.routing
    assert isinstance(answer.message, msg.Reject)
    assert (answer.message.code, answer.message.session) == ("duplicate", new.session)
    assert answer.message.retry_after_seconds == 10.0
    assert cluster.state.challenges == {}
    assert rejected(new.beat()).code == "register"
    assert old.record.instance == "process of box"


def test_a_second_process_takes_over_when_the_first_does_not_answer(cluster: Cluster) -> None:
    old, new, _ = challenge(cluster)
    assert cluster.state.next_deadline() == cluster.mono + 1
    cluster.pass_time(1)
    (welcome,) = sent(cluster.tick("deadlines"))
    assert isinstance(welcome, msg.Welcome)
    assert new.record.routing == new.routing
    assert cluster.state.online_count == 1
    assert rejected(old.beat()).code == "register"


def test_a_newcomer_that_has_died_does_not_take_over_from_the_next_one(cluster: Cluster) -> None:
    challenge(cluster)
    cluster.pass_time(0.5)
    cluster.state.devices["box"].last_seen_mono -= 60
    third = cluster.stranger()
    (welcome,) = sent(third.join(instance="a third process"))
    assert isinstance(welcome, msg.Welcome)
    cluster.pass_time(0.6)
    cluster.tick("deadlines")
    assert third.record.routing == third.routing
    assert third.record.instance == "a third process"


def test_a_wrong_answer_to_the_question_is_none(cluster: Cluster) -> None:
    old, _, nonce = challenge(cluster)
    assert old.say(msg.Pong(old.session, nonce ^ 1)) == []
    assert len(cluster.state.challenges) == 1


def test_a_newcomer_that_repeats_itself_does_not_put_off_its_turn(cluster: Cluster) -> None:
    _, new, _ = challenge(cluster)
    deadline = cluster.state.next_deadline()
    cluster.pass_time(0.9)
    new.join()
    assert cluster.state.next_deadline() == deadline


def test_a_silent_device_is_not_asked(cluster: Cluster) -> None:
    cluster.device()
    cluster.pass_time(15.5)
    new = cluster.stranger()
    assert isinstance(sent(new.join(instance="a second process"))[0], msg.Welcome)


def test_what_the_first_process_ran_is_lost_when_another_takes_over(cluster: Cluster) -> None:
    old, key = cluster.give()
    old.start()
    new = cluster.stranger()
    new.join(instance="a second process")
    cluster.pass_time(1)
    cluster.tick("deadlines")
    task = cluster.task(key[0])
    assert (cluster.status(key[0]), task.killers) == ("pending", frozenset({"box"}))
