"""ULIDs: the text form of the specification, sorted by time, valid in the contract."""

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ulid import new_ulid
from protocols.contract import Epoch

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
    assert new_ulid(wall_ms, random_bits=lambda _: bits) == text


@given(MILLISECONDS, BITS)
def test_the_text_holds_time_and_chance(wall_ms, bits):
    text = new_ulid(wall_ms, random_bits=lambda _: bits)
    value = 0
    for letter in text:
        value = value << 5 | ALPHABET.index(letter)
    assert (value >> 80, value & 2**80 - 1) == (wall_ms, bits)
    assert msgspec.convert(text, Epoch) == text


@given(MILLISECONDS, MILLISECONDS, BITS, BITS)
def test_they_sort_by_time(earlier, later, some, other):
    if earlier > later:
        earlier, later = later, earlier
    first, second = new_ulid(earlier, random_bits=lambda _: some), new_ulid(later, random_bits=lambda _: other)
    assert earlier == later or first < second


def test_chance_is_asked_for_80_bits_and_is_never_twice_the_same():
    assert len({new_ulid(5) for _ in range(1000)}) == 1000
    new_ulid(0, random_bits=lambda count: count == 80 or pytest.fail(f"{count} bits"))


@pytest.mark.parametrize("wall_ms", [-1, 2**48, 2**60])
def test_a_clock_beyond_the_form_still_gives_a_valid_one(wall_ms):
    assert re.fullmatch("[0-7][0-9A-HJKMNP-TV-Z]{25}", new_ulid(wall_ms))
