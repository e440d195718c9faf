"""The replay says what the gateway would have done, and what of it happened while nobody was at home."""

import itertools
import zoneinfo

import pytest

from agent.backtest.replay import Replay, Tally
from agent.backtest.rules import RuleSet
from agent.judge import Judge
from agent.past import Rule
from protocols.contract import Level, Transition
from protocols.reading import ClockTrust, Measurement, Moment, reading_of

HOUR, DAY = 3_600_000, 86_400_000


def replayed(home, rule=None, *, learn_days=0, traced=False):
    rule = rule or RuleSet(name="home")
    since_ms = home.times[0] + learn_days * DAY
    replay = Replay(home, rule, since_ms=since_ms, interval_ms=home.interval_ms, traced=traced)
    for reading in zip(home.times, home.hours, home.values, strict=True):
        replay.feed(*reading)
    replay.close()
    return replay


def judged(home, rule):
    """What the gateway's own judge sends for the same readings: (kind, transition, level, time)."""
    numbers = itertools.count(1)
    judge = Judge(
        {
            home.meter: Rule(
                window_ms=rule.window_ms, threshold_ml=rule.threshold_ml, cost_h=rule.cost_h, cold_h=rule.cold_h
            )
        },
        episodes=(),
        new_id=lambda: f"01ARZ3NDEKTSV4RRFFQ69G{next(numbers):04d}",
        zone=zoneinfo.ZoneInfo("Asia/Shanghai"),
    )
    sent = []
    for time_ms, value in zip(home.times, home.values, strict=True):
        moment = Moment(
            wall_ms=time_ms, trust=ClockTrust.SYNCED, uncertainty_ms=5, boot_id="b", boottime_ms=time_ms - home.times[0]
        )
        steps = judge.feed(reading_of(home.meter, moment, Measurement(volume_ml=value))).steps
        sent += [(step.kind.value, step.transition, step.level, time_ms) for step in steps]
    kinds = {"low_usage", "leak", "burst", "reverse_flow"}
    return [step for step in sent if step[0] in kinds and step[1] is not Transition.REMINDED]


def transitions(replay):
    """The same of a replay's episodes."""
    found = []
    for episode in replay.episodes:
        opened_red = episode.red_ms == episode.opened_ms
        first = Level.RED if opened_red else Level.YELLOW
        found.append((episode.kind, Transition.OPENED, first, episode.opened_ms))
        if episode.red_ms is not None and not opened_red:
            found.append((episode.kind, Transition.ESCALATED, Level.RED, episode.red_ms))
        if episode.cleared_ms is not None:
            found.append((episode.kind, Transition.CLEARED, Level(episode.level), episode.cleared_ms))
    return found


@pytest.mark.parametrize(
    "lived",
    [
        {"days": 50, "away": ((20, 23), (30.3, 31.2))},
        {"days": 35, "leak_l_h": 6, "away": ((25, 26.5),)},
        {"days": 20, "every_min": 10, "seed": 3},
        {"days": 30, "step_l": 10, "away": ((12, 13),)},
        {"days": 20, "step_l": 200, "away": ((12, 14),)},
    ],
    ids=["absences", "leak", "ten minutes", "step of 10 L", "a step coarser than the threshold"],
)
def test_a_backtest_says_what_the_gateway_would_do(life, lived):
    home = life(**lived)
    rule = RuleSet(name="home", cost_h=400)
    expected = judged(home, rule)
    assert any(level is Level.RED for _, _, level, _ in expected)
    assert sorted(transitions(replayed(home, rule)), key=str) == sorted(expected, key=str)


def test_a_swapped_meter_is_judged_as_the_gateway_judges_it(life):
    home = life(days=30, away=((20, 21.5),))
    for i in range(400, len(home)):
        home.values[i] -= home.values[400] - 3_000
    rule = RuleSet(name="home")
    assert sorted(transitions(replayed(home, rule)), key=str) == sorted(judged(home, rule), key=str)


def test_an_absence_is_no_time_at_home_and_its_red_is_told_apart(life):
    home = life(days=60, away=((40, 43),))
    replay = replayed(home)
    ((begin, end),) = replay.tally.absences
    assert (begin - home.times[0]) / DAY == pytest.approx(39.9, abs=0.3)
    assert (end - home.times[0]) / DAY == pytest.approx(43.3, abs=0.3)
    reds = [episode for episode in replay.episodes if episode.red_ms is not None and begin < episode.red_ms <= end]
    assert len(reds) == 1
    assert reds[0].absence
    assert sum(replay.tally.away_ms) == pytest.approx(end - begin, abs=HOUR)
    assert sum(replay.tally.home_ms) + sum(replay.tally.away_ms) == home.times[-1] - home.times[0]


def test_a_silence_of_36_hours_is_still_time_at_home():
    for hours, away in ((37, False), (38, True)):  # from the last use to the reading that shows the next
        tally = Tally(interval_ms=HOUR, since_ms=0)
        for hour in range(10 + hours + 5):
            tally.read(hour * HOUR, level=None, use=hour in {10, 10 + hours, 10 + hours + 1})
        tally.close()
        assert bool(tally.absences) is away, hours


def test_a_gap_in_the_readings_counts_as_one_interval():
    tally = Tally(interval_ms=HOUR, since_ms=0)
    for hour in (0, 1, 2, 9, 10):
        tally.read(hour * HOUR, level=None, use=True)
    tally.close()
    assert sum(tally.home_ms) == 4 * HOUR


def test_what_only_teaches_is_not_counted():
    tally = Tally(interval_ms=HOUR, since_ms=5 * HOUR)
    for hour in range(11):
        tally.read(hour * HOUR, level=Level.YELLOW if hour > 7 else None, use=True)
    tally.close()
    assert tally.home_ms == [2 * HOUR, 3 * HOUR, 0]


def test_without_red_no_alert_turns_red(life):
    home = life(days=30, away=((20, 23),))
    replay = replayed(home, RuleSet(name="off", red=False))
    assert all(episode.level == "yellow" for episode in replay.episodes)
    assert replay.tally.home_ms[2] == replay.tally.away_ms[2] == 0


def test_an_episode_carries_its_figures(life):
    home = life(days=30, away=((20, 20.95),))
    replay = replayed(home, RuleSet(name="fixed", fixed_h=14))
    red = next(e for e in replay.episodes if e.red_ms is not None and e.red_ms > home.times[0] + 19 * DAY)
    assert (red.red, red.limit_h, red.kind) == ("limit", 14, "low_usage")
    assert red.silent_h == pytest.approx(14, abs=0.2)
    assert red.opened_ms <= red.red_ms < red.cleared_ms


def test_a_trace_has_an_entry_for_each_reading(life):
    home = life(days=20)
    trace = replayed(home, traced=True).trace
    lengths = {
        len(series) for series in (trace.silent_min, trace.limit_h, trace.began_hour, trace.level, trace.total_ml)
    }
    assert lengths == {len(home)}
    assert trace.total_ml[-1] - trace.total_ml[0] == home.values[-1] - home.values[0]
