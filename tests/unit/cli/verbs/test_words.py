"""What is typed becomes payloads, requirements, settings and times, or is refused."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import pytest

from retire_cluster.cli import cures
from retire_cluster.cli.payloads import payload_from_words, requirements_from_words, seconds_of
from retire_cluster.cli.verbs import config
from retire_cluster.schemas.errors import (
    ClusterError,
    ClusterUnavailable,
    NotFound,
    TaskNotFound,
    ValidationError,
)
from tests.unit.cli.kit import Run, Script


@pytest.mark.parametrize(
    ("words", "payload"),
    [
        (["message=Hello World"], {"message": "Hello World"}),
        (["n=3", "f=1.5", "b=true", "z=null"], {"n": 3, "f": 1.5, "b": True, "z": None}),
        (["list=[1, 2]", 'o={"a": 1}'], {"list": [1, 2], "o": {"a": 1}}),
        (['quoted="3"'], {"quoted": "3"}),
        (["a=b=c", "empty="], {"a": "b=c", "empty": ""}),
        (["forced:=[1]"], {"forced": [1]}),
        (["text=NaN"], {"text": "NaN"}),
    ],
)
def test_words_become_a_payload(words: list[str], payload: dict[str, Any]) -> None:
    assert payload_from_words("echo", words) == payload


def test_a_field_that_a_type_declares_as_text_stays_text() -> None:
    assert payload_from_words("python_eval", ["expression=2"]) == {"expression": "2"}
    assert payload_from_words("sleep", ["duration=2"]) == {"duration": 2}


@pytest.mark.parametrize("word", ["noequals", "=value", "a:={", "a:=NaN"])
def test_a_word_that_is_no_field_is_refused(word: str) -> None:
    with pytest.raises(ValidationError):
        payload_from_words("echo", [word])


def test_words_become_requirements() -> None:
    words = ["min_cpu_cores=2", "required_tags=a,b", "required_tags=c", "required_platform=linux"]
    assert requirements_from_words(words) == {
        "min_cpu_cores": 2,
        "required_tags": ["a", "b", "c"],
        "required_platform": "linux",
    }


def test_changes_are_grouped_by_section() -> None:
    words = ["heartbeat.interval=2", "server.max_connections=9", "heartbeat.timeout=60"]
    assert config.changes_by_section(words) == {
        "heartbeat": {"interval": 2, "timeout": 60},
        "server": {"max_connections": 9},
    }
    with pytest.raises(ValidationError, match=r"section\.name=value"):
        config.changes_by_section(["interval=2"])


def test_a_wrong_setting_is_named_with_its_section() -> None:
    def changed(*answers: Any, words: Sequence[str]) -> Exception:
        run = Run(Script(*answers), changes=words)
        with pytest.raises(ClusterError) as caught:
            run(config.change)
        return caught.value

    listed = [
        {"field": "timeout", "reason": "must be a number"},
        {"field": "interval", "reason": "must be a number"},
    ]
    refused = ValidationError("timeout", "must be a number", errors=listed)
    error = changed(refused, words=["heartbeat.timeout=abc", "heartbeat.interval=x"])
    assert str(error) == "heartbeat.timeout: must be a number"
    assert isinstance(error, ValidationError)
    names = [entry["field"] for entry in error.details["errors"]]
    assert names == ["heartbeat.timeout", "heartbeat.interval"]
    limited = ValidationError("section", "must be one of server, heartbeat")
    gone = NotFound("There is no section 'nope'; there are server, heartbeat, api.")
    assert changed(limited, gone, words=["nope.x=1"]) is gone
    error = changed(limited, {}, words=["api.port=1"])
    assert str(error).startswith("api: cannot be changed while the cluster runs")
    assert "must be one of server, heartbeat" in str(error)


def test_what_is_mistyped_is_named_with_what_was_meant() -> None:
    types = {"supported_types": ["echo", "sleep"]}
    wrong = ValidationError("task.task_type", "no device has ever offered the task type 'ecko'")
    assert cures.of(wrong, Script(types)) == "did you mean echo?"
    strange = ValidationError("task_type", "no device has ever offered the task type 'x'")
    assert cures.of(strange, Script(types)) == "the types: echo, sleep"
    requirement = ValidationError("task.requirements.min_cores", "unknown field")
    assert cures.of(requirement, Script()) == "did you mean min_cpu_cores?"
    assert "tasks ls" in cures.of(TaskNotFound(), Script())
    assert cures.of(ClusterUnavailable(), Script()) == ""


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("5m", 300), ("1h30m", 5_400), ("2d", 172_800), ("1.5", 1.5)]
)
def test_a_time_is_read_as_typed(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5x", "-5", "5 m", "1e9", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        seconds_of(text)
