"""An absence: what contradicts itself is none, what people type becomes a time, and the county is told all of it."""

import contextlib
import datetime
import zoneinfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.absence import Absence, daily_hours, local_time
from protocols.contract import AbsenceNotice, Daily, Ending, instant

SHANGHAI = zoneinfo.ZoneInfo("Asia/Shanghai")
MADRID = zoneinfo.ZoneInfo("Europe/Madrid")
AWAY = Absence(id="0" * 26, meter="m-1", start_ms=1000, until_ms=5000, declared_by="technician", declared_ms=900)


def test_the_county_is_told_all_of_it():
    assert AWAY.notice() == AbsenceNotice(meter="m-1", start=instant(1000), until=instant(5000))
    ended = msgspec.structs.replace(AWAY, daily=Daily(start="22:00", end="06:00")).ended(Ending.USE, at_ms=2000)
    assert (ended.is_open, AWAY.is_open) == (False, True)
    assert ended.notice() == AbsenceNotice(
        meter="m-1",
        start=instant(1000),
        until=instant(5000),
        daily=Daily(start="22:00", end="06:00"),
        ended_at=instant(2000),
        ended_by=Ending.USE,
    )


@pytest.mark.parametrize(
    "change", [{"until_ms": 1000}, {"until_ms": 999}, {"ended_ms": 1}, {"ended_by": Ending.USE}], ids=str
)
def test_what_contradicts_itself_is_no_absence(change):
    with pytest.raises(ValueError, match="an absence ends"):
        msgspec.structs.replace(AWAY, **change)
    text = msgspec.json.encode(msgspec.to_builtins(AWAY) | change)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Absence)


@pytest.mark.parametrize(
    ("text", "zone", "is_end", "utc"),
    [
        ("2026-12-01", SHANGHAI, True, "2026-12-01T16:00:00.000Z"),  # the end of that day
        ("2026-12-01", SHANGHAI, False, "2026-11-30T16:00:00.000Z"),  # its beginning
        ("2026-12-01 18:30", SHANGHAI, True, "2026-12-01T10:30:00.000Z"),
        ("2026-12-01T18:30", SHANGHAI, False, "2026-12-01T10:30:00.000Z"),
        ("2026-12-31", SHANGHAI, True, "2026-12-31T16:00:00.000Z"),
        ("2024-02-29", SHANGHAI, True, "2024-02-29T16:00:00.000Z"),
        ("2026-10-25", MADRID, True, "2026-10-25T23:00:00.000Z"),  # a day of 25 hours
        ("2026-03-29", MADRID, True, "2026-03-29T22:00:00.000Z"),  # and of 23
    ],
)
def test_what_people_type_is_a_local_time(text, zone, is_end, utc):
    assert instant(local_time(text, zone=zone, is_end=is_end)) == utc


@pytest.mark.parametrize("zone", [SHANGHAI, zoneinfo.ZoneInfo("America/New_York"), None])
def test_the_end_of_the_calendar_is_a_time_and_too_far_ahead_for_anybody(zone):
    assert instant(local_time("9999-12-31", zone=zone, is_end=True)) == "9999-12-31T23:59:59.999Z"
    assert local_time("9999-12-30 23:59", zone=zone, is_end=True) < local_time("9999-12-31", zone=zone, is_end=True)


def test_without_a_zone_it_is_the_machines_own():
    local = datetime.datetime(2026, 12, 1, 18, 30).astimezone()
    assert local_time("2026-12-01 18:30", zone=None, is_end=True) == round(local.timestamp() * 1000)


@pytest.mark.parametrize(
    "text",
    ["", "tomorrow", "2026-13-01", "2026-02-29", "20261201", "2026-W50", "2026-12-01T18", "2026-12-01 24:00",
     "2026-12-01 18:30:00", "2026-12-01T18:30Z", "2026-12-01 18:30+08:00", "２０２６-12-01",
     "0001-01-01", "0999-12-31"],
)  # fmt: skip
def test_what_is_no_time_is_refused_in_words(text):
    with pytest.raises(ValueError, match=r"2026-12-01|没有这个日期|日期过早"):
        local_time(text, zone=SHANGHAI, is_end=True)


@given(st.text(max_size=20), st.booleans())
def test_whatever_is_typed_nothing_else_is_raised(text, is_end):
    for read in (lambda: local_time(text, zone=SHANGHAI, is_end=is_end), lambda: daily_hours(text)):
        with contextlib.suppress(ValueError):
            read()


def test_daily_hours():
    assert daily_hours("22:00-06:00") == Daily(start="22:00", end="06:00")
    assert str(daily_hours("00:00-23:59")) == "00:00-23:59"
    for text in ("", "22-6", "22:00", "22:00-24:00", "22:00-22:00", "22:00–06:00", "22:00-06:00\n"):
        with pytest.raises(ValueError, match="22:00-06:00"):
            daily_hours(text)
