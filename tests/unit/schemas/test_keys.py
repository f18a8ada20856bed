"""The text of a key, without libzmq."""

from __future__ import annotations

import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from retire_cluster.schemas.keys import fingerprint, is_key


@given(st.binary(min_size=32, max_size=32))
def test_every_32_bytes_are_a_key(data: bytes) -> None:
    assert is_key(z85.encode(data).decode("ascii"))


@given(st.text("".join(map(chr, range(32, 127))), min_size=40, max_size=40))
def test_a_text_is_a_key_exactly_where_libzmq_could_read_it(text: str) -> None:
    try:
        expected = len(z85.decode(text.encode("ascii"))) == 32
    except (KeyError, struct.error):
        expected = False
    assert is_key(text) == expected


@pytest.mark.parametrize(
    "text", [None, 5, b"0" * 40, "", "0" * 39, "0" * 41, " " * 40, "é" * 40, "0" * 35 + "%nSc1"]
)
def test_what_is_no_key_is_told_apart(text: object) -> None:
    assert not is_key(text)


def test_digits_that_are_more_than_32_bits_are_no_key() -> None:
    assert is_key("%nSc0" * 8)
    assert not is_key("#" * 40)


def test_a_fingerprint_is_short_and_of_one_key_only() -> None:
    assert fingerprint("a" * 40) != fingerprint("b" * 40)
    assert len(fingerprint("\ud800")) == 12


def test_reading_a_key_needs_no_libzmq() -> None:
    code = "import sys, retire_cluster.schemas.keys; sys.exit('zmq' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
