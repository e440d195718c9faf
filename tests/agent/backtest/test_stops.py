"""Simulated stops: the delay is what the gateway would need, with or without a leak; chance comes from the seed."""

import pytest

from agent.backtest.replay import Alarm, Replay
from agent.backtest.rules import RuleSet
from agent.backtest.stops import Delays, choose, simulate

HOUR, DAY = 3_600_000, 86_400_000


def stopped(home, rule, at, clock):
    """Replay up to reading `at`, stop there; return the delays to yellow and red in minutes."""
    replay = Replay(home, rule, since_ms=0, interval_ms=home.interval_ms, traced=False)
    for i in range(at + 1):
        replay.feed(home.times[i], home.hours[i], home.values[i])
    yellow, red = Delays(), Delays()
    simulate(replay, time_ms=home.times[at], interval_ms=home.interval_ms, clock=clock, yellow=yellow, red=red)
    return replay, yellow, red


def last_use(home):
    """The last reading of the evening before the last that proves real use: the night follows."""
    alarm = Alarm(RuleSet(name="any"))
    found = 0
    for i, reading in enumerate(zip(home.times, home.hours, home.values, strict=True)):
        alarm.feed(*reading)
        if alarm.watch.use and home.times[i] < home.times[-1] - 18 * HOUR:
            found = i
    return found


def test_the_delay_of_a_fixed_limit_is_what_is_left_of_it(life, shanghai):
    home = life(days=30)
    use = last_use(home)
    for still in range(4):
        _, _, red = stopped(home, RuleSet(name="f", fixed_h=14), use + still, shanghai)
        assert red.minutes == {(14 - still) * 60: 1}


def test_the_county_s_rule_speaks_when_its_window_is_dry_enough(life, shanghai):
    home = life(days=30)
    use = last_use(home)
    rule = RuleSet(name="c", window_ms=12 * HOUR, threshold_ml=1_000, red=False)
    _, yellow, red = stopped(home, rule, use, shanghai)
    assert yellow.minutes == {12 * 60: 1}
    assert (red.minutes, red.missed) == ({}, 0)


@pytest.mark.parametrize("leak_l_h", [2, 5, 10])
def test_a_leak_goes_on_and_does_not_hide_the_stop(life, shanghai, leak_l_h):
    home = life(days=30, leak_l_h=leak_l_h)
    use = last_use(home)
    replay, _, red = stopped(home, RuleSet(name="f", fixed_h=14), use, shanghai)
    assert replay.alarm.watch.real_use.leak_ml_h == pytest.approx(leak_l_h * 1000, rel=0.3)
    (minutes,) = red.minutes
    assert 14 * 60 <= minutes <= 15 * 60  # the leak costs at most an hour
    assert red.missed == 0


def test_a_stop_leaves_the_replay_as_it_was(life, shanghai):
    home = life(days=25)
    rule = RuleSet(name="home")
    plain = Replay(home, rule, since_ms=0, interval_ms=HOUR, traced=False)
    disturbed = Replay(home, rule, since_ms=0, interval_ms=HOUR, traced=False)
    for reading in zip(home.times, home.hours, home.values, strict=True):
        for replay in (plain, disturbed):
            replay.feed(*reading)
        simulate(disturbed, time_ms=reading[0], interval_ms=HOUR, clock=shanghai, yellow=Delays(), red=Delays())
    assert plain.episodes == disturbed.episodes
    assert plain.alarm.watch.dump() == disturbed.alarm.watch.dump()


def test_a_stop_under_a_standing_alarm_has_no_delay(life, shanghai):
    home = life(days=30, away=((28, 30),))
    replay, yellow, red = stopped(home, RuleSet(name="home"), len(home) - 1, shanghai)
    assert replay.alarm.level == "red"
    assert (yellow.standing, red.standing, yellow.minutes, red.minutes) == (1, 1, {}, {})


def test_what_no_rule_notices_is_missed(life, shanghai):
    home = life(days=30, leak_l_h=10)
    rule = RuleSet(name="c", window_ms=12 * HOUR, threshold_ml=50_000, red=False)  # 120 L leak away in 12 h
    _, yellow, red = stopped(home, rule, last_use(home), shanghai)
    assert (yellow.missed, red.missed) == (1, 0)


def test_the_same_seed_chooses_the_same_moments(life):
    home, other = life(days=60), life("m-002", days=60)
    since = home.times[0] + 30 * DAY
    chosen = choose(home, since_ms=since, stops=50, seed=7)
    assert chosen == choose(home, since_ms=since, stops=50, seed=7)
    assert chosen != choose(home, since_ms=since, stops=50, seed=8)
    assert chosen != choose(other, since_ms=since, stops=50, seed=7)
    assert len(set(chosen)) == 50
    assert all(home.times[i] >= since for i in chosen)


def test_where_there_are_fewer_moments_every_hour_is_one(life):
    home = life(days=10, every_min=10)
    chosen = choose(home, since_ms=home.times[0], stops=10**6, seed=1)
    assert len(chosen) == 240
    assert all((home.times[i] + 600_000) % HOUR == 0 for i in chosen)
