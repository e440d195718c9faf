"""What happens in a village, told as readings: between them the stories bring every step of every alert.

Hour 0 is 22:13:20 in Shanghai (see `readings.at`).
"""

import itertools
import random

import msgspec
from readings import at, shows, silent

from agent.absences import Absences
from agent.judge import Judge, Rule
from protocols.absence import Absence
from protocols.contract import Daily, instant

RULE = Rule(window_ms=12 * 3_600_000, threshold_ml=100_000)


class Story:
    """A judge, and the steps that it has taken."""

    def __init__(self, meters, rule=RULE):
        numbers = itertools.count(1)
        self.judge = Judge(
            dict.fromkeys(meters, rule),
            episodes=[],
            new_id=lambda: f"01ARZ3NDEKTSV4RRFFQ69G{next(numbers):04d}",
            absences=Absences(),
        )
        self.steps = []
        self.readings = []

    def feed(self, readings):
        for reading in readings:
            verdict = self.judge.feed(reading)
            self.readings.append(verdict.reading)
            self.steps += verdict.steps
        return self

    def say(self, county):
        """Let the county say something of the newest episode."""
        noted = self.judge.noted(self.steps[-1].id, county)
        assert noted is not None
        self.judge.note(noted)
        return self

    def declare(self, first_h, last_h, *, daily=None):
        self.judge.absences.declare(
            Absence(
                id=f"01ARZ3NDEKTSV4RRFFQ69H{first_h:04d}",
                meter="m-1",
                start_ms=at(first_h).wall_ms,
                until_ms=at(last_h).wall_ms,
                declared_by="village-assistant",
                declared_ms=at(first_h).wall_ms,
                daily=daily,
            )
        )
        return self


def still(first_h, last_h, litres=500):
    """Readings of m-1 whose register stands still, every hour."""
    return [shows("m-1", hour, litres) for hour in range(first_h, last_h + 1)]


def a_silence():
    """Yellow, red, reminded, seen to, ended by a little use; yellow again, ended by enough."""
    story = Story(["m-1"]).feed([shows("m-1", 0, 480), *still(1, 25)])
    story.say({"acknowledged_at": instant(at(25).wall_ms)})
    story.say({"visited_at": instant(at(26).wall_ms), "result": "fine", "why": "was asleep"})
    return story.feed([shows("m-1", 26, 506), shows("m-1", 27, 700), shows("m-1", 28, 700)])


def a_silence_of_which_only_the_beginning_was_seen_to():
    """All was well while it was yellow; then it turns red."""
    story = Story(["m-1"]).feed([shows("m-1", 0, 480), *still(1, 13)])
    story.say({"visited_at": instant(at(13).wall_ms), "result": "fine"})
    return story.feed([*still(14, 24), shows("m-1", 25, 506)])


def a_silence_without_a_use_before():
    """A home of which nobody has ever seen a use."""
    return Story(["m-1"]).feed(still(0, 13))


def a_meter_that_falls_silent_in_red():
    return Story(["m-1"]).feed([shows("m-1", 0, 480), *still(1, 18), *[silent("m-1", hour) for hour in range(19, 26)]])


def an_absence_in_yellow():
    story = Story(["m-1"]).feed([shows("m-1", 0, 480), *still(1, 14)])
    return story.declare(14, 80).feed(still(15, 16))


def an_absence_in_red():
    story = Story(["m-1"]).feed([shows("m-1", 0, 480), *still(1, 19)])
    return story.declare(19, 80).feed(still(20, 21))


def quiet_hours():
    """All day long: only a day without any use is told, red at once."""
    daily = Daily(start="00:00", end="23:59")
    return Story(["m-1"]).declare(0, 800, daily=daily).feed([shows("m-1", 0, 480), *still(1, 30)])


def a_known_home(leak_l_h=0):
    """Twenty days of habits, then a silence; the leak, where there is one, goes on, and stops at last."""
    litres, readings = 500, []
    for hour in range(24 * 20):
        litres += leak_l_h + (26 + hour % 7 if hour % 24 in {0, 4, 10, 14} else 0)
        readings.append(shows("m-1", hour, litres))
    for hour in range(480, 500):
        litres += leak_l_h
        readings.append(shows("m-1", hour, litres))
    return Story(["m-1"]).feed(readings).feed(still(500, 506, litres))


def a_known_home_that_leaks():
    return a_known_home(leak_l_h=4)


def a_coarse_threshold():
    """The register moves by 20 L, the threshold is 10 L: yellow cannot be judged, red can."""
    rule = msgspec.structs.replace(RULE, threshold_ml=10_000, step_ml=20_000)
    litres, readings = 500, []
    for hour in range(24 * 8):
        litres += (20, 40, 60)[hour % 3] if hour % 24 in {0, 4, 10, 14} else 0
        readings.append(shows("m-1", hour, litres))
    return Story(["m-1"], rule).feed(readings).feed(still(192, 215, litres))


def a_meter_that_counts_too_coarsely():
    """Red cannot be judged on a register of 100 L: the yellow alert says so."""
    rule = msgspec.structs.replace(RULE, step_ml=100_000)
    return Story(["m-1"], rule).feed(still(0, 40))


def a_burst():
    return Story(["m-1"]).feed([shows("m-1", hour, 500 + 1200 * max(0, min(hour, 6) - 2)) for hour in range(34)])


def water_that_runs_back():
    readings = [shows("m-1", hour, 500 - 30 * max(0, hour - 2)) for hour in range(8)]
    return Story(["m-1"]).feed([*readings, *[shows("m-1", 8 + i, 350 + 40 * i) for i in range(6)]])


def a_bus_that_fails():
    meters = [f"m-{i}" for i in range(1, 6)]
    story = Story(meters)
    story.feed(shows(meter, i / 12, 500) for i in range(13) for meter in meters)
    story.feed(silent(meter, i / 12) for i in range(13, 80) for meter in meters)
    return story.feed(shows(meter, 7, 500) for meter in meters)


def a_supply_that_is_cut():
    """Nine days of eight busy homes at a quarter of an hour; then nobody can draw for 20 hours."""
    meters = [f"m-{i}" for i in range(1, 9)]
    story = Story(meters)
    chance = random.Random(4)
    litres = dict.fromkeys(meters, 500)
    for i in range(4 * 24 * 9):
        for meter in meters:
            litres[meter] += chance.choice((0, 0, 2, 7, 11))
            story.feed([shows(meter, i / 4, litres[meter])])
    story.feed(shows(meter, i / 4, litres[meter]) for i in range(864, 944) for meter in meters)
    return story.feed(shows(meter, 236 + i / 4, litres[meter] + 9 * i) for i in range(1, 8) for meter in meters)


def a_meter_that_is_taken_out():
    story = Story(["m-1"]).feed([shows("m-1", 0, 480), *still(1, 14)])
    smaller = Judge({"m-2": RULE}, episodes=story.steps, new_id=lambda: "")
    story.steps += smaller.orphans(at(15))
    return story


STORIES = {
    story.__name__: story
    for story in (
        a_silence,
        a_silence_of_which_only_the_beginning_was_seen_to,
        a_silence_without_a_use_before,
        a_meter_that_falls_silent_in_red,
        an_absence_in_yellow,
        an_absence_in_red,
        quiet_hours,
        a_known_home,
        a_known_home_that_leaks,
        a_coarse_threshold,
        a_meter_that_counts_too_coarsely,
        a_burst,
        water_that_runs_back,
        a_bus_that_fails,
        a_supply_that_is_cut,
        a_meter_that_is_taken_out,
    )
}
