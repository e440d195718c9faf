"""What past readings left behind: the time axis, the watch of every meter, and that of the village.

It is rebuilt from stored readings at every start. What took weeks to learn (`Learned`) is kept, and taken up again at
the reading after which it was kept; so a restart changes no decision.
"""

import datetime
import logging
import zoneinfo
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from agent.absences import Absences
from agent.detection.limit import COLD_H, COST_H
from agent.detection.register import MEANING
from agent.detection.village import Change, VillageWatch
from agent.detection.watch import BLIND_MS, HOUR_MS, Watch
from agent.settings import Config
from agent.timeline import Timeline
from gateway.store import HourlyValue, Learned
from protocols.reading import ClockTrust, Moment, Quality, Reading

log = logging.getLogger(__name__)

VILLAGE: Final = ""  # whose name stands in for a meter's where the village's own habits are kept


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """How one meter is judged: the county's rule, the home's own limit, and where the meter hangs."""

    window_ms: int
    threshold_ml: int
    step_ml: int = 1_000
    cost_h: int = COST_H
    cold_h: int = COLD_H
    bus: str = "bus"
    poll_every_ms: int = 300_000


def rules_of(config: Config) -> dict[str, Rule]:
    """Return how each meter of a configuration is judged."""
    return {
        meter.id: Rule(
            window_ms=meter.detection.window_ms,
            threshold_ml=meter.detection.threshold_ml,
            step_ml=meter.profile.head.step_ml,
            cost_h=meter.detection.cost_h,
            cold_h=meter.detection.cold_h,
            bus=meter.bus,
            poll_every_ms=round(meter.poll_every_s * 1000),
        )
        for meter in config.meters
    }


class Weighed(msgspec.Struct, frozen=True):
    """Where a reading lies, what its meter's watch made of it (None: nothing to judge), what it says of the village.

    What ran by it ran after `after_ms`: after the reading before it that counted, or, where a gap hides when, as if
    within the last 2 h.
    """

    time_ms: int
    after_ms: int
    minute_of_day: int
    is_dated: bool
    watch: Watch | None
    changes: list[Change]


class Past:
    """What past readings left behind: the time axis, the watch of every meter, and that of the village."""

    def __init__(self, rules: Mapping[str, Rule], timeline: Timeline, zone: zoneinfo.ZoneInfo, silent_ms: int) -> None:
        self.timeline = timeline
        self._zone = zone
        self._rules = rules
        self.watches = {meter: _new_watch(rule) for meter, rule in rules.items()}
        buses: dict[str, list[str]] = {}
        for meter, rule in rules.items():
            buses.setdefault(rule.bus, []).append(meter)
        poll_every_ms = {meter: rule.poll_every_ms for meter, rule in rules.items()}
        self.village = VillageWatch(buses=buses, poll_every_ms=poll_every_ms, silent_ms=silent_ms)
        self._newest: dict[str, tuple[Moment, int]] = {}  # the last reading that counted, and where it lies
        self._undated_use: dict[str, tuple[int, int]] = {}  # newest use by no synced clock: it ran between these two
        self._resume: dict[str, Learned] = {}
        self._replayed = False

    def weigh(self, reading: Reading, absences: Absences) -> Weighed:
        """Take a reading. One that is missing says nothing; one that the meter itself calls faulty proves nothing."""
        time_ms = self.timeline.place(reading.at)
        is_dated = reading.at.trust is ClockTrust.SYNCED
        local = datetime.datetime.fromtimestamp((reading.at.wall_ms if is_dated else time_ms) / 1000, self._zone)
        watch = self.watches.get(reading.meter)
        if watch is None:
            return Weighed(time_ms, time_ms, 0, is_dated, None, [])
        if is_dated:
            absences.heed(reading.at.wall_ms)
            self._undated_use.pop(reading.meter, None)
        after_ms = max(watch.read_at, time_ms - BLIND_MS)
        minute_of_day = local.hour * 60 + local.minute
        if not _is_plain(reading) or reading.volume_ml is None:
            changes = self.village.feed(reading.meter, time_ms, local.hour, used_ml=None)
            return Weighed(time_ms, after_ms, minute_of_day, is_dated, None, changes)
        until_ms = absences.excuse(reading.meter, reading.at.wall_ms) if is_dated else None
        if until_ms is not None:
            watch.excuse(time_ms + until_ms - reading.at.wall_ms)
        elif watch.excused_until > time_ms:
            watch.excuse(time_ms)  # it was ended before its time
        try:
            changes = self._judge(watch, reading, time_ms, local.hour, reading.volume_ml)
        except Exception:
            # A bug in judging one home must not stop the others, nor the service from starting again.
            log.exception("judging_failed meter=%s: this home is learned anew; please report it", reading.meter)
            self.watches[reading.meter] = _new_watch(self._rules[reading.meter])
            return Weighed(time_ms, after_ms, minute_of_day, is_dated, None, [])
        if watch.use and not is_dated:
            self._undated_use[reading.meter] = after_ms, time_ms
        return Weighed(time_ms, after_ms, minute_of_day, is_dated, watch, changes)

    def date_use(self, reading: Reading) -> tuple[int, int] | None:
        """Return between which times (wall clock) water was used before this reading and by no synced clock; or None.

        It is the newest such use, and this reading, not weighed yet, is the first since that a synced clock dates. The
        axis never overestimates what lies between them: it ran then, or earlier where no clock tells of its boot.
        """
        used = self._undated_use.get(reading.meter)
        if used is None or reading.at.trust is not ClockTrust.SYNCED:
            return None
        ahead_ms = reading.at.wall_ms - self.timeline.place(reading.at)
        return used[0] + ahead_ms, used[1] + ahead_ms

    def _judge(self, watch: Watch, reading: Reading, time_ms: int, hour: int, volume_ml: int) -> list[Change]:
        watch.feed(time_ms, hour, volume_ml)
        if not watch.counts:
            return []
        meter, leak_ml_h = reading.meter, watch.real_use.leak_ml_h
        changes = self.village.feed(meter, time_ms, hour, used_ml=watch.used, leak_ml_h=leak_ml_h)
        if watch.read_at == time_ms:  # else this reading waits, and an earlier one was judged
            self._newest[meter] = self._newest[VILLAGE] = reading.at, time_ms
            if meter in self._resume or VILLAGE in self._resume:
                self._resume_at(reading, time_ms, hour)
        return changes

    # -- what took weeks to learn --------------------------------------------------------------------------------------

    def learned(self, meter: str) -> Learned | None:
        """Return what is to be kept of a meter (or of the village); None where no reading stands for it now."""
        newest = self._newest.get(meter)
        if newest is None or meter in self._resume:
            return None
        moment, position_ms = newest
        if meter != VILLAGE and self.watches[meter].read_at != position_ms:
            return None
        state = self.village.dump() if meter == VILLAGE else self.watches[meter].dump()
        return Learned(
            meter=meter, boot_id=moment.boot_id, boottime_ms=moment.boottime_ms, position_ms=position_ms, state=state
        )

    def resume_from(self, learned: Mapping[str, Learned], hourly: Iterable[HourlyValue]) -> None:
        """Take up what was learned, each part after the reading after which it was kept.

        A home of which nothing was kept, or by a version that wrote it otherwise, is learned from its hourly values;
        they lie before the readings that come, on the same axis.
        """
        self._resume = {meter: kept for meter, kept in learned.items() if self._can_resume(meter, kept)}
        self.village.learns = VILLAGE not in self._resume
        unknown = self.watches.keys() - self._resume.keys()
        if not unknown:
            return
        for value in hourly:
            if value.meter in unknown:
                time_ms = (value.hour + 1) * HOUR_MS - 1
                self.watches[value.meter].feed(time_ms, self._hour(time_ms), value.volume_ml)

    def _can_resume(self, meter: str, kept: Learned) -> bool:
        if meter == VILLAGE:
            return True  # if it cannot be read, the village is learned anew: a week
        if meter not in self.watches:
            return False
        if not is_readable(kept):
            log.warning("learned_not_read meter=%s: of another version; learned anew from hourly values", meter)
            return False
        return True

    def _resume_at(self, reading: Reading, time_ms: int, hour: int) -> None:
        for meter in (reading.meter, VILLAGE):
            kept = self._resume.get(meter)
            if kept is None:
                continue
            if (kept.boot_id, kept.boottime_ms) == (reading.at.boot_id, reading.at.boottime_ms):
                self._adopt(meter, time_ms)
            elif self._replayed:
                self._resume_out_of_step(meter, time_ms, hour)

    def resume_late(self) -> None:
        """Take up what is left after all readings: those that it belongs to are gone.

        A meter that gave none for longer than the history reaches takes it up with its next reading.
        """
        self._replayed = True
        for meter in list(self._resume):
            if meter in self._newest:
                time_ms = self._newest[meter][1]
                self._resume_out_of_step(meter, time_ms, self._hour(time_ms))

    def _resume_out_of_step(self, meter: str, time_ms: int, hour: int) -> None:
        self._adopt(meter, time_ms)
        if meter != VILLAGE:
            log.warning("learned_out_of_step meter=%s: no reading from then; its present silence begins anew", meter)
            self.watches[meter].begin_anew(time_ms, hour)

    def _adopt(self, meter: str, time_ms: int) -> None:
        kept = self._resume.pop(meter)
        if meter != VILLAGE:
            self.watches[meter].adopt(kept.state, time_ms)
            return
        self.village.learns = True
        try:
            self.village.load(kept.state)
        except ValueError as error:
            log.warning("learned_not_read village: %s; it is learned anew from here", error)

    def _hour(self, time_ms: int) -> int:
        return datetime.datetime.fromtimestamp(time_ms / 1000, self._zone).hour

    def unlearn(self, meter: str | None) -> None:
        """Never learn a home's present silence: somebody needed help."""
        watch = self.watches.get(meter or "")
        if watch is not None:
            watch.limit.skip()


def _new_watch(rule: Rule) -> Watch:
    return Watch(
        window_ms=rule.window_ms,
        threshold_ml=rule.threshold_ml,
        step_ml=rule.step_ml,
        cost_h=rule.cost_h,
        cold_h=rule.cold_h,
    )


def is_readable(kept: Learned) -> bool:
    """Tell whether what was learned of a home is of this version; just after an upgrade it may be of an earlier one."""
    try:
        Watch(window_ms=1, threshold_ml=1).adopt(kept.state, 0)
    except ValueError:
        return False
    return True


def _is_plain(reading: Reading) -> bool:
    """Tell whether a reading may be judged. One that bears a code of ours was, and is again when it is replayed."""
    return reading.quality is Quality.OK or not MEANING.keys().isdisjoint(reading.flags)
