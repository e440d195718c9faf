"""Flags: one vocabulary, and for each word what it means for the volume."""

import pytest

from protocols import flags
from protocols.flags import Effect
from protocols.reading import ClockTrust, Moment, Quality, reading_of

AT = Moment(wall_ms=0, trust=ClockTrust.SYNCED, uncertainty_ms=None, boot_id="b", boottime_ms=0)


@pytest.mark.parametrize(
    ("effects", "quality"),
    [
        ({}, Quality.OK),
        ({"battery_low": Effect.STANDS, "valve_closed": Effect.STANDS}, Quality.OK),
        ({"battery_low": Effect.STANDS, "empty_pipe": Effect.DOUBTFUL}, Quality.SUSPECT),
        ({"battery_low": Effect.DOUBTFUL}, Quality.SUSPECT),
    ],
)
def test_one_doubtful_flag_makes_the_reading_suspect_and_all_are_told(effects, quality):
    reading = reading_of("m-1", AT, flags.measurement(5, effects))
    assert (reading.quality, reading.volume_ml, reading.flags) == (quality, 5, tuple(sorted(effects)))


def test_a_low_battery_stops_no_rule_and_an_empty_pipe_does():
    """The judge takes no suspect reading: a home must not go unwatched for months over a battery."""
    stands = {flag for flag, effect in flags.USUAL_EFFECT.items() if effect is Effect.STANDS}
    assert stands == {"battery_low", "burst", "leak", "power_fault", "valve_closed", "valve_fault"}


def test_a_word_that_is_no_flag_is_refused_with_those_that_are():
    for flag in flags.USUAL_EFFECT:
        flags.check_name(flag)
    with pytest.raises(ValueError, match="flag 'hungry' is not one of battery_low, burst, empty_pipe, leak"):
        flags.check_name("hungry")
