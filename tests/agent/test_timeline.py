"""Elapsed time over reboots: exact within a boot, never too long between two."""

import random

import pytest

from agent.timeline import GAP_MS_MAX, Timeline, anchors_of
from protocols.reading import ClockTrust, Moment

H = 3_600_000


def moment(boot, boottime_h, wall_h, *, synced=True):
    return Moment(
        wall_ms=round(wall_h * H),
        trust=ClockTrust.SYNCED if synced else ClockTrust.UNSYNCED,
        uncertainty_ms=None,
        boot_id=boot,
        boottime_ms=round(boottime_h * H),
    )


def elapsed_h(*moments):
    timeline = Timeline(anchors_of(moments))
    places = [timeline.place(moment) for moment in moments]
    return (places[-1] - places[0]) / H


def test_within_a_boot_a_step_of_the_wall_clock_changes_nothing():
    assert elapsed_h(moment("a", 1, 100), moment("a", 3, 50)) == 2


def test_between_two_synced_boots_the_wall_clock_counts():
    assert elapsed_h(moment("a", 5, 100), moment("b", 0.1, 114)) == 14


def test_a_clock_that_wakes_in_the_past_counts_only_the_time_since_the_boot():
    assert elapsed_h(moment("a", 5, 100), moment("b", 0.1, 2, synced=False)) == 0.1


def test_a_restored_clock_may_lag_so_its_difference_is_a_lower_bound():
    assert elapsed_h(moment("a", 5, 100), moment("b", 0.1, 101, synced=False)) == 1


def test_an_earlier_clock_that_may_have_lagged_proves_nothing():
    assert elapsed_h(moment("a", 5, 100, synced=False), moment("b", 0.1, 114)) == 0.1


def test_a_clock_set_by_hand_before_a_reboot_does_not_make_the_reboot_long():
    # The clock lags 20 h, a technician sets it, then the power is off for six minutes.
    history = [
        moment("a", 1, 80, synced=False),
        moment("a", 2, 101, synced=False),
        moment("b", 0.1, 101.1, synced=False),
    ]
    assert elapsed_h(*history) - 1 == pytest.approx(0.1)


def test_a_clock_that_leaps_by_years_proves_nothing():
    leap_h = GAP_MS_MAX / H + 200
    assert elapsed_h(moment("a", 5, 100), moment("b", 0.1, 100 + leap_h, synced=False)) == 0.1


def test_a_later_sync_dates_the_whole_boot():
    # The box wakes in 1970, polls once, then NTP answers: it was off for 14 hours.
    history = [moment("a", 5, 100), moment("b", 0.1, 0.1, synced=False), moment("b", 0.2, 114.1)]
    assert elapsed_h(*history) == 14.1
    blind = Timeline()
    for past in history[:2]:
        blind.place(past)
    assert blind.is_outdated_by(history[2])
    assert not Timeline(anchors_of(history)).is_outdated_by(history[2])


def test_meters_of_two_buses_interleave_without_drift():
    chance = random.Random(1)
    moments = [moment("a", step / 60, step / 60) for step in range(600)]
    shuffled = sorted(moments, key=lambda each: each.boottime_ms + chance.uniform(-3e5, 3e5))
    timeline = Timeline()
    places = {each.boottime_ms: timeline.place(each) for each in shuffled}
    assert all(places[each.boottime_ms] - places[0] == each.boottime_ms for each in moments)


def test_many_reboots_never_make_time_longer_than_it_was():
    chance = random.Random(2)
    true_h, moments = 0.0, []
    for boot in range(50):
        true_h += chance.uniform(0, 3)  # off
        booted_h = true_h
        lag_h = 0.0 if boot == 0 else chance.uniform(0, 3)
        for poll in range(3):
            true_h += chance.uniform(0.01, 1)
            synced = boot == 0 or (poll == 2 and chance.random() < 0.5)
            moments.append(moment(str(boot), true_h - booted_h, true_h - (0 if synced else lag_h), synced=synced))
    # Unsynced against unsynced assumes that both lag alike, which no box without a clock promises: left out here.
    truth_h = true_h
    assert elapsed_h(*[each for each in moments if each.trust is ClockTrust.SYNCED]) <= truth_h
