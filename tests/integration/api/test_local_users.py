"""Another user of the main node's machine, without authentication: real processes, real sockets."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from retire_cluster.api.admission import socket_owner
from retire_cluster.api.admission.local_users import UNKNOWN_USER, ClientConnection, LocalUsers
from retire_cluster.cli.verbs.doctor import says_notice
from retire_cluster.schemas import rights
from retire_cluster.schemas.rest.endpoints import ENDPOINTS
from retire_cluster.schemas.rights import Cell
from tests.integration.main_kit import PATIENCE_SECONDS, MainNode, settings_for
from tests.integration.site_kit import Site

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere nobody says whose a socket is"
)
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root becomes another user"
)
OTHER = 54_321
API = "/api/v1"
COMMAND = {
    "task_type": "command",
    "payload": {"command": ["id"]},
    "requirements": {"required_tags": ["nowhere"]},
}
HARMLESS = {"task_type": "sleep", "payload": {}, "requirements": {"required_tags": ["nowhere"]}}
#: Takes `[port, [[method, path, document], ...]]`, becomes that user, and asks; python starts first
#: because its files may be closed to him.
CLIENT = """
import encodings.idna, http.client, json, os, sys
user, port, asked = json.load(sys.stdin)
os.setgroups([]); os.setgid(user); os.setuid(user)
found = []
for method, path, document in asked:
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = None if document is None else json.dumps(document)
    line.request(method, path, body, {"Content-Type": "application/json"})
    answer = line.getresponse()
    raw = answer.read()
    try:
        found.append([answer.status, json.loads(raw)])
    except ValueError:
        found.append([answer.status, None])
    line.close()
print(json.dumps(found))
"""
#: Asks and closes without taking the answer.
HASTY = """
import encodings.idna, json, os, socket, sys
user, port, asked = json.load(sys.stdin)
os.setgroups([]); os.setgid(user); os.setuid(user)
for method, path, document in asked:
    body = json.dumps(document)
    line = socket.create_connection(("127.0.0.1", port))
    head = f"{method} {path} HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Type: application/json"
    line.sendall(f"{head}\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n{body}".encode())
    line.close()
print("[]")
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MainNode]:
    found = MainNode(settings_for(tmp_path_factory.mktemp("main")))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def site(node: MainNode) -> Iterator[Site]:
    found = Site(node)
    yield found
    found.close()


def ask_as(user: int, port: int, *asked: tuple[str, str, Any], client: str = CLIENT) -> list[Any]:
    """What a process of that user is answered."""
    done = subprocess.run(
        [sys.executable, "-c", client],
        input=json.dumps([user, port, asked]),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def tasks(site: Site, task_type: str) -> int:
    """How many there are."""
    return len(site.ask("GET", f"{API}/tasks?task_type={task_type}").json["data"])


def _posts(site: Site) -> float:
    """How many submissions have been answered, however."""
    with urllib.request.urlopen(f"{site.url}/metrics", timeout=PATIENCE_SECONDS) as answer:
        lines = answer.read().decode().splitlines()
    counts = [line for line in lines if "http_request_duration_seconds_count" in line]
    return sum(float(line.split()[-1]) for line in counts if 'method="POST"' in line)


@as_root
def test_another_user_of_this_machine_meets_the_column_of_no_key(site: Site) -> None:
    rows = [row for row in ENDPOINTS.values() if row.operation_id not in ("streamEvents",)]
    asked = []
    for row in rows:
        path = row.path.replace("{device_id}", "nobody").replace(
            "{task_id}", "00000000-0000-0000-0000-000000000000"
        )
        document: Any = None if row.body is None or row.body_optional else {}
        if row.operation_id == "submitTask":
            document = COMMAND
        elif row.operation_id == "submitTasks":
            document = {"tasks": [COMMAND]}
        asked.append((row.method, path, document))
    wrong = []
    for row, (status, said) in zip(rows, ask_as(OTHER, site.server.port, *asked), strict=True):
        expected = rights.cell(row.operation_id, "", reads_closed=False)
        closed = expected is Cell.NO or row.operation_id in ("submitTask", "submitTasks")
        refused = status == 403 and "retire-cluster keys create" in said["message"]
        if refused is not closed:
            wrong.append((row.operation_id, status, said))
    assert not wrong
    ((status, said),) = ask_as(OTHER, site.server.port, ("POST", f"{API}/tasks", HARMLESS))
    assert status == 201, said
    urgent = {**HARMLESS, "priority": "urgent"}
    ((status, said),) = ask_as(OTHER, site.server.port, ("POST", f"{API}/tasks", urgent))
    assert (status, said["error_details"]["field"]) == (403, "priority")
    assert tasks(site, "command") == 0


@as_root
def test_the_dashboard_of_another_user_says_that_he_can_only_look(site: Site) -> None:
    ((_, said),) = ask_as(OTHER, site.server.port, ("GET", "/ui/session", None))
    assert said["data"]["scopes"] == []
    assert "retire-cluster keys create" in said["data"]["notice"]
    own = site.ask("GET", "/ui/session").json["data"]
    assert (own["scopes"], own["notice"]) == (["admin"], "")
    assert not says_notice(site.url)


@as_root
def test_who_closes_before_he_is_looked_up_is_nobody(site: Site) -> None:
    before = _posts(site)
    ask_as(OTHER, site.server.port, ("POST", f"{API}/tasks", COMMAND), client=HASTY)
    until = time.monotonic() + PATIENCE_SECONDS
    while _posts(site) == before:
        assert time.monotonic() < until, "the request never came"
        time.sleep(0.01)
    assert tasks(site, "command") == 0


@as_root
def test_with_local_users_all_this_machine_is_one_person(node: MainNode) -> None:
    site = Site(node, local_users="all")
    try:
        ((status, _),) = ask_as(OTHER, site.server.port, ("GET", f"{API}/config", None))
        assert status == 200
    finally:
        site.close()


@as_root
def test_root_and_the_user_that_runs_it_are_let_through(site: Site) -> None:
    ((status, _),) = ask_as(0, site.server.port, ("GET", f"{API}/config", None))
    assert status == 200


@pytest.mark.parametrize(
    ("bound", "dialled"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("::", "::ffff:127.0.0.1")],
)
def test_whose_a_connection_is_in_every_spelling_of_loopback(bound: str, dialled: str) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.socket(family) as server:
        if bound == "::":
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            server.bind((bound, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        server.listen()
        with socket.create_connection((dialled, server.getsockname()[1])) as client:
            accepted, peer = server.accept()
            with accepted:
                own = accepted.getsockname()
                ends = [(host.removeprefix("::ffff:"), port) for host, port, *_ in (peer, own)]
                assert ClientConnection(ends[0], ends[1]).user() == os.geteuid()
                assert ClientConnection(ends[0], ("", own[1]), sure=False).user() == os.geteuid()
                another = (ends[1][0], ends[1][1] ^ 1)
                assert ClientConnection(ends[0], another).user() is None, "nobody listens there"
                known = ClientConnection(ends[0], ends[1])
                late = ClientConnection(ends[0], ends[1])
                assert known.user() == os.geteuid()
                client.close()
                assert late.user() == UNKNOWN_USER
                assert known.user() == os.geteuid(), "it is asked for once"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_kernel_is_asked_for_one_socket_and_not_for_all(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        try:
            server.bind((host, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        server.listen()
        own = server.getsockname()[:2]
        with socket.create_connection(own) as client:
            peer = client.getsockname()[:2]
            accepted, _ = server.accept()
            with accepted:
                inode = os.fstat(client.fileno()).st_ino
                assert socket_owner.find(peer, own) == (os.geteuid(), inode)
                assert socket_owner.find(peer, (own[0], own[1] ^ 1)) is None


def test_only_its_own_user_and_root_may_and_never_through_a_proxy() -> None:
    class Of(ClientConnection):
        def __init__(self, user: int | None) -> None:
            self._found = user

        def user(self) -> int | None:
            return self._found

    users = LocalUsers({OTHER, 0})
    direct = {user: users.may(Of(user), through_proxy=False) for user in (OTHER, 0, 1000, None)}
    assert direct == {OTHER: True, 0: True, 1000: False, None: True}
    assert not users.may(Of(UNKNOWN_USER), through_proxy=False)
    assert not users.may(Of(OTHER), through_proxy=True)
