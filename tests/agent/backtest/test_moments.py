"""Local clocks: missing and doubled hours, offsets, and the fast way that must say what the slow one says."""

import datetime
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.backtest.moments import BadTime, LocalClock
from agent.backtest.problems import InputProblem

ZONES = ["Europe/Madrid", "Asia/Shanghai", "Australia/Lord_Howe", "Asia/Kathmandu", "America/St_Johns"]
LONG_AGO = -(1 << 62)


def utc_ms(text):
    return round(datetime.datetime.fromisoformat(text).timestamp() * 1000)


def test_the_doubled_hour_is_told_apart_by_what_came_before():
    madrid = LocalClock("Europe/Madrid")
    times = []
    for text in ("01:50", "02:10", "02:50", "02:10", "02:50", "03:10"):  # clocks go back at 03:00
        times.append(madrid.read(f"2016-10-30T{text}:00", after_ms=times[-1] if times else LONG_AGO))
    before, after = "2016-10-29T23:50", ("00:10", "00:50", "01:10", "01:50", "02:10")
    assert times == [utc_ms(f"{text}:00+00:00") for text in (before, *(f"2016-10-30T{text}" for text in after))]


def test_a_time_that_the_clocks_skip_is_no_time():
    with pytest.raises(BadTime, match="does not exist in Europe/Madrid"):
        LocalClock("Europe/Madrid").read("2016-03-27T02:30:00", after_ms=LONG_AGO)


def test_an_offset_says_when_it_was_whatever_the_zone():
    madrid = LocalClock("Europe/Madrid")
    expected = utc_ms("2016-03-01T00:53:08+00:00")
    for text in ("2016-03-01T00:53:08Z", "2016-03-01T08:53:08+08:00", "2016-03-01 01:53:08", "2016-03-01T01:53:08.000"):
        assert madrid.read(text, after_ms=LONG_AGO) == expected
    assert madrid.hour(expected) == 1


@pytest.mark.parametrize("text", ["", "yesterday", "2016-03-01", "20160301", "1456786388", "2016-03-01T25:00:00"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(BadTime):
        LocalClock("Europe/Madrid").read(text, after_ms=LONG_AGO)


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/St_Johns"])
@pytest.mark.parametrize(
    "text",
    [
        "0001-01-01T00:00:00",
        "0001-01-01T00:00:00+08:00",
        "0001-01-01T00:00:00.5",
        "9999-12-31T23:59:59",
        "9999-12-31T23:59:59-08:00",
        "1970-01-01T08:00:00",
        "1979-12-31T23:59:59Z",
        "2200-01-01T00:00:00",
    ],
)
def test_a_year_in_which_nobody_read_meters_is_no_time(zone, text):
    """A clock that was never set says 1970; the ends of the calendar cannot be converted to another zone at all."""
    with pytest.raises(BadTime, match=r"the year should be 1980 to 2199"):
        LocalClock(zone).read(text, after_ms=LONG_AGO)


@pytest.mark.parametrize("text", ["1980-01-01T00:00:00", "2199-12-31T23:59:59"])
def test_the_first_and_the_last_year_are_read(text):
    clock = LocalClock("Asia/Shanghai")
    assert clock.local(clock.read(text, after_ms=LONG_AGO)) == datetime.datetime.fromisoformat(text)


@pytest.mark.parametrize("text", ["2016-03-01T00:60:00", "2016-03-01T00:00:60", "2016-03-01T00:-1:00"])
def test_minutes_that_no_clock_shows_are_refused(text):
    with pytest.raises(BadTime):
        LocalClock("Asia/Shanghai").read(text, after_ms=LONG_AGO)


def test_an_unknown_zone_is_said():
    for name in ("Mars/Base", "", "../etc/passwd"):
        with pytest.raises(InputProblem, match="Asia/Shanghai"):
            LocalClock(name)


@given(
    zone=st.sampled_from(ZONES),
    moment=st.datetimes(datetime.datetime(2015, 1, 1), datetime.datetime(2030, 1, 1)),
)
def test_the_fast_way_says_what_the_calendar_says(zone, moment):
    moment = moment.replace(microsecond=0)
    clock = LocalClock(zone)
    for offset in ("Z", "+08:00", "-03:30"):
        text = moment.isoformat() + offset
        assert clock.read(text, after_ms=LONG_AGO) == utc_ms(text)
    expected = round(moment.replace(tzinfo=zoneinfo.ZoneInfo(zone)).timestamp() * 1000)
    try:
        found = clock.read(moment.isoformat(), after_ms=LONG_AGO)
    except BadTime:
        assert clock.local(expected) != moment
        return
    assert found == expected
    assert clock.local(found) == moment
    assert clock.hour(found) == moment.hour
    assert datetime.datetime.fromisoformat(clock.instant(found)).timestamp() * 1000 == found
