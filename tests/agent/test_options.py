"""What options take: numbers that are numbers, and `--watch` with one or none."""

import math

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from agent.options import _is_number, finite


@given(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)))
def test_a_number_stays_what_it_is(value):
    assert finite(value) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(typer.BadParameter, match="is no number of seconds"):
        finite(value)


@pytest.mark.parametrize(("text", "is_it"), [("2", True), (".5", True), ("nan", True), ("m-001", False), ("", False)])
def test_what_follows_watch_is_a_number_or_the_meter(text, is_it):
    assert _is_number(text) == is_it
