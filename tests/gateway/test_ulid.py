"""ULIDs made by chance: `protocols/test_ulid.py` has their form."""

import re

import pytest

from gateway.ulid import new_ulid


def test_chance_is_asked_for_80_bits_and_is_never_twice_the_same():
    assert len({new_ulid(5) for _ in range(1000)}) == 1000
    new_ulid(0, random_bits=lambda count: count == 80 or pytest.fail(f"{count} bits"))


@pytest.mark.parametrize("wall_ms", [-1, 2**48, 2**60])
def test_a_clock_beyond_the_form_still_gives_a_valid_one(wall_ms):
    assert re.fullmatch("[0-7][0-9A-HJKMNP-TV-Z]{25}", new_ulid(wall_ms))
