"""A reading says either a volume or why there is none; nothing in between can be built."""

import msgspec
import pytest

from protocols.reading import ClockTrust, Measurement, Moment, Quality, Reading, missing_reading, reading_of

AT = Moment(wall_ms=1_790_000_000_000, trust=ClockTrust.SYNCED, uncertainty_ms=5, boot_id="b", boottime_ms=7)


class TestReading:
    def test_a_valid_answer(self):
        reading = reading_of("m-1", AT, Measurement(volume_ml=127_113))
        assert (reading.meter, reading.at, reading.volume_ml) == ("m-1", AT, 127_113)
        assert (reading.quality, reading.reason, reading.flags) == (Quality.OK, None, ())

    def test_zero_is_a_volume(self):
        assert reading_of("m-1", AT, Measurement(volume_ml=0)).quality is Quality.OK

    def test_a_fault_that_the_meter_reports_makes_it_suspect_and_keeps_the_volume(self):
        reading = reading_of("m-1", AT, Measurement(volume_ml=5, flags=("battery_low",)))
        assert (reading.quality, reading.volume_ml, reading.flags) == (Quality.SUSPECT, 5, ("battery_low",))

    def test_missing_is_none_with_a_reason(self):
        reading = missing_reading("m-1", AT, "no_response")
        assert (reading.quality, reading.volume_ml, reading.reason) == (Quality.MISSING, None, "no_response")

    @pytest.mark.parametrize(
        "contradiction",
        [
            {"quality": Quality.MISSING, "volume_ml": 0, "reason": "no_response"},
            {"quality": Quality.MISSING, "volume_ml": 5, "reason": "no_response"},
            {"quality": Quality.MISSING},
            {"quality": Quality.OK},
            {"quality": Quality.OK, "reason": "no_response"},
            {"quality": Quality.OK, "volume_ml": 5, "reason": "no_response"},
            {"quality": Quality.SUSPECT, "reason": "garbled"},
        ],
    )
    def test_contradictions_cannot_be_built(self, contradiction):
        with pytest.raises(AssertionError):
            Reading(meter="m-1", at=AT, **contradiction)

    @pytest.mark.parametrize("thing", [AT, Measurement(volume_ml=1), reading_of("m-1", AT, Measurement(volume_ml=1))])
    def test_nobody_changes_one_afterwards(self, thing):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(thing, msgspec.structs.fields(thing)[0].name, "another")
