"""A simulated register is a pure function of time that never falls, and counts exactly what its script says."""

import datetime
import random
import zoneinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.usage import (
    DURATION_S_MAX,
    VARY_MIN_MAX,
    VARY_PERCENT_MAX,
    Draw,
    Interval,
    Replay,
    Routine,
    Variation,
    VillageError,
    parse_draw,
    read_replay,
    wall_ms_of,
)

SHANGHAI = zoneinfo.ZoneInfo("Asia/Shanghai")
MADRID = zoneinfo.ZoneInfo("Europe/Madrid")  # has summer time
DAY_MS = 86_400_000


def ms(text, timezone=SHANGHAI):
    return wall_ms_of(datetime.datetime.fromisoformat(text), timezone=timezone)


SINCE = ms("2026-03-20T13:00")
HORIZON = SINCE + 16 * DAY_MS  # the last Sunday of March lies within

draws = st.lists(
    st.builds(
        Draw,
        at=st.times().map(lambda t: t.replace(microsecond=0)),
        volume_ml=st.integers(0, 10**6),
        duration_ms=st.integers(0, DURATION_S_MAX).map(lambda s: s * 1000),
    ),
    max_size=6,
)
instants = st.integers(SINCE - DAY_MS, HORIZON)
intervals = st.tuples(st.none() | instants, st.none() | instants).map(lambda pair: Interval(*pair))
variations = st.builds(Variation, st.integers(0, VARY_PERCENT_MAX), st.integers(0, VARY_MIN_MAX), st.text(max_size=3))
settings = st.fixed_dictionaries(
    {
        "start_ml": st.integers(0, 10**12),
        "timezone": st.sampled_from([SHANGHAI, MADRID]),
        "drip_ml_h": st.integers(0, 5000),
        "drip": intervals,
        "silent": st.none() | intervals,
    }
)


def counted_one_by_one(draws, at_ms, *, start_ml, timezone, drip_ml_h, drip, silent):
    """The promise in its plainest form: every draw of every day on its own, and each drip millisecond range."""
    total_ml = start_ml
    day = datetime.datetime.fromtimestamp(SINCE / 1000, timezone).date()
    while day <= datetime.datetime.fromtimestamp(HORIZON / 1000, timezone).date():
        for draw in draws:
            begin = wall_ms_of(datetime.datetime.combine(day, draw.at), timezone=timezone)
            is_silent = silent is not None and silent.holds(begin)
            if SINCE <= begin <= at_ms and not is_silent and at_ms > SINCE:
                until = at_ms
                if silent is not None and silent.start_ms is not None and begin < silent.start_ms:
                    until = min(until, silent.start_ms)
                run = until - begin
                done = run >= draw.duration_ms
                total_ml += draw.volume_ml if done else draw.volume_ml * run // draw.duration_ms
        day += datetime.timedelta(days=1)
    drip_from = max(SINCE, drip.start_ms if drip.start_ms is not None else SINCE)
    drip_to = min(at_ms, drip.end_ms if drip.end_ms is not None else at_ms)
    return total_ml + drip_ml_h * max(0, drip_to - drip_from) // 3_600_000


@given(draws, settings, instants)
def test_counts_what_the_script_says(draws, settings, at_ms):
    register = Routine(draws, since_ms=SINCE, **settings)
    assert register.volume_ml(at_ms) == counted_one_by_one(draws, at_ms, **settings)


@given(draws, settings, variations, st.lists(instants, min_size=2, max_size=20))
def test_never_falls_and_remembers_nothing(draws, settings, variation, moments):
    """A restarted simulator (a fresh object) continues where it would be, whatever was asked before."""
    used = Routine(draws, since_ms=SINCE, variation=variation, **settings)
    shown = {at_ms: used.volume_ml(at_ms) for at_ms in moments}
    assert all(type(volume_ml) is int for volume_ml in shown.values())
    assert [shown[at_ms] for at_ms in sorted(shown)] == sorted(shown.values())
    for at_ms in sorted(shown):
        restarted = Routine(draws, since_ms=SINCE, variation=variation, **settings)
        assert restarted.volume_ml(at_ms) == shown[at_ms]


@given(draws, settings, variations, st.data())
def test_a_silent_resident_uses_nothing_but_the_drip(draws, settings, variation, data):
    start_ms, end_ms = sorted((data.draw(instants), data.draw(instants)))
    register = Routine(draws, since_ms=SINCE, variation=variation, **settings | {"silent": Interval(start_ms, end_ms)})
    dripping = Routine([], since_ms=SINCE, **settings | {"silent": None})
    last_ms = max(start_ms, end_ms - 1)
    used_ml = register.volume_ml(last_ms) - register.volume_ml(start_ms)
    assert used_ml == dripping.volume_ml(last_ms) - dripping.volume_ml(start_ms)


@given(variations.filter(lambda variation: variation.percent), st.integers(1, 10))
def test_variation_is_bounded_and_differs(variation, day):
    volume_ml = 100_000
    register = Routine(
        [Draw(datetime.time(12), volume_ml, 0)],
        start_ml=0, since_ms=ms("2026-03-20T00:00"), timezone=SHANGHAI, variation=variation,
    )  # fmt: skip
    noon = ms("2026-03-20T12:00") + day * DAY_MS
    reach_ms = variation.minutes * 60_000
    before_ml, after_ml = register.volume_ml(noon - reach_ms - 1), register.volume_ml(noon + reach_ms)
    slack_ml = volume_ml * variation.percent // 100
    assert volume_ml - slack_ml <= after_ml - before_ml <= volume_ml + slack_ml
    uses = {register.volume_ml(noon + n * DAY_MS + DAY_MS // 2) - register.volume_ml(noon + n * DAY_MS - DAY_MS // 2)
            for n in range(20)}  # fmt: skip
    assert len(uses) > 10


@pytest.mark.parametrize("at", ["00:00", "23:59"])
def test_a_draw_near_midnight_moves_to_either_side(at):
    """Whatever day it belongs to, it counts once, and at its own moment."""
    early, since_ms = 0, ms("2026-03-20T00:00")
    for seed in range(20):
        register = Routine(
            [parse_draw(f"{at} 1 L")],
            start_ml=0, since_ms=since_ms, timezone=SHANGHAI, variation=Variation(0, 180, str(seed)),
        )  # fmt: skip
        shown = [register.volume_ml(since_ms + hour * 3_600_000) for hour in range(10 * 24)]
        assert shown == sorted(shown)
        # At noon every draw has happened. The night before `since` counts if its draw came late enough.
        assert [shown[n * 24 + 12] for n in range(10)] == [shown[12] + n * 1000 for n in range(10)]
        assert shown[12] in {0, 1000}
        early += register.volume_ml(since_ms + 5 * DAY_MS - 60_001) - shown[4 * 24 + 12]
    assert 3000 < early < 17_000, "about half of 20 draws come before midnight"


def test_a_drip_that_began_before_counts_from_the_beginning():
    drip = Interval(SINCE - DAY_MS, SINCE + 2 * 3_600_000)
    register = Routine([], start_ml=5, since_ms=SINCE, timezone=SHANGHAI, drip_ml_h=500, drip=drip)
    assert [register.volume_ml(SINCE + hour * 3_600_000) for hour in (-1, 0, 1, 2, 3)] == [5, 5, 505, 1005, 1005]


def test_variation_is_the_same_on_every_machine():
    """Pinned: a published village file must show the same registers with every later version."""
    register = Routine(
        [parse_draw("06:30 8 L"), parse_draw("12:00 15 L in 5 min")],
        start_ml=0, since_ms=ms("2026-01-01T00:00"), timezone=SHANGHAI, variation=Variation(30, 25, "0/m-001"),
    )  # fmt: skip
    assert [register.volume_ml(ms(f"2026-01-{day:02}T00:00")) for day in (2, 3, 12)] == [
        22031,
        47390,
        262412,
    ]


def test_a_draw_runs_evenly():
    register = Routine([parse_draw("12:00 15 L in 5 min")], start_ml=7, since_ms=SINCE, timezone=SHANGHAI)
    shown = [register.volume_ml(ms(f"2026-03-21T{at}")) for at in ("12:00", "12:01", "12:04:59.999", "12:05", "12:06")]
    assert shown == [7, 3007, 14999 + 7, 15007, 15007]


def test_a_draw_at_once_is_a_step():
    register = Routine([parse_draw("06:30 8 L")], start_ml=0, since_ms=SINCE, timezone=SHANGHAI)
    at = ms("2026-03-21T06:30")
    assert (register.volume_ml(at - 1), register.volume_ml(at)) == (0, 8000)


def test_years_after_the_beginning():
    register = Routine([parse_draw("06:30 8 L")], start_ml=0, since_ms=ms("2026-01-01T00:00"), timezone=SHANGHAI)
    days = (datetime.date(2076, 1, 1) - datetime.date(2026, 1, 1)).days
    assert register.volume_ml(ms("2076-01-01T00:00")) == 8000 * days


@pytest.mark.parametrize(
    ("text", "draw"),
    [
        ("06:30 8 L", Draw(datetime.time(6, 30), 8000, 0)),
        ("06:30:15 0.005L", Draw(datetime.time(6, 30, 15), 5, 0)),
        (" 12:00 15.5 L in 5 min ", Draw(datetime.time(12), 15500, 300_000)),
        ("23:59 1 L in 90 s", Draw(datetime.time(23, 59), 1000, 90_000)),
        ("00:00 200 L in 6 h", Draw(datetime.time(0), 200_000, 21_600_000)),
    ],
)
def test_parses_draws(text, draw):
    assert parse_draw(text) == draw


@pytest.mark.parametrize(
    "text",
    ["", "24:00 8 L", "6:30 8 L", "06:60 8 L", "06:30 8", "06:30 8 l", "06:30 8 m3", "06:30 -8 L", "06:30 8 L in 5",
     "06:30 8 L 5 min", "06:30 1e3 L", "06:30 8.0001 L", "06:30 8 L in 7 h", "06:30 8 L in 21601 s"],
)  # fmt: skip
def test_refuses_what_is_no_draw(text):
    with pytest.raises(VillageError, match="right would be"):
        parse_draw(text)


@pytest.fixture
def readings(tmp_path):
    def write(text):
        path = tmp_path / "readings.csv"
        path.write_bytes(text.encode())
        return path

    return write


def test_replays_readings_as_steps(readings):
    path = readings(
        "timestamp,litres\n2026-01-01T06:30,8.0015\r\n2026-01-01T12:00+08:00,8.0015\n\n2026-01-01T05:00Z,20\n"
    )
    register = read_replay(path, timezone=SHANGHAI, start_ml=1_000_000)
    shown = {"2025-12-31T00:00": 1_008_001, "2026-01-01T12:59:59.999": 1_008_001, "2026-01-01T13:00": 1_020_000,
             "2030-01-01T00:00": 1_020_000}  # fmt: skip
    assert {at: register.volume_ml(ms(at)) for at in shown} == shown


def test_replays_a_file_from_a_spreadsheet(readings):
    path = readings("\ufefftimestamp,litres\r\n2026-01-01 06:30,8\r\n")
    assert read_replay(path, timezone=SHANGHAI, start_ml=0).volume_ml(0) == 8000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: right would be the heading"),
        ("time,litres\n", "line 1: right would be the heading"),
        ("timestamp,litres\n", "holds no reading"),
        ("timestamp,litres\n2026-01-01T06:30\n", "line 2: .*right would be 2026"),
        ("timestamp,litres\n2026-01-01T06:30,8,9\n", "line 2: .*right would be 2026"),
        ("timestamp,litres\n2026-02-30T06:30,8\n", "line 2: .*right would be 2026"),
        ("timestamp,litres\n2026-01-01T06:30,eight\n", "line 2: .*right would be 2026"),
        ("timestamp,litres\n2026-01-01T06:30,NaN\n", "line 2: .*right would be 2026"),
        ("timestamp,litres\n2026-01-01T06:30,Infinity\n", "line 2: .*right would be 2026"),
        ("timestamp,litres\n2026-01-01T06:30,-1\n", "line 2: .*right would be 0 to"),
        ("timestamp,litres\n2026-01-01T06:30,1e99\n", "line 2: .*right would be 0 to"),
        ("timestamp,litres\n2026-01-01T06:30,8\n2026-01-01T06:30,9\n", "line 3: .*not after"),
        ("timestamp,litres\n2026-01-01T06:30,8\n2026-01-01T06:31,7\n", "line 3: .*never falls"),
    ],
)
def test_refuses_wrong_readings(readings, text, problem):
    with pytest.raises(VillageError, match=problem):
        read_replay(readings(text), timezone=SHANGHAI, start_ml=0)


def test_refuses_a_file_that_is_not_there(tmp_path):
    with pytest.raises(VillageError, match=r"gone\.csv: cannot be read"):
        read_replay(tmp_path / "gone.csv", timezone=SHANGHAI, start_ml=0)


@given(st.lists(st.tuples(st.integers(1, 10**7), st.integers(0, 10**6)), min_size=1, max_size=30), st.randoms())
def test_a_replay_never_falls(steps, order):
    at_ms, volume_ml, rows = SINCE, 0, []
    for pause_ms, used_ml in steps:
        at_ms, volume_ml = at_ms + pause_ms, volume_ml + used_ml
        rows.append((at_ms, volume_ml))
    register = Replay([row[0] for row in rows], [row[1] for row in rows], start_ml=5)
    assert [register.volume_ml(at) for at, _ in rows] == [5 + volume for _, volume in rows]
    moments = [order.randint(SINCE - 10, at_ms + 10) for _ in range(20)]
    shown = {at: register.volume_ml(at) for at in moments}
    assert [shown[at] for at in sorted(shown)] == sorted(shown.values())


def test_random_is_not_used():
    """Variation must not depend on the state of anybody's random number generator."""
    register = Routine(
        [parse_draw("06:30 8 L")], start_ml=0, since_ms=SINCE, timezone=SHANGHAI, variation=Variation(50, 60, "x")
    )
    state = random.getstate()
    register.volume_ml(HORIZON)
    assert random.getstate() == state
