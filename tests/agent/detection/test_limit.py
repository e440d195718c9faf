"""The home's own limit: what proves a person, what is learned, what is not, and that a board says the same."""

import math
import random
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import frontier
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partners.two_interpreters import said_by_both
from silence_rules import own_limits

from agent.detection import limit as module
from agent.detection.limit import COLD_H, LIMIT_MAX_H, LIMIT_MIN_H, HomeLimit, RealUse

REPOSITORY = Path(__file__).parents[3]
DATA = REPOSITORY.parent / "shared" / "data" / "households.csv.gz"
START = 29_000_160  # a midnight, in minutes
DAY = 24 * 60
LITRE = 1_000
NO_LEAK = 0.0


class Tap:
    """A 1 L register in a home with a leak: `run` polls it and returns the minutes at which a use was proven."""

    def __init__(self, *, poll_min=60, leak_l_h=NO_LEAK, swing=0.0, step_ml=LITRE):
        self.watch = RealUse(step_ml=step_ml)
        self.poll_min, self.leak_l_h, self.swing, self.step_ml = poll_min, leak_l_h, swing, step_ml
        self.at, self.drawn_ml, self.shown = START, 0.0, 0
        self.watch.feed(self.at, used_ml=0)

    def run(self, days, draws=()):
        """`draws` are (minute of day, litres), the same every day."""
        proven, end = [], self.at + round(days * DAY)
        while self.at < end:
            for minute in range(self.at, self.at + self.poll_min):
                angle = minute % DAY / DAY * 2 * math.pi
                self.drawn_ml += self.leak_l_h / 60 * 1_000 * (1 + self.swing * math.sin(angle))
                self.drawn_ml += sum(1_000 * litres for at, litres in draws if at == minute % DAY)
            self.at += self.poll_min
            shows = int(self.drawn_ml + 1e-6) // self.step_ml * self.step_ml
            if self.watch.feed(self.at, used_ml=shows - self.shown):
                proven.append(self.at)
            self.shown = shows
        return proven


A_DAY = [
    (h * 60 + 20, litres) for h, litres in ((7, 9), (8, 4), (11, 6), (12, 12), (15, 3), (18, 10), (19, 7), (21, 9))
]


class TestRealUse:
    def test_a_flush_is_a_person_and_stillness_is_not(self):
        tap = Tap(poll_min=5)
        assert tap.run(1, [(600, 6)]) == [START + 605]
        assert tap.run(3) == []

    def test_a_lone_litre_is_believed_once_until_a_sure_use(self):
        tap = Tap(poll_min=5)
        assert len(tap.run(1, [(600, 1)])) == 1
        assert tap.run(3, [(600, 1)]) == []
        assert len(tap.run(1, [(300, 6), (900, 1)])) == 2

    def test_lone_litres_that_come_faster_than_any_drip_are_a_person(self):
        tap = Tap(poll_min=5)
        tap.run(1, [(600, 6)])  # a still run of hours: no drip is faster than that
        assert len(tap.run(1, [(600, 1), (660, 1), (720, 1)])) == 3

    @pytest.mark.parametrize("poll_min", [5, 60])
    @pytest.mark.parametrize("leak_l_h", [1, 1.5, 2, 3.3, 5, 7.3, 10])
    def test_a_leak_hides_no_fall_and_no_person(self, leak_l_h, poll_min):
        tap = Tap(poll_min=poll_min, leak_l_h=leak_l_h)
        tap.run(3, A_DAY)
        assert len(tap.run(1, A_DAY)) >= 6
        after_the_fall = tap.run(4)
        assert len(after_the_fall) <= 1
        assert all(at <= START + 4 * DAY + 90 for at in after_the_fall)

    @pytest.mark.parametrize("poll_min", [5, 60])
    @pytest.mark.parametrize("swing", [0, 0.15])
    @pytest.mark.parametrize("leak_l_h", [0.05, 0.1, 0.2, 0.28, 0.35, 0.42, 0.5, 0.6, 0.75, 0.9])
    def test_a_slow_drip_puts_a_fall_off_by_one_drop_at_most(self, leak_l_h, swing, poll_min):
        tap = Tap(poll_min=poll_min, leak_l_h=leak_l_h, swing=swing)
        tap.run(4, A_DAY)
        assert len(tap.run(6)) <= 1

    @pytest.mark.parametrize("leak_l_h", [3, 5, 10])
    def test_a_leak_that_swings_with_the_pressure_is_believed_once(self, leak_l_h):
        tap = Tap(leak_l_h=leak_l_h, swing=0.15)
        tap.run(4, A_DAY)
        assert len(tap.run(6)) <= 1

    def test_what_leaked_in_a_gap_of_polling_is_no_person(self):
        tap = Tap(leak_l_h=3)
        tap.run(3, A_DAY)
        tap.run(1)
        tap.poll_min = 8 * 60
        assert tap.run(1) == []

    def test_a_fine_register_sees_small_draws_over_a_leak(self):
        tap = Tap(poll_min=5, leak_l_h=2, step_ml=1)
        tap.run(3, A_DAY)
        tap.run(0.5)
        assert len(tap.run(1, [(600, 1.3)])) == 1

    def test_a_leak_that_ends_is_forgotten_within_a_slot(self):
        tap = Tap(leak_l_h=5)
        tap.run(3, A_DAY)
        assert tap.watch.leak_ml_h > 0
        tap.leak_l_h = 0
        tap.run(1)
        assert tap.watch.leak_ml_h == 0

    def test_refuses_what_cannot_be(self):
        watch = RealUse(step_ml=LITRE)
        watch.feed(START, used_ml=0)
        for at_min, used_ml in ((START - 1, 0), (START + 5, -1), (START + 5, 1 << 30)):
            with pytest.raises(ValueError, match="cannot be"):
                watch.feed(at_min, used_ml=used_ml)
        with pytest.raises(ValueError, match="step_ml"):
            RealUse(step_ml=0)


def live(learner, days, *, hours=(7, 8, 9, 11, 12, 15, 18, 19, 21), start_day=0, poll_min=60, late=None):
    """Days of use in the given hours, with up to two hours of seeded lateness in the morning; returns the alarms."""
    alarms = []
    for day in range(start_day, start_day + days):
        shift = random.Random(day).choice((0, 0, 0, 0, 1, 1, 2)) if late is None else late
        for minute in range(0, DAY, poll_min):
            hour = minute // 60
            use = hour in hours and minute % 60 == 0 and not hours[0] <= hour < hours[0] + shift
            at_min = START + day * DAY + minute
            if learner.feed(at_min, hour=hour, use=use):
                alarms.append(at_min)
    return alarms


class TestHomeLimit:
    def test_the_fixed_limit_stands_for_two_weeks(self):
        learner = HomeLimit()
        live(learner, 13)
        assert (learner.learned, learner.limit_h) == (False, COLD_H)
        live(learner, 3, start_day=13)
        assert learner.learned
        assert learner.limit_h < COLD_H

    def test_a_fall_at_night_is_told_by_noon(self):
        learner = HomeLimit()
        assert live(learner, 60) == []
        silent = live(learner, 2, hours=(99,), start_day=60, late=0)
        assert START + 60 * DAY + 9 * 60 <= silent[0] <= START + 60 * DAY + 12 * 60  # usual by 9, last use at 21
        assert learner.usual_h(21) == 12  # water ran again by 9

    def test_the_alarm_comes_at_the_limit_and_not_a_reading_sooner(self):
        learner = HomeLimit(cold_h=12)
        learner.feed(START, hour=0, use=False)
        assert not learner.feed(START + 12 * 60 - 11, hour=11, use=False)
        assert learner.feed(START + 12 * 60 - 10, hour=11, use=False)
        assert learner.silent_min == 12 * 60 - 10

    def test_polling_more_often_changes_no_limit_by_more_than_an_hour(self):
        limits = []
        for poll_min in (5, 60):
            learner = HomeLimit()
            live(learner, 60, poll_min=poll_min)
            limits.append([learner._limits[hour] for hour in (7, 8, 12, 19, 21)])
        assert all(abs(often - seldom) <= 1 for often, seldom in zip(*limits, strict=True))

    def test_dearer_false_alarms_never_make_a_limit_shorter(self):
        limits = []
        for cost_h in (50, 100, 300, 1_000, 3_000, 8_000):
            learner = HomeLimit(cost_h=cost_h)
            live(learner, 60)
            limits.append(list(learner._limits))
        assert all(a <= b for low, high in pairwise(limits) for a, b in zip(low, high, strict=True))
        assert limits[0] != limits[-1]

    def test_an_absence_teaches_nothing(self):
        stayed, left = HomeLimit(), HomeLimit()
        live(stayed, 67)
        live(left, 30)
        live(left, 7, hours=(99,), start_day=30)
        live(left, 37, start_day=37)
        assert abs(stayed._limits[21] - left._limits[21]) <= 1

    def test_a_fall_that_nobody_noticed_moves_the_limit_by_two_hours_at_most_and_fades(self):
        untouched, fallen = HomeLimit(), HomeLimit()
        live(untouched, 60)
        live(fallen, 45)
        live(fallen, 1, hours=(99,), start_day=45)  # from 21:00 to 7:00 two mornings later: 33 h, then help came
        live(fallen, 14, start_day=46)
        assert abs(fallen._limits[21] - untouched._limits[21]) <= 2
        live(untouched, 100, start_day=60)
        live(fallen, 100, start_day=60)
        assert fallen._limits == untouched._limits

    def test_a_silence_that_is_skipped_teaches_nothing(self):
        learner = HomeLimit()
        live(learner, 20, late=0)
        before = bytes(learner._counts)
        learner.skip()
        learner.feed(START + 20 * DAY + 14 * 60, hour=14, use=True)
        assert bytes(learner._counts) == before
        learner.feed(START + 20 * DAY + 17 * 60, hour=17, use=True)
        assert bytes(learner._counts) != before

    def test_new_habits_are_learned(self):
        learner = HomeLimit()
        live(learner, 60)
        evening = learner._limits[19]
        live(learner, 84, hours=(5, 12, 19), start_day=60)
        assert not live(learner, 28, hours=(5, 12, 19), start_day=144)
        assert learner._limits[19] > evening - 1

    def test_what_a_gap_in_polling_hides_is_not_learned_as_silence(self):
        learner = HomeLimit()
        learner.feed(START, hour=0, use=True)
        learner.feed(START + 60, hour=1, use=True)
        learner.feed(START + 120, hour=2, use=False)
        learner.feed(START + 900, hour=15, use=True)
        assert [i % module.LENGTHS for i, count in enumerate(learner._counts) if count] == [1]

    def test_nothing_is_usual_in_a_home_not_yet_known(self):
        assert HomeLimit().usual_h(21) == 0

    @pytest.mark.parametrize("wrong", [{"cold_h": 5}, {"cold_h": 25}, {"cost_h": 49}, {"cost_h": 8_001}])
    def test_refuses_settings_out_of_range(self, wrong):
        with pytest.raises(ValueError, match="must be"):
            HomeLimit(**wrong)

    def test_refuses_time_that_goes_backwards(self):
        learner = HomeLimit()
        learner.feed(START, hour=0, use=False)
        with pytest.raises(ValueError, match="backwards"):
            learner.feed(START - 1, hour=0, use=False)

    def test_the_costs_stay_below_31_bits_in_the_busiest_home(self):
        learner = HomeLimit(cost_h=module.COST_MAX_H)
        for hour in range(24):  # twelve uses an hour for ever, and the longest silences that can be learned beside them
            learner._counts[hour * module.LENGTHS] = 12 * 56 * module.UNIT
            learner._counts[hour * module.LENGTHS + module.LONGEST_H] = 56 * module.UNIT
        around = 9 * (12 + 1) * 56 * module.UNIT >> module.NEAR_SHIFT
        waiting = around * sum(range(LIMIT_MAX_H + 1))
        reached = 56 * module.UNIT * 9 // 8 * module.REACH_ONE
        assert module.COST_MAX_H * (reached >> 3) + around // 13 * 300 * 8 < 1 << 30
        assert LIMIT_MIN_H <= learner._cheapest_h(0) <= LIMIT_MAX_H
        assert waiting < 1 << 30


draws = st.lists(st.tuples(st.integers(1, 400), st.sampled_from([0, 0, 0, 0, 1, 2, 9])), min_size=1, max_size=300)


class TestState:
    @settings(deadline=None)
    @given(draws, st.integers(0, 299))
    def test_a_restart_changes_nothing(self, steps, restart):
        def run(*, restarts):
            watch, learner, at_min, said = RealUse(step_ml=LITRE), HomeLimit(), START, []
            for i, (wait, litres) in enumerate(steps):
                if restarts and i == restart:
                    watch, learner = RealUse.load(watch.dump()), HomeLimit.load(learner.dump())
                at_min += wait
                use = watch.feed(at_min, used_ml=litres * LITRE)
                said.append((use, learner.feed(at_min, hour=at_min // 60 % 24, use=use)))
            return said, watch.dump(), learner.dump()

        assert run(restarts=True) == run(restarts=False)

    def test_the_limits_survive_a_restart(self):
        learner = HomeLimit()
        live(learner, 60)
        again = HomeLimit.load(learner.dump())
        assert again.dump() == learner.dump()
        assert (again.limit_h, again.learned) == (learner.limit_h, True)

    def test_the_state_fits_a_board(self):
        assert len(RealUse(step_ml=1).dump()) + len(HomeLimit().dump()) <= 2_048

    @pytest.mark.parametrize(("kind", "state"), [(RealUse, RealUse(step_ml=1).dump()), (HomeLimit, HomeLimit().dump())])
    def test_a_state_of_another_version_or_length_is_refused(self, kind, state):
        for other in (b"", state[:-1], state + b"\0", bytes([state[0] + 1]) + state[1:]):
            with pytest.raises(ValueError, match="version"):
                kind.load(other)

    def test_no_reading_leaves_memory_behind(self, left_behind):
        watch, learner = RealUse(step_ml=LITRE), HomeLimit()

        def month(number):
            for i in range(number * 8_640, (number + 1) * 8_640):
                use = watch.feed(START + 5 * i, used_ml=LITRE * 6 if i % 40 == 0 else 0)
                learner.feed(START + 5 * i, hour=i // 12 % 24, use=use)

        assert left_behind(month) < 512


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from limit import HomeLimit, RealUse
watch, learner, at_min, x, said = RealUse(step_ml=1000), HomeLimit(), 29000160, 7, 0
for i in range(40000):
    x = (x * 1103 + 12345) % 1048573
    at_min += 5 if x % 50 else 300
    hour = at_min // 60 % 24
    litres = 1 + x % 7 if (6 < hour < 22 and x % 40 == 0) or x % 700 == 0 else 0
    litres += 1 if 20000 < i < 30000 and i % 4 == 0 else 0
    use = watch.feed(at_min, used_ml=litres * 1000)
    said = (said * 31 + use * 2 + learner.feed(at_min, hour=hour, use=use)) % 1000003
    if i % 9999 == 0:
        watch, learner = RealUse.load(watch.dump()), HomeLimit.load(learner.dump())
print(said, sum(watch.dump()), sum(learner.dump()), learner.limit_h, learner.usual_h(21))
"""


def test_micropython_and_cpython_say_the_same(tmp_path):
    script = tmp_path / "judge.py"
    script.write_text(SCRIPT.format(folder=str(Path(module.__file__).parent)))
    said_by_both(script)


@pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not beside this checkout")
class TestRealHomes:
    def test_it_beats_every_fixed_limit_on_the_training_homes(self):
        ours, fixed = [], []
        for household in frontier.TRAINING:
            home = real_home(household)
            proofs = frontier.real_use(home)
            silences = frontier.silences(home, proofs)
            ours.append(frontier.score(proofs, silences, own_limits(home, proofs, cost_h=module.COST_H)))
            fixed.append({n: frontier.score(proofs, silences, [n] * len(silences)) for n in (11, 12, 13, 14)})
        alarms, median, mean, p90, _ = frontier.figures(ours)
        assert alarms <= 1.1  # a month
        assert (median <= 11, mean <= 11.5, p90 <= 16) == (True, True, True)
        for n in (11, 12, 13, 14):
            fixed_alarms, _, fixed_mean, *_ = frontier.figures([scores[n] for scores in fixed])
            assert alarms < fixed_alarms or mean < fixed_mean, n

    @pytest.mark.parametrize("litres_h", [1, 3, 10])
    def test_a_leak_costs_an_hour_at_most_and_hides_no_stop(self, litres_h):
        dry, leaking = delays_with_leak(0), delays_with_leak(litres_h)
        assert dry.total() > leaking.total() > 1_500
        assert mean_of(leaking) <= mean_of(dry) + 1


@cache
def real_home(household):
    return frontier.load(DATA, household)


@cache
def delays_with_leak(litres_h):
    delays = Counter()
    for household in frontier.TRAINING:
        home = real_home(household)
        found, _standing, missed = frontier.leak_delays(home, litres_h=litres_h, swing=0, cost_h=module.COST_H)
        assert missed == 0
        delays += found
    return delays


def mean_of(delays):
    return sum(delay * n for delay, n in delays.items()) / delays.total()
