"""Everything judged of one meter: red beside yellow, leaks, bursts, absences, and the same answers on a board."""

import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partners.two_interpreters import memory_in, micropython, said, said_by_both

from agent.detection.limit import COLD_H, NEVER
from agent.detection.watch import DAY_MS, ENDS, HOUR_MS, MINUTE_MS, STANDS, Watch
from agent.detection.window import ENOUGH, LOW, UNSURE

REPOSITORY = Path(__file__).parents[3]
PARTNERS = REPOSITORY / "tests" / "partners"
START = 1_790_000_000_000 // DAY_MS * DAY_MS  # a midnight
MEALS = ((7, 12), (8, 6), (11, 7), (12, 15), (15, 4), (18, 14), (19, 8), (21, 10))  # hour and litres


class Home:
    """A home on a 1 L register, read every `poll_min` minutes; `run` yields the watch after each reading."""

    def __init__(self, *, poll_min=20, start_l=480_000, **rules):
        self.watch = Watch(**{"window_ms": 12 * HOUR_MS, "threshold_ml": 100_000} | rules)
        self.poll_min, self.at, self.litres, self.leak_l_h = poll_min, START, float(start_l), 0.0
        self.read()

    def read(self):
        self.watch.feed(self.at, self.at // HOUR_MS % 24, int(self.litres + 1e-6) * 1000)

    def run(self, hours, meals=()):
        for _ in range(round(hours * 60 / self.poll_min)):
            before = self.at
            self.at += self.poll_min * MINUTE_MS
            self.litres += self.leak_l_h * self.poll_min / 60
            for hour, litres in meals:
                drawn_at = self.at // DAY_MS * DAY_MS + hour * HOUR_MS + 60_000
                if before < drawn_at <= self.at:
                    self.litres += litres
            self.read()
            yield self.watch

    def live(self, hours, meals=MEALS):
        for watch in self.run(hours, meals):
            last = watch
        return last


def hours_until(home, condition, *, meals=(), at_most=72):
    """Hours until a condition holds; None where it never does."""
    began = home.at
    for watch in home.run(at_most, meals):
        if condition(watch):
            return (home.at - began) / HOUR_MS
    return None


class TestRed:
    def test_a_home_that_is_not_known_yet_turns_red_after_the_fixed_limit(self):
        home = Home()
        home.live(40)  # to 16:00, last use at 15:00
        hours = hours_until(home, lambda watch: watch.red)
        assert (home.watch.red, home.watch.low) == ("limit", LOW)
        assert COLD_H - 1.5 <= hours <= COLD_H

    def test_a_home_that_is_known_turns_red_at_its_own_limit(self):
        home = Home()
        home.live(30 * 24 + 22)
        assert home.watch.limit.learned
        hours = hours_until(home, lambda watch: watch.red)
        assert home.watch.red == "limit"
        assert 10 <= hours < COLD_H - 2  # the usual night lasts ten hours

    @pytest.mark.parametrize("leak_l_h", [1, 3, 10])
    def test_a_leak_hides_no_fall_although_it_alone_fulfils_the_countys_rule(self, leak_l_h):
        home = Home()
        home.leak_l_h = leak_l_h
        home.live(30 * 24 + 22)
        hours = hours_until(home, lambda watch: watch.red)
        assert home.watch.low == (ENOUGH if leak_l_h * 12 > 100 else LOW)
        assert hours < COLD_H
        assert home.watch.real_use.leak_ml_h == pytest.approx(leak_l_h * 1000, rel=0.05)

    def test_red_needs_the_countys_rule_until_a_day_is_full(self):
        home = Home(cold_h=6)
        home.live(4 * 24, [(7, 151), (12, 137), (18, 119), (21, 150)])
        home.live(22, [(7, 151), (12, 137), (18, 119), (21, 150)])
        # 150 L at 21:00 leave the window at 9:00.
        assert hours_until(home, lambda watch: watch.red) == pytest.approx(11.4, abs=0.7)

    def test_a_day_without_use_is_red_in_any_home_on_a_fine_leak(self):
        home = Home(cold_h=24)
        home.leak_l_h = 30  # 360 L in 12 h
        home.live(4 * 24)
        assert hours_until(home, lambda watch: watch.red, at_most=40) is not None
        assert home.watch.red == "day"

    def test_a_threshold_finer_than_the_register_is_refused_and_red_stands_alone(self):
        home = Home(step_ml=10_000, start_l=0, threshold_ml=5_000)
        chance = random.Random(3)
        for hour in range(24 * 10):
            home.watch.feed(
                START + hour * HOUR_MS, hour % 24, home.watch.register.total + 10_000 * chance.choice((0, 1, 2))
            )
        assert (home.watch.is_refused, home.watch.is_blind, home.watch.low) == (True, False, UNSURE)
        for hour in range(24 * 10, 24 * 10 + 20):
            home.watch.feed(START + hour * HOUR_MS, hour % 24, home.watch.register.total)
        assert (home.watch.low, home.watch.red) == (UNSURE, "limit")

    def test_a_register_too_coarse_to_show_a_day_never_turns_red(self):
        watch = Watch(window_ms=12 * HOUR_MS, threshold_ml=100_000, step_ml=100_000)
        for hour in range(60):
            watch.feed(START + hour * HOUR_MS, hour % 24, 480_000_000)
        assert (watch.is_blind, watch.red, watch.low) == (True, "", LOW)


class TestRegister:
    def test_a_swap_within_the_hour_goes_on_and_one_in_a_long_gap_begins_anew(self):
        for gap_h, verdict in ((0.5, LOW), (5, UNSURE)):
            watch = Watch(window_ms=12 * HOUR_MS, threshold_ml=100_000)
            for hour in range(14):
                watch.feed(START + hour * HOUR_MS, hour % 24, 480_000_000)
            assert watch.low == LOW
            for i in range(4):
                watch.feed(START + round((13 + gap_h) * HOUR_MS) + i * 5 * MINUTE_MS, 13, 700_000)
            assert (watch.low, watch.register.code) == (verdict, "")

    def test_a_reading_that_is_held_decides_nothing(self):
        home = Home()
        home.live(40)
        before = home.watch.low
        home.at += 5 * MINUTE_MS
        home.watch.feed(home.at, 16, 999_000_000)
        assert (home.watch.counts, home.watch.low, home.watch.code) == (False, UNSURE, "held")
        home.at += 5 * MINUTE_MS
        home.read()
        assert (home.watch.counts, home.watch.low, home.watch.code) == (True, before, "returned")


class TestFlow:
    def test_water_that_never_stops_for_a_day_is_a_leak_with_its_size(self):
        home = Home()
        home.leak_l_h = 4
        assert 23 <= hours_until(home, lambda watch: watch.flow.leak == STANDS, meals=MEALS) <= 26
        assert home.watch.real_use.leak_ml_h == pytest.approx(4000, abs=1000)
        home.leak_l_h = 0
        assert 3 <= hours_until(home, lambda watch: watch.flow.leak == ENDS) <= 3.5

    def test_a_home_that_rests_at_night_has_no_leak(self):
        home = Home()
        assert hours_until(home, lambda watch: watch.flow.leak == STANDS, meals=MEALS, at_most=10 * 24) is None

    def test_a_gap_may_have_hidden_a_still_hour(self):
        home = Home()
        home.leak_l_h = 4
        home.live(20)
        home.at += 3 * HOUR_MS
        home.litres += 12
        home.read()
        assert hours_until(home, lambda watch: watch.flow.leak == STANDS) >= 23

    def test_a_cubic_metre_in_an_hour_is_a_burst(self):
        home = Home()
        home.live(30)
        home.leak_l_h = 1200
        assert hours_until(home, lambda watch: watch.flow.burst == STANDS) <= 2
        home.leak_l_h = 0
        assert hours_until(home, lambda watch: watch.flow.burst == ENDS) <= 25

    def test_two_cubic_metres_in_a_day_are_a_burst(self):
        home = Home()
        home.live(30)
        home.leak_l_h = 100
        assert 15 <= hours_until(home, lambda watch: watch.flow.burst == STANDS) <= 22

    def test_watering_the_garden_is_no_burst(self):
        home = Home()
        home.live(30)
        home.leak_l_h = 800
        assert hours_until(home, lambda watch: watch.flow.burst == STANDS, at_most=2) is None


class TestAbsence:
    def test_nothing_is_said_while_nobody_is_expected_and_all_begins_anew_at_its_end(self):
        home = Home()
        home.live(40)
        home.watch.excuse(home.at + 3 * DAY_MS)
        assert hours_until(home, lambda watch: watch.red or watch.low == LOW, at_most=71) is None
        began = home.at
        assert hours_until(home, lambda watch: watch.low == LOW) == pytest.approx(13, abs=0.5)
        home.at, home.watch.red = home.at, home.watch.red
        assert hours_until(home, lambda watch: watch.red) is not None
        assert (home.at - began) / HOUR_MS == pytest.approx(1 + COLD_H, abs=0.7)

    def test_use_ends_it_and_says_so(self):
        home = Home()
        home.live(40)
        home.watch.excuse(home.at + 3 * DAY_MS)
        home.live(3, ())
        home.litres += 8
        home.at += 5 * MINUTE_MS
        home.read()
        assert (home.watch.back, home.watch.excused_until) == (True, NEVER)
        assert hours_until(home, lambda watch: watch.low == LOW) < 13

    def test_a_drip_does_not_end_it_for_ever(self):
        home = Home()
        home.leak_l_h = 4
        home.live(5 * 24)
        home.watch.excuse(home.at + 3 * DAY_MS)
        assert hours_until(home, lambda watch: watch.back, at_most=70) is None

    def test_it_can_be_ended_before_its_time(self):
        home = Home()
        home.live(40)
        home.watch.excuse(home.at + 30 * DAY_MS)
        home.live(5, ())
        home.watch.excuse(home.at)
        assert hours_until(home, lambda watch: watch.red) == pytest.approx(COLD_H, abs=0.7)

    def test_it_teaches_nothing(self):
        home = Home()
        home.live(16 * 24 + 22)
        counts = bytes(home.watch.limit._counts)
        home.watch.excuse(home.at + 20 * HOUR_MS)
        home.live(30, ())
        home.litres += 20
        home.at += 5 * MINUTE_MS
        home.read()
        assert bytes(home.watch.limit._counts) == counts


class TestState:
    @settings(deadline=None, max_examples=30)
    @given(st.integers(0, 2**32), st.integers(1, 400), st.integers(-3, 3))
    def test_a_watch_that_adopts_goes_on_as_the_other_would(self, seed, cut, days):
        """The window is fed the last day again, as the store's history is after a start; the axis may have moved."""
        chance = random.Random(seed)
        readings, litres, at = [], 480_000, START
        for _ in range(900):
            at += chance.choice((5, 5, 5, 20, 60, 400)) * MINUTE_MS
            litres += chance.choice((0, 0, 0, 0, 1, 3, 12))
            readings.append((at, litres * 1000))
        whole = Watch(window_ms=12 * HOUR_MS, threshold_ml=100_000)
        kept, said = None, []
        for i, (time_ms, value) in enumerate(readings):
            whole.feed(time_ms, time_ms // HOUR_MS % 24, value)
            if i == 400 + cut - 1:
                kept = whole.dump()
            said.append((whole.low, whole.red, whole.use, whole.limit.limit_h, whole.real_use.leak_ml_h))
        moved = Watch(window_ms=12 * HOUR_MS, threshold_ml=100_000)
        again = []
        for i, (time_ms, value) in enumerate(readings[cut:], start=cut):
            moved.feed(time_ms + days * DAY_MS, time_ms // HOUR_MS % 24, value)
            if i == 400 + cut - 1:
                moved.adopt(kept, time_ms + days * DAY_MS)
            again.append((moved.low, moved.red, moved.use, moved.limit.limit_h, moved.real_use.leak_ml_h))
        assert again[400:] == said[400 + cut :]
        if days == 0:
            assert moved.real_use.dump() + moved.limit.dump() == whole.real_use.dump() + whole.limit.dump()

    def test_a_state_of_another_version_is_refused_and_changes_nothing(self):
        home = Home()
        home.live(30)
        before = home.watch.dump()
        for other in (b"", before[:-1], bytes([before[0] + 1]) + before[1:], before[:40]):
            with pytest.raises(ValueError, match="version"):
                home.watch.adopt(other, home.at)
            assert home.watch.dump() == before

    def test_a_new_price_of_false_alarms_survives_what_was_learned_under_the_old_one(self):
        home, dearer = Home(cost_h=1500), Home(cost_h=4000)
        home.live(30)
        dearer.watch.adopt(home.watch.dump(), home.at)
        assert dearer.watch.limit.cost_h == 4000


def test_a_board_says_the_same_of_every_reading():
    """60,000 readings of a home with every fault; `make differential` feeds ten million."""
    text = said_by_both(PARTNERS / "judging_stream.py", REPOSITORY, "60000", "11")
    for word in ("low", "red-limit", "red-day", "leak-stands", "burst-stands", "held", "meter_swap", "jitter"):
        assert f"\n{word} " in text, word


def test_a_boards_memory_holds_a_watch_that_does_not_grow():
    """On the 64-bit unix port a small integer takes 8 bytes in a list, on a board 4: this is an upper bound.

    `test_board.py` weighs the same on a board.
    """
    arguments = (PARTNERS / "board_memory.py", REPOSITORY, "6000")
    memory = memory_in(said(micropython(), *arguments))
    assert memory.lines == said(sys.executable, *arguments).splitlines()
    assert memory.grown == 0
    assert 2_000 < memory.taken <= memory.at_most <= 6 * 1024
