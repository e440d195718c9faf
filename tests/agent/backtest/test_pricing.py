"""The price that suits a home: what was seen counts as long as it lasted, and one quiet month moves nothing."""

import itertools

import advice as benchmark
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.backtest.pricing import EXPECTED_MAX, MONTHS_LEAST, SHAPE, USUAL, expected_reds, suitable_cost_h, usual_reds
from agent.detection.limit import COST_MAX_H, COST_MIN_H

costs = st.integers(COST_MIN_H, COST_MAX_H)


@pytest.mark.parametrize("cost_h", USUAL)
def test_nothing_seen_leaves_what_is_usual(cost_h):
    assert usual_reds(cost_h) == pytest.approx(USUAL[cost_h])
    assert expected_reds(cost_h, reds=0, months=0) == pytest.approx(USUAL[cost_h])


@given(low=costs, high=costs)
def test_dearer_alarms_are_rarer(low, high):
    assert low >= high or usual_reds(low) > usual_reds(high) > 0


def test_between_the_known_prices_it_is_a_power_law():
    assert usual_reds(775) == pytest.approx((2.5 * 1.0) ** 0.5, rel=0.01)  # 775² = 400 × 1500


@given(cost_h=costs, reds=st.integers(0, 50), months=st.floats(0, 4))
def test_what_was_seen_pulls_the_expectation_towards_it(cost_h, reds, months):
    expected = expected_reds(cost_h, reds=reds, months=months)
    assert expected < expected_reds(cost_h, reds=reds + 1, months=months)
    assert expected >= expected_reds(cost_h, reds=reds, months=months + 1)
    if months > 0.01:
        low, high = sorted((usual_reds(cost_h), reds / months))
        assert low * 0.999 <= expected <= high * 1.001


@pytest.mark.parametrize(
    ("reds", "months", "suits"),
    [
        ({400: 0, 1500: 0, 4000: 0}, 1.0, 1500),  # a month without any: far too little
        ({400: 0, 1500: 0, 4000: 0}, 1.5, 1500),  # all that a gateway remembers: still 1.3 a month
        ({400: 0, 1500: 0, 4000: 0}, 2.5, 400),
        ({400: 1, 1500: 0, 4000: 0}, 2.5, 1500),
        ({400: 4, 1500: 1, 4000: 1}, 1.5, 1500),
        ({400: 4, 1500: 2, 4000: 1}, 1.5, 4000),
        ({400: 9, 1500: 9, 4000: 8}, 1.5, 4000),  # none will do: the fewest
        ({400: 9, 1500: 9, 4000: 9}, MONTHS_LEAST / 2, 1500),
    ],
)
def test_the_cheapest_price_that_stays_below_one_a_month(reds, months, suits):
    assert suitable_cost_h(reds, months=months, configured=1500) == suits


@given(st.lists(st.integers(0, 9), min_size=3, max_size=3), st.floats(MONTHS_LEAST, 4))
def test_a_price_is_never_cheap_where_one_a_month_is_to_be_expected(counts, months):
    reds = dict(zip(USUAL, sorted(counts, reverse=True), strict=True))
    found = suitable_cost_h(reds, months=months, configured=1500)
    least = min(expected_reds(cost_h, reds=count, months=months) for cost_h, count in reds.items())
    assert expected_reds(found, reds=reds[found], months=months) < max(EXPECTED_MAX, least * 1.001)


def test_on_real_homes_two_months_never_make_red_cheap_and_the_next_month_stays_below_one(households):
    """Where one month without a red alert was taken for a promise, the next month broke it."""
    homes = benchmark.load(households, ("D014", "D067"))
    windows = [window for home in homes for window in benchmark.windows(home, history_days=60, every_days=45)]
    assert len(windows) > 10
    assert {window.recommended for window in windows} <= {1500, 4000}
    quiet = [window for window in windows if window.quiet_month]
    assert quiet
    total = benchmark.total(windows, lambda window: window.recommended)
    assert total < 1.0
    assert total < benchmark.total(windows, lambda _: 400) / 2


def test_the_shape_is_that_of_the_scatter_of_homes():
    assert round(1 / 0.5**2) == SHAPE
    assert all(cheap > dear for cheap, dear in itertools.pairwise(USUAL.values()))
