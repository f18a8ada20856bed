"""Tables, envelopes and styles."""

from __future__ import annotations

import io
import json
import re

import pytest

from retire_cluster.cli.output import Output, Style, cell, facts, pretty, table
from retire_cluster.schemas.errors import TaskNotFound, ValidationError

PLAIN = Style()
UNICODE = Style(unicode=True)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_columns_line_up_and_no_line_ends_in_blanks() -> None:
    text = table(("NAME", "STATUS"), [("a", "online"), ("longer", "offline")], PLAIN)
    assert text.split("\n") == ["NAME    STATUS", "a       online", "longer  offline"]


def test_the_last_column_is_cut_to_the_terminals_width() -> None:
    text = table(("ID", "WHY"), [("a", "x" * 100)], UNICODE, width=20)
    assert all(len(line) <= 20 for line in text.split("\n"))
    assert text.endswith("…")
    assert table(("ID", "WHY"), [("a", "x" * 100)], PLAIN, width=20).endswith("~")


def test_a_table_that_is_not_on_a_terminal_is_never_cut() -> None:
    assert "x" * 100 in table(("ID", "WHY"), [("a", "x" * 100)], PLAIN)


def test_status_words_are_coloured_only_where_colour_is_shown() -> None:
    rows = [("a", "online")]
    assert "\x1b[32monline" in table(("ID", "STATUS"), rows, Style(colour=True))
    assert "\x1b" not in table(("ID", "STATUS"), rows, PLAIN)


def test_control_characters_in_names_do_not_reach_the_terminal() -> None:
    assert cell("a\x1b[2Jb\n", PLAIN) == "a\\x1b[2Jb\\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (0.5, "0.5"),
        (3.0, "3"),
        (["a", "b"], "a, b"),
        ([], "-"),
        ({"a": 1, "b": None}, "a=1 b=-"),
    ],
)
def test_values_read_well_in_a_cell(value: object, shown: str) -> None:
    assert cell(value, PLAIN) == shown


def test_facts_are_aligned() -> None:
    assert facts([("a", 1), ("long", "x")], PLAIN) == "a     1\nlong  x"


@pytest.mark.parametrize(
    ("environ", "colour", "unicode"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_the_environment_decides_what_a_terminal_is_sent(
    environ: dict[str, str], colour: bool, unicode: bool
) -> None:
    assert Style.of(Terminal(), environ) == Style(colour=colour, unicode=unicode)


def test_a_pipe_gets_no_colour() -> None:
    assert not Style.of(io.StringIO(), {"TERM": "xterm"}).colour


def test_the_envelope_is_the_same_on_a_terminal_and_in_a_pipe() -> None:
    texts = []
    for stream in (Terminal(), io.StringIO()):
        Output(stream, io.StringIO(), as_json=True).data({"a": 1}, "for people", message="done")
        texts.append(json.loads(stream.getvalue()))
    assert [sorted(text) for text in texts] == [sorted(texts[0])] * 2
    assert texts[0]["status"] == "success"
    assert texts[0]["data"] == {"a": 1}
    assert texts[0]["message"] == "done"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", texts[0]["timestamp"])


def test_an_error_is_an_envelope_for_programs_and_a_line_for_people() -> None:
    out, err = io.StringIO(), io.StringIO()
    Output(out, err, as_json=True).error(TaskNotFound("no such task"))
    envelope = json.loads(out.getvalue())
    assert (envelope["status"], envelope["error_code"]) == ("error", "TASK_NOT_FOUND")
    assert err.getvalue() == ""

    out, err = io.StringIO(), io.StringIO()
    Output(out, err).error(TaskNotFound("no such task"))
    assert out.getvalue() == ""
    assert err.getvalue() == "error: no such task\n"


def test_every_offending_field_is_listed() -> None:
    err = io.StringIO()
    errors = [{"field": "a", "reason": "is bad"}, {"field": "b", "reason": "is worse"}]
    Output(io.StringIO(), err).error(ValidationError("a", "is bad", errors=errors))
    assert err.getvalue() == "error: a: is bad\n       b: is worse\n"


def test_text_that_the_stream_cannot_show_is_escaped_and_json_stays_json() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", newline="\n", write_through=True)
    Output(stream, stream).data({}, "Gerät")
    Output(stream, stream, as_json=True).data({"name": "Gerät"}, "")
    first, _, rest = raw.getvalue().decode("ascii").partition("\n")
    assert first == "Ger\\xe4t"
    assert json.loads(rest)["data"] == {"name": "Gerät"}


#: Turns a terminal's text around, clears it, names its window, in three spellings.
NASTY = "a\x1b[2J\x1b]0;owned\x07\x9b31m\u202eb\x7f\b"


def test_what_a_task_wrote_steers_no_terminal_and_comes_whole_out_of_a_pipe() -> None:
    written = f"1 %\r100 %\r\nname:\t{NASTY}\n"
    terminal = Output(Terminal(), io.StringIO())
    shown = terminal.written(written)
    assert shown == ("1 %\n100 %\nname:\ta\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202eb\\x7f\\x08\n")
    assert terminal.written("naïve 日本 🙂 a\u00a0b\u3000c") == "naïve 日本 🙂 a\u00a0b\u3000c"
    assert terminal.written(written, raw=True) == written
    assert Output(io.StringIO(), io.StringIO()).written(written) == written


@pytest.mark.parametrize("style", [PLAIN, UNICODE])
def test_results_steer_no_terminal_and_mean_the_same(style: Style) -> None:
    text = pretty({NASTY: [NASTY, "日本\n\t"]}, style)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert json.loads(text) == {NASTY: [NASTY, "日本\n\t"]}


def test_names_of_facts_and_columns_do_not_reach_the_terminal_either() -> None:
    assert "\x1b" not in facts([(f"capabilities.{NASTY}", 1)], PLAIN)
    assert "\x1b" not in table((NASTY, "B"), [("a", "b")], PLAIN)
