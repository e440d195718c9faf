"""Supply outage, bus fault, silent meter: when they are suspected, when not, and what ends them."""

import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
import supply_outage

from agent.detection.supply import HOMES_MIN, LIMIT, LIMIT_MAX, PEAK_MARGIN, STILL_MS_MIN, Habits
from agent.detection.village import BUS_FAULT, METER_SILENT, SUPPLY_OUTAGE, Suspicion, VillageWatch

DATA = Path(__file__).parents[4] / "shared" / "data"
MIN = 60_000
HOUR = 60 * MIN
DAY = 24 * HOUR
POLL = 15 * MIN
LEARNED = 21  # days


class Street:
    """Homes that draw by chance, often by day and seldom by night; `tick` polls them all."""

    def __init__(self, homes=10, *, seed=1, poll_ms=POLL, leaks=(), by_day=0.5, by_night=0.03):
        self.chance = random.Random(seed)
        self.names = [f"m-{i:02}" for i in range(homes)]
        self.poll_ms, self.by_day, self.by_night, self.leaks = poll_ms, by_day, by_night, set(leaks)
        self.village = VillageWatch(buses={"b": self.names}, poll_every_ms=dict.fromkeys(self.names, poll_ms))
        self.now, self.off, self.spared, self.deaf = 0, False, set(), set()
        self.changes = []

    def draws(self, name):
        if self.off and name not in self.spared:
            return 0
        hour = self.now // HOUR % 24
        chance = self.by_day if 6 <= hour < 22 else self.by_night
        return 2_000 if name in self.leaks or self.chance.random() < chance * self.poll_ms / HOUR else 0

    def tick(self):
        self.now += self.poll_ms
        for i, name in enumerate(self.names):
            used_ml = None if name in self.deaf else self.draws(name)
            leak = 8_000 if name in self.leaks else 0
            self.say(name, used_ml, at=self.now + i * 700, leak=leak)
        return self

    def say(self, name, used_ml, *, at=None, leak=0):
        at = self.now + 30_000 if at is None else at
        found = self.village.feed(name, at, at // HOUR % 24, used_ml=used_ml, leak_ml_h=leak)
        self.changes += found
        return found

    def until(self, day, hour=0):
        while self.now < day * DAY + hour * HOUR:
            self.tick()
        return self

    def until_suspected(self, *, most_h=24):
        """The water is off; return the change and how long it took, or None."""
        self.off, began = True, self.now
        self.changes.clear()
        while self.now < began + most_h * HOUR:
            self.tick()
            if stands := [change for change in self.changes if change.kind == SUPPLY_OUTAGE]:
                return stands[0], (self.now - began) / HOUR
        return None, math.inf

    def outages(self):
        return [change for change in self.changes if change.kind == SUPPLY_OUTAGE]


def test_an_outage_is_suspected_with_its_figures_and_ends_when_homes_draw_again():
    street = Street().until(LEARNED, 9)
    change, delay_h = street.until_suspected()
    assert change.stands
    assert change.subject is None
    assert delay_h <= 4
    figures = change.figures
    assert set(change.meters) <= set(street.names)
    assert figures["homes"] == len(change.meters) >= HOMES_MIN
    assert figures["surprise"] >= figures["limit"] >= LIMIT
    assert figures["still_min"] * MIN >= STILL_MS_MIN
    # ten homes that draw every other hour; the doubt and the sleepers among them take some of it
    assert 0.5 < figures["usual_draws"] / (figures["homes"] * 0.5 * figures["still_min"] / 60) < 1.1
    assert street.now + len(street.names) * 700 - change.since_ms >= figures["still_min"] * MIN
    first, second = change.meters[:2]
    assert street.village.suspicion(first) == Suspicion(SUPPLY_OUTAGE, change.since_ms)

    street.tick()
    assert street.say(first, 3_000) == []  # one alone may be emptying its pipe
    assert street.village.suspicion(first) is None
    assert street.village.suspicion(second) == Suspicion(SUPPLY_OUTAGE, change.since_ms)
    street.tick()
    (end,) = street.say(second, 3_000)
    assert (end.kind, end.stands, end.since_ms, end.meters) == (SUPPLY_OUTAGE, False, change.since_ms, change.meters)
    assert end.figures["drew"] == 2
    assert street.village.suspicion(second) is None


def test_two_homes_that_draw_hours_apart_do_not_end_it():
    street = Street().until(LEARNED, 9)
    change, _ = street.until_suspected()
    street.tick().say(change.meters[0], 1_000)
    for _ in range(12):
        street.tick()
    assert street.say(change.meters[1], 1_000) == []
    assert street.village.suspicion(change.meters[2])


def test_of_fifty_homes_two_do_not_end_it_and_three_do():
    street = Street(50).until(LEARNED, 9)
    change, _ = street.until_suspected()
    street.tick()
    assert street.say(change.meters[0], 1_000) == []
    assert street.say(change.meters[1], 1_000) == []
    assert [c.stands for c in street.say(change.meters[2], 1_000)] == [False]


def test_the_more_homes_the_sooner_and_never_before_45_minutes():
    delays = [Street(homes).until(LEARNED, 9).until_suspected()[1] for homes in (6, 10, 20, 50)]
    assert delays == sorted(delays, reverse=True)
    assert delays[0] > delays[-1]
    assert 0.75 <= delays[-1] <= 1.25


def test_at_night_it_takes_longer():
    assert Street().until(LEARNED, 22).until_suspected()[1] > Street().until(LEARNED, 9).until_suspected()[1] + 1


def test_a_village_that_is_not_known_is_not_judged():
    street = Street(50).until(5, 9)
    assert street.until_suspected(most_h=20) == (None, math.inf)


def test_four_homes_are_no_village():
    assert Street(HOMES_MIN - 1).until(LEARNED, 9).until_suspected() == (None, math.inf)


@pytest.mark.parametrize("left_on", [0, LEARNED - 2])
def test_empty_homes_do_not_count(left_on):
    street = Street(9).until(left_on)
    empty = set(street.names[:5])
    draws = street.draws
    street.draws = lambda name: 0 if name in empty else draws(name)
    street.until(LEARNED, 9)
    assert street.until_suspected() == (None, math.inf)


def test_a_home_with_another_source_does_not_hide_it():
    street = Street(20).until(LEARNED, 9)
    street.spared = {"m-03"}
    change, delay_h = street.until_suspected()
    assert delay_h <= 4
    assert "m-03" not in change.meters
    street.until(LEARNED, 18)
    assert [c.stands for c in street.outages()] == [True]  # and its draws do not end it
    if change.figures["other_source"]:
        assert street.village.suspicion("m-03") is None


def going_still(homes):
    """A street at about four: one home that draws does not bring it to zero."""
    street = Street(homes).until(LEARNED, 9)
    street.off = True
    while street.village._supply._surprise < 4:
        street.tick()
    return street


def test_a_home_that_drew_all_the_same_is_no_longer_counted_as_still():
    street = going_still(10)
    supply, number = street.village._supply, street.village._supply._number
    street.say("m-03", 1_000, at=street.now + POLL)
    assert (supply._number, supply._other_source) == (number, 1)
    surprise = supply._surprise
    street.say("m-03", 0, at=street.now + 2 * POLL)
    assert supply._surprise == surprise
    street.say("m-04", 0, at=street.now + 2 * POLL)
    assert supply._surprise > surprise


def test_two_of_nine_that_draw_all_the_same_begin_the_stillness_anew():
    street = going_still(9)
    supply, number = street.village._supply, street.village._supply._number
    supply._surprise = 7.9
    street.say("m-03", 1_000)
    assert supply._number == number
    street.say("m-04", 1_000)
    assert (supply._number, supply._surprise) == (number + 1, 0)


def test_a_home_that_was_not_read_for_long_is_not_counted_as_still():
    street = Street(10).until(LEARNED, 9)
    supply = street.village._supply
    street.deaf = {"m-03"}
    street.until(LEARNED, 12)
    surprise = supply._surprise
    street.say("m-03", 0)
    assert supply._surprise == surprise
    street.say("m-03", 0, at=street.now + 5 * MIN)
    assert supply._surprise >= surprise


def test_where_many_still_draw_there_is_no_outage():
    street = Street(20).until(LEARNED, 9)
    street.spared = set(street.names[:10])
    assert street.until_suspected(most_h=10) == (None, math.inf)


def test_leaks_that_stop_together_bring_it_forward():
    alone = Street(12).until(LEARNED, 23).until_suspected()[1]
    street = Street(12, leaks=("m-00", "m-01", "m-02")).until(LEARNED, 23)
    change, delay_h = street.until_suspected()
    assert delay_h < alone - 1
    assert change.figures["leaks_stopped"] == 3


def test_a_leak_that_stopped_before_is_no_evidence():
    street = Street(12, leaks=("m-00", "m-01")).until(LEARNED, 20)
    street.leaks.clear()
    street.until(LEARNED, 23)
    change, _ = street.until_suspected()
    assert change.figures["leaks_stopped"] == 0


def test_false_suspicions_are_rarer_than_the_bound():
    false = begun = months = 0
    for seed in range(3):
        street = Street(12, seed=seed).until(LEARNED)
        before = street.village._supply._number
        street.until(LEARNED + 60)
        false += sum(change.stands for change in street.outages())
        begun += street.village._supply._number - before
        months += 2
    assert false <= begun * math.exp(-LIMIT)
    assert begun > 1000 * months


# ---- what is no stillness ----


def test_a_gap_of_the_gateway_proves_nothing():
    street = Street(50).until(LEARNED, 9)
    street.off = True
    street.tick().tick()  # half an hour off, then the gateway is off for two hours
    street.changes.clear()
    street.now += 2 * HOUR
    for _ in range(2):
        street.tick()
        assert street.changes == []
    street.tick().tick()  # from here on the stillness was seen
    assert [change.since_ms for change in street.outages()] == [pytest.approx(LEARNED * DAY + 11.75 * HOUR, abs=MIN)]


def test_readings_without_a_value_are_no_stillness():
    street = Street(20).until(LEARNED, 9)
    street.deaf = set(street.names)
    street.changes.clear()
    street.until(LEARNED, 12)
    assert street.outages() == []
    street.deaf.clear()
    street.off = True
    street.tick()
    assert street.outages() == []


def test_a_standing_outage_outlasts_a_gap_and_ends_with_water():
    street = Street(20).until(LEARNED, 9)
    street.until_suspected()
    street.now += 5 * HOUR
    street.off = False
    street.changes.clear()
    street.until(LEARNED + 1, 9)
    assert [change.stands for change in street.outages()] == [False]


def test_homes_on_several_buses_may_be_read_out_of_order():
    street = Street(20).until(LEARNED, 9)
    street.off = True
    street.changes.clear()
    for _ in range(16):
        street.now += POLL
        for i, name in enumerate(street.names):
            street.say(name, 0, at=street.now + (i % 3) * 20_000 * (-1) ** i)
    (change,) = street.outages()
    assert change.stands


# ---- what is learned ----


def test_the_state_goes_on_where_it_was_and_a_replay_does_not_teach_twice():
    street = Street(20).until(LEARNED, 6)
    state = street.village.dump()
    other = Street(20, seed=2)
    other.village.load(state)
    other.village.learns = False
    other.now = street.now
    other.until(LEARNED + 3, 9)
    assert other.village.dump()[:1100] == state[:1100]  # behind it lie the peaks
    other.village.learns = True
    change, delay_h = other.until_suspected()
    assert change.stands
    assert delay_h < 3
    assert len(state) < 2_000


def test_after_a_restart_three_days_of_readings_bring_a_standing_outage_back():
    street = Street(20)
    fed = []
    feed = street.village.feed
    street.village.feed = lambda *at, **what: fed.append((at, what)) or feed(*at, **what)
    street.until(LEARNED, 9)
    change, _ = street.until_suspected()
    again = Street(20).village
    again.load(street.village.dump())
    again.learns = False
    for at, what in fed:
        if at[1] > street.now - 3 * DAY:
            again.feed(*at, **what)
    assert again.suspicion(change.meters[0]) == Suspicion(SUPPLY_OUTAGE, change.since_ms)


def test_restarting_every_hour_fades_as_much_as_never_restarting():
    def taught(*, restarts):
        habits = Habits()
        for hour in range(40 * 24):
            habits.note_draw(hour % 24, 0, HOUR)
            habits.pass_time(HOUR)
            if restarts:
                state, habits = habits.dump(), Habits()
                habits.load(state)
        return habits

    assert sum(taught(restarts=True).draws) == pytest.approx(sum(taught(restarts=False).draws), rel=1e-3)


@pytest.mark.parametrize(
    "spoil",
    [lambda _: b"", lambda s: s[:-1], lambda s: b"\x07" + s[1:], lambda s: s[:9] + b"\xff" * (len(s) - 9)],
    ids=["empty", "short", "version", "not a number"],
)
def test_another_state_is_refused_and_changes_nothing(spoil):
    village = Street(6).until(9).village
    state = village.dump()
    with pytest.raises(ValueError):
        village.load(spoil(state))
    assert village.dump() == state


def test_the_limit_stays_above_what_the_village_showed_thrice_in_four_weeks():
    habits = Habits()

    def limit_after(*peaks):
        for peak in peaks:
            habits.peak = peak
            habits.pass_time(DAY)
        return habits.limit

    assert limit_after(9.0, 9.0) == PEAK_MARGIN  # two outages do not move it
    assert limit_after(9.0) == 9.0 + PEAK_MARGIN
    assert limit_after(30.0, 30.0, 30.0) == LIMIT_MAX
    assert limit_after(*[0.0] * 28) == PEAK_MARGIN


def test_a_weekly_custom_that_empties_the_village_is_suspected_ever_less():
    street = Street(20)
    draws = street.draws
    at_market = lambda: street.now // DAY % 7 == 6 and 8 <= street.now // HOUR % 24 < 11
    street.draws = lambda name: 0 if at_market() else draws(name)
    found = []
    for week in range(4, 30):
        street.changes.clear()
        street.until(7 * week)
        found.append(sum(change.stands for change in street.outages()))
    assert sum(found[-8:]) < sum(found[:8])


# ---- silent meters and buses ----


class Line:
    """Meters of one bus; `poll` feeds those named in `without` no value."""

    def __init__(self, meters=5, *, poll_min=5, silent_ms=3 * HOUR):
        self.names = [f"m-{i}" for i in range(meters)]
        self.poll_ms, self.now, self.changes = poll_min * MIN, 0, []
        polls = dict.fromkeys(self.names, self.poll_ms)
        self.village = VillageWatch(
            buses={"b": self.names, "other": ["x"]}, poll_every_ms=polls | {"x": MIN}, silent_ms=silent_ms
        )

    def poll(self, *, without=(), hours=0.0, polls=0):
        """Poll for so long; return the changes, each with the time at which it came."""
        found = []
        for _ in range(polls or round(hours * HOUR / self.poll_ms)):
            self.now += self.poll_ms
            for name in self.names:
                used_ml = None if name in without else 0
                changes = self.village.feed(name, self.now, self.now // HOUR % 24, used_ml=used_ml)
                found += [(change, self.now) for change in changes]
        return found


def kinds(found):
    return [(change.kind, change.subject, change.stands) for change, _ in found]


def test_one_dead_meter_is_silent_after_three_hours_and_no_bus_fault():
    line = Line()
    line.poll(hours=1)
    found = line.poll(hours=10, without=("m-2",))
    assert kinds(found) == [(METER_SILENT, "m-2", True)]
    change, at = found[0]
    assert at == HOUR + 3 * HOUR
    assert change.since_ms == HOUR + 5 * MIN
    assert change.figures == {"silent_min": 180, "polls": 36}
    assert line.village.suspicion("m-2") is None
    found = line.poll(polls=2)
    assert kinds(found) == [(METER_SILENT, "m-2", False)]
    assert found[0][0].figures == {"silent_min": 605, "polls": 120}


def test_an_hourly_meter_needs_six_polls():
    line = Line(poll_min=60)
    line.poll(hours=4)
    assert line.poll(polls=5, without=("m-1",)) == []
    assert kinds(line.poll(polls=1, without=("m-1",))) == [(METER_SILENT, "m-1", True)]


def test_a_value_in_between_begins_anew():
    line = Line()
    for _ in range(6):
        assert line.poll(hours=2.9, without=line.names) == [] or line.poll(polls=1)
        line.poll(polls=1)
    assert kinds(line.poll(hours=1, without=("m-0",))) == []


def test_our_own_gap_makes_no_meter_silent_and_no_bus_faulty():
    line = Line()
    line.poll(hours=1)
    line.now += 12 * HOUR
    found = line.poll(hours=1, without=line.names)
    assert found == []
    found = line.poll(hours=1, without=line.names)
    assert kinds(found) == [(BUS_FAULT, "b", True)]
    assert found[0][0].since_ms == 13 * HOUR + 5 * MIN


def test_a_meter_that_never_answered_is_silent_too():
    found = Line().poll(hours=3.5, without=("m-4",))
    assert kinds(found) == [(METER_SILENT, "m-4", True)]
    assert found[0][0].since_ms == 5 * MIN


def test_a_bus_that_dies_is_one_suspicion_before_its_meters_are_silent():
    line = Line()
    line.poll(hours=1)
    found = line.poll(hours=4, without=line.names)
    assert kinds(found) == [(BUS_FAULT, "b", True), *((METER_SILENT, name, True) for name in line.names)]
    change, at = found[0]
    assert change.meters == tuple(line.names)
    assert (change.since_ms, at) == (HOUR + 5 * MIN, HOUR + 90 * MIN)
    assert change.figures == {"meters": 5, "of": 5, "silent_min": 90}
    assert line.village.suspicion("m-3") == Suspicion(BUS_FAULT, change.since_ms)
    assert line.village.suspicion("x") is None


@pytest.mark.parametrize(("meters", "dead", "fault"), [
    (1, 1, False), (2, 2, False), (3, 3, True), (3, 2, False), (5, 3, True), (6, 3, True), (7, 3, False),
    (20, 10, True), (20, 9, False),
])  # fmt: skip
def test_at_least_three_and_at_least_half(meters, dead, fault):
    line = Line(meters)
    line.poll(hours=1)
    found = line.poll(hours=4, without=line.names[:dead])
    assert [change.meters for change, _ in found if change.kind == BUS_FAULT] == [tuple(line.names[:dead])] * fault
    assert sum(change.kind == METER_SILENT for change, _ in found) == dead


def test_meters_that_fell_silent_at_different_times_are_no_bus_fault():
    line = Line()
    without = ()
    found = []
    for name in line.names:
        without += (name,)
        found += line.poll(hours=0.5, without=without)
    found += line.poll(hours=6, without=without)
    assert {change.kind for change, _ in found} == {METER_SILENT}


def test_a_meter_that_was_dead_before_is_not_among_those_that_fell_silent_together():
    line = Line()
    line.poll(hours=8, without=("m-0",))
    found = line.poll(hours=2, without=line.names)
    assert [(change.kind, change.meters) for change, _ in found] == [(BUS_FAULT, ("m-1", "m-2", "m-3", "m-4"))]
    assert line.village.suspicion("m-0") is None


def test_water_in_a_junction_box_takes_them_within_minutes():
    line = Line()
    line.poll(hours=1)
    without = ()
    for name in line.names:
        without += (name,)
        line.poll(polls=1, without=without)
    found = line.poll(hours=2, without=without)
    assert (BUS_FAULT, "b", True) in kinds(found)
    assert line.village.suspicion("m-0") or line.village.suspicion("m-4")


def test_a_bus_fault_ends_when_too_few_are_left_and_its_meters_speak_for_themselves():
    line = Line(6)
    line.poll(hours=1)
    line.poll(hours=2, without=line.names[:4])
    assert line.poll(polls=1, without=line.names[1:4]) == []
    assert line.village.suspicion("m-0") is None
    assert line.village.suspicion("m-1").kind == BUS_FAULT
    found = line.poll(polls=1, without=line.names[2:4])
    assert kinds(found) == [(BUS_FAULT, "b", False)]
    found = line.poll(hours=2, without=line.names[2:4])
    assert kinds(found) == [(METER_SILENT, "m-2", True), (METER_SILENT, "m-3", True)]


def test_another_silent_ms():
    line = Line(silent_ms=HOUR)
    line.poll(hours=1)
    ((change, at),) = line.poll(hours=2, without=("m-0",))
    assert (change.kind, at) == (METER_SILENT, 2 * HOUR)


def test_a_meter_on_no_bus_is_our_own_bug():
    with pytest.raises(KeyError):
        Line().village.feed("stranger", 0, 0, used_ml=0)


# ---- homes of the simulator, and real ones ----


def test_the_simulators_village():
    homes = [supply_outage.routine_home(number, days=75) for number in range(10)]
    village = supply_outage.Village(homes, poll_ms=supply_outage.FIVE_MIN_MS, limit=LIMIT, chance=random.Random(1))
    village.run(instants=1)
    assert village.false == 0
    assert supply_outage.quantile([d for h in supply_outage.DAY_HOURS for d in village.delays[h]], 0.5) < 5


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real households of ../shared/data")
def test_thirteen_real_homes_over_fourteen_months():
    homes = supply_outage.trial_homes(DATA / "households.csv.gz")
    village = supply_outage.Village(homes, poll_ms=HOUR, limit=LIMIT, chance=random.Random(1))
    village.run(instants=2)
    assert village.months > 12
    assert village.false <= 1
    assert supply_outage.quantile([d for h in supply_outage.DAY_HOURS for d in village.delays[h]], 0.5) < 3
    assert all(earlier <= later for home in homes for earlier, later in pairwise(home.at_ms))
