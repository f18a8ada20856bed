"""S1 to S9: strangers and liars on the bus, the admin socket and REST."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

from retire_cluster.conf import curve
from retire_cluster.conf.curve import ClientKeys, Pair
from retire_cluster.schemas.errors import ClusterError
from retire_cluster.schemas.protocol import messages as msg
from tests.chaos.red import Attack, Target, Went
from tests.command_kit import API, until
from tests.integration.main_kit import RawDevice

SCOPES = ("read", "submit", "submit:dangerous", "admin")


def _counted(target: Target, reason: str, before: int, what: str) -> None:
    try:
        until(lambda: target.dropped(reason) > before, what, 5)
    except TimeoutError:
        raise Went(f"{what} was not refused and counted") from None


# --- S1 to S4: the bus ---------------------------------------------------------------------------


def _a_random_key(target: Target) -> str:
    refused = target.dropped("handshake_refused_bus")
    device = target.device("stranger", target.stranger())
    device.knock()
    if device.read(0.5) is not None:
        raise Went("the main node answers a stranger")
    _counted(target, "handshake_refused_bus", refused, "a key that nobody knows")
    if "refused a handshake on the bus" not in target.log():
        raise Went("refused, but the log does not say so")
    return "refused in the handshake, counted, logged"


def _no_encryption(target: Target) -> str:
    failed = target.dropped("handshake_failed_bus")
    device = target.device("plain")
    device.knock()
    if device.read(0.5) is not None:
        raise Went("the bus answers a client without keys")
    _counted(target, "handshake_failed_bus", failed, "a client without encryption")
    return "no answer, counted"


def _speaks_for_another(target: Target) -> str:
    honest = target.device("honest", target.known("honest"))
    honest.join()
    liar = target.device("honest", target.known("liar"))
    liar.hello()
    answer = liar.read(5)
    if answer is None or (answer.verb, answer.header.get("code")) != (b"REJECT", "wrong_key"):
        raise Went(f"another's HELLO with this device's name was answered {answer}")
    liar.session = honest.session
    liar.send(msg.Goodbye(honest.session, "it leaves"))
    liar.send(msg.Heartbeat(honest.session, 99))
    until(lambda: target.events("device.impersonated"), "the audit event", 5)
    if not target.is_online("honest"):
        raise Went("the honest device was said goodbye for by another")
    return "wrong_key, audited; the honest device stays"


def _removed_device(target: Target) -> str:
    keys = target.known("gone")
    device = target.device("gone", keys)
    device.join()
    target.call("device.remove", device_id="gone")
    again = target.device("gone", keys)
    again.knock()
    answer = again.read(2)
    if answer is not None and (answer.verb, answer.header.get("code")) != (b"REJECT", "removed"):
        raise Went(f"a removed device's HELLO was answered {answer.verb!r}")
    if target.is_online("gone"):
        raise Went("a removed device is online")
    return "refused at once and when it comes back"


def _enrol(device: RawDevice, pair: Pair) -> str:
    """How ENROL was answered: `ENROLLED`, the code of a refusal, or nothing."""
    device.send(msg.Enrol("s", device.device_id, pair.public))
    answer = device.read(2)
    if answer is None:
        return ""
    return str(answer.header.get("code") or answer.verb.decode())


def _used_up_token(target: Target) -> str:
    keys = target.token(uses=1)
    first = target.device("first", keys)
    if (said := _enrol(first, curve.new_pair())) != "ENROLLED":
        raise AssertionError(f"the first use was answered {said}")
    refused = target.dropped("handshake_refused_bus")
    second = target.device("second", keys)
    second.knock()
    _counted(target, "handshake_refused_bus", refused, "a token that is used up")
    if (said := _enrol(first, curve.new_pair())) == "ENROLLED":
        raise Went("on a connection made in time a used token enrols a second key")
    return f"refused in the handshake; on the old connection: {said or 'silence'}"


def _token_takes_a_name(target: Target) -> str:
    target.known("taken")
    said = _enrol(target.device("taken", target.token()), curve.new_pair())
    if said != "taken":
        raise Went(f"a token's holder asked for a living device's name and got {said!r}")
    holder = target.device("taken", target.token())
    holder.hello()
    answer = holder.read(2)
    if answer is None or answer.verb != b"REJECT":
        raise Went(f"a token's holder said HELLO and got {answer}")
    return "taken; HELLO with a token is refused"


def _revoked_token(target: Target) -> str:
    made = target.call("token.create")
    pair = curve.pair_of_token(bytes.fromhex(made["token"]))
    target.call("token.revoke", token_id=made["token_id"])
    refused = target.dropped("handshake_refused_bus")
    target.device("late", ClientKeys(pair, target.server_key)).knock()
    _counted(target, "handshake_refused_bus", refused, "a revoked token")
    return "refused in the handshake"


def _false_main_node(target: Target) -> str:
    keys = target.known("careful")
    failed = target.dropped("handshake_failed_bus")
    device = target.device("careful", ClientKeys(keys.pair, curve.new_pair().public))
    device.knock()
    _counted(target, "handshake_failed_bus", failed, "a main node with another key")
    if target.is_online("careful"):
        raise Went("the device spoke to a main node that it did not expect")
    return "the device sends nothing"


# --- S5: the admin socket, the feed, the wire ----------------------------------------------------


def _admin_without_its_key(target: Target) -> str:
    holders = {
        "nobody": None,
        "a stranger": target.stranger(),
        "a device": target.known("nosy"),
        "a token": target.token(),
    }
    for who, keys in holders.items():
        client = target.admin_client(keys, timeout_seconds=3.0)
        try:
            client.call("cluster.status")
        except ClusterError:
            continue
        finally:
            client.close()
        raise Went(f"the admin socket answers {who}")
    return "nobody, a stranger, a device, a token: nothing"


class _Tap(threading.Thread):
    """Passes one connection on and keeps what crosses it."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.seen = bytearray()

    def run(self) -> None:
        with self._listener:
            here, _ = self._listener.accept()
        with here, socket.create_connection(("127.0.0.1", self._to)) as there:
            back = threading.Thread(target=self._pass, args=(there, here), daemon=True)
            back.start()
            self._pass(here, there)
            back.join()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                self.seen += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


def _reading_the_wire(target: Target) -> str:
    tap = _Tap(target.bus_port)
    tap.start()
    device = target.device("overheard", target.known("overheard"), port=tap.port)
    try:
        device.join(hostname="my-secret-hostname", tags=("overheard-only",))
        task_id = target.submit(
            "echo", {"note": "my-secret-payload"},
            requirements={"required_tags": ["overheard-only"]},
        )  # fmt: skip
        key = device.next_task()[0]
        device.finished(key, result=b'{"answer":"my-secret-result"}')
        target.outcome(task_id)
    finally:
        device.close()
    tap.join(5)
    for word in (b"my-secret", b"overheard", b"FINISHED", b"task_types"):
        if word in tap.seen:
            raise Went(f"{word!r} crosses the wire in clear")
    return f"no text of it in {len(tap.seen)} bytes"


# --- S6 to S9: REST ------------------------------------------------------------------------------


def _guessing_keys(target: Target) -> str:
    guarded = target.guarded
    good, _ = guarded.new_api_key("read")
    statuses = [guarded.http("GET", f"{API}/config", key=f"wrong-{n}").status for n in range(14)]
    if set(statuses[:10]) != {401} or set(statuses[11:]) != {429}:
        raise Went(f"14 wrong keys were answered {statuses}")
    if (status := guarded.http("GET", f"{API}/config", key=good).status) != 200:
        raise Went(f"a valid key is locked out with them: {status}")
    return "401 ten times, then 429; a valid key goes on"


def _scopes(target: Target) -> str:
    guarded = target.guarded
    keys = {scope: guarded.new_api_key(scope)[0] for scope in SCOPES}
    command = {"task_type": "command", "payload": {"command": ["true"]}}
    tries = [
        ("read", "POST", "/tasks", command), ("submit", "POST", "/tasks", command),
        ("submit", "GET", "/config", None), ("read", "POST", "/config/reset", {}),
        ("submit", "POST", "/config/reset", {}), ("submit:dangerous", "GET", "/config", None),
        ("submit:dangerous", "POST", "/config/reset", {}),
    ]  # fmt: skip
    for scope, method, path, body in tries:
        answer = guarded.http(method, API + path, body, key=keys[scope])
        if answer.status != 403:
            raise Went(f"{method} {path} with `{scope}` is answered {answer.status}")
    if guarded.http("POST", f"{API}/tasks", command, key=keys["submit:dangerous"]).status != 201:
        raise AssertionError("submit:dangerous may not submit a command")
    return f"403 for {len(tries)} of {len(tries)}"


def _revoked_key(target: Target) -> str:
    guarded = target.guarded
    key, key_id = guarded.new_api_key("read")
    if guarded.http("GET", f"{API}/config", key=key).status != 200:
        raise AssertionError("a new key does not work")
    done = guarded.cli("keys", "revoke", key_id)
    assert done.returncode == 0, done.stderr
    if (status := guarded.http("GET", f"{API}/config", key=key).status) != 401:
        raise Went(f"a revoked key is answered {status}")
    return "401 at once"


def _forged_origin(target: Target) -> str:
    port = target.api_port
    echo = {"task_type": "echo", "payload": {}}
    command = {"task_type": "command", "payload": {"command": ["true"]}}
    tries = [
        ("rebinding", {"Host": f"attacker.example:{port}"}, echo, 400),
        ("a foreign page", {"Origin": "https://attacker.example"}, echo, 403),
        ("a page that is null", {"Origin": "null"}, echo, 403),
        ("through a proxy", {"X-Forwarded-For": "127.0.0.1"}, command, 401),
        ("by Forwarded", {"Forwarded": "for=127.0.0.1"}, command, 401),
        ("by Via", {"Via": "1.1 proxy"}, command, 401),
    ]
    for what, headers, body, wanted in tries:
        answer = target.http("POST", f"{API}/tasks", body, headers=headers)
        if answer.status != wanted:
            raise Went(f"{what}: {answer.status}, not {wanted}")
    return "400, 403, 401"


def _cors(target: Target) -> str:
    ask = {"Origin": "https://attacker.example", "Access-Control-Request-Method": "POST"}
    for method, headers in (("GET", {"Origin": ask["Origin"]}), ("OPTIONS", ask)):
        answer = target.http(method, f"{API}/devices", headers=headers)
        if "access-control-allow-origin" in answer.headers:
            raise Went(f"{method} lets a foreign page read")
    return "no header"


def _odd_requests(target: Target) -> str:
    deep = b'{"task_type":"echo","payload":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    tries: list[tuple[bytes, int]] = [
        (deep, 400), (b'{"task_type":"echo","payload":{"a":NaN}}', 400), (b"\xff\xfe", 400),
        (b"[]", 400), (b'{"task_type":"echo"' + b" " * 17_000_000 + b"}", 413),
        (json.dumps({"task_type": "echo", "payload": {"a": "x" * 300_000}}).encode(), 413),
    ]  # fmt: skip
    for body, wanted in tries:
        began = time.monotonic()
        answer = target.http(
            "POST", f"{API}/tasks", body, headers={"Content-Type": "application/json"}
        )
        if answer.status not in (wanted, 400) or not answer.code:
            raise Went(f"{body[:40]!r}… of {len(body)} bytes is answered {answer.status}")
        if time.monotonic() - began > 5:
            raise Went(f"{body[:40]!r}… of {len(body)} bytes took more than 5 s")
    return f"{len(tries)} bodies: 4xx in the envelope"


ATTACKS = [
    Attack("S1", "a random key on the bus", _a_random_key),
    Attack("S1", "no encryption on the bus", _no_encryption),
    Attack("S2", "one device's key speaks for another", _speaks_for_another),
    Attack("S3", "a removed device comes back", _removed_device),
    Attack("S4", "a token used once more", _used_up_token),
    Attack("S4", "a token for a living device's name", _token_takes_a_name),
    Attack("S4", "a revoked token", _revoked_token),
    Attack("S4", "a false main node", _false_main_node),
    Attack("S5", "the admin socket without its key", _admin_without_its_key),
    Attack("S5", "the wire is read", _reading_the_wire),
    Attack("S6", "guessing API keys", _guessing_keys),
    Attack("S6", "scopes of API keys", _scopes),
    Attack("S6", "a revoked API key", _revoked_key),
    Attack("S7", "rebinding, foreign pages, forged addresses", _forged_origin),
    Attack("S8", "a foreign page with CORS", _cors),
    Attack("S9", "oversized, deep, malformed bodies", _odd_requests),
]
