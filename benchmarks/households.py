"""A village's readings for benchmarks: people at home, polled every five minutes by a gateway that runs on.

Twenty different routines, each lived by every twentieth home with a register of its own: computing 200 different ones
would only take longer. The same call gives the same readings.
"""

import zoneinfo
from collections.abc import Iterator

from gateway.usage import Routine, Variation, parse_draw
from protocols.reading import ClockTrust, Measurement, Moment, Reading, reading_of

START_MS = 1_790_000_000_000
PERIOD_MS = 300_000
ROUTINES = 20
BOOT_ID = "3b0c2f6e-7a51-4c1f-9d0e-5a2f8c64b917"
# Two people, some 210 L a day: the county's rule (0.1 m3 in 12 h) holds now and then.
DAY = (
    "05:50 12 L",
    "06:30 16 L in 10 min",
    "07:30 50 L in 45 min",
    "11:20 24 L in 30 min",
    "13:00 12 L",
    "17:40 28 L in 40 min",
    "19:00 54 L in 20 min",
    "21:10 12 L",
)


def meter_id(number: int) -> str:
    return f"m-{number:03}"


def cycles(*, meters: int, first: int = 0, count: int) -> Iterator[list[Reading]]:
    """Yield poll cycles `first` to `first + count`: one reading of every meter each."""
    timezone = zoneinfo.ZoneInfo("Asia/Shanghai")
    routines = [
        Routine(
            [parse_draw(text) for text in DAY],
            start_ml=0,
            since_ms=START_MS,
            timezone=timezone,
            variation=Variation(percent=30, minutes=25, seed=str(seed)),
        )
        for seed in range(min(ROUTINES, meters))
    ]
    for cycle in range(first, first + count):
        wall_ms = START_MS + cycle * PERIOD_MS
        used_ml = [routine.volume_ml(wall_ms) for routine in routines]
        yield [
            _reading(number, wall_ms, number * 1_000_000 + used_ml[number % len(used_ml)])
            for number in range(1, meters + 1)
        ]


def _reading(number: int, wall_ms: int, volume_ml: int) -> Reading:
    at_ms = wall_ms + number * 30  # one after the other
    moment = Moment(
        wall_ms=at_ms, trust=ClockTrust.SYNCED, uncertainty_ms=12, boot_id=BOOT_ID, boottime_ms=at_ms - START_MS
    )
    return reading_of(meter_id(number), moment, Measurement(volume_ml=volume_ml))
