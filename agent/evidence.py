"""The figures that an alert carries, so that the county can check the decision without us."""

from typing import Any

import msgspec

from agent.alerts import Step
from agent.detection.limit import EARLY_MIN
from agent.detection.watch import HOUR_MS, MINUTE_MS, Watch
from protocols.contract import Level, Transition, instant
from protocols.reading import Reading


class Dates(msgspec.Struct, frozen=True, kw_only=True):
    """What the wall clock says at a reading's place on the time axis."""

    wall_ms: int
    time_ms: int

    def of(self, position_ms: int) -> str:
        """Return when another place was, by the same clock."""
        return instant(self.wall_ms - (self.time_ms - position_ms))


def low_usage_evidence(watch: Watch, *, reading: Reading, dates: Dates, step: Step) -> dict[str, Any]:
    """Return what the county's rule saw, between which readings, and the home's silence beside its own limit."""
    window = watch.low_usage.window
    hours = window.length / HOUR_MS
    least_ml, most_ml = window.usage()
    start = window.start()
    last_use = window.last_use()
    register_from_ml = None
    # Another register in between, and the difference would be one that no meter ever showed.
    if start is not None and start[0] >= watch.joined_at and most_ml is not None:
        register_from_ml = watch.register.top - most_ml
    evidence: dict[str, Any] = {
        "window_h": int(hours) if hours.is_integer() else hours,
        "threshold_ml": watch.low_usage.threshold,
        "usage_min_ml": least_ml,
        "usage_max_ml": most_ml,
        "from": dates.of(start[0] if start else dates.time_ms - window.length),
        "to": instant(dates.wall_ms),
        "register_from_ml": register_from_ml,
        "register_to_ml": reading.volume_ml,
        "last_use_after": dates.of(last_use[0]) if last_use else None,
        "last_use_before": dates.of(last_use[1]) if last_use else None,
        "reason": watch.red if step.level is Level.RED and step.transition is not Transition.CLEARED else step.signal,
        **_silence(watch, dates),
    }
    return evidence


def _silence(watch: Watch, dates: Dates) -> dict[str, Any]:
    limit = watch.limit
    silent_since_ms = dates.time_ms - limit.silent_min * MINUTE_MS
    silence: dict[str, Any] = {
        "silent_since": dates.of(silent_since_ms),
        "silent_h": (limit.silent_min + EARLY_MIN) // 60,  # a reading counts for its hour though it came a little early
        "limit_h": limit.limit_h,
        "limit_learned": limit.learned,
    }
    usual_h = limit.usual_h(limit.began_hour)
    if usual_h:
        silence["usual_by"] = dates.of(silent_since_ms + usual_h * HOUR_MS)
    if watch.is_blind:
        silence["unjudged"] = "red"
    if watch.real_use.leak_ml_h:
        silence["leak_ml_h"] = watch.real_use.leak_ml_h
    return silence


def leak_evidence(watch: Watch, *, reading: Reading) -> dict[str, Any]:
    """Return how much leaks: the flow of the quiet hours of the last day."""
    return {"leak_ml_h": watch.real_use.leak_ml_h, "register_to_ml": reading.volume_ml}


def burst_evidence(watch: Watch, *, reading: Reading) -> dict[str, Any]:
    """Return how much runs."""
    return {
        "hour_ml": watch.real_use.hour_ml,
        "day_ml": watch.real_use.day_ml,
        "register_to_ml": reading.volume_ml,
    }


def register_evidence(reading: Reading) -> dict[str, Any]:
    """Return what the register shows."""
    return {"register_to_ml": reading.volume_ml, "flags": list(reading.flags)}
