"""The attacks S1 to S5 on an encrypted main node, each done for real on loopback."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from retire_cluster.broker.client import AdminClient
from retire_cluster.conf import curve
from retire_cluster.conf.curve import ClientKeys, Pair
from retire_cluster.schemas.errors import ClusterUnavailable, Forbidden
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol import wire
from tests.integration.main_kit import MainNode, RawDevice, eventually, settings_for


class Fort(MainNode):
    """An encrypted main node in a thread, with the keys of its tooling."""

    def __init__(self, folder: Path) -> None:
        curve.server_pair(folder)
        keys = curve.client_keys(folder / curve.ADMIN_KEY)
        assert keys is not None
        self.keys = keys
        super().__init__(settings_for(folder), keys=keys)

    def token(self, **args: object) -> tuple[str, ClientKeys]:
        """A join token's id and the keys that enrol with it."""
        made = self.call("token.create", **args)
        pair = curve.pair_of_token(bytes.fromhex(made["token"]))
        return made["token_id"], ClientKeys(pair, self.keys.server)

    def known(self, device_id: str) -> ClientKeys:
        """The keys of a device that may join."""
        pair = curve.new_pair()
        self.call("device.authorise", device_id=device_id, public_key=pair.public)
        return ClientKeys(pair, self.keys.server)

    def dropped(self, reason: str) -> int:
        """A counter of `/metrics`."""
        return int(self.call("metrics")["dropped_messages"].get(reason, 0))


@pytest.fixture
def fort(tmp_path: Path) -> Iterator[Fort]:
    node = Fort(tmp_path)
    yield node
    node.stop()


def enrol(device: RawDevice, pair: Pair) -> msg.Enrolled | msg.Reject:
    """What an ENROL is answered."""
    device.send(msg.Enrol("s", device.device_id, pair.public))
    found = device.read()
    assert found is not None, "no answer to ENROL"
    answer = msg.read_from_broker(found.verb, found.header)
    assert isinstance(answer, (msg.Enrolled, msg.Reject))
    return answer


# --- S1: a random key ----------------------------------------------------------------------------


def test_a_random_key_is_refused_in_the_handshake_counted_and_logged(
    fort: Fort, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = fort.socket("stranger", ClientKeys(curve.new_pair(), fort.keys.server))
    malformed = fort.dropped("malformed")
    stranger.knock()
    eventually(lambda: fort.dropped("handshake_refused_bus") >= 1, "the refusal's counter")
    stranger.knock()
    assert stranger.read(0.2) is None
    assert fort.dropped("malformed") == malformed, "no frame reached the broker"
    assert "stranger" not in fort.broker.state.devices
    assert "refused a handshake on the bus socket from 127.0.0.1" in caplog.text


def test_a_client_without_encryption_is_refused_and_counted(fort: Fort) -> None:
    stranger = fort.socket("stranger")
    stranger.knock()
    eventually(lambda: fort.dropped("handshake_failed_bus") >= 1, "the failure's counter")
    assert stranger.read(0.1) is None
    assert fort.broker.state.devices == {}


def test_a_device_that_expects_another_main_node_sends_it_nothing(fort: Fort) -> None:
    keys = fort.known("box")
    stranger = fort.socket("box", ClientKeys(keys.pair, curve.new_pair().public))
    stranger.knock()
    eventually(lambda: fort.dropped("handshake_failed_bus") >= 1, "the failure's counter")
    assert fort.broker.state.devices == {}


# --- S2: one device speaks as another ------------------------------------------------------------


def test_a_device_cannot_speak_for_another(fort: Fort) -> None:
    honest = fort.socket("honest", fort.known("honest"))
    honest.join()
    keys = fort.known("liar")
    liar = fort.socket("honest", keys)
    liar.hello()
    assert liar.expect(msg.Reject).code == "wrong_key"
    assert fort.dropped("wrong_key") == 1
    events = fort.call("events.poll", since=0)["events"]
    (audit,) = [event for event in events if event["type"] == "device.impersonated"]
    assert (audit["device_id"], audit["data"]["key_of"]) == ("honest", "liar")
    # The honest one's session and work are untouched.
    fort.submit(b'{"duration": 0}')
    honest.finished(honest.next_task()[0])
    honest.expect(msg.FinishedAck)


def test_a_session_ends_for_a_key_that_was_replaced_meanwhile(fort: Fort) -> None:
    device = fort.socket("box", fort.known("box"))
    device.join()
    fort.submit()
    key, *_ = device.next_task()
    fort.known("box")  # another key is now the device's
    device.finished(key)
    assert device.expect(msg.Reject).code == "wrong_key"
    assert fort.broker.state.tasks, "the result of the replaced key does not count"


# --- S3: a removed device ------------------------------------------------------------------------


def test_a_removed_device_is_refused_at_once_and_when_it_comes_back(fort: Fort) -> None:
    keys = fort.known("box")
    device = fort.socket("box", keys)
    device.join()
    (task_id,) = fort.submit()
    key, *_ = device.next_task()
    fort.call("device.remove", device_id="box")
    device.finished(key)
    again = fort.socket("box", keys)
    again.hello()
    assert again.expect(msg.Reject).code == "removed"
    assert fort.status(task_id) == "queued"
    with pytest.raises(Forbidden, match="removed"):
        fort.call("device.authorise", device_id="box", public_key=keys.pair.public)
    fort.call("device.readmit", device_id="box")
    fort.socket("box", keys).join()


# --- S4: join tokens -----------------------------------------------------------------------------


def test_a_token_lets_in_as_many_devices_as_it_says(fort: Fort) -> None:
    _, keys = fort.token(uses=2)
    for name in ("one", "two"):
        pair = curve.new_pair()
        assert isinstance(enrol(fort.socket(name, keys), pair), msg.Enrolled)
        fort.socket(name, ClientKeys(pair, keys.server)).join()
    refused = fort.dropped("handshake_refused_bus")
    third = fort.socket("three", keys)
    third.knock()
    eventually(lambda: fort.dropped("handshake_refused_bus") > refused, "the refusal")
    assert "three" not in fort.broker.state.devices


def test_a_connection_made_in_time_does_not_use_a_token_that_is_over_by_then(fort: Fort) -> None:
    token_id, keys = fort.token()
    early, late = fort.socket("early", keys), fort.socket("late", keys)
    late.send(msg.Pong("s", 1))
    assert late.expect(msg.Reject).code == "register"  # its handshake is done
    assert isinstance(enrol(early, curve.new_pair()), msg.Enrolled)
    answer = enrol(late, curve.new_pair())
    assert isinstance(answer, msg.Reject)
    assert answer.code == "token"
    assert fort.call("token.list")["items"][0]["state"] == "used up"
    fort.call("token.revoke", token_id=token_id)
    assert fort.call("token.list")["items"] == []


def test_a_token_speaks_for_no_device(fort: Fort) -> None:
    fort.known("box")
    _, keys = fort.token()
    device = fort.socket("box", keys)
    device.hello()
    assert device.expect(msg.Reject).code == "wrong_key"


def test_a_token_does_not_take_a_living_devices_name(fort: Fort) -> None:
    fort.known("box")
    _, keys = fort.token()
    answer = enrol(fort.socket("box", keys), curve.new_pair())
    assert isinstance(answer, msg.Reject)
    assert (answer.code, fort.call("token.list")["items"][0]["used"]) == ("taken", 0)


def test_an_enrolment_whose_answer_was_lost_is_said_again_and_counted_once(fort: Fort) -> None:
    _, keys = fort.token()
    device, pair = fort.socket("box", keys), curve.new_pair()
    assert isinstance(enrol(device, pair), msg.Enrolled)
    assert isinstance(enrol(device, pair), msg.Enrolled)
    assert fort.call("token.list")["items"][0]["used"] == 1


def test_a_new_token_lets_a_removed_device_back_in(fort: Fort) -> None:
    keys = fort.known("box")
    fort.socket("box", keys).join()
    fort.call("device.remove", device_id="box")
    _, token = fort.token()
    assert isinstance(enrol(fort.socket("box", token), keys.pair), msg.Enrolled)
    fort.socket("box", keys).join()


def test_an_expired_token_is_refused(fort: Fort, monkeypatch: pytest.MonkeyPatch) -> None:
    _, keys = fort.token(age_seconds=60)
    known = fort.broker._now

    def tomorrow() -> object:
        now = known()
        return now._replace(mono=now.mono + 86_400)

    monkeypatch.setattr(fort.broker, "_now", tomorrow)
    refused = fort.dropped("handshake_refused_bus")
    fort.socket("late", keys).knock()
    eventually(lambda: fort.dropped("handshake_refused_bus") > refused, "the refusal")


def test_keys_and_tokens_outlive_the_main_node_and_secrets_are_not_stored(tmp_path: Path) -> None:
    first = Fort(tmp_path)
    made = first.call("token.create")
    keys = first.known("box")
    first.stop()
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("cluster.db*"))
    assert made["token"].encode() not in stored
    assert bytes.fromhex(made["token"]) not in stored
    second = Fort(tmp_path)
    try:
        second.socket("box", keys).join()
        token = curve.pair_of_token(bytes.fromhex(made["token"]))
        newcomer = second.socket("new", ClientKeys(token, second.keys.server))
        assert isinstance(enrol(newcomer, curve.new_pair()), msg.Enrolled)
    finally:
        second.stop()


# --- S5: the admin socket ------------------------------------------------------------------------


def calling(fort: Fort, keys: Callable[[], ClientKeys | None] | None) -> str:
    """What a client with these keys is told, quickly."""
    client = AdminClient(port=fort.facts.admin_port, timeout_seconds=20, keys=keys)
    began = time.monotonic()
    try:
        client.call("cluster.status")
    except ClusterUnavailable as error:
        assert time.monotonic() - began < 10, "it hung instead of being refused"
        return error.message
    finally:
        client.close()
    return "answered"


def test_the_admin_socket_answers_nobody_without_its_key(fort: Fort) -> None:
    device = fort.known("box")
    assert "asks for a key" in calling(fort, None)
    strangers = ClientKeys(curve.new_pair(), fort.keys.server)
    assert "does not know this key" in calling(fort, lambda: strangers)
    assert "does not know this key" in calling(fort, lambda: device)
    _, token = fort.token()
    assert "does not know this key" in calling(fort, lambda: token)
    other = ClientKeys(fort.keys.pair, curve.new_pair().public)
    assert "is not the main node of this key" in calling(fort, lambda: other)
    assert calling(fort, lambda: fort.keys) == "answered"


def test_a_key_made_for_an_administrator_works_until_it_is_revoked(fort: Fort) -> None:
    pair = curve.new_pair()
    fort.call("admin_key.add", name="ann", public_key=pair.public)
    keys = ClientKeys(pair, fort.keys.server)
    client = AdminClient(port=fort.facts.admin_port, timeout_seconds=20, keys=lambda: keys)
    try:
        assert client.call("health")["components"]
        fort.call("admin_key.revoke", name="ann")
        with pytest.raises(Forbidden, match="revoked"):
            client.call("health")
    finally:
        client.close()
    assert "does not know this key" in calling(fort, lambda: keys)


def test_the_event_feed_speaks_to_known_keys_only(fort: Fort) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def listener(keys: ClientKeys) -> zmq.Socket[bytes]:
        found: zmq.Socket[bytes] = context.socket(zmq.SUB)
        curve.lock(found, keys)
        found.setsockopt(zmq.SUBSCRIBE, b"")
        found.connect(f"tcp://127.0.0.1:{fort.facts.event_port}")
        return found

    known = listener(fort.keys)
    stranger = listener(ClientKeys(curve.new_pair(), fort.keys.server))

    def heard() -> bool:
        fort.submit()
        return bool(known.poll(50))

    try:
        eventually(heard, "an event for the one whose key is known")
        assert not stranger.poll(100)
    finally:
        known.close(0)
        stranger.close(0)
        context.term()


# --- on the wire ---------------------------------------------------------------------------------


class Tap(threading.Thread):
    """Passes one TCP connection on and keeps all that went through it."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._target = port
        self.seen = bytearray()
        self.start()

    def run(self) -> None:
        here, _ = self._server.accept()
        there = socket.create_connection(("127.0.0.1", self._target))
        threads = [
            threading.Thread(target=self._pass, args=pair, daemon=True)
            for pair in ((here, there), (there, here))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                self.seen += data
                target.sendall(data)
        except OSError:
            pass
        finally:
            for each in (source, target):
                each.close()

    def close(self) -> None:
        self._server.close()


@pytest.mark.parametrize("encrypted", [True, False])
def test_what_crosses_the_wire_cannot_be_read(tmp_path: Path, encrypted: bool) -> None:
    node = Fort(tmp_path) if encrypted else MainNode(settings_for(tmp_path))
    tap = Tap(node.facts.worker_port)
    keys = node.known("box") if isinstance(node, Fort) else None
    device = RawDevice(tap.port, "box", keys=keys)
    try:
        device.join()
        node.submit(b'{"canary":"payload-canary"}', task_type="echo")
        device.finished(device.next_task()[0], result=b'{"canary":"result-canary"}')
        device.expect(msg.FinishedAck)
        canaries = (b"payload-canary", b"result-canary", b"HELLO", wire.BUS)
        # The tap sees everything when there is no encryption: so it would have seen it.
        assert [canary in tap.seen for canary in canaries[:2]] == [not encrypted] * 2
        assert (b"capabilities" in tap.seen) is not encrypted
    finally:
        device.close()
        tap.close()
        node.stop()
