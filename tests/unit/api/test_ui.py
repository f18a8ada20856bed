"""The dashboard's files as they are served, and the cookie that stands for a key."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from falcon import testing

from retire_cluster.api.admission.keys import ApiKeyRing, key_of, write_keys
from retire_cluster.api.app import create_app
from retire_cluster.api.resources.ui import PACKAGE, load_files
from retire_cluster.broker.client import RawAnswer
from retire_cluster.conf.sections import Api
from retire_cluster.conf.settings import Settings

FILES = load_files()
PAGES = ("overview.js", "devices.js", "tasks.js", "submit.js", "settings.js", "log.js", "join.js")
MOST_BYTES = 100 * 1024


class Answering:
    """A main node that answers everything and counts what it was asked."""

    timeout_seconds = 2.0

    cluster_id = "c1"
    secret = b"\x01" * 32

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.hits: list[dict[str, Any]] = []

    def call_raw(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        blobs: Sequence[bytes] = (),
        *,
        timeout_seconds: float | None = None,
    ) -> RawAnswer:
        self.asked.append(op)
        if op == "rate.hit":
            self.hits.append(dict(args or {}))
            return RawAnswer({"allowed": True, "limit": 60, "remaining": 59, "reset": 1}, [])
        if op == "facade.identity":
            identity = {"cluster_id": self.cluster_id, "session_secret": self.secret.hex()}
            return RawAnswer(identity, [])
        return RawAnswer({"server_info": {}}, [])

    def close(self) -> None:
        return


class Site:
    """A facade and a client of it."""

    def __init__(
        self, *keys: str, key_file: Path | None = None, cluster_id: str = "c1", **options: Any
    ) -> None:
        self.main = Answering()
        self.main.cluster_id = cluster_id
        self.now = 1_700_000_000.0
        facade = create_app(
            self.main,
            Settings(data_dir=Path("data"), api=Api(**options)),
            keys=ApiKeyRing(map(key_of, keys)),
            key_file=key_file,
            clock=lambda: self.now,
        )
        facade.reporter.stop()
        self.client = testing.TestClient(facade.app)

    def get(self, path: str, **headers: str) -> testing.Result:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.simulate_get(
            path, headers=sent, remote_addr="127.0.0.1", host="127.0.0.1"
        )

    def post(self, path: str, document: Any, **headers: str) -> testing.Result:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.simulate_post(
            path, json=document, headers=sent, remote_addr="127.0.0.1", host="127.0.0.1"
        )


@pytest.fixture
def site() -> Site:
    return Site()


def test_the_page_has_everything_it_names(site: Site) -> None:
    page = site.get("/ui/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name in re.findall(r'(?:src|href)="([\w.]+)"', page.text):
        assert site.get(f"/ui/{name}").status_code == 200, name
    for name, file in FILES.items():
        for imported in re.findall(r'from "\./([\w.]+)"', file.raw.decode()):
            assert imported in FILES, f"{name} imports {imported}"


def test_without_the_slash_the_browser_is_sent_to_where_relative_addresses_hold(
    site: Site,
) -> None:
    answer = site.get("/ui")
    assert (answer.status_code, answer.headers["location"]) == (308, "ui/")


def test_an_unknown_file_is_an_envelope(site: Site) -> None:
    for path in ("/ui/nope.js", "/ui/__init__.py", "/ui/..%2fapp.py"):
        answer = site.get(path)
        assert (answer.status_code, answer.json["error_code"]) == (404, "NOT_FOUND")


def test_files_cost_no_rate_limit(site: Site) -> None:
    for path in ("/ui/", "/ui", "/ui/app.css", "/ui/session", "/ui/nope"):
        site.get(path)
    assert site.main.asked == []


@pytest.mark.parametrize("packing", ["", "gzip, br"])
def test_a_file_that_the_browser_has_is_not_sent_again(site: Site, packing: str) -> None:
    first = site.get("/ui/app.js", accept_encoding=packing)
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["vary"] == "Accept-Encoding"
    body = gzip.decompress(first.content) if packing else first.content
    assert body == FILES["app.js"].raw
    tag = first.headers["etag"]
    again = site.get("/ui/app.js", accept_encoding=packing, if_none_match=tag)
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("GZIP;q=0.1", True),
        ("br, *", True),
        ("*;q=0.5, gzip;q=0", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("identity, *;q=0", False),
        ("gzip;q=nan, x-gzip", False),
        ("notgzip", False),
    ],
)
def test_a_file_is_packed_only_where_the_browser_takes_it(
    site: Site, accepted: str, packed: bool
) -> None:
    answer = site.get("/ui/app.js", accept_encoding=accepted)
    assert ("content-encoding" in answer.headers) is packed
    assert (gzip.decompress(answer.content) if packed else answer.content) == FILES["app.js"].raw


def test_a_tag_that_a_proxy_made_weak_is_still_the_same(site: Site) -> None:
    tag = site.get("/ui/app.js").headers["etag"]
    for sent in (f"W/{tag}", f'"a", W/{tag}', f'W/"a,b",{tag}', "*"):
        assert site.get("/ui/app.js", if_none_match=sent).status_code == 304, sent
    for sent in (tag.strip('"'), f"W/{tag[:-1]}", '"a"', 'W/"*"', ""):
        assert site.get("/ui/app.js", if_none_match=sent).status_code == 200, sent


def test_the_policy_lets_in_nothing_from_elsewhere_and_the_files_keep_to_it(site: Site) -> None:
    policy = site.get("/ui/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    page = FILES["index.html"].raw.decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", page)
    for name, file in FILES.items():
        text = file.raw.decode().replace("http://www.w3.org/2000/svg", "")
        found = [
            each for each in re.findall(r"https?://[^\s\"'`]+", text) if "example.org" not in each
        ]
        assert not found, f"{name}: {found}"
        assert not re.search(r"\beval\(|new Function|innerHTML|[\"'`]/(?:api|ui)/", text), name


def test_no_page_weighs_more_than_100_kb() -> None:
    total = {name: len(file.raw) for name, file in FILES.items()}
    shared = sum(size for name, size in total.items() if name not in (*PAGES, "charts.js"))
    for page in PAGES:
        assert shared + total["charts.js"] + total[page] <= MOST_BYTES, page


def test_all_of_it_together_is_sent_in_half_of_that() -> None:
    assert sum(len(file.packed) for file in FILES.values()) <= MOST_BYTES / 2


def test_lines_of_comment_are_not_sent_and_all_others_are() -> None:
    for name, file in FILES.items():
        source = (files(PACKAGE) / name).read_text("utf-8").splitlines()
        sent = file.raw.decode().splitlines()
        gone = [line.strip() for line in source if line not in set(sent)]
        assert all(line.startswith(("//", "/*", "*")) for line in gone), (name, gone)
        assert not any(line.strip().startswith("//") for line in sent), name


# --- the cookie ----------------------------------------------------------------------------------


def test_a_valid_key_becomes_a_cookie_that_no_script_and_no_other_site_gets() -> None:
    site = Site("secret ✓")
    answer = site.post("/ui/login", {"key": "secret ✓"})
    assert answer.status_code == 200
    assert answer.json["data"]["signed_in"] is True
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    pair = cookie.split(";")[0]
    assert site.get("/api/v1/config", cookie=pair).status_code == 200
    assert site.get("/api/v1/config").status_code == 401


def test_over_https_the_cookie_is_secure() -> None:
    site = Site("secret")
    answer = site.client.simulate_post("/ui/login", json={"key": "secret"}, protocol="https")
    assert "Secure" in answer.headers["set-cookie"].split("; ")


def sign_in(site: Site, key: str = "secret") -> str:
    """The cookie of a browser that has signed in, as it sends it."""
    answer = site.post("/ui/login", {"key": key})
    assert answer.status_code == 200
    return str(answer.headers["set-cookie"].split(";")[0])


def forgets(answer: testing.Result, name: str) -> bool:
    header = answer.headers.get("set-cookie", "")
    return header.startswith(f"{name}=") and "expires=Thu, 01 Jan 1970" in header


def test_signing_out_forgets_the_cookie() -> None:
    assert forgets(Site("secret").post("/ui/logout", {}), "retire_cluster_c1")


def test_the_cookie_is_a_session_and_not_the_key() -> None:
    pair = sign_in(Site("secret"))
    assert "secret" not in pair
    assert base64.urlsafe_b64encode(b"secret").decode().rstrip("=") not in pair
    assert Site("secret").get("/api/v1/config", x_api_key=pair.partition("=")[2]).status_code == 401


def test_another_process_of_the_facade_knows_the_session_and_another_cluster_does_not() -> None:
    pair = sign_in(Site("secret"))
    assert Site("secret").get("/api/v1/config", cookie=pair).status_code == 200
    other = Site("secret", cluster_id="c2").get("/api/v1/config", cookie=pair)
    assert other.status_code == 401
    assert "set-cookie" not in other.headers, "a cookie of another cluster is none of ours"


def test_a_session_ends_after_a_week_and_its_cookie_is_cleared() -> None:
    site = Site("secret")
    pair = sign_in(site)
    site.now += 7 * 86_400 - 1
    assert site.get("/api/v1/config", cookie=pair).status_code == 200
    site.now += 2
    answer = site.get("/api/v1/config", cookie=pair)
    assert answer.status_code == 401
    assert forgets(answer, "retire_cluster_c1")


def test_a_session_ends_with_its_key(tmp_path: Path) -> None:
    file = tmp_path / "api-keys.json"
    write_keys(file, [key_of("mine", scopes=("read",)), key_of("other")])
    site = Site(key_file=file, auth=True)
    pair = sign_in(site, "mine")
    assert site.get("/ui/session", cookie=pair).json["data"]["scopes"] == ["read"]
    assert site.get("/api/v1/config", cookie=pair).status_code == 200
    write_keys(file, [key_of("other")])
    answer = site.get("/ui/session", cookie=pair)
    assert answer.json["data"]["signed_in"] is False
    assert forgets(answer, "retire_cluster_c1")


def test_a_main_node_with_another_secret_ends_the_sessions_of_the_one_before() -> None:
    site = Site("secret")
    pair = sign_in(site)
    changed = Site("secret")
    changed.main.secret = b"\x02" * 32
    assert changed.get("/api/v1/config", cookie=pair).status_code == 401
    assert changed.get("/api/v1/config", cookie=sign_in(changed)).status_code == 200


def test_a_dashboard_that_is_signed_in_has_a_budget_of_its_own() -> None:
    site = Site("secret", rate_limit=True)
    site.get("/api/v1/tasks", cookie=sign_in(site))
    site.get("/api/v1/tasks", x_api_key="secret")
    first, second = site.main.hits
    assert first["client"] == f"dashboard:{second['client']}"
    assert (first["per_minute"], second["per_minute"]) == (240, 60)


def test_a_dashboard_on_this_machine_has_a_budget_of_its_own_without_authentication() -> None:
    site = Site(rate_limit=True)
    mark = {"x_requested_with": "retire-cluster-dashboard"}
    site.get("/api/v1/tasks", **mark)
    site.get("/api/v1/tasks")
    far = {"X-Requested-With": "retire-cluster-dashboard"}
    site.client.simulate_get(
        "/api/v1/tasks", headers=far, remote_addr="192.0.2.7", host="127.0.0.1"
    )
    assert [hit["client"] for hit in site.main.hits] == [
        "dashboard:address:127.0.0.1", "address:127.0.0.1", "address:192.0.2.7",
    ]  # fmt: skip


@pytest.mark.parametrize("sent", ["same-site", "cross-site"])
def test_a_page_of_another_port_or_site_cannot_use_the_cookie(sent: str) -> None:
    site = Site("secret")
    pair = site.post("/ui/login", {"key": "secret"}).headers["set-cookie"].split(";")[0]
    path = "/api/v1/config"
    assert site.get(path, cookie=pair, sec_fetch_site="same-origin").status_code == 200
    assert site.get(path, cookie=pair, sec_fetch_site=sent).status_code == 401
    put = site.client.simulate_put(
        f"{path}/server",
        json={"max_connections": 5},
        headers={"Cookie": pair, "Origin": "http://falconframework.org:9"},
    )
    assert put.status_code == 403


def test_a_wrong_key_is_refused_and_counted_like_any_guess() -> None:
    site = Site("secret")
    codes = [site.post("/ui/login", {"key": "guess"}).status_code for _ in range(11)]
    assert codes == [401] * 10 + [429]
    assert site.post("/ui/login", {"key": "secret"}).status_code == 200


def test_a_cookie_that_went_bad_is_no_guess_and_is_cleared() -> None:
    site = Site("secret")
    bad = "retire_cluster_c1=" + sign_in(site).partition("=")[2][:-1]
    for _ in range(12):
        answer = site.get("/api/v1/config", cookie=bad)
        assert (answer.status_code, forgets(answer, "retire_cluster_c1")) == (401, True)
    good = site.get("/api/v1/cluster/status", cookie=bad)
    assert (good.status_code, forgets(good, "retire_cluster_c1")) == (200, True)
    assert site.post("/ui/login", {"key": "secret"}, cookie=bad).status_code == 200


@pytest.mark.parametrize("value", ["%", "====", "\x80", "a.b.c.d", ".", "a.99999999999.x."])
def test_a_cookie_that_is_none_is_no_key(value: str) -> None:
    answer = Site("secret").get("/api/v1/config", cookie=f"a=b; retire_cluster_c1={value}")
    assert answer.status_code == 401


def test_a_good_cookie_counts_beside_a_stale_one_of_the_same_name() -> None:
    site = Site("secret")
    good = sign_in(site)
    answer = site.get("/api/v1/config", cookie=f"retire_cluster_c1=x.1.y.z; {good}")
    assert answer.status_code == 200


def test_the_session_says_what_this_browser_may_do() -> None:
    facts = Site().get("/ui/session").json["data"]
    assert (facts["auth_required"], facts["scopes"]) == (False, ["admin"])
    far = Site().client.simulate_get("/ui/session", remote_addr="192.0.2.7", host="127.0.0.1")
    assert far.json["data"]["scopes"] == []
    closed = Site("secret").get("/ui/session").json["data"]
    assert (closed["auth_required"], closed["signed_in"], closed["scopes"]) == (True, False, [])


@pytest.mark.parametrize("body", [{}, {"key": ""}, {"key": 5}, {"key": "x", "more": 1}, []])
def test_a_login_without_a_key_names_what_is_wrong(body: Any) -> None:
    answer = Site("secret").post("/ui/login", body)
    assert answer.status_code == 400
    assert json.loads(answer.content)["error_code"] == "VALIDATION_ERROR"


def test_with_auth_reads_a_browser_still_reaches_the_sign_in() -> None:
    site = Site("secret", auth_reads=True)
    assert site.get("/", accept="text/html").headers["location"] == "ui/"
    assert site.get("/").status_code == 401
    assert site.get("/ui/").status_code == 200
