"""Log lines have the document's fields, stay one line each, and hold no secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from retire_cluster.conf.logs import REDACTED, JsonFormatter, Redaction, configure
from retire_cluster.conf.sections import Logging
from retire_cluster.schemas.text.clean_text import escaped

LOGGER = logging.getLogger("api.requests")


@pytest.fixture(autouse=True)
def restored_root() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def logged(settings: Logging, *secrets: str, **call: Any) -> str:
    stream = io.StringIO()
    configure(settings, secrets, stream=stream)
    LOGGER.log(logging.INFO, call.pop("msg", "Request processed"), *call.pop("args", ()), **call)
    return stream.getvalue()


def failing() -> Exception:
    try:
        raise ValueError("bad\nforged line")
    except ValueError as error:
        return error


def test_a_request_is_logged_with_the_documents_fields_in_order() -> None:
    extra = {
        "duration_ms": 45.2,
        "status_code": 200,
        "path": "/api/v1/cluster/status",
        "method": "GET",
        "request_id": "uuid",
    }
    line = json.loads(logged(Logging(), extra=extra))
    stamp = line.pop("timestamp")
    assert stamp.endswith("Z")
    assert stamp[10] == "T"
    assert list(line.items()) == [
        ("level", "INFO"),
        ("logger", "api.requests"),
        ("message", "Request processed"),
        ("request_id", "uuid"),
        ("method", "GET"),
        ("path", "/api/v1/cluster/status"),
        ("status_code", 200),
        ("duration_ms", 45.2),
    ]


def test_other_extra_fields_follow_and_never_replace_the_documents() -> None:
    extra = {"device_id": "attic", "level": "forged", "tags": ["a"], "load": float("nan")}
    line = json.loads(logged(Logging(), extra=extra))
    assert (line["device_id"], line["level"], line["tags"]) == ("attic", "INFO", "['a']")
    assert line["load"] == "nan"


@pytest.mark.parametrize("kind", ["json", "text"])
def test_no_text_can_start_a_line_of_its_own(kind: str) -> None:
    nasty = "x\r\n12:00:00 ERROR\x1b[2J\u2028\u202e\x85\ud800"
    out = logged(Logging(format=kind), msg="got %s", args=(nasty,), extra={"path": nasty})
    assert len(out.splitlines()) == 1
    told = json.loads(out)["message"] if kind == "json" else out
    assert "x\\r\\n12:00:00 ERROR\\x1b[2J" in told
    assert out.isascii()


def test_a_terminal_gets_text() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    configure(Logging(), stream=stream)
    LOGGER.warning("late", extra={"device_id": "attic"})
    assert "WARNING api.requests: late device_id=attic\n" in stream.getvalue()


@pytest.mark.parametrize("kind", ["json", "text"])
def test_an_error_is_told_without_its_trace(kind: str) -> None:
    out = logged(Logging(format=kind), msg="failed", exc_info=failing())
    assert "ValueError: bad" in out
    assert "Traceback" not in out
    assert len(out.splitlines()) == 1


def test_debug_adds_the_trace_to_json() -> None:
    line = json.loads(logged(Logging(debug=True), msg="failed", exc_info=failing()))
    assert line["traceback"].startswith("Traceback")


def test_debug_adds_the_trace_to_text_and_marks_its_lines() -> None:
    out = logged(Logging(format="text", debug=True), msg="failed", exc_info=failing())
    rows = out.splitlines()
    assert len(rows) > 3
    assert all(row.startswith("  | ") for row in rows[1:])


@pytest.mark.parametrize("kind", ["json", "text"])
def test_keys_are_hidden_wherever_they_turn_up(kind: str) -> None:
    out = logged(
        Logging(format=kind, debug=True),
        "s3cret",
        "s3cret-longer",
        msg="key %s",
        args=("s3cret",),
        extra={"path": "/x?key=s3cret-longer", "headers": {"X-API-Key": "s3cret"}},
        exc_info=ValueError("s3cret"),
    )
    assert "s3cret" not in out
    assert "-longer" not in out
    assert REDACTED in out


def test_a_secret_made_later_can_be_added() -> None:
    redaction = Redaction()
    redaction.add("late", "")
    assert redaction("too late") == f"too {REDACTED}"


def test_a_broken_format_still_logs() -> None:
    record = logging.makeLogRecord({"msg": "%d slots", "args": ("x",), "levelname": "INFO"})
    line = JsonFormatter(Redaction(), traces=False).format(record)
    assert json.loads(line)["message"] == "%d slots ('x',)"


def test_the_level_holds_and_debug_overrides_it() -> None:
    assert logged(Logging(level="WARNING")) == ""
    assert logged(Logging(level="WARNING", debug=True))


def test_configuring_again_replaces_the_first_handler() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure(Logging(), stream=first)
    configure(Logging(), stream=second)
    LOGGER.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def test_a_closed_stream_loses_the_line_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = io.StringIO()
    configure(Logging(format="json"), stream=stream)
    stream.close()
    LOGGER.info("lost")
    assert capsys.readouterr().err == ""


def test_escaping_leaves_plain_text_alone() -> None:
    assert escaped("naïve café 日本 \\n") == "naïve café 日本 \\n"
