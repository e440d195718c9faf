"""Rows become homes: sorted, exact, and every row that is none of that is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.backtest.homes import BadVolume, gather, millilitres
from agent.backtest.moments import LocalClock
from agent.backtest.problems import BadRows, InputProblem


def gathered(rows, *, values="cumulative", skip=False, timezone="Asia/Shanghai"):
    bad = BadRows(skip=skip)
    numbered = [(number, *row) for number, row in enumerate(rows, 2)]
    homes = gather(numbered, clock=LocalClock(timezone), values=values, bad=bad, place=lambda n: f"f.csv:{n}")
    return {home.meter: home for home in homes}, bad


def test_meters_may_come_in_any_order():
    homes, _ = gathered(
        [
            ("b", "2026-01-01T00:00:00", "5"),
            ("a", "2026-01-01T00:00:00", "1"),
            ("b", "2026-01-01T01:00:00", "6.5"),
            ("a", "2025-12-31T23:00:00+00:00", "2"),
        ]
    )
    assert list(homes["a"].values) == [1000, 2000]
    assert list(homes["b"].values) == [5000, 6500]
    assert list(homes["a"].hours) == [0, 7]
    assert homes["b"].interval_ms == 3_600_000


def test_intervals_add_up():
    rows = [("a", f"2026-01-01T0{hour}:00:00", litres) for hour, litres in enumerate(("1.5", "0", "2", "-0.5"))]
    homes, _ = gathered(rows, values="interval")
    assert list(homes["a"].values) == [1500, 1500, 3500, 3000]


def test_a_meter_that_goes_back_in_time_is_named_with_its_line():
    rows = [("a", "2026-01-01T02:00:00", "1"), ("b", "2026-01-01T01:00:00", "1"), ("a", "2026-01-01T01:59:59", "2")]
    with pytest.raises(InputProblem, match=r"f\.csv:4: meter a goes back in time, from 2026-01-01 02:00:00"):
        gathered(rows)
    homes, bad = gathered(rows, skip=True)
    assert (len(homes["a"]), bad.count) == (1, 1)


def test_the_same_moment_twice_is_no_step_back():
    homes, _ = gathered([("a", "2026-01-01T02:00:00", "1"), ("a", "2026-01-01T02:00:00", "1")])
    assert len(homes["a"]) == 2


def test_the_doubled_hour_of_autumn_is_no_step_back():
    texts = ("01:53", "02:53", "02:53", "03:53")
    homes, _ = gathered([("a", f"2016-10-30T{text}:08", "1") for text in texts], timezone="Europe/Madrid")
    assert [b - a for a, b in zip(homes["a"].times, homes["a"].times[1:], strict=False)] == [3_600_000] * 3
    assert list(homes["a"].hours) == [1, 2, 2, 3]


def test_a_missing_reading_is_counted_and_an_interval_without_one_is_bad():
    rows = [("a", "2026-01-01T00:00:00", "1"), ("a", "2026-01-01T01:00:00", ""), ("a", "2026-01-01T02:00:00", "2")]
    homes, bad = gathered(rows)
    assert (homes["a"].missing, len(homes["a"]), bad.count) == (1, 2, 0)
    with pytest.raises(InputProblem, match=r"f\.csv:3: '' is no number of litres"):
        gathered(rows, values="interval")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "2026-01-01T00:00:00", "many"), "'many' is no number of litres"),
        (("a", "2026-01-01T00:00:00", "nan"), "that a meter can show"),
        (("a", "2026-01-01T00:00:00", "1e99"), "that a meter can show"),
        (("a", "2026-01-01T00:00:00", "-1"), "no register is below 0"),
        (("a", "soon", "1"), "'soon' is no time"),
        (("", "2026-01-01T00:00:00", "1"), "names no meter"),
    ],
)
def test_bad_rows(row, message):
    with pytest.raises(InputProblem, match=rf"f\.csv:2: .*{message}"):
        gathered([row])
    _, bad = gathered([row, ("a", "2026-01-01T03:00:00", "1")], skip=True)
    assert bad.count == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "2026-01-01T00:00:00", "9" * 5_000), "that a meter can show"),
        (("a", "2026-01-01T00:00:00", "x" * 5_000), "is no number of litres"),
        (("a", "2026-01-01T00:00:00", "-0." + "9" * 5_000), "no register is below 0"),
        (("a", "9" * 5_000, "1"), "is no time"),
        (("a", "1979-12-31T23:59:59." + "9" * 5_000, "1"), "the year should be"),
    ],
)
def test_what_is_long_is_not_told_whole(row, message):
    with pytest.raises(InputProblem, match=rf"f\.csv:2: .*… \(5,0\d\d characters\).*{message}") as caught:
        gathered([row])
    assert len(str(caught.value)) < 300


def test_the_long_name_of_a_meter_is_not_told_whole():
    rows = [("m" * 5_000, f"2026-01-01T0{hour}:00:00", "1") for hour in (2, 1)]
    with pytest.raises(InputProblem, match="goes back in time") as caught:
        gathered(rows)
    assert len(str(caught.value)) < 300


@given(st.decimals(min_value=-(10**12), max_value=10**12, places=3))
def test_litres_are_exact(litres):
    assert millilitres(str(litres)) == int(litres * 1000)


@given(st.text(max_size=20))
def test_no_text_breaks_it(text):
    try:
        assert abs(millilitres(text)) <= 10**16
    except BadVolume:
        pass


def test_a_home_of_one_reading_has_an_interval_to_go_on_with():
    homes, _ = gathered([("a", "2026-01-01T00:00:00", "1")])
    assert homes["a"].interval_ms == 3_600_000
