"""What a task process says becomes data to rely on, or the failure of that one attempt."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from retire_cluster.node.process import replies
from retire_cluster.node.process.frames import (
    ANSWERS,
    REQUESTS,
    FrameError,
    RawFrame,
    read_frame,
    read_raw,
    write_frame,
)
from retire_cluster.node.process.replies import BadReply, Begun, Described, Done, Progress
from retire_cluster.schemas.protocol.wire import MAX_RESULT_BYTES

DONE: dict[str, Any] = {
    "outcome": "success",
    "cause": None,
    "error_message": None,
    "details": {},
    "last": False,
}


def done(blob: bytes = b"", **changes: Any) -> replies.Reply:
    return replies.read(RawFrame("done", json.dumps({**DONE, **changes}).encode(), blob))


def progress(text: str) -> replies.Reply:
    return replies.read(RawFrame("progress", text.encode(), b""))


def test_an_end_is_read_as_it_was_said() -> None:
    details = {"logs": "ä", "error_traceback": "T"}
    found = done(b"[1]", outcome="failed", cause="error", error_message="it broke", details=details)
    assert isinstance(found, Done)
    assert found[:4] == ("failed", "error", "it broke", b"[1]")
    assert json.loads(found.details) == details
    cut = {"logs": {"total_bytes": 9, "kept_bytes": 1, "missing": "middle"}}
    found = done(details={"truncated": {**cut, "strange": 1, "stdout": [1]}})
    assert isinstance(found, Done)
    assert json.loads(found.details) == {"truncated": cut}
    found = done(details={"truncated": True})
    assert isinstance(found, Done)
    assert not found.details
    assert found.last is False
    assert done() == Done("success", None, None, b"", b"", False)


def test_a_start_progress_and_descriptions_are_read() -> None:
    assert replies.read(RawFrame("started", b"{}", b"")) == Begun()
    assert progress('{"percent": 12.5, "message": "on"}') == Progress(12.5, "on")
    assert progress('{"percent": null}') == Progress(None, "")
    assert progress(json.dumps({"message": "m" * 5_000})) == Progress(None, "m" * 1_000)
    assert replies.read(RawFrame("described", b'{"types": [{"a": 1}]}', b"")) == Described(
        [{"a": 1}]
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outcome": []}, "outcome"),
        ({"outcome": "released"}, "outcome"),
        ({"outcome": "cancelled"}, "outcome"),
        ({"outcome": None}, "outcome"),
        ({"cause": {}}, "cause"),
        ({"cause": "worker_lost"}, "cause"),
        ({"cause": True}, "cause"),
        ({"error_message": 5}, "error_message is not a text"),
        ({"last": "no"}, "another task"),
        ({"details": []}, "details are not an object"),
        ({"details": {"logs": {"a": 1}}}, "logs is not a text"),
        ({"details": {"error_traceback": 1}}, "error_traceback is not a text"),
        ({"details": {"logs": "x" * (256 * 1024)}}, "more than 262144 bytes"),
        ({"details": {"x": json.loads("[" * 40 + "]" * 40)}}, "deeper than 32"),
    ],
)
def test_an_end_of_another_form_is_no_answer(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadReply, match=words):
        done(**changes)


@pytest.mark.parametrize(
    "blob",
    [
        b"{", b"NaN", b"[1,]", b"\xff", b'"\\ud800"', b"\xed\xa0\x80",
        b"[" * 200_000 + b"]" * 200_000, b"[" * 65 + b"]" * 65, b"1 2",
    ],
)  # fmt: skip
def test_a_result_that_is_no_json_of_bounded_depth_is_no_answer(blob: bytes) -> None:
    with pytest.raises(BadReply, match="its result is"):
        done(blob)


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{", "NaN", '{"percent": NaN}', '{"percent": "x"}',
        '{"percent": 101}', '{"percent": -1}', '{"percent": true}', '{"percent": [1]}',
        '{"percent": 1e999}', '{"message": 1}', '{"a":' * 200_000 + "1" + "}" * 200_000,
        "[" * 200_000,
    ],
)  # fmt: skip
def test_progress_of_another_form_is_no_answer(text: str) -> None:
    with pytest.raises(BadReply):
        progress(text)


def test_text_that_is_not_unicode_is_replaced_wherever_it_comes(
    pipe: tuple[int, int],
) -> None:
    reading, writing = pipe
    details = {"logs": "\udce9", "error_traceback": "caf\udce9"}
    write_frame(writing, {"kind": "done", **DONE, "error_message": "\ud800", "details": details})
    write_frame(writing, {"kind": "progress", "percent": 1, "message": "a\udfffb"})
    first, second = (replies.read(frame(reading)) for _ in range(2))
    assert isinstance(first, Done)
    assert first.error_message == "\ufffd"
    assert json.loads(first.details) == {"logs": "\ufffd", "error_traceback": "caf\ufffd"}
    assert second == Progress(1, "a\ufffdb")


def test_the_failure_for_a_bad_answer_is_clean_and_bounded() -> None:
    found = replies.failed("\ud800" * 5_000)
    assert found.outcome == "failed"
    assert found.last
    assert found.error_message is not None
    assert len(found.error_message.encode()) < 4_000


# --- frames -----------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def frame(reading: int) -> RawFrame:
    raw = read_raw(reading, ANSWERS)
    assert raw is not None
    return raw


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (struct.pack("<cII", b"d", 40 << 20, 0), "header"),
        (struct.pack("<cII", b"d", 10, MAX_RESULT_BYTES + 1), "content"),
        (struct.pack("<cII", b"s", 3, 0), "header"),
        (struct.pack("<cII", b"p", 2, 1), "content"),
        (struct.pack("<cII", b"R", 2, 0), "no message of ours"),
        (struct.pack("<cII", b"\0", 2, 0), "no message of ours"),
        (b"hello wor", "no message of ours"),
    ],
)
def test_what_is_too_large_or_of_another_kind_is_refused_before_it_is_read(
    pipe: tuple[int, int], head: bytes, words: str
) -> None:
    reading, writing = pipe
    os.write(writing, head)  # and nothing after it: reading on would wait for ever
    with pytest.raises(FrameError, match=words):
        read_raw(reading, ANSWERS)


def test_a_frame_beyond_its_limits_is_not_even_written(pipe: tuple[int, int]) -> None:
    for header, blob in (
        ({"kind": "progress", "message": "x" * 20_000}, b""),
        ({"kind": "done"}, b"x" * (MAX_RESULT_BYTES + 1)),
    ):
        with pytest.raises(FrameError):
            write_frame(pipe[1], header, blob)


def test_requests_and_large_results_go_through(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    result = b'"' + b"x" * (MAX_RESULT_BYTES - 2) + b'"'
    thread = threading.Thread(target=write_frame, args=(writing, {"kind": "done", **DONE}, result))
    thread.start()
    found = replies.read(frame(reading))
    thread.join()
    assert isinstance(found, Done)
    assert found.data == result
    write_frame(writing, {"kind": "run", "task_id": "ä"}, b"{}")
    request = read_frame(reading)
    assert request is not None
    assert request == ({"kind": "run", "task_id": "ä"}, b"{}")


def test_a_request_is_no_answer_and_an_answer_no_request(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    write_frame(writing, {"kind": "started"})
    with pytest.raises(FrameError):
        read_raw(reading, REQUESTS)


@pytest.mark.parametrize("close_after", [0, 4, 9, 12])
def test_a_writer_that_goes_in_the_middle_is_gone(pipe: tuple[int, int], close_after: int) -> None:
    reading, writing = pipe
    os.write(writing, (struct.pack("<cII", b"d", 8, 0) + b"{}")[:close_after])
    os.close(writing)
    assert read_raw(reading, ANSWERS) is None
