"""Readings for tests, in hours and litres."""

from protocols.reading import ClockTrust, Measurement, Moment, missing_reading, reading_of

H = 3_600_000


def at(hour, *, boot="boot-1", trust=ClockTrust.SYNCED):
    """A moment `hour` hours after the boot, on a synced clock."""
    return Moment(
        wall_ms=1_790_000_000_000 + round(hour * H),
        trust=trust,
        uncertainty_ms=5,
        boot_id=boot,
        boottime_ms=round(hour * H),
    )


def shows(meter, hour, litres, *, flags=(), **clock):
    """A reading of `litres` at `hour`."""
    return reading_of(meter, at(hour, **clock), Measurement(volume_ml=round(litres * 1000), flags=flags))


def silent(meter, hour, reason="no_response"):
    """A poll that brought nothing."""
    return missing_reading(meter, at(hour), reason)
