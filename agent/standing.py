"""How each home stands with the rules at its last reading, worked out beside the running service.

The service's own judge is not asked: what was learned is kept in the store every few hours, and the readings since then
lead from there to the same place. Whether an alert stands is not worked out here: its episode is in the store.
"""

import zoneinfo

import msgspec

from agent.absences import Absences
from agent.detection.village import SILENT_MS
from agent.past import Past, is_readable, rules_of
from agent.settings import Config
from agent.timeline import Timeline, anchors_of
from gateway.store_view import StoreView


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One home at the last reading of its meter that counted.

    `silent_min` is how long it had been without real use, null where the register is too coarse to tell; `limit_h` how
    long it may be, the home's own limit where `limit_learned`. `step_ml` is the step in which the register counts,
    shown or (until then) said by the profile; `unjudged` names the levels that cannot be judged on it.
    """

    silent_min: int | None
    limit_h: int
    limit_learned: bool
    leak_ml_h: int
    step_ml: int
    unjudged: tuple[str, ...]


def standings(config: Config, store: StoreView) -> dict[str, Standing]:
    """Return how the homes stand, by meter; a home of which too little is stored to tell is left out.

    Raises StoreError.
    """
    learned = {meter: kept for meter, kept in store.learned().items() if meter}
    # A home whose kept state cannot be read, or whose kept reading is gone, would look as if its silence began later.
    awaited = {meter: (kept.boot_id, kept.boottime_ms) for meter, kept in learned.items()}
    readings = list(store.since_learned())
    anchors = anchors_of(reading.at for reading in readings)
    past = Past(rules_of(config), Timeline(anchors), zoneinfo.ZoneInfo(config.gateway.timezone), SILENT_MS)
    past.resume_from({meter: kept for meter, kept in learned.items() if is_readable(kept)}, hourly=())
    absences = Absences(store.absences())
    known = set()
    for reading in readings:
        is_kept = awaited.get(reading.meter) == (reading.at.boot_id, reading.at.boottime_ms)
        if is_kept and is_readable(learned[reading.meter]):
            del awaited[reading.meter]
        weighed = past.weigh(reading, absences)
        if weighed.watch is not None and weighed.watch.counts:
            known.add(reading.meter)
    return {meter: _standing(past, meter) for meter in known - awaited.keys()}


def _standing(past: Past, meter: str) -> Standing:
    watch = past.watches[meter]
    unjudged = [level for level, is_so in (("yellow", watch.is_refused), ("red", watch.is_blind)) if is_so]
    return Standing(
        silent_min=None if watch.is_blind else watch.limit.silent_min,
        limit_h=watch.limit.limit_h,
        limit_learned=watch.limit.learned,
        leak_ml_h=watch.real_use.leak_ml_h,
        step_ml=max(watch.register.step, watch.real_use.step_ml),
        unjudged=tuple(unjudged),
    )
