"""S33 to S38: strangers at the doors: memory, floods of polls, revoked keys, planted folders."""

from __future__ import annotations

import http.client
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time

import psutil

from retire_cluster.broker.net import intake
from tests.chaos.red import Attack, NotHere, Target, Went
from tests.command_kit import API, COMMAND

#: `submit` may take so many times as long as alone, or so many milliseconds, whichever is more.
_TIMES, _LEAST_MS = 6.0, 60.0
#: What one hostile body may take.
_LONGEST_SECONDS, _MOST_MB = 5.0, 250.0


def _polls_without_end(target: Target) -> str:
    def submit_ms() -> float:
        took = []
        for number in range(15):
            began = time.perf_counter()
            target.http("POST", f"{API}/tasks", {"task_type": "echo", "payload": {"n": number}})
            took.append(1000 * (time.perf_counter() - began))
        return statistics.median(took)

    def poll() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while not stop.is_set():
            try:
                connection.request("GET", f"{API}/events?since=0&wait=25")
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()  # the next request makes another
            else:
                statuses.append(answer.status)
        connection.close()

    with target.another("--workers", "1", "--no-rate-limit") as quiet:
        target = quiet
        port, stop, statuses = quiet.api_port, threading.Event(), list[int]()
        submit_ms()
        alone = submit_ms()
        pollers = [threading.Thread(target=poll, daemon=True) for _ in range(8)]
        for each in pollers:
            each.start()
        try:
            loaded = submit_ms()
        finally:
            stop.set()
    if loaded > max(_TIMES * alone, _LEAST_MS):
        raise Went(f"submit {alone:.0f} ms alone, {loaded:.0f} ms beside eight polls")
    told = f"{statuses.count(200)} answers, {statuses.count(429)} times 429"
    return f"submit {alone:.0f} ms alone, {loaded:.0f} ms beside them; {told}"


def _revoked_key(target: Target) -> str:
    guarded = target.guarded
    key, key_id = guarded.new_api_key("read")
    ticket = guarded.http("POST", f"{API}/events/ticket", key=key).data["ticket"]
    streams = []
    for path, header in (("/ws", f"X-API-Key: {key}\r\n"), (f"/ws?ticket={ticket}", "")):
        stream = guarded.tcp(guarded.api_port, 5)
        stream.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n{header}"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        if b" 101 " not in stream.recv(4096):
            raise Went("a valid key opens no stream: nothing was tried")
        streams.append(stream)
    if guarded.cli("keys", "revoke", key_id).returncode != 0:
        raise AssertionError("the key was not revoked: nothing was tried")
    for stream in streams:
        try:
            while stream.recv(4096):
                continue
        except TimeoutError:
            raise Went("a revoked key's stream stays open") from None
        finally:
            stream.close()
    return "streams of the key and of its ticket end within a second"


def _planted_folder(target: Target) -> str:
    if os.name != "posix" or os.geteuid() != 0:
        raise NotHere("only root can give a folder to another user")
    told = []
    for owner, mode in ((65_534, 0o700), (0, 0o777)):
        folder = target.new_folder("planted")
        os.chown(folder, owner, -1)
        folder.chmod(mode)
        for words in (["up"], ["worker", "--join", "127.0.0.1:9", "--plain"]):
            try:
                done = subprocess.run(
                    [*COMMAND, *words, "--data-dir", str(folder)],
                    capture_output=True, text=True, timeout=20, env=target.environ, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise Went(f"{words[0]} starts in a folder of user {owner}, {mode:o}") from None
            if done.returncode != 2 or "ch" not in done.stderr:
                raise Went(f"{words[0]}: exit {done.returncode}, {done.stderr[-200:]}")
            told.append(done.stderr)
        shutil.rmtree(folder)
    return f"refused {len(told)} times with the cure"


def _nameless_behind_a_proxy(target: Target) -> str:
    with target.another("--workers", "0", settings='[api]\ntrusted_proxies = ["127.0.0.1"]') as odd:
        for forwarded in (None, "unknown", "", "_x"):
            sent = {} if forwarded is None else {"X-Forwarded-For": forwarded}
            reset = f"{API}/config/reset"
            status = odd.http("POST", reset, {}, headers=sent, source="127.0.0.1").status
            if status != 401:
                raise Went(f"X-Forwarded-For {forwarded!r} may reset the configuration: {status}")
    return "401"


def _names_of_others(target: Target) -> str:
    for host in ("evil.local", "evil", "evil.lan:80", "evil.example"):
        status = target.http("GET", f"{API}/cluster/status", headers={"Host": host}).status
        if status != 400:
            raise Went(f"Host {host}: {status}")
    for host in ("localhost", "127.0.0.1", "[::1]:8081", "192.0.2.1"):
        if target.http("GET", f"{API}/cluster/status", headers={"Host": host}).status != 200:
            raise Went(f"refused by its own name {host}: that is no answer either")
    return "400"


def _flooded(target: Target, least_cut: int, *words: object) -> str:
    if not intake.available():
        raise NotHere("this system does not count what a connection received")
    before, most, done = target.rss_mb(target.main_pid), 0.0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, target.rss_mb(target.main_pid) - before)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        told = subprocess.run(
            [sys.executable, "-m", "tests.integration.flood", *map(str, words)],
            capture_output=True, text=True, timeout=50, check=True,
        ).stdout  # fmt: skip
    finally:
        done.set()
        looking.join()
    if int(told) < least_cut or most > _MOST_MB:
        raise Went(f"{int(told)} connections cut, {most:.0f} MB more")
    target.witness()
    return f"{int(told)} connections cut, {most:.0f} MB more"


def _huge_handshakes(target: Target) -> str:
    return _flooded(target, 40, "handshakes", target.bus_port, 40, 31 * 2**20)


def _endless_message(target: Target) -> str:
    keys = target.token()
    words = ("multipart", target.bus_port, keys.server, *keys.pair, 700 * 2**20)
    return _flooded(target, 1, *words)


def _idle_connections(target: Target) -> str:
    if not intake.available():
        raise NotHere("this system does not tell the main node's connections")
    main = psutil.Process(target.main_pid)
    before, many = main.num_fds(), 2_500
    words = [
        sys.executable,
        "-m",
        "tests.integration.flood",
        "idle",
        str(target.bus_port),
        str(many),
    ]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as opened:
        assert opened.stdin is not None
        assert opened.stdout is not None
        opened.stdout.readline()
        more, last = 0, -1
        while more != last:  # they come in one after the other
            time.sleep(0.5)
            last, more = more, main.num_fds() - before
        target.witness()
        told, _ = opened.communicate("\n", timeout=30)
    if more > 1_600:
        raise Went(f"{more} files more")
    return f"{more} files more, {told.strip()} of {many} connections cut"


def _costly_bodies(target: Target) -> str:
    number = b"1" * 25
    many = b",".join([b'{"task_type":"echo","payload":{},"x":1}'] * 1000)
    bodies = {
        "numbers": b'{"tasks":[' + b"1," * (8 * 2**20 - 30) + number + b"]}",
        "lists": b'{"tasks":[' + b"[]," * (5 * 2**20) + number + b"]}",
        "objects": b'{"tasks":[' + b'{"a":1},' * (2 * 2**20 - 10) + number + b"]}",
        "unknown fields": b'{"tasks":[%b]}' % many,
        "names": b'{"x":{},%b}' % b",".join(b'"%d":1' % n for n in range(400_000)),
    }
    headers = {"Content-Type": "application/json"}
    target.http("GET", "/health")
    before, slowest, most = target.rss_mb(target.api_pid), 0.0, 0.0
    for name, body in bodies.items():
        began = time.perf_counter()
        answer = target.http("POST", f"{API}/tasks/batch", body, headers=headers)
        slowest = max(slowest, time.perf_counter() - began)
        most = max(most, target.rss_mb(target.api_pid) - before)
        if answer.status != 400:
            raise Went(f"{name}: {answer.status}")
    if slowest > _LONGEST_SECONDS or most > _MOST_MB:
        raise Went(f"{slowest:.1f} s, {most:.0f} MB more")
    return f"400 each, {slowest:.1f} s at most, {most:.0f} MB more"


def _large_batches_at_once(target: Target) -> str:
    body = b'{"tasks":[{"task_type":"echo","payload":{"a":[%b1]}}]}' % (b"1.5," * (4 * 2**20 - 40))
    headers, statuses = {"Content-Type": "application/json"}, list[int]()
    before, most, slowest = target.rss_mb(target.api_pid), 0.0, 0.0

    def send() -> None:
        statuses.append(target.http("POST", f"{API}/tasks/batch", body, headers=headers).status)

    senders = [threading.Thread(target=send, daemon=True) for _ in range(8)]
    for each in senders:
        each.start()
    while any(each.is_alive() for each in senders):
        began = time.perf_counter()
        target.http("GET", "/health")
        slowest = max(slowest, time.perf_counter() - began)
        most = max(most, target.rss_mb(target.api_pid) - before)
    if set(statuses) != {413} or len(statuses) != 8:
        raise AssertionError(f"{statuses}: that is not what was to be tried")
    if most > 1.6 * _MOST_MB or slowest > _LONGEST_SECONDS:
        raise Went(f"{most:.0f} MB more, /health took {slowest:.1f} s")
    return f"413 each, {most:.0f} MB more, /health {slowest * 1000:.0f} ms at most"


def _strangers_bodies(target: Target) -> str:
    guarded, statuses = target.guarded, set[int]()
    for size in (2**20 + 1, 16 * 2**20):
        headers = {"Content-Type": "application/json"}
        answer = guarded.http("POST", f"{API}/tasks/batch", b" " * size, headers=headers, key=None)
        statuses.add(answer.status)
    if statuses != {413}:
        raise Went(f"without a key: {statuses}")
    head = (
        f"POST {API}/tasks/batch HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    ).encode()
    connections, refused = [], 0
    try:
        for _ in range(20):
            connections.append(guarded.tcp(guarded.api_port, 10))
            connections[-1].sendall(head + b" " * 999_999)
        for each in connections:
            each.sendall(b" ")
            refused += b" 429 " in each.recv(4096).partition(b"\r\n")[0]
    finally:
        for each in connections:
            each.close()
    if not refused:
        raise Went("twenty bodies of 1 MB from one address without a key are kept")
    return f"413 above 1 MiB; {refused} of 20 bodies of 1 MB not kept"


ATTACKS = [
    Attack("S33", "forty handshakes of 31 MB without a key", _huge_handshakes),
    Attack("S33", "a token holder's message of 700 MB in frames of 1 MB", _endless_message),
    Attack("S33", "thousands of idle connections to the bus", _idle_connections),
    Attack("S34", "bodies of 16 MB whose parts are millions", _costly_bodies),
    Attack("S34", "eight batches of 16 MB at once", _large_batches_at_once),
    Attack("S34", "large bodies without a key, twenty at once", _strangers_bodies),
    Attack("S35", "eight anonymous polls for events without end", _polls_without_end),
    Attack("S36", "a revoked key's open stream and ticket", _revoked_key),
    Attack("S37", "a data folder of another user, or of everybody", _planted_folder),
    Attack("S38", "a proxy that does not say who asks", _nameless_behind_a_proxy),
    Attack("S38", "names that others may own, as Host", _names_of_others),
]
