"""ULIDs: the text form of the specification, sorted by time, valid in the contract, the same at both ends."""

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from county.command import new_command_id
from gateway.ulid import new_ulid
from protocols.contract import CommandId, Epoch
from protocols.ulid import RANDOM_BITS, ulid

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
MILLISECONDS = st.integers(0, 2**48 - 1)
BITS = st.integers(0, 2**80 - 1)


@pytest.mark.parametrize(
    ("wall_ms", "bits", "text"),
    [
        (1469918176385, 0, "01ARYZ6S410000000000000000"),  # the specification's own time part: 01ARYZ6S41
        (0, 0, "0" * 26),
        (2**48 - 1, 2**80 - 1, "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"),  # the largest that the specification allows
        (0, 1, "0" * 25 + "1"),
    ],
)
def test_the_text_is_that_of_the_specification(wall_ms, bits, text):
    assert ulid(wall_ms, random=bits) == text


@given(MILLISECONDS, BITS)
def test_the_text_holds_time_and_chance(wall_ms, bits):
    text = ulid(wall_ms, random=bits)
    value = 0
    for letter in text:
        value = value << 5 | ALPHABET.index(letter)
    assert (value >> RANDOM_BITS, value & 2**RANDOM_BITS - 1) == (wall_ms, bits)
    assert msgspec.convert(text, Epoch) == msgspec.convert(text, CommandId) == text


@given(MILLISECONDS, MILLISECONDS, BITS, BITS)
def test_they_sort_by_time(earlier, later, some, other):
    if earlier > later:
        earlier, later = later, earlier
    assert earlier == later or ulid(earlier, random=some) < ulid(later, random=other)


@pytest.mark.parametrize("wall_ms", [-1, 2**48, 2**60])
def test_a_clock_beyond_the_form_still_gives_a_valid_one(wall_ms):
    assert re.fullmatch("[0-7][0-9A-HJKMNP-TV-Z]{25}", ulid(wall_ms, random=2**80 - 1))


@given(MILLISECONDS, BITS)
def test_gateway_and_county_make_the_same(wall_ms, bits):
    text = ulid(wall_ms, random=bits)
    assert new_ulid(wall_ms, random_bits=lambda count: bits if count == RANDOM_BITS else -1) == text
    ours = new_command_id(now_ns=lambda: wall_ms * 1_000_000 + 999_999, random_bits=lambda count: bits * (count == 80))
    assert ours == text
