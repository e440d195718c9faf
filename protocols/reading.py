"""A reading: what one meter showed at one moment, or why it showed nothing."""

import enum

import msgspec


class Quality(enum.StrEnum):
    """How far a reading can be trusted."""

    OK = "ok"
    SUSPECT = "suspect"  # a value came, together with a fault that the meter itself reports and that may spoil it
    MISSING = "missing"  # no value; `Reading.reason` says why


class ClockTrust(enum.StrEnum):
    """Whether the wall clock of a moment was disciplined by a time source."""

    SYNCED = "synced"
    UNSYNCED = "unsynced"


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One instant on the gateway: a wall clock that may be wrong and a boot clock that cannot step.

    `wall_ms` is UTC in milliseconds since 1970. `boottime_ms` counts from the boot that `boot_id` names and
    includes suspend. Elapsed time is computed from boot time, never from the wall clock alone.
    """

    wall_ms: int
    trust: ClockTrust
    uncertainty_ms: int | None
    boot_id: str
    boottime_ms: int


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What a codec makes of a meter's valid answer: a volume, and what the meter reports of itself.

    The volume is doubtful because of every flag but the `harmless` ones, which are among `flags` too.
    """

    volume_ml: int
    flags: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()

    @property
    def is_doubtful(self) -> bool:
        """Whether a fault that the meter reports may have spoilt the volume."""
        return not set(self.flags) <= set(self.harmless)


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What one meter showed at one moment.

    `volume_ml` is the register in millilitres, or None exactly when `quality` is `missing`; `reason` is then the
    code of the error that prevented the reading.
    """

    meter: str
    at: Moment
    quality: Quality
    volume_ml: int | None = None
    reason: str | None = None
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        missing = self.quality is Quality.MISSING
        assert (self.volume_ml is None) == missing, self
        assert (self.reason is not None) == missing, self


def reading_of(meter: str, at: Moment, measurement: Measurement) -> Reading:
    """Make the reading of a valid answer; a fault that may spoil the volume gives it the quality `suspect`."""
    return Reading(
        meter=meter,
        at=at,
        quality=Quality.SUSPECT if measurement.is_doubtful else Quality.OK,
        volume_ml=measurement.volume_ml,
        flags=measurement.flags,
    )


def missing_reading(meter: str, at: Moment, reason: str) -> Reading:
    """Make the reading that says that there is none, and why."""
    return Reading(meter=meter, at=at, quality=Quality.MISSING, reason=reason)
