"""The 12-hour rule against a form of itself that keeps every reading and is too slow to ship."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.detection.window import ENOUGH, LOW, RUNS_MAX, RUNS_MAX_BOARD, SMALL_MAX, UNSURE, LowUsage, Window

H = 3_600_000
histories = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), min_size=1, max_size=120)


def plain_usage(readings, length):
    """The definition, word for word."""
    now, register = readings[-1]
    before = [value for time, value in readings if time <= now - length]
    after = [value for time, value in readings if time >= now - length]
    return register - after[0], register - before[-1] if before else None


@given(st.integers(1, 300), histories)
def test_usage_is_the_interval_of_the_definition(length, steps):
    window, readings, time, value = Window(length), [], 0, 0
    for wait, used in steps:
        time, value = time + wait, value + used
        readings.append((time, value))
        window.add(time, value)
        assert window.usage() == plain_usage(readings, length)


@pytest.mark.parametrize("seed", range(20))
def test_beyond_the_limit_of_runs_the_interval_only_widens_and_hardly(seed):
    chance = random.Random(seed)
    length = chance.randrange(3000, 9000)
    window, readings, time, value = Window(length), [], 0, 0
    for _ in range(4 * length // 3):
        time, value = time + chance.randint(1, 3), value + chance.randint(1, 9)
        readings.append((time, value))
        window.add(time, value)
        assert len(window._value) <= RUNS_MAX
    least, most = window.usage()
    exact_least, exact_most = plain_usage(readings, length)
    part = 9 * (length // 32 + 3)  # the most that can run in two 64th parts of the window
    assert exact_least - part <= least <= exact_least
    assert exact_most <= most <= exact_most + part


@pytest.mark.parametrize("runs_max", [16, RUNS_MAX_BOARD])
@pytest.mark.parametrize("seed", range(5))
def test_a_board_keeps_fewer_runs_and_its_interval_only_widens(seed, runs_max):
    chance = random.Random(seed)
    length = chance.randrange(3000, 9000)
    window, readings, time, value = Window(length, runs_max=runs_max), [], 0, 0
    part = 9 * (length // (runs_max - 8) + 3)
    for _ in range(2 * length):
        time, value = time + chance.randint(1, 3), value + chance.randint(1, 9)
        readings = [*readings[-length - 10 :], (time, value)]
        window.add(time, value)
        assert len(window._value) <= runs_max
        if readings[0][0] < time - length and chance.random() < 0.01:
            (least, most), (exact_least, exact_most) = window.usage(), plain_usage(readings, length)
            assert exact_least - part <= least <= exact_least
            assert exact_most <= most <= exact_most + part


def test_fewer_than_16_runs_are_refused():
    assert Window(100, runs_max=16).usage() == (0, None)
    with pytest.raises(ValueError, match="16"):
        Window(100, runs_max=15)


@given(
    st.integers(1, 300),
    st.lists(st.tuples(st.integers(1, SMALL_MAX // 2), st.integers(0, SMALL_MAX // 2)), min_size=1, max_size=60),
)
def test_what_is_kept_stays_small_and_comes_out_as_it_went_in(part, steps):
    """Days in milliseconds and thousands of cubic metres: what is kept counts from a base that moves along."""
    length, window, readings, time, value = part * SMALL_MAX // 100, Window(part * SMALL_MAX // 100), [], 1 << 40, 0
    for wait, used in steps:
        time, value = time + wait, value + used
        readings.append((time, value))
        window.add(time, value)
        assert window.usage() == plain_usage(readings, length)
        assert window._value[-1] <= SMALL_MAX >= window._last[-1]
        changes = [(a[0], b[0]) for a, b in itertools.pairwise(readings) if a[1] != b[1]]
        if changes:
            assert window.last_use() == changes[-1]
        before = [reading for reading in readings if reading[0] <= time - length]
        start = window.start()
        assert (start is None) == (not before)
        if start:
            assert before[-1][0] <= start[0] <= time - length
            assert start[1] == before[-1][1]


def rule(*readings, window_h=12, threshold_l=100):
    """Feed (hour, litres) readings; return the verdicts."""
    low_usage = LowUsage(window_h * H, threshold_l * 1000)
    return [low_usage.feed(round(hour * H), litres * 1000) for hour, litres in readings]


def test_no_verdict_before_a_whole_window_was_seen():
    assert rule((0, 500), (6, 500), (11.9, 500)) == [UNSURE] * 3


def test_low_when_less_than_the_threshold_ran_in_the_window():
    assert rule((0, 500), (6, 550), (12, 599))[-1] == LOW


def test_exactly_the_threshold_is_not_less():
    assert rule((0, 500), (6, 550), (12, 600))[-1] != LOW


def test_a_gateway_that_was_off_for_14_hours_decides_with_its_first_reading():
    assert rule((0, 500), (14, 510))[-1] == LOW


def test_a_gateway_that_was_off_while_water_ran_waits():
    # 120 L in 14 h: nobody knows whether they ran in the last 12.
    assert rule((0, 500), (14, 620))[-1] == UNSURE


def test_enough_needs_use_that_certainly_lies_in_the_window():
    assert rule((0, 500), (12, 500), (13, 500), (14, 650))[-1] == ENOUGH


def test_a_gap_never_hides_that_nothing_ran():
    # Polls fail for 30 hours; the register did not move.
    assert rule((0, 500), (1, 500), (31, 500))[-1] == LOW


def test_evidence_names_the_reading_at_the_windows_start_and_the_last_use():
    window = Window(12 * H)
    for hour, litres in ((0, 500), (3, 520), (9, 530), (14, 530), (16, 530)):
        window.add(hour * H, litres)
    assert window.start() == (3 * H, 520)
    assert window.last_use() == (3 * H, 9 * H)


def test_a_register_that_was_never_seen_to_move_has_no_last_use():
    window = Window(12 * H)
    window.add(0, 500)
    window.add(20 * H, 500)
    assert window.last_use() is None


def test_a_home_that_stands_still_for_months_needs_one_run():
    window = Window(12 * H)
    for step in range(20_000):
        window.add(step * 300_000, 500)
    assert len(window._value) == 1
    assert window.usage() == (0, 0)
