"""Real faults of real registers raise nothing: the alerts are those of the same homes without the faults."""

import csv
import datetime
import gzip
import zoneinfo
from pathlib import Path

import pytest

from agent.judge import Judge, Rule
from protocols.contract import Kind
from protocols.reading import ClockTrust, Measurement, Moment, reading_of

DATA = Path(__file__).parents[3] / "shared" / "data" / "households.csv.gz"
ZONE = zoneinfo.ZoneInfo("Europe/Madrid")
RULE = Rule(window_ms=12 * 3_600_000, threshold_ml=100_000, poll_every_ms=3_600_000)
HOUR_MS = 3_600_000


def recorded(household):
    """The readings as they were recorded: (ms since 1970, litres); the doubled hour in October lies after itself."""
    readings, before = [], 0
    with gzip.open(DATA, "rt") as lines:
        for row in csv.DictReader(lines):
            if row["household"] == household:
                local = datetime.datetime.fromisoformat(row["timestamp_local"]).replace(tzinfo=ZONE)
                at_ms = round(local.timestamp() * 1000)
                if at_ms < before:
                    at_ms = max(before, round(local.replace(fold=1).timestamp() * 1000))
                readings.append((at_ms, int(row["litres_cum"])))
                before = at_ms
    return readings


def without_faults(readings):
    """Return what a register showed that never falls, and shows nothing that it does not pass again later."""
    ceiling, lowest = [], None
    for _, litres in reversed(readings):
        lowest = litres if lowest is None else min(lowest, max(litres, lowest - 2_000))
        ceiling.append(lowest)
    ceiling.reverse()
    sound, top = [], None
    for (at_ms, litres), most in zip(readings, ceiling, strict=True):
        if (top is None or litres >= top) and litres <= most + 2_000:
            top = litres
            sound.append((at_ms, litres))
        elif top is not None and top - 10 <= litres < top:
            sound.append((at_ms, top))
    return sound


def alerts(readings):
    numbers = iter(range(10**9))
    judge = Judge({"m-1": RULE}, episodes=[], new_id=lambda: f"01ARZ3NDEKTSV4RRFF{next(numbers):08d}", zone=ZONE)
    steps, codes = [], set()
    for at_ms, litres in readings:
        at = Moment(
            wall_ms=at_ms,
            trust=ClockTrust.SYNCED,
            uncertainty_ms=5,
            boot_id="boot-1",
            boottime_ms=at_ms - 1_456_000_000_000,
        )
        verdict = judge.feed(reading_of("m-1", at, Measurement(volume_ml=litres * 1000)))
        codes |= set(verdict.reading.flags)
        steps += verdict.steps
    return [step for step in steps if step.kind is not Kind.METER_SILENT], codes


@pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not beside this checkout")
@pytest.mark.parametrize("household", ["D009", "D019", "D051"])
def test_no_alert_comes_from_a_fault_of_the_register(household):
    readings = recorded(household)
    sound = without_faults(readings)
    with_faults, codes = alerts(readings)
    without, _ = alerts(sound)
    assert sound != readings
    assert codes - {"returned"} <= {"jitter", "stale_copy", "held", "second_counter"}
    assert not {step.kind for step in with_faults} & {Kind.BURST, Kind.REVERSE_FLOW}
    # Each has its counterpart without the faults, within an hour; at most one short episode is not seen with them.
    unmatched = list(without)
    for step in with_faults:
        same = next(
            other
            for other in unmatched
            if (other.kind, other.transition, other.level) == (step.kind, step.transition, step.level)
            and abs(_at(other) - _at(step)) <= HOUR_MS
        )
        unmatched.remove(same)
    assert len(unmatched) <= 2
    assert len(with_faults) > 100


def _at(step):
    return datetime.datetime.fromisoformat(step.at).timestamp() * 1000
