"""Who may ask: keys, origins, CORS, limits."""

from __future__ import annotations

from typing import Any

import pytest

from retire_cluster.schemas.rest.endpoints import ENDPOINTS
from tests.unit.api.kit import API, ECHO, TASK_ID, Bench, code_of

# --- access --------------------------------------------------------------------------------------


def test_protected_operations_are_401_without_a_key() -> None:
    bench = Bench("secret")
    for row in ENDPOINTS.values():
        path = row.path.replace("{task_id}", TASK_ID).replace("{device_id}", "laptop-001")
        result = bench.ask(row.method, path, headers={"Content-Type": "application/json"})
        assert (result.status_code == 401) is bool(row.scope), row
        if row.scope:
            assert code_of(result) == "UNAUTHORIZED"
            assert "Bearer" in result.headers["www-authenticate"]


def test_a_key_opens_them_in_either_header() -> None:
    bench = Bench("secret")
    for headers in ({"X-API-Key": "secret"}, {"Authorization": "Bearer secret"}):
        assert bench.ask("GET", f"{API}/config", headers=headers).status_code == 200


def test_dangerous_types_need_a_key_even_inside_a_batch() -> None:
    bench = Bench("secret")
    evil = {"task_type": "command", "payload": {"command": ["ls"]}}
    assert bench.send(f"{API}/tasks", ECHO).status_code == 201
    assert bench.send(f"{API}/tasks", evil).status_code == 401
    assert bench.send(f"{API}/tasks/batch", {"tasks": [ECHO, evil]}).status_code == 401
    headers = {"X-API-Key": "secret"}
    assert bench.send(f"{API}/tasks", evil, headers=headers).status_code == 201


def test_strangers_are_not_this_machine_while_authentication_is_off(bench: Bench) -> None:
    stranger = {"remote_addr": "192.0.2.1"}
    result = bench.ask("DELETE", f"{API}/devices/laptop-001", **stranger)
    assert (result.status_code, code_of(result)) == (401, "UNAUTHORIZED")
    assert "--auth" in result.json["message"]
    assert bench.send(f"{API}/tasks", ECHO, **stranger).status_code == 201
    proxied = bench.ask("GET", f"{API}/config", headers={"X-Forwarded-For": "127.0.0.1"})
    assert proxied.status_code == 401
    assert bench.ask("GET", f"{API}/config").status_code == 200


def test_ten_wrong_keys_are_429_and_the_right_one_still_works() -> None:
    bench = Bench("secret")
    for _ in range(10):
        result = bench.ask("GET", f"{API}/config", headers={"X-API-Key": "guess"})
        assert result.status_code == 401
    result = bench.ask("GET", f"{API}/config", headers={"X-API-Key": "guess"})
    assert (result.status_code, code_of(result)) == (429, "RATE_LIMIT_EXCEEDED")
    assert int(result.headers["retry-after"]) >= 1
    assert bench.ask("GET", f"{API}/config", headers={"X-API-Key": "secret"}).status_code == 200


# --- behind a path -------------------------------------------------------------------------------


def test_the_document_names_the_path_in_front_as_a_trusted_proxy_tells_it() -> None:
    bench = Bench(trusted_proxies=("127.0.0.1",))

    def servers(prefix: str, **options: Any) -> Any:
        headers = {"X-Forwarded-Prefix": prefix, "X-Forwarded-For": "192.0.2.1"}
        return bench.ask("GET", f"{API}/openapi.json", headers=headers, **options).json["servers"]

    assert servers("/cluster/") == [{"url": "/cluster"}]
    assert servers("/a/b-1.2~x") == [{"url": "/a/b-1.2~x"}]
    bad = ("cluster", "//evil.example", "/a//b", "/../a", "/a/.", "https://evil.example", "/a b",
           "/a;b", "/ü", "/", "", "/a?b")  # fmt: skip
    for prefix in bad:
        assert servers(prefix) == [{"url": "/"}], prefix
    assert servers("/cluster", remote_addr="192.0.2.9") == [{"url": "/"}]


# --- origin and CORS -----------------------------------------------------------------------------


def test_a_foreign_page_may_not_change_anything(bench: Bench) -> None:
    for headers in (
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
    ):
        result = bench.send(f"{API}/tasks", ECHO, headers=headers)
        assert (result.status_code, code_of(result)) == (403, "FORBIDDEN")
        assert bench.ask("GET", f"{API}/tasks", headers=headers).status_code == 200


def test_a_rebound_name_is_refused_while_authentication_is_off(bench: Bench) -> None:
    rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
    for method in ("GET", "POST"):
        result = bench.ask(method, f"{API}/tasks", headers=rebound)
        assert (result.status_code, code_of(result)) == (400, "VALIDATION_ERROR")
        assert result.json["error_details"]["field"] == "Host"
    assert Bench("k").ask("GET", f"{API}/tasks", headers=rebound).status_code == 200
    named = Bench(allowed_hosts=("evil.example",))
    assert named.ask("GET", f"{API}/tasks", headers=rebound).status_code == 200


def test_an_allowed_page_may_and_is_told_so() -> None:
    bench = Bench(cors_origins=("https://panel.example",))
    headers = {"Origin": "https://panel.example", "Sec-Fetch-Site": "cross-site"}
    result = bench.send(f"{API}/tasks", ECHO, headers=headers)
    assert result.status_code == 201
    assert result.headers["access-control-allow-origin"] == "https://panel.example"
    assert "X-RateLimit-Remaining" in result.headers["access-control-expose-headers"]
    assert "Origin" in result.headers["vary"]
    other = bench.ask("GET", f"{API}/tasks", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_preflights_are_answered_without_a_key_for_allowed_origins_only() -> None:
    bench = Bench("secret", cors_origins=("https://panel.example",))
    asks = {"Access-Control-Request-Method": "PUT"}
    good = bench.ask(
        "OPTIONS", f"{API}/config/server", headers={"Origin": "https://panel.example", **asks}
    )
    assert good.status_code == 204
    assert "PUT" in good.headers["access-control-allow-methods"]
    assert "X-API-Key" in good.headers["access-control-allow-headers"]
    bad = bench.ask(
        "OPTIONS", f"{API}/config/server", headers={"Origin": "https://evil.example", **asks}
    )
    assert "access-control-allow-origin" not in bad.headers


def test_no_cors_sends_no_cors_header_and_allows_nobody() -> None:
    bench = Bench(cors=False, cors_origins=("https://panel.example",))
    headers = {"Origin": "https://panel.example"}
    result = bench.ask("GET", f"{API}/tasks", headers=headers)
    assert not [name for name in result.headers if name.startswith("access-control")]
    assert bench.send(f"{API}/tasks", ECHO, headers=headers).status_code == 403


def test_credentials_are_never_offered_to_any_origin() -> None:
    result = Bench(cors_origins=("*",)).ask("GET", f"{API}/tasks", headers={"Origin": "http://x"})
    assert result.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in result.headers


# --- limits --------------------------------------------------------------------------------------


def test_limited_answers_carry_the_documented_headers() -> None:
    bench = Bench(rate_limit=True)
    for path in (f"{API}/tasks", f"{API}/nope", f"{API}/tasks?x=1"):
        headers = bench.ask("GET", path).headers
        assert headers["x-ratelimit-limit"] == "60"
        assert headers["x-ratelimit-remaining"] == "59"
        assert headers["x-ratelimit-reset"] == "1640995200"
    assert bench.cluster.asked("rate.hit")[0]["client"] == "address:127.0.0.1"


def test_over_the_limit_is_429_with_retry_after() -> None:
    bench = Bench(rate_limit=True)
    bench.cluster.answers["rate.hit"] = {
        "allowed": False, "limit": 60, "remaining": 0, "reset": 5, "retry_after": 12.2,
    }  # fmt: skip
    result = bench.ask("GET", f"{API}/tasks")
    assert (result.status_code, code_of(result)) == (429, "RATE_LIMIT_EXCEEDED")
    assert result.headers["retry-after"] == "13"
    assert result.headers["x-ratelimit-remaining"] == "0"


@pytest.mark.parametrize(
    "path", ["/health", "/api/health", "/metrics", f"{API}/events", "/ws", "/ui/app.js", "/health/"]
)
def test_some_paths_cost_no_limit(path: str) -> None:
    bench = Bench(rate_limit=True)
    result = bench.ask("GET", path)
    assert "x-ratelimit-limit" not in result.headers
    assert not [call for call in bench.cluster.calls if call[0] == "rate.hit"]


def test_a_valid_key_is_counted_by_itself() -> None:
    bench = Bench("secret", rate_limit=True)
    bench.ask("GET", f"{API}/tasks", headers={"X-API-Key": "secret"})
    assert bench.cluster.asked("rate.hit")[0]["client"].startswith("key:")
