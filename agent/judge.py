"""Judges readings: a watch for each meter, one for the village, at most one open episode per subject and kind.

The judge holds the open episodes; what the readings before left behind stands in `agent.past`.
"""

import logging
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from agent.absences import Absences
from agent.alerts import (
    ESCALATED_AT,
    REMIND_ACKNOWLEDGED_MS,
    REMIND_MS,
    STILL_RED,
    Step,
    helped_at,
    is_acknowledged,
    low_usage_signals,
    next_step,
    take,
    was_helped,
    with_said,
)
from agent.detection.village import BUS_FAULT, SILENT_MS, Change
from agent.detection.watch import ENDS, STANDS, Watch
from agent.detection.window import UNSURE
from agent.evidence import Dates, burst_evidence, leak_evidence, low_usage_evidence, register_evidence
from agent.explanations import Explainer, removed
from agent.past import Past, Rule, Weighed
from agent.timeline import Anchor, Timeline
from gateway.store import HourlyValue, Learned
from protocols.absence import Absence
from protocols.contract import AlertBody, AlertState, Kind, Level, Transition, instant, wall_ms
from protocols.reading import Moment, Quality, Reading

__all__ = ["Judge", "Rule", "Verdict"]

log = logging.getLogger(__name__)

REVERSE_FLOW_FLAG: Final = "reverse_flow"  # protocols.flags: what a meter says of itself
_KINDS: Final = {kind.value: kind for kind in Kind}


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a reading amounts to: itself, with the reason codes of what was made of it, and what follows from it."""

    reading: Reading
    steps: tuple[AlertBody, ...] = ()
    ended: tuple[Absence, ...] = ()


class Judge:
    """Turns readings into alert steps."""

    def __init__(
        self,
        rules: Mapping[str, Rule],
        *,
        episodes: Iterable[AlertBody],
        new_id: Callable[[], str],
        absences: Absences | None = None,
        zone: zoneinfo.ZoneInfo | None = None,
        silent_ms: int = SILENT_MS,
    ) -> None:
        """`episodes` are the newest steps of the episodes that are not cleared."""
        self._rules = rules
        self._new_id = new_id
        self._zone = zone or zoneinfo.ZoneInfo("Asia/Shanghai")
        self._silent_ms = silent_ms
        self._explain = Explainer(self._zone)
        self.absences = absences if absences is not None else Absences()
        self._episodes = {_subject(episode): episode for episode in episodes}
        self._told_ms: dict[str, int] = {}  # where on the axis each meter's red alert was last told
        self._too_coarse: set[str] = set()  # meters of which that was said
        self._past = Past(self._rules, Timeline(), self._zone, silent_ms)

    @property
    def meters(self) -> list[str]:
        """The meters that are judged."""
        return list(self._rules)

    # -- before the first reading -----------------------------------------------------------------------------------

    def replay(
        self,
        history: Iterable[Reading],
        anchors: dict[str, Anchor],
        learned: Mapping[str, Learned] | None = None,
        hourly: Iterable[HourlyValue] = (),
    ) -> None:
        """Begin anew from past readings, oldest first; raises no alert: the next reading judges what they mean.

        `learned` is what was kept, `hourly` the values from before `history`, for homes of which nothing was kept.
        Where one of them raises, everything stays as it was.
        """
        past = Past(self._rules, Timeline(anchors), self._zone, self._silent_ms)
        past.resume_from(learned or {}, hourly)
        reds = {meter: red for meter in self._rules if (red := self._red(meter)) is not None}
        # The reading with which a red alert was last told says where that lies on this axis, whatever clocks showed
        # since. Where it is gone, the alert was told before all that is left.
        told_at = {meter: wall_ms(red.at) for meter, red in reds.items()}
        told_ms: dict[str, int] = {}
        # It is the silence in which somebody was helped that is never learned: the one that stood when that was said.
        helped_ms = {meter: self._helped_ms(meter) for meter in self._rules}
        heard_ms = dict.fromkeys(self._rules, 0)
        for reading in history:
            meter = reading.meter
            if any(heard_ms[meter] <= said_ms < reading.at.wall_ms for said_ms in helped_ms.get(meter, ())):
                past.unlearn(meter)
            heard_ms[meter] = reading.at.wall_ms
            weighed = past.weigh(reading, self.absences)
            if meter in told_at and (meter not in told_ms or told_at[meter] == reading.at.wall_ms):
                told_ms[meter] = weighed.time_ms
        past.resume_late()
        for meter in self._rules:
            is_one_silence = meter in reds and was_helped(reds[meter])  # a red alert lasts no longer
            if is_one_silence or any(heard_ms[meter] <= said_ms for said_ms in helped_ms[meter]):
                past.unlearn(meter)
        self._past, self._told_ms = past, told_ms

    def orphans(self, at: Moment) -> list[AlertBody]:
        """Return the steps that end the episodes of what is no longer configured; nobody else would."""
        buses = {rule.bus for rule in self._rules.values()}
        known = {(Kind.SUPPLY_OUTAGE, None), *((Kind.BUS_FAULT, bus) for bus in buses)}
        orphans = [
            (subject, episode)
            for subject, episode in self._episodes.items()
            if episode.meter not in self._rules and subject not in known
        ]
        for subject, _ in orphans:
            del self._episodes[subject]
        return [
            msgspec.structs.replace(
                episode,
                state=AlertState.CLEARED,
                transition=Transition.CLEARED,
                at=instant(at.wall_ms),
                evidence={"reason": "the meter is no longer in the gateway's configuration"},
                text=removed(),
            )
            for _, episode in orphans
        ]

    def wants_replay(self, moment: Moment) -> bool:
        """Tell whether a moment shows that the time axis was guessed and can now be known."""
        return self._past.timeline.is_outdated_by(moment)

    # -- readings ---------------------------------------------------------------------------------------------------

    def feed(self, reading: Reading) -> Verdict:
        """Take a reading; return what it amounts to."""
        ended = list(self._ended_by_use_before(reading))  # else it would excuse this very reading
        weighed = self._past.weigh(reading, self.absences)
        dates = Dates(wall_ms=reading.at.wall_ms, time_ms=weighed.time_ms)
        steps = list(self._village_steps(weighed.changes, dates))
        watch = weighed.watch
        if watch is not None:
            reading = _coded(reading, watch)
            if watch.is_blind or watch.is_refused:
                self._mention_coarse(reading.meter, watch)
            if watch.use and (absence := self._ended_by_use(reading, weighed)):
                ended.append(absence)
            steps += self._low_usage_steps(reading, watch, weighed, dates)
            steps += self._flow_steps(reading, watch, dates)
        else:
            if REVERSE_FLOW_FLAG in reading.flags:
                steps += self._reverse_steps(reading, STANDS, dates)
            if self._wants_reminder(reading.meter, weighed.time_ms):
                steps += self._remind(reading.meter, dates)
        return Verdict(reading=reading, steps=tuple(steps), ended=tuple(ended))

    def _ended_by_use_before(self, reading: Reading) -> Iterator[Absence]:
        """End the absence in which water was used while no clock was synced, now that a reading dates that use."""
        used = self._past.date_use(reading)
        if used is not None:
            absence = self.absences.end_by_use(reading.meter, used[1], after_ms=used[0], is_dated=True)
            if absence is not None:
                yield absence

    def _ended_by_use(self, reading: Reading, weighed: Weighed) -> Absence | None:
        wall_ms = reading.at.wall_ms
        after_ms = wall_ms - (weighed.time_ms - weighed.after_ms)
        return self.absences.end_by_use(reading.meter, wall_ms, after_ms=after_ms, is_dated=weighed.is_dated)

    def _low_usage_steps(self, reading: Reading, watch: Watch, weighed: Weighed, dates: Dates) -> Iterator[AlertBody]:
        signals = low_usage_signals(
            low=watch.low,
            red=watch.red,
            used=watch.use,
            away=watch.excused_until >= 0,
            quiet=weighed.is_dated and self.absences.quiet(reading.meter, dates.wall_ms, weighed.minute_of_day),
            remind=self._wants_reminder(reading.meter, weighed.time_ms),
        )
        for signal in signals:
            step = next_step(Kind.LOW_USAGE, reading.meter, self._level(Kind.LOW_USAGE, reading.meter), signal)
            if step is None:
                continue
            if signal == STILL_RED and not watch.red:
                # Another meter was fitted: its silence is a new one, and the alert still speaks of the one before.
                yield from self._remind(reading.meter, dates)
                continue
            evidence = low_usage_evidence(watch, reading=reading, dates=dates, step=step)
            if step.transition is Transition.ESCALATED and weighed.is_dated:
                evidence[ESCALATED_AT] = instant(dates.wall_ms)
            suspicion = self._past.village.suspicion(reading.meter)
            if suspicion is not None:
                group = self._group_episode(reading.meter, suspicion.kind)
                evidence["suspicion"] = {"kind": suspicion.kind, "since": dates.of(suspicion.since_ms)}
                if group is not None:
                    evidence["suspicion"]["alert"] = group.id
            since = evidence["silent_since" if step.level is Level.RED else "from"]
            yield self._take(step, since=since, dates=dates, evidence=evidence)

    def _flow_steps(self, reading: Reading, watch: Watch, dates: Dates) -> Iterator[AlertBody]:
        flow = watch.flow
        if flow.leak != UNSURE and (step := self._other_step(Kind.LEAK, reading.meter, flow.leak)):
            evidence = leak_evidence(watch, reading=reading)
            yield self._take(step, since=dates.of(flow.flowing_since), dates=dates, evidence=evidence)
        if flow.burst != UNSURE and (step := self._other_step(Kind.BURST, reading.meter, flow.burst)):
            evidence = burst_evidence(watch, reading=reading)
            yield self._take(step, since=instant(dates.wall_ms), dates=dates, evidence=evidence)
        yield from self._reverse_steps(reading, watch.reverse, dates)

    def _reverse_steps(self, reading: Reading, signal: str, dates: Dates) -> Iterator[AlertBody]:
        """The register runs backwards, or the meter says that water does; either way its readings decide nothing."""
        step = self._other_step(Kind.REVERSE_FLOW, reading.meter, signal)
        if step is not None:
            yield self._take(step, since=instant(dates.wall_ms), dates=dates, evidence=register_evidence(reading))

    def _other_step(self, kind: Kind, meter: str, signal: str) -> Step | None:
        return next_step(kind, meter, self._level(kind, meter), signal)

    def _village_steps(self, changes: Iterable[Change], dates: Dates) -> Iterator[AlertBody]:
        for change in changes:
            kind = _KINDS[change.kind]
            subject = change.subject
            meter = None if kind in {Kind.SUPPLY_OUTAGE, Kind.BUS_FAULT} else subject
            step = next_step(kind, meter, self._level(kind, subject), STANDS if change.stands else ENDS)
            if step is None:
                continue
            evidence: dict[str, Any] = {**change.figures, "meters": list(change.meters)}
            if kind is Kind.BUS_FAULT:
                evidence["bus"] = subject
            elif kind is Kind.METER_SILENT and subject is not None:
                suspicion = self._past.village.suspicion(subject)
                if suspicion is not None and step.transition is Transition.OPENED:
                    evidence["suspicion"] = {"kind": suspicion.kind, "since": dates.of(suspicion.since_ms)}
                evidence["silent_h"] = change.figures["silent_min"] // 60
            yield self._take(step, since=dates.of(change.since_ms), dates=dates, evidence=evidence, subject=subject)

    def _take(
        self, step: Step, *, since: str, dates: Dates, evidence: dict[str, Any], subject: str | None = None
    ) -> AlertBody:
        key = step.kind, subject if subject is not None else step.meter
        body = take(
            step,
            self._episodes.get(key),
            since=since,
            wall_ms=dates.wall_ms,
            evidence=evidence,
            new_id=self._new_id,
            words=self._explain,
        )
        if body.state is AlertState.CLEARED:
            del self._episodes[key]
        else:
            self._episodes[key] = body
            if body.kind is Kind.LOW_USAGE and body.meter is not None:
                self._told_ms[body.meter] = dates.time_ms
        return body

    def _level(self, kind: Kind, subject: str | None) -> Level | None:
        episode = self._episodes.get((kind, subject))
        return None if episode is None else episode.level

    def _red(self, meter: str) -> AlertBody | None:
        """Return the red alert that stands for a home."""
        episode = self._episodes.get((Kind.LOW_USAGE, meter))
        return episode if episode is not None and episode.level is Level.RED else None

    def _group_episode(self, meter: str, kind: str) -> AlertBody | None:
        subject = self._rules[meter].bus if kind == BUS_FAULT else None
        return self._episodes.get((_KINDS[kind], subject))

    def _mention_coarse(self, meter: str, watch: Watch) -> None:
        """Log once that a rule cannot be judged on this register, and what to do."""
        if meter in self._too_coarse:
            return
        self._too_coarse.add(meter)
        log.error(
            "register_too_coarse meter=%s step_l=%g: %s cannot be judged on it. Fit a meter that counts litres",
            meter,
            max(watch.register.step, watch.register.finest, watch.real_use.step_ml) / 1000,
            "the threshold of the county's rule" if watch.is_refused else "red",
        )

    # -- reminders, and what the county says -------------------------------------------------------------------------

    def _wants_reminder(self, meter: str, time_ms: int) -> bool:
        red = self._red(meter)
        if red is None:
            return False
        told_ms = self._told_ms.setdefault(meter, time_ms)  # no reading is left: nobody knows, so the hours begin anew
        return time_ms - told_ms >= (REMIND_ACKNOWLEDGED_MS if is_acknowledged(red) else REMIND_MS)

    def _remind(self, meter: str, dates: Dates) -> Iterator[AlertBody]:
        """Remind of a red alert although the meter gives no value: the figures are those of its last step."""
        episode = self._episodes[Kind.LOW_USAGE, meter]
        step = next_step(Kind.LOW_USAGE, meter, episode.level, STILL_RED)
        if step is not None:
            yield self._take(step, since=episode.since, dates=dates, evidence=episode.evidence)

    def noted(self, alert: str, county: Mapping[str, Any], *, command_id: str | None = None) -> AlertBody | None:
        """Return an open episode with what the county says of it, None where no such one is open. Changes nothing.

        `command_id` tells when the county said so.
        """
        for episode in self._episodes.values():
            if episode.id == alert:
                return with_said(episode, county, command_id=command_id)
        return None

    def note(self, episode: AlertBody) -> None:
        """Go on with an open episode as `noted` returned it."""
        subject = _subject(episode)
        before, self._episodes[subject] = self._episodes[subject], episode
        if helped_at(episode) - helped_at(before):  # said just now, so it is the silence that stands
            self._past.unlearn(episode.meter)

    def _helped_ms(self, meter: str) -> list[int]:
        """Return when it was said of a home's open alert that somebody was helped (wall clock)."""
        episode = self._episodes.get((Kind.LOW_USAGE, meter))
        return [wall_ms(at) for at in helped_at(episode) if at is not None] if episode is not None else []

    # -- what is kept -------------------------------------------------------------------------------------------------

    def learned(self, meters: Iterable[str]) -> Iterator[Learned]:
        """Yield what was learned of these meters, with the readings after which it stood so.

        Of a meter for which no reading stands now there is nothing: it is silent, or its newest reading waits.
        """
        return (kept for meter in meters if (kept := self._past.learned(meter)) is not None)


def _subject(episode: AlertBody) -> tuple[Kind, str | None]:
    """Return what an episode is about: a meter, a bus, or None for the whole gateway."""
    return episode.kind, episode.meter or episode.evidence.get("bus")


def _coded(reading: Reading, watch: Watch) -> Reading:
    """Return the reading with what was made of it; what is held back is suspect until the next one confirms it."""
    if not watch.code or watch.code in reading.flags:
        return reading
    quality = reading.quality if watch.counts else Quality.SUSPECT
    return msgspec.structs.replace(reading, quality=quality, flags=(*reading.flags, watch.code))
