"""The lifecycle of an alert, as one table; whatever raises or ends an alert does so here.

1. An episode begins with `open` and ends with `cleared`; both carry the same id. One alert per episode, not per poll.
2. A verdict that the table does not name for a state changes nothing: what is unsure waits.
3. Every step carries the figures that led to it, so that the county can check it without us.
"""

from collections.abc import Callable
from typing import Any, Final

from agent.detection.window import ENOUGH, LOW, LowUsage
from protocols.contract import AlertBody, AlertState, Kind, Level, instant
from protocols.reading import Reading

# state of the episode (None: there is none), verdict of the rule -> the step that follows
LOW_USAGE_STEPS: Final[dict[tuple[AlertState | None, str], AlertState]] = {
    (None, LOW): AlertState.OPEN,
    (AlertState.OPEN, ENOUGH): AlertState.CLEARED,
}


def low_usage_step(
    episode: AlertBody | None,
    verdict: str,
    *,
    rule: LowUsage,
    time_ms: int,
    reading: Reading,
    new_id: Callable[[], str],
) -> AlertBody | None:
    """Return the step that a verdict on a reading leads to, None where nothing changes.

    `episode` is the meter's newest step if it is not cleared, `time_ms` where the reading lies on the rule's time axis.
    """
    state = LOW_USAGE_STEPS.get((episode.state if episode else None, verdict))
    if state is None:
        return None
    evidence = _evidence(rule, time_ms=time_ms, reading=reading)
    return AlertBody(
        id=episode.id if episode else new_id(),
        meter=reading.meter,
        kind=Kind.LOW_USAGE,
        state=state,
        level=Level.YELLOW,
        since=episode.since if episode else evidence["from"],
        at=instant(reading.at.wall_ms),
        historical=False,
        evidence=evidence,
    )


def _evidence(rule: LowUsage, *, time_ms: int, reading: Reading) -> dict[str, Any]:
    """Return what the rule saw: the interval of the usage, between which readings, and when water last ran."""
    hours = rule.window.length / 3_600_000
    hours = int(hours) if hours.is_integer() else hours
    least_ml, most_ml = rule.window.usage()
    start = rule.window.start()
    last_use = rule.window.last_use()

    def dated(moment_ms: int | None) -> str | None:
        return None if moment_ms is None else instant(reading.at.wall_ms - (time_ms - moment_ms))

    return {
        "window_h": hours,
        "threshold_ml": rule.threshold,
        "usage_min_ml": least_ml,
        "usage_max_ml": most_ml,
        "from": dated(start[0] if start else time_ms - rule.window.length),
        "to": instant(reading.at.wall_ms),
        "register_from_ml": start[1] if start else None,
        "register_to_ml": reading.volume_ml,
        "last_use_after": dated(last_use[0] if last_use else None),
        "last_use_before": dated(last_use[1] if last_use else None),
    }
