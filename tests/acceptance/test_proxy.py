"""The TLS proxy of docs/security.md, as it stands there, before a real cluster."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest

from tests.acceptance.kit import Cluster
from tests.ports import free_port

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
pytestmark = [
    pytest.mark.skipif(not os.path.exists(NGINX), reason="nginx is not installed"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
]
KEY = "key-behind-the-proxy"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, int]]:
    """A cluster with a key, and the port of the proxy before it."""
    folder = tmp_path_factory.mktemp("proxy")
    config = folder / "cluster.toml"
    config.write_text('[api]\ntrusted_proxies = ["127.0.0.1"]\n')
    cluster = Cluster(folder, "--api-key", KEY, "--config", str(config))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=cluster.example", "-keyout", "cluster.key", "-out", "cluster.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    block = re.search(r"```nginx\n(.*?)```", text, re.DOTALL)
    assert block
    port = free_port()
    site = (
        block[1]
        .replace("listen 443", f"listen 127.0.0.1:{port}")
        .replace("/etc/ssl", str(folder))
        .replace("127.0.0.1:8081", f"127.0.0.1:{cluster.rest.port}")
    )
    places = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # The same below a path, as the text after the block says.
    place = re.search(r"location / \{(.*?)\n    \}", site, re.DOTALL)
    assert place
    below = place[1].replace(
        f"127.0.0.1:{cluster.rest.port};",
        f"127.0.0.1:{cluster.rest.port}/;\n        proxy_set_header X-Forwarded-Prefix /cluster;",
    )
    site = site.replace(place[0], f"{place[0]}\n    location /cluster/ {{{below}\n    }}")
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/nginx.pid;\nerror_log stderr;\nworker_processes 1;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{places}{site}}}\n"
    )
    with (folder / "nginx.log").open("wb") as log:
        nginx = subprocess.Popen(
            [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                if ask(port, "GET", "/health")[0] == 200:
                    break
            assert nginx.poll() is None, (folder / "nginx.log").read_text()
            assert time.monotonic() < deadline, (folder / "nginx.log").read_text()
            time.sleep(0.05)
        yield cluster, port
    finally:
        nginx.terminate()
        nginx.wait(20)
        assert cluster.close() == 0


def ask(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request over TLS."""
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=trusting)
    try:
        sent = {"Host": "cluster.example", **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection.request(method, path, body=body, headers=sent)
        answer = connection.getresponse()
        found = b"" if answer.status == 101 else answer.read()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, found
    finally:
        connection.close()


def test_the_api_is_there_over_tls_and_wants_its_key(proxy: tuple[Cluster, int]) -> None:
    _, port = proxy
    assert ask(port, "GET", "/api/v1/config")[0] == 401
    assert ask(port, "GET", "/api/v1/config", X_API_Key=KEY)[0] == 200


def test_who_is_behind_the_proxy_is_no_local_client(proxy: tuple[Cluster, int]) -> None:
    _, port = proxy
    # What a client says of itself is replaced by what the proxy saw.
    for forged in ("127.0.0.1", "203.0.113.9"):
        status, headers, _ = ask(port, "GET", "/api/v1/devices", X_Forwarded_For=forged)
        assert status == 200
        left = int(headers["x-ratelimit-remaining"])
        _, later, _ = ask(port, "GET", "/api/v1/devices", X_Forwarded_For="198.51.100.1")
        assert int(later["x-ratelimit-remaining"]) == left - 1, "another address, the same client"


def test_the_live_feed_goes_through(proxy: tuple[Cluster, int]) -> None:
    _, port = proxy
    status, headers, _ = ask(
        port, "GET", "/ws", Connection="Upgrade", Upgrade="websocket",
        Sec_WebSocket_Version="13", Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
    )  # fmt: skip
    assert status == 101
    assert headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_below_a_path_links_and_cookie_keep_to_it(proxy: tuple[Cluster, int]) -> None:
    _, port = proxy
    status, headers, _ = ask(port, "GET", "/cluster/", Accept="text/html")
    assert (status, headers["location"]) == (302, "ui/")
    assert ask(port, "GET", "/cluster/ui")[1]["location"] == "ui/"
    assert ask(port, "GET", "/cluster/ui/net.js")[0] == 200
    document = json.loads(ask(port, "GET", "/cluster/api/v1/openapi.json")[2])
    (server,) = document["servers"]
    for path in ("/health", "/api/v1/cluster/status"):
        assert path in document["paths"]
        assert ask(port, "GET", server["url"] + path)[0] == 200
    assert json.loads(ask(port, "GET", "/api/v1/openapi.json")[2])["servers"] == [{"url": "/"}]
    page = ask(port, "GET", "/cluster/api/v1/docs")[2].decode()
    for link in set(re.findall(r'href="([^"#]+)"', page)):
        assert ask(port, "GET", urljoin("/cluster/api/v1/docs", link))[0] == 200, link
    status, headers, _ = ask(
        port, "POST", "/cluster/ui/login", json.dumps({"key": KEY}).encode(),
        Content_Type="application/json",
    )  # fmt: skip
    assert status == 200
    cookie = headers["set-cookie"]
    assert "Path=/cluster/;" in cookie + ";"
    own = cookie.partition(";")[0]
    assert ask(port, "GET", "/cluster/api/v1/config", Cookie=own)[0] == 200
    status, headers, _ = ask(port, "POST", "/cluster/ui/logout", b"{}", Cookie=own)
    assert "Path=/cluster/;" in headers["set-cookie"] + ";"
    status, headers, _ = ask(
        port, "GET", "/cluster/ws", Connection="Upgrade", Upgrade="websocket",
        Sec_WebSocket_Version="8", Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
    )  # fmt: skip
    assert (status, headers["sec-websocket-version"]) == (426, "13")
