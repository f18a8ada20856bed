"""Settings check themselves, however they are made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from retire_cluster.conf.sections import (
    PUBLIC_SECTIONS,
    SECTIONS,
    Api,
    Database,
    Heartbeat,
    Scheduler,
    Server,
)
from retire_cluster.conf.settings import Settings, all_specs, merge_section
from retire_cluster.conf.spec import SettingsError, from_text, specs, wrong_with
from retire_cluster.schemas.errors import NotFound, ValidationError


def settings() -> Settings:
    return Settings(data_dir=Path("data"))


def test_defaults_are_those_of_the_contract() -> None:
    made = settings()
    assert (made.server.host, made.server.port) == ("127.0.0.1", 8080)
    assert (made.server.worker_port, made.server.event_port) == (8082, 8083)
    assert made.heartbeat == Heartbeat(interval=5, timeout=30, max_missed=3)
    assert (made.api.host, made.api.port) == ("127.0.0.1", 8081)
    assert (made.api.rate_limit_per_minute, made.api.rate_limit_per_hour) == (60, 1000)
    assert made.api.rate_limit_burst == 10
    assert (made.retention.finished_days, made.retention.finished_rows) == (7, 1_000_000)
    assert made.scheduler.backlog_limit == 1_000_000
    assert made.database.min_free_percent == 5


def test_every_setting_has_help_and_a_variable_of_its_own() -> None:
    found = list(all_specs())
    assert all(spec.help.endswith(".") for spec in found)
    assert all(spec.env.startswith("RETIRE_CLUSTER_") for spec in found)
    assert len({spec.env for spec in found}) == len(found)


def test_the_documented_variables_keep_their_names() -> None:
    assert {spec.env for spec in specs(Api)} >= {
        "RETIRE_CLUSTER_API_HOST",
        "RETIRE_CLUSTER_API_PORT",
        "RETIRE_CLUSTER_API_KEY",
        "RETIRE_CLUSTER_CLUSTER_HOST",
        "RETIRE_CLUSTER_CLUSTER_PORT",
    }


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_every_default_is_within_its_own_bounds(section: type) -> None:
    assert dataclasses.is_dataclass(section())
    for spec in specs(section):
        assert wrong_with(spec, spec.default) == ""


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"port": 65536}, "server.port"),
        ({"port": -1}, "server.port"),
        ({"port": True}, "server.port"),
        ({"port": "8080"}, "server.port"),
        ({"max_connections": 0}, "server.max_connections"),
        ({"max_connections": 100_001}, "server.max_connections"),
        ({"host": "a\nb"}, "server.host"),
        ({"insecure": 1}, "server.insecure"),
    ],
)
def test_a_bad_value_is_refused_by_its_dotted_name(values: dict[str, object], field: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Server(**values)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert "must be" in caught.value.reason
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 10**400, 0.99, 3601])
def test_an_interval_is_a_finite_number_within_bounds(bad: float) -> None:
    with pytest.raises(SettingsError, match=r"heartbeat\.interval"):
        Heartbeat(interval=bad, timeout=86_400)


def test_a_lease_outlasts_the_heartbeats_that_may_be_missed() -> None:
    assert Heartbeat(interval=10, max_missed=3, timeout=30)
    with pytest.raises(SettingsError, match=r"heartbeat\.timeout: must be at least .* 30 s"):
        Heartbeat(interval=10, max_missed=3, timeout=29)


def test_a_retry_cap_below_its_base_is_refused() -> None:
    with pytest.raises(SettingsError, match="retry_cap_seconds"):
        Scheduler(retry_base_seconds=10, retry_cap_seconds=5)


def test_a_store_address_has_a_scheme() -> None:
    assert Database(url="memory://")
    with pytest.raises(SettingsError, match=r"database\.url"):
        Database(url="/var/lib/tasks.db")


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "://x", "https://"])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(SettingsError, match="cors_origins"):
        Api(cors_origins=(origin,))


def test_origins_as_browsers_send_them_are_taken() -> None:
    assert Api(cors_origins=("https://example.org", "http://localhost:3000", "*"))


def test_secrets_are_in_no_view_and_no_repr() -> None:
    made = dataclasses.replace(settings(), api=Api(keys=("s3cret",)))
    assert "s3cret" not in repr(made)
    assert "s3cret" not in str(made.public())
    assert "keys" not in made.section("api")


def test_a_bad_secret_is_not_repeated_in_its_error() -> None:
    with pytest.raises(SettingsError) as caught:
        Api(keys=("s3cret\r",))
    assert "s3cret" not in str(caught.value)


def test_public_sections_are_those_of_the_contract() -> None:
    assert tuple(settings().public()) == PUBLIC_SECTIONS
    assert settings().section("heartbeat") == {"interval": 5, "timeout": 30, "max_missed": 3}
    assert settings().section("api")["cors_origins"] == []


def test_a_section_that_is_not_public_is_not_found() -> None:
    with pytest.raises(NotFound):
        settings().section("worker")


def test_the_store_is_in_the_data_folder_unless_said_otherwise() -> None:
    assert settings().store_url == "sqlite:///data/cluster.db"
    made = dataclasses.replace(settings(), database=Database(url="memory://"))
    assert made.store_url == "memory://"


def test_sections_are_replaced_by_name() -> None:
    made = settings().with_sections({"heartbeat": Heartbeat(interval=2)})
    assert made.heartbeat.interval == 2
    assert made.server == settings().server


def test_merging_changes_only_what_was_given() -> None:
    merged = merge_section(Heartbeat(), {"interval": 60, "timeout": 300})
    assert merged == Heartbeat(interval=60, timeout=300, max_missed=3)


def test_merging_nothing_changes_nothing() -> None:
    assert merge_section(Heartbeat(), {}) == Heartbeat()


def test_merging_judges_the_merged_values() -> None:
    with pytest.raises(ValidationError) as caught:
        merge_section(Heartbeat(), {"interval": 60})
    assert caught.value.field == "timeout"
    assert "180" in caught.value.reason


def test_merging_lists_every_wrong_field_and_applies_none() -> None:
    before = Heartbeat()
    with pytest.raises(ValidationError) as caught:
        merge_section(before, {"interval": 0, "max_missed": True, "color": 1, "timeout": 300})
    assert caught.value.field == "interval"
    assert [e["field"] for e in caught.value.details["errors"]] == [
        "interval",
        "max_missed",
        "color",
    ]
    assert before == Heartbeat()


def test_an_address_is_visible_but_cannot_be_changed_at_run_time() -> None:
    assert settings().section("server")["port"] == 8080
    with pytest.raises(ValidationError) as caught:
        merge_section(Server(), {"port": 9000})
    assert caught.value.field == "port"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("Yes", True), ("on", True), ("0", False), ("FALSE", False), ("maybe", "maybe")],
)
def test_switches_are_read_from_words(text: str, value: object) -> None:
    spec = next(spec for spec in specs(Api) if spec.name == "auth")
    assert from_text(spec, text) == value


@pytest.mark.parametrize("text", ["1_0", "\uff11\uff10", "0x10", "1.5", "", "9" * 5000])
def test_numbers_are_read_from_plain_digits_only(text: str) -> None:
    spec = next(spec for spec in specs(Api) if spec.name == "port")
    assert wrong_with(spec, from_text(spec, text))


def test_every_number_has_a_least_and_a_most() -> None:
    numbers = [spec for spec in all_specs() if spec.kind in ("int", "float")]
    assert numbers
    for spec in numbers:
        assert spec.low is not None, spec.dotted
        assert spec.high is not None, spec.dotted
        wrong = (spec.low - 1, spec.high + 1, True, float("nan"), float("inf"), 10**30, "1")
        assert all(wrong_with(spec, value) for value in wrong), spec.dotted
