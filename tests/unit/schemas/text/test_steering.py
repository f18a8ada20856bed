"""Names from outside steer no terminal, no log and no order of what is shown."""

from __future__ import annotations

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retire_cluster.cli.output import Output, Style, clean, clean_json, facts, table
from retire_cluster.conf.logs import configure
from retire_cluster.conf.sections import Logging
from retire_cluster.node.selftest import report
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.protocol.messages import TypeInfo
from retire_cluster.schemas.text import clean_text
from tests.unit.broker.kit import Cluster

#: One of each kind.
HOSTILE = [
    "\x1b[2J", "\x1b]0;title\x07", "\r", "\n", "\x00", "\x7f", "\x9b31m", "\x85", "\u2028",
    "\u202e", "\u2066", "\u200f", "\u061c", "\ufeff", "\u200b", "\U000e0041", "\udce9", "\xad",
]  # fmt: skip
STEERING = "".join(HOSTILE).replace("[2J", "").replace("]0;title", "").replace("31m", "")


def steers(text: str) -> list[str]:
    """What of a text steers, line ends and tabs aside."""
    return [char for char in text if char in STEERING and char not in "\n\t"]


@pytest.mark.parametrize("bad", HOSTILE)
def test_a_name_loses_what_steers_and_keeps_the_rest(bad: str) -> None:
    assert not steers(clean_text.plain(f"é{bad}日本"))
    assert "\n" not in clean_text.plain(f"a{bad}")
    assert clean_text.plain(f"é{bad}日本").startswith("é")
    assert clean_text.plain(f"é{bad}日本").endswith("日本")


@given(st.text())
def test_whatever_is_shown_steers_nothing_and_names_that_are_good_stay(text: str) -> None:
    for shown in (clean_text.plain(text), clean_text.escaped(text), clean(text)):
        assert not steers(shown)
        assert "\n" not in shown
        assert clean_text.escaped(shown) == shown == clean_text.plain(shown)
    assert not steers(clean_text.escaped_lines(text))
    assert not steers(clean_json(text))


def test_our_own_colours_stay_and_no_others() -> None:
    painted = Style(colour=True).paint("fine", "green")
    assert clean_text.escaped_lines(painted, painted=True) == painted
    assert "\x1b" not in clean_text.escaped_lines("\x1b[2J\x1b[5m\x1b[?25l\x1bc", painted=True)


@pytest.mark.parametrize("bad", HOSTILE)
def test_a_text_that_nobody_cleaned_is_cleaned_where_it_is_printed(bad: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    output = Output(out, err)
    output.data({}, f"name {bad}")
    output.hint(f"name {bad}")
    assert not steers(out.getvalue())
    assert not steers(err.getvalue())


@pytest.mark.parametrize("bad", HOSTILE)
def test_tables_and_facts_keep_their_lines(bad: str) -> None:
    style = Style()
    shown = table(("NAME", "X"), [[f"a{bad}b", {f"k{bad}": [f"v{bad}"]}]], style)
    assert not steers(shown)
    assert shown.count("\n") == 1
    shown = facts([(f"capabilities.{bad}", f"v{bad}")], style)
    assert not steers(shown)
    assert "\n" not in shown


@pytest.mark.parametrize("kind", ["text", "json"])
@pytest.mark.parametrize("bad", HOSTILE)
def test_a_log_line_stays_one_and_steers_nothing(bad: str, kind: str) -> None:
    stream = io.StringIO()
    configure(Logging(format=kind), stream=stream)
    try:
        logging.getLogger("broker").warning("the device %s", f"a{bad}b", extra={"host": f"h{bad}"})
    finally:
        logging.getLogger().handlers.clear()
    text = stream.getvalue()
    assert not steers(text)
    assert text.count("\n") == 1


@pytest.mark.parametrize("bad", HOSTILE)
def test_the_report_of_a_device_steers_nothing(
    bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report._line("main node", f"refuses: {bad}")
    out = capsys.readouterr().out
    assert not steers(out)
    assert out.count("\n") == 1


def texts(value: object) -> list[str]:
    """Every text in a JSON value, names too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for each in pair for text in texts(each)]
    return [text for each in value for text in texts(each)] if isinstance(value, list) else []


@pytest.mark.parametrize("bad", [bad for bad in HOSTILE if bad != "\udce9"])
def test_nothing_of_what_a_device_says_of_itself_steers(cluster: Cluster, bad: str) -> None:
    info = TypeInfo("mine", f"d{bad}", None, True, False, {}, f"p{bad}", f"1{bad}")
    member = cluster.device(
        hostname=f"h{bad}", version=f"1{bad}", left_out=(f"type {bad}",),
        capabilities={f"os{bad}": [f"v{bad}", {f"k{bad}": 1}]},
        task_types=(info, TypeInfo(f"x{bad}")),
    )  # fmt: skip
    member.beat(accepting=False, not_accepting_reason=f"r{bad}", last_error=f"e{bad}")
    member.beat(accepting=True)
    _, key = cluster.give(member=member, task_type="mine", max_retries=0)
    member.start()
    member.say(msg.Progress(member.session, (msg.ProgressItem(key, 5.0, f"m{bad}"),)))
    member.finish(outcome="failed", cause="error", error=f"it {bad} broke")
    cluster.submit(task_type="mine")
    task_id = cluster.public(key[0])
    for op, args in (
        ("device.get", {"device_id": "box"}), ("device.list", {}), ("device.status", {
        "device_id": "box"}), ("task.types", {}), ("task.get", {"task_id": task_id}),
        ("task.result", {"task_id": task_id}), ("task.explain", {"task_id": cluster.public(
        key[0] + 1)}), ("events.poll", {"since": 0}), ("task.list", {}),
    ):  # fmt: skip
        for text in texts(cluster.call(op, args).data):
            assert not steers(text), (op, text)
