"""Messages as frames: what cannot be written costs itself and nothing else."""

from __future__ import annotations

from retire_cluster.node.core.encoding import encode
from retire_cluster.node.core.records import Result
from retire_cluster.schemas.protocol import wire
from retire_cluster.schemas.protocol.messages import Finished, Goodbye, read_from_device


def test_a_result_that_cannot_be_sent_is_put_aside_and_the_others_of_its_batch_go() -> None:
    good = Result((1, 1, 1, 1), "success", 0.1, None, None, b"1", b"")
    bad = Result((2, 1, 1, 1), "success", object(), None, None, b"2", b"")  # type: ignore[arg-type]
    odd = Result((3, 1, 1, 1), "failed", 0.1, "error", "caf\udce9", b"", b"{}")
    encoded = encode(Finished.of("s", 7, [good, bad, odd]), _blobs(good, bad, odd))
    assert encoded.error
    decoded = wire.decode(wire.BUS, encoded.frames)
    message = read_from_device(decoded.verb, decoded.header)
    assert isinstance(message, Finished)
    assert message.batch == 7
    found = {item.key[0]: item for item in message.items}
    assert found[1].outcome == "success"
    assert found[2].outcome == "failed"
    assert "cannot be sent" in (found[2].error_message or "")
    assert found[3].error_message == "caf\ufffd"
    assert decoded.blobs == [b"1", b"", b"", b"", b"", b"{}"]
    ((unsendable, reason),) = encoded.unsendable
    assert unsendable == bad
    assert "cannot be sent" in reason


def test_a_message_that_cannot_be_written_is_left_out() -> None:
    encoded = encode(Goodbye("s", object()), ())  # type: ignore[arg-type]
    assert (encoded.frames, encoded.unsendable) == ([], ())
    assert encoded.error


def _blobs(*results: Result) -> list[bytes]:
    return [blob for result in results for blob in result[5:]]
