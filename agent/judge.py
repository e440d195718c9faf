"""Judges readings: one rule per meter, one time axis for the gateway, at most one open episode per meter and kind."""

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from agent.alerts import low_usage_step
from agent.detection.window import LowUsage
from agent.timeline import Anchor, Timeline
from protocols.contract import AlertBody, AlertState, Kind, instant
from protocols.reading import Moment, Quality, Reading

# A direct-reading register whose last wheel stands between two digits wavers by one step, at most 10 L on village
# meters; real households show -1 L and stale copies. Further back means another register.
JITTER_ML: Final = 10_000


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """The county's rule for one meter."""

    window_ms: int
    threshold_ml: int


class Judge:
    """Turns readings into alert steps. Its state follows from the readings alone, so it is rebuilt, not stored."""

    def __init__(self, rules: dict[str, Rule], *, episodes: Iterable[AlertBody], new_id: Callable[[], str]) -> None:
        """`episodes` are the newest steps of the episodes that are not cleared."""
        self._rules = rules
        self._new_id = new_id
        self._episodes: dict[tuple[str | None, Kind], AlertBody] = {
            (episode.meter, episode.kind): episode for episode in episodes
        }
        self._past = _Past(rules, Timeline())

    def replay(self, history: Iterable[Reading], anchors: dict[str, Anchor]) -> None:
        """Begin anew from past readings, oldest first; raises no alert: the next reading judges what they mean.

        Where `history` raises, everything stays as it was.
        """
        past = _Past(self._rules, Timeline(anchors))
        for reading in history:
            past.weigh(reading)
        self._past = past

    def orphans(self, at: Moment) -> list[AlertBody]:
        """Return the steps that end the episodes of meters which are no longer configured; nobody else would."""
        orphans = [episode for (meter, _), episode in self._episodes.items() if meter not in self._rules]
        for episode in orphans:
            del self._episodes[episode.meter, episode.kind]
        return [
            msgspec.structs.replace(
                episode,
                state=AlertState.CLEARED,
                at=instant(at.wall_ms),
                evidence={"reason": "the meter is no longer in the gateway's configuration"},
            )
            for episode in orphans
        ]

    def wants_replay(self, moment: Moment) -> bool:
        """Tell whether a moment shows that the time axis was guessed and can now be known."""
        return self._past.timeline.is_outdated_by(moment)

    def feed(self, reading: Reading) -> list[AlertBody]:
        """Take a reading; return the alert steps that it leads to."""
        time_ms, verdict = self._past.weigh(reading)
        if verdict is None:
            return []
        rule = self._past.low_usage[reading.meter]
        key = reading.meter, Kind.LOW_USAGE
        step = low_usage_step(
            self._episodes.get(key), verdict, rule=rule, time_ms=time_ms, reading=reading, new_id=self._new_id
        )
        if step is None:
            return []
        if step.state is AlertState.CLEARED:
            del self._episodes[key]
        else:
            self._episodes[key] = step
        return [step]


class _Past:
    """What past readings left behind: the time axis, and the window of every meter."""

    def __init__(self, rules: dict[str, Rule], timeline: Timeline) -> None:
        self.timeline = timeline
        self.low_usage = {
            meter: LowUsage(rule.window_ms, rule.threshold_ml, JITTER_ML) for meter, rule in rules.items()
        }

    def weigh(self, reading: Reading) -> tuple[int, str | None]:
        """Return where the reading lies in time and what the rule says; None where there is nothing to judge.

        A missing reading says nothing, and one that the meter itself calls faulty proves nothing.
        """
        time_ms = self.timeline.place(reading.at)
        rule = self.low_usage.get(reading.meter)
        if rule is None or reading.quality is not Quality.OK or reading.volume_ml is None:
            return time_ms, None
        return time_ms, rule.feed(time_ms, reading.volume_ml)
