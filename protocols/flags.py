"""What a meter may report of itself beside its total: one vocabulary for all protocols.

A flag either makes the volume doubtful (the reading's quality is then `suspect`, and no rule is decided by it) or the
volume stands (a home is watched on, although the meter's battery is low). What is usual is said here; a profile may
know better for its meter.
"""

import enum
from collections.abc import Mapping
from typing import Final

from protocols.reading import Measurement


class Effect(enum.StrEnum):
    """What a flag means for the volume that comes with it."""

    DOUBTFUL = "doubtful"
    STANDS = "stands"


USUAL_EFFECT: Final[Mapping[str, Effect]] = {
    # The meter may have measured wrongly, or not at all.
    "empty_pipe": Effect.DOUBTFUL,
    "memory_fault": Effect.DOUBTFUL,
    "overload": Effect.DOUBTFUL,
    "reverse_flow": Effect.DOUBTFUL,
    "sensor_fault": Effect.DOUBTFUL,
    "tamper": Effect.DOUBTFUL,
    # What was counted is right.
    "battery_low": Effect.STANDS,
    "burst": Effect.STANDS,
    "leak": Effect.STANDS,
    "power_fault": Effect.STANDS,
    "valve_closed": Effect.STANDS,
    "valve_fault": Effect.STANDS,
}


def check_name(name: str) -> None:
    """Raise ValueError for a word that is no flag."""
    if name not in USUAL_EFFECT:
        raise ValueError(f"flag {name!r} is not one of {', '.join(sorted(USUAL_EFFECT))}")


def measurement(volume_ml: int, effects: Mapping[str, Effect]) -> Measurement:
    """Return the measurement of a volume that came with these flags."""
    return Measurement(
        volume_ml=volume_ml,
        flags=tuple(sorted(effects)),
        harmless=tuple(sorted(flag for flag, effect in effects.items() if effect is Effect.STANDS)),
    )
