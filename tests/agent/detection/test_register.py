"""What a meter's register shows, made one continuous count: each rule, real faults, hostile orders, a board."""

import csv
import gzip
import struct
from collections import Counter
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from partners.two_interpreters import said_by_both

from agent.detection import register as module
from agent.detection.register import (
    CODES,
    FLOW_MAX_ML_H,
    HELD,
    HELD_MAX,
    HOUR_MS,
    JITTER,
    M3_ML,
    MEANING,
    METER_SWAP,
    MOVES_ENOUGH,
    REGISTER_RESET,
    RETURNED,
    ROLLOVER,
    SECOND_COUNTER,
    SET_BACK,
    STALE_COPY,
    WAVER_ML,
    Register,
)

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not beside this checkout")
START_MS = 1_790_000_000_000
POLL_MS = 300_000
LITRE = 1_000


class Meter:
    """A register polled every five minutes, seasoned by a day of use of 1 L steps; values in litres."""

    def __init__(self, start_l=500_000, *, seasoned=True, poll_ms=POLL_MS, **settings):
        self.watch, self.at, self.poll_ms = Register(**settings), START_MS, poll_ms
        self.shows = start_l
        self.watch.feed(self.at, start_l * LITRE)
        for i in range(MOVES_ENOUGH + 4 if seasoned else 0):
            self.read(self.shows + 1 + i % 3, after_ms=2 * HOUR_MS)
        self.seasoned_ml = self.watch.total

    def read(self, litres, *, after_ms=None):
        """Poll once; return (counts, code, litres used)."""
        self.at += self.poll_ms if after_ms is None else after_ms
        self.shows = litres
        counts = self.watch.feed(self.at, round(litres * LITRE))
        return counts, self.watch.code, self.watch.used / LITRE

    def reads(self, *values):
        return [self.read(value) for value in values]

    @property
    def used(self):
        return (self.watch.total - self.seasoned_ml) / LITRE


class TestPlainReadings:
    def test_use_is_what_the_register_adds(self):
        meter = Meter(100, seasoned=False)
        assert meter.reads(100, 101, 101, 107.5) == [(True, "", 0), (True, "", 1), (True, "", 0), (True, "", 6.5)]
        assert meter.watch.total == 7_500

    def test_a_burst_in_a_gap_counts(self):
        meter = Meter()
        top = meter.shows
        assert meter.read(top + 30_000, after_ms=10 * HOUR_MS) == (True, "", 30_000)

    def test_the_most_that_can_have_run_and_a_litre_more(self):
        meter = Meter()
        assert meter.watch.step == LITRE
        top = meter.shows
        most = (FLOW_MAX_ML_H * POLL_MS // HOUR_MS + LITRE + WAVER_ML) // LITRE
        assert Meter().read(top + most)[:2] == (True, "")
        assert Meter().read(top + most + 1)[:2] == (False, HELD)

    @pytest.mark.parametrize("back_ms", [0, 7_200_000])
    def test_time_that_stands_still_or_goes_back_makes_nothing_possible(self, back_ms):
        meter = Meter()
        top = meter.shows
        assert meter.read(top + 11, after_ms=-back_ms) == (True, "", 11)
        assert meter.read(top + 23, after_ms=0) == (False, HELD, 0)
        assert meter.read(top + 23, after_ms=back_ms + POLL_MS) == (True, RETURNED, 12)

    @pytest.mark.parametrize("step", [100, 1_000])
    @pytest.mark.parametrize("poll_ms", [60_000, POLL_MS])
    def test_a_coarse_register_counts_from_its_first_movement(self, step, poll_ms):
        meter = Meter(5_000, seasoned=False, poll_ms=poll_ms)
        for k in range(1, MOVES_ENOUGH + 3):
            assert meter.read(5_000 + k * step) == (True, "", step)
            meter.read(5_000 + k * step, after_ms=5 * HOUR_MS)
        assert meter.watch.step == step * LITRE
        assert meter.read(meter.shows - step) == (True, JITTER, 0)

    def test_refuses_a_flow_that_cannot_be(self):
        with pytest.raises(ValueError, match="flow_max"):
            Register(flow_max_ml_h=0)


class TestSteppingBack:
    def test_a_last_wheel_that_wavers_uses_nothing(self):
        meter = Meter()
        top = meter.shows
        wavering = meter.reads(top - 1, top, top - 1, top - 10, top)
        assert [used for _, _, used in wavering] == [0] * 5
        assert [code for _, code, _ in wavering] == [JITTER, "", JITTER, JITTER, ""]
        assert all(counts for counts, _, _ in wavering)

    def test_a_stale_copy_says_nothing(self):
        meter = Meter()
        top = meter.shows
        meter.reads(top + 60, top + 130)
        assert meter.reads(top + 62, top + 131, top + 20) == [
            (False, STALE_COPY, 0),
            (True, "", 1),
            (False, STALE_COPY, 0),
        ]
        assert meter.used == 131

    def test_a_register_that_stays_low_and_still_holds_up_no_alarm(self):
        meter = Meter()
        top = meter.shows + 40
        meter.reads(top - 20, top)
        low = [meter.read(top - 30)[:2] for _ in range(50)]
        assert low == [(False, STALE_COPY)] * 2 + [(True, JITTER)] * 48
        assert meter.read(top + 2) == (True, "", 2)  # it was a copy all the while: nothing was invented

    def test_a_value_of_days_ago_is_held(self):
        meter = Meter()
        before = meter.shows
        for day in range(1, 4):
            meter.read(before + 2_000 * day, after_ms=24 * HOUR_MS)
        assert meter.read(meter.shows - 2_000 + 1)[:2] == (False, STALE_COPY)
        assert Meter().reads(before + 5, before + 6, before - 9_000)[-1][:2] == (False, HELD)
        assert meter.read(before + 1_999)[:2] == (False, HELD)

    def test_within_an_hour_it_may_still_be_a_copy_that_comes_late(self):
        meter = Meter()
        top = meter.shows + 60
        meter.reads(top - 30, top)
        late = meter.reads(top - 30, top - 30, top - 20, top - 20, top - 20, top - 5, top + 3)
        assert SET_BACK not in [code for _, code, _ in late]
        assert meter.used == 63

    def test_what_refills_the_pipes_is_no_use_and_what_comes_after_is(self):
        meter = Meter()
        top = meter.shows
        back = meter.reads(*range(top - 8, top - 65, -8))
        assert meter.watch.reverse
        assert back[-1] == (True, JITTER, 0)
        for _ in range(30):
            assert meter.read(top - 64)[0]
        assert not meter.watch.reverse
        refill = meter.reads(top - 40, top - 20)
        assert [(counts, used) for counts, _, used in refill] == [(False, 0), (False, 0)]
        assert meter.read(top - 20) == (True, SET_BACK, 0)
        assert meter.read(top - 14) == (True, "", 6)
        assert meter.used == 6

    def test_backflow_is_told_from_jitter_copies_and_swaps(self):
        meter = Meter()
        top = meter.shows
        copies = (top, top - 30, top, top - 40, top, top - 50)
        for values in ((top - 1, top - 2, top - 3), copies, (400_000, 300_000, 200_000), (3, 2, 1, 0)):
            meter.reads(*values)
            assert not meter.watch.reverse
        again = Meter()
        again.reads(top - 6, top - 12, top - 12)
        assert not again.watch.reverse
        again.read(top - 18)
        assert again.watch.reverse
        again.read(top - 17)
        assert not again.watch.reverse

    def test_backflow_ends_an_hour_after_its_last_step(self):
        meter = Meter()
        top = meter.shows
        meter.reads(top - 6, top - 12, top - 18)
        states = []
        for _ in range(14):
            meter.read(top - 18)
            states.append(meter.watch.reverse)
        assert states == [True] * 12 + [False] * 2


class TestOtherRegisters:
    def test_an_outlier_is_forgotten(self):
        meter = Meter()
        top = meter.shows
        assert meter.reads(top + 90_000, top + 3) == [(False, HELD, 0), (True, RETURNED, 3)]
        assert meter.reads(0, top + 3, top + 4) == [(False, HELD, 0), (True, RETURNED, 0), (True, "", 1)]

    def test_up_then_down_and_down_then_up(self):
        meter = Meter()
        top = meter.shows
        meter.reads(top + 90_000, 7, top + 50_000, 8, top + 2)
        assert (meter.used, meter.watch.code) == (2, RETURNED)

    @pytest.mark.parametrize("new", [0, 999, 1_001, 490_000, 700_000])
    def test_a_swap_is_confirmed_by_the_third_reading_and_loses_nothing_of_the_new_meter(self, new):
        meter = Meter()
        code = REGISTER_RESET if new <= 1_000 else METER_SWAP
        assert meter.reads(new, new + 2, new + 5) == [(False, HELD, 0), (False, HELD, 0), (True, code, 5)]
        assert not meter.watch.anew
        assert meter.read(new + 9) == (True, "", 4)
        assert meter.used == 9

    def test_after_more_than_an_hour_a_swap_begins_anew(self):
        for after_ms, anew in ((HOUR_MS, False), (HOUR_MS + 1, True), (240 * HOUR_MS, True)):
            meter = Meter()
            meter.read(0, after_ms=after_ms)
            meter.reads(0, 0)
            assert (meter.watch.code, meter.watch.anew) == (REGISTER_RESET, anew)
            meter.read(1)
            assert (meter.watch.anew, meter.used) == (False, 1)

    def test_a_new_meter_teaches_its_own_step(self):
        meter = Meter()
        meter.reads(0, 0, 0)
        assert meter.watch.step == LITRE
        for k in range(1, MOVES_ENOUGH + 1):
            assert meter.read(10 * k, after_ms=HOUR_MS)[2] == 10
        assert meter.watch.step == 10 * LITRE

    def test_a_swap_within_the_flow_cannot_be_known(self):
        meter = Meter()
        assert meter.read(meter.shows + 300) == (True, "", 300)

    def test_two_registers_that_alternate_for_hours_never_swap(self):
        meter = Meter()
        top = meter.shows
        codes = [meter.reads(top + 248_000 + k, top + k) for k in range(100)]
        assert codes[0] == [(False, HELD, 0), (True, RETURNED, 0)]
        assert codes[1:] == [[(False, SECOND_COUNTER, 0), (True, "", 1)]] * 99
        assert meter.used == 99

    def test_when_one_of_the_two_is_gone_the_other_one_counts(self):
        meter = Meter()
        top = meter.shows
        for k in range(10):
            meter.reads(9_000 + k, top + k)
        last = meter.reads(9_010, 9_011, 9_013)
        assert last == [(False, SECOND_COUNTER, 0), (False, SECOND_COUNTER, 0), (True, METER_SWAP, 3)]

    def test_zeros_for_half_an_hour_lose_nothing(self):
        meter = Meter()
        top = meter.shows
        meter.reads(0, 0, 0, 0, 0, 0)
        assert meter.reads(top + 20, top + 20, top + 26)[-1] == (True, RETURNED, 26)
        assert meter.used == 26

    def test_a_register_of_two_hours_ago_comes_back_without_what_it_added(self):
        meter = Meter()
        top = meter.shows
        for _ in range(24):
            meter.read(0)
        assert meter.reads(top + 20, top + 20, top + 26)[-1] == (True, METER_SWAP, 6)

    def test_readings_that_contradict_each_other_are_not_held_for_ever(self):
        meter = Meter()
        wild = [3_000_000 * (k % 2) + 5_000 * k for k in range(60)]
        counts = [meter.read(value)[0] for value in wild]
        assert counts.index(True) == HELD_MAX - 1
        assert max(len(held) for held in "".join("x" if not c else " " for c in counts).split()) < HELD_MAX
        assert meter.used == 0

    @pytest.mark.parametrize("value_ml", [1 << 50, -(1 << 50), 1 << 70])
    def test_what_no_register_shows_is_set_aside(self, value_ml):
        meter = Meter()
        before = meter.watch.total
        assert not meter.watch.feed(meter.at + 1, value_ml)
        assert (meter.watch.code, meter.watch.total) == (HELD, before)
        meter.watch.dump()
        fresh = Register()
        assert not fresh.feed(START_MS, value_ml)
        assert fresh.feed(START_MS, 5)


class TestRollover:
    @pytest.mark.parametrize("highest", [10**6, 10**7, 10**8, 10**9, 1 << 16, 1 << 32])
    def test_use_counts_across(self, highest):
        meter = Meter(highest - 200)
        before = highest - meter.shows
        assert meter.reads(3, 5, 6)[-1] == (True, ROLLOVER, before + 6)
        assert meter.read(8) == (True, "", 2)

    def test_a_swap_some_way_below_the_highest_number_is_none(self):
        meter = Meter(10**6 - 20_000)
        meter.read(0, after_ms=100 * HOUR_MS)
        assert meter.reads(0, 0)[-1] == (True, REGISTER_RESET, 0)
        assert meter.watch.anew


def shown_by_float32(value_ml):
    """A float32 of cubic metres, read as the shortest decimal that denotes it, as our protocols do."""
    float32 = struct.Struct("f")
    (number,) = float32.unpack(float32.pack(value_ml / M3_ML))
    shortest = (f"{number:.{digits}g}" for digits in range(6, 10))
    return round(M3_ML * next(float(text) for text in shortest if float32.pack(float(text)) == float32.pack(number)))


class TestStep:
    def test_unknown_until_enough_movements_were_seen(self):
        meter = Meter(0, seasoned=False)
        for k in range(1, MOVES_ENOUGH):
            meter.read(k * 10)
            assert meter.watch.step == 0
        meter.read(MOVES_ENOUGH * 10)
        assert meter.watch.step == 10 * LITRE

    @pytest.mark.parametrize("step_ml", [1, 10, 500, LITRE, 10 * LITRE])
    @given(st.lists(st.integers(1, 40), min_size=80, max_size=80))
    def test_any_whole_step_is_found_in_mixed_movements(self, step_ml, mixed):
        watch, value, at = Register(), 0, START_MS
        for k in (*mixed, 3, 2, 5, 7, 1, *[1] * MOVES_ENOUGH):
            at, value = at + HOUR_MS, value + k * step_ml
            assert watch.feed(at, value)
        assert watch.step == step_ml

    def test_a_float_ruins_it_no_more_than_it_must(self):
        """10 L steps beyond 16 777 m3, where a float32 of cubic metres moves by 2 L."""
        watch, at, value = Register(), START_MS, 20_000_000
        for k in range(300):
            at, value = at + HOUR_MS, value + 10 * (1 + k * k % 7)
            watch.feed(at, shown_by_float32(value * LITRE))
        assert watch.step == 10 * LITRE

    def test_a_long_movement_on_which_rounding_adds_up_does_not_hide_the_step(self):
        watch, at, value = Register(), START_MS, 0
        for k in range(100):
            at, value = at + HOUR_MS, value + (9_999 if k % 10 else 4_004_000)  # its rest is 4 400
            watch.feed(at, value)
        assert watch.step == 10_000

    @pytest.mark.parametrize(
        ("draw_ml", "step_ml"),
        [
            (6_000, 2_000),
            (30_000, 10_000),
            (7_000, 1_000),
            (1_000, 1_000),
            (500, 500),
            (3_785, 5),
            (2_500, 2_500),
            (13, 1),
        ],
    )
    def test_draws_that_are_all_alike_are_no_step_that_no_meter_has(self, draw_ml, step_ml):
        watch = Register()
        for k in range(40):
            watch.feed(START_MS + k * HOUR_MS, k * draw_ml)
        assert watch.step == step_ml

    def test_rounding_errors_do_not_hide_the_step(self):
        watch, at, value = Register(), START_MS, 0
        for k in range(300):
            at, value = at + HOUR_MS, value + 10 * LITRE * (1 + k * k % 9)
            watch.feed(at, value + (-9, 4, 0, 11, 7)[k % 5])
        assert abs(watch.step - 10 * LITRE) <= 50


# Litres drawn within five minutes, below what can run: 427 L.
litres_drawn = st.sampled_from([0, 0, 0, 1, 2, 9, 60, 400])
draws = st.lists(litres_drawn, min_size=30, max_size=60)
wild = st.lists(
    st.tuples(st.sampled_from([0, 1, 60_000, POLL_MS, HOUR_MS, 30 * HOUR_MS]), st.integers(-(10**9), 2 * 10**12))
    | st.tuples(st.just(POLL_MS), st.sampled_from([0, 1, 10**9 - 1, 5 * 10**8, 5 * 10**8 - 30_000, 5 * 10**8 + 7_000])),
    max_size=60,
)


class TestAnyOrder:
    @given(wild)
    def test_total_never_decreases_and_is_the_sum_of_what_was_used(self, steps):
        watch, at, total, held = Register(), START_MS, 0, 0
        for wait, value in steps:
            at += wait
            counts = watch.feed(at, value)
            total += watch.used
            held = 0 if counts else held + 1
            assert watch.total == total
            assert 0 <= watch.used < 1 << 30
            assert counts or watch.used == 0
            assert watch.code in CODES
            assert not watch.anew or counts

    @given(st.lists(st.tuples(litres_drawn, st.lists(st.integers(0, 59), max_size=2)), min_size=20, max_size=60))
    def test_stale_copies_of_any_age_change_nothing_in_the_end(self, polls):
        """Up to two in a row."""
        watch, at, value = Register(), START_MS, 300_000
        watch.feed(at, value * LITRE)
        past = [value]
        for litres, copies in polls:
            for age in copies:
                at += 1_000
                watch.feed(at, past[-1 - age % len(past)] * LITRE)
                assert watch.used == 0
            at, value = at + POLL_MS, value + litres
            past.append(value)
            assert watch.feed(at, value * LITRE)
            assert watch.code in ("", RETURNED)
        assert watch.total == (value - 300_000) * LITRE

    @given(draws, st.integers(0, 50), st.integers(0, 29), st.integers(1, 50))
    def test_a_recent_copy_may_come_any_number_of_times(self, litres, copies, where, age):
        watch, at, value, past = Register(), START_MS, 300_000, [300_000]
        watch.feed(at, value * LITRE)
        for i, used in enumerate(litres):
            at, value = at + POLL_MS, value + used
            watch.feed(at, value * LITRE)
            past.append(value)
            for _ in range(copies if i == where else 0):
                at += POLL_MS
                watch.feed(at, past[-min(age, len(past))] * LITRE)
        assert watch.total == (value - 300_000) * LITRE

    @given(
        st.integers(0, 10**12),
        st.integers(0, 10**12),
        st.sampled_from([60_000, POLL_MS, HOUR_MS]),
        st.integers(0, 300 * HOUR_MS),
    )
    def test_a_swap_never_adds_more_than_can_have_run(self, old, new, poll_ms, gap_ms):
        watch, at = Register(), START_MS
        for _ in range(20):
            at += poll_ms
            watch.feed(at, old)
        last, at = at, at + gap_ms
        until = None
        for _ in range(30):
            at += poll_ms
            if watch.feed(at, new) and until is None:
                until = at
        assert until is not None
        assert until <= last + gap_ms + HELD_MAX * poll_ms
        assert watch.total <= FLOW_MAX_ML_H * (until - last) // HOUR_MS + WAVER_ML + M3_ML

    @given(wild, st.integers(0, 59))
    def test_a_restart_changes_nothing(self, steps, restart):
        def run(*, restarts):
            watch, at, said = Register(flow_max_ml_h=6_300_000), START_MS, []
            for i, (wait, value) in enumerate(steps):
                if restarts and i == restart:
                    watch = Register.load(watch.dump())
                at += wait
                counts = watch.feed(at, value)
                said.append((counts, watch.used, watch.total, watch.code, watch.anew, watch.step, watch.reverse))
            return said, watch.dump()

        assert run(restarts=True) == run(restarts=False)


class TestState:
    def test_it_fits_a_board(self):
        assert len(Register().dump()) <= 200

    @pytest.mark.parametrize("state", [b"", Register().dump()[:-1], Register().dump() + b"\0"])
    def test_a_state_of_another_length_is_refused(self, state):
        with pytest.raises(ValueError, match="version"):
            Register.load(state)

    @pytest.mark.parametrize("wrong", [(0, 0), (0, 2), (1, len(CODES))])
    def test_a_state_of_another_version_is_refused(self, wrong):
        state = bytearray(Register().dump())
        state[wrong[0]] = wrong[1]
        with pytest.raises(ValueError, match="version"):
            Register.load(bytes(state))

    def test_every_code_has_a_meaning_in_both_languages(self):
        assert set(CODES) == {"", *MEANING}
        assert all(chinese and english for chinese, english in MEANING.values())
        assert all(code in module.__doc__ for code in MEANING)

    def test_no_reading_leaves_memory_behind(self, left_behind):
        watch = Register()

        def month(number):
            for i in range(number * 8_640, (number + 1) * 8_640):
                watch.feed(START_MS + i * POLL_MS, 5 * 10**8 + i * 1_000 - (i % 50 == 7) * 200_000)

        assert left_behind(month) < 512


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from register import CODES, Register
watch, at, value, x, said, seen = Register(), 1790000000000, 64900000, 7, 0, set()
for i in range(60000):
    x = (x * 1103 + 12345) % 1048573
    at += 300000 if x % 300 else 90000000
    value += (x >> 3) % 7 * 1000 if x % 9 == 0 else 0
    shows = value
    if x % 41 == 3:
        shows -= (x >> 4) % 90 * 1000
    if x % 97 == 5 or 5000 < i < 5400 and i % 2:
        shows += 248000000
    if x % 5003 < 1:
        value = (x >> 5) % 700000 * 1000
    if i % 8000 > 7960:
        value -= 6000
        shows = value
    if x % 1999 == 1 or i % 7000 < 7:
        shows = 0
    if i % 9000 == 0:
        value = 999997000
    if value >= 1000000000:
        value -= 1000000000
        shows = value
    counts = watch.feed(at, shows if i % 9000 > 200 else value)
    seen.add(watch.code)
    said = (said * 31 + watch.used + watch.total + CODES.index(watch.code) * 7 + counts + watch.anew * 3) % 1000003
    said = (said + watch.reverse + watch.step) % 1000003
    if i % 9999 == 0:
        watch = Register.load(watch.dump())
print(said, watch.total, sum(watch.dump()), sorted(seen))
"""


def test_micropython_and_cpython_say_the_same(tmp_path):
    script = tmp_path / "count.py"
    script.write_text(SCRIPT.format(folder=str(Path(module.__file__).parent)))
    text = said_by_both(script)
    assert all(code in text for code in MEANING)


def household(name):
    """One home of DAIAD as (ms, ml), in naive Spanish time: an hour that comes again is the doubled one of October."""
    zone, before = ZoneInfo("Europe/Madrid"), 0.0
    with gzip.open(DATA / "households.csv.gz", "rt") as lines:
        for row in csv.DictReader(lines):
            if row["household"] == name:
                local = datetime.fromisoformat(row["timestamp_local"]).replace(tzinfo=zone)
                again = local.timestamp() < before
                before = local.replace(fold=int(again)).timestamp()
                yield round(before * 1_000), int(row["litres_cum"]) * LITRE


@needs_data
class TestRealHomes:
    @pytest.mark.parametrize(
        ("name", "codes"),
        [
            ("D009", {JITTER: 20, STALE_COPY: 15, HELD: 1, RETURNED: 1}),
            ("D019", {JITTER: 353}),
            ("D051", {JITTER: 1, HELD: 1, RETURNED: 1, SECOND_COUNTER: 3}),
            ("D014", {}),
        ],
    )
    def test_faults_are_named_and_the_count_is_that_of_the_clean_series(self, name, codes):
        watch, found, reversed_at = Register(), Counter(), 0
        readings = list(household(name))
        for at, value in readings:
            watch.feed(at, value)
            found[watch.code] += 1
            reversed_at += watch.reverse
        del found[""]
        assert found == codes
        assert (watch.total, watch.step, reversed_at) == (readings[-1][1] - readings[0][1], LITRE, 0)

    def test_ampds2_minute_by_minute_has_no_fault(self):
        watch, before, first = Register(), None, None
        with gzip.open(DATA / "ampds2_family_minute_changes.csv.gz", "rt") as lines:
            for row in csv.DictReader(lines):
                minute = int(datetime.fromisoformat(row["timestamp_utc"]).timestamp()) // 60
                value = round(float(row["litres_cum"]) * LITRE)
                first = first or value
                if before is not None and minute - before > 1:
                    watch.feed((minute - 1) * 60_000, watch.total + first)  # a minute that is absent: it stood still
                assert watch.feed(minute * 60_000, value)
                assert watch.code == ""
                before = minute
        assert watch.total == value - first
