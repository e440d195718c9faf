"""One home under one rule set: the gateway's watch and alert tables, fed with the past.

What is counted, and how (the protocol of docs/decisions/0004):

    learning   ──────▶│ test ────────────────────────────────────────────▶
    real use   |  |  ||  |      |                                  |   |
    silence              ├──6 h─┤├──────────── 60 h ──────────────┤
                          at home   an absence: no time at home, and its alerts are told apart

Time is counted from one reading to the next; a gap in the readings counts as one usual interval.
"""

from array import array
from typing import Final

import msgspec

from agent.alerts import low_usage_signals, next_step
from agent.backtest.homes import Home
from agent.backtest.rules import RuleSet
from agent.detection.limit import LONGEST_H
from agent.detection.watch import DAY_MS, HOUR_MS, Watch
from agent.detection.window import UNSURE
from protocols.contract import Kind, Level, Transition

ABSENCE_MS: Final = LONGEST_H * HOUR_MS
NO_LEVEL: Final = 0
LEVEL_NUMBER: Final = {None: NO_LEVEL, Level.YELLOW: 1, Level.RED: 2}
FLOW_KINDS: Final = (Kind.LEAK, Kind.BURST, Kind.REVERSE_FLOW)


class Episode(msgspec.Struct, kw_only=True):
    """One alert from its beginning to its end; times in ms since 1970, None where it has not come to that.

    `red` says why it became red, `silent_h` and `limit_h` are the figures then; `absence` that nobody was at home.
    """

    kind: str
    level: str
    opened_ms: int
    red_ms: int | None = None
    cleared_ms: int | None = None
    red: str | None = None
    silent_h: float | None = None
    limit_h: int | None = None
    leak_ml_h: int | None = None
    absence: bool = False


class Alarm:
    """A watch and the levels that its alerts have: what the gateway knows of one meter."""

    def __init__(self, rule: RuleSet) -> None:
        self.watch: Watch = rule.watch()
        self.level: Level | None = None
        self.levels: list[Level | None] = [None] * len(FLOW_KINDS)
        self._reds = rule.red
        self._settled: tuple[object, ...] = ()
        self._settled_flow: tuple[object, ...] = ()

    def feed(self, time_ms: int, hour: int, value_ml: int) -> list[tuple[Kind, Transition]]:
        """Take a reading; return the transitions that the gateway would send, in order."""
        watch = self.watch
        watch.feed(time_ms, hour, value_ml)
        steps: list[tuple[Kind, Transition]] = []
        red = watch.red if self._reds else ""
        shown = (watch.low, red, watch.use, self.level)
        if shown != self._settled:
            signals = low_usage_signals(low=watch.low, red=red, used=watch.use, away=False, quiet=False, remind=False)
            for signal in signals:
                step = next_step(Kind.LOW_USAGE, None, self.level, signal)
                if step is not None:
                    self.level = None if step.transition is Transition.CLEARED else step.level
                    steps.append((Kind.LOW_USAGE, step.transition))
            # What led to nothing leads to nothing again as long as nothing changes.
            self._settled = () if steps else shown
        flow = (watch.flow.leak, watch.flow.burst, watch.reverse)
        if flow != self._settled_flow:
            self._settled_flow = flow
            steps += self._flow(flow)
        return steps

    def _flow(self, signals: tuple[str, str, str]) -> list[tuple[Kind, Transition]]:
        steps = []
        for i, (kind, signal) in enumerate(zip(FLOW_KINDS, signals, strict=True)):
            step = None if signal == UNSURE else next_step(kind, None, self.levels[i], signal)
            if step is not None:
                self.levels[i] = None if step.transition is Transition.CLEARED else step.level
                steps.append((kind, step.transition))
        return steps


class Trace:
    """What a picture shows, one entry per reading."""

    def __init__(self) -> None:
        self.silent_min = array("i")
        self.limit_h = bytearray()
        self.began_hour = bytearray()
        self.level = bytearray()
        self.counts = bytearray()
        self.total_ml = array("q")

    def add(self, alarm: Alarm) -> None:
        """Note what stands after a reading."""
        watch = alarm.watch
        self.silent_min.append(watch.limit.silent_min)
        self.limit_h.append(watch.limit.limit_h)
        self.began_hour.append(watch.limit.began_hour)
        self.level.append(LEVEL_NUMBER[alarm.level])
        self.counts.append(watch.counts)
        self.total_ml.append(watch.register.total)


class Tally:
    """Time at home and away by level, told apart when a silence ends: only then it is known what it was."""

    def __init__(self, *, interval_ms: int, since_ms: int) -> None:
        self._interval_ms = interval_ms
        self._since_ms = since_ms
        self.home_ms = [0, 0, 0]
        self.away_ms = [0, 0, 0]
        self.absences: list[tuple[int, int]] = []
        self._silent_ms = [0, 0, 0]
        self._read_ms = self._used_ms = -1

    def read(self, time_ms: int, *, level: Level | None, use: bool) -> None:
        """Take a reading that counted; `level` stood since the one before it."""
        if self._read_ms < 0:
            self._read_ms = self._used_ms = time_ms
            return
        gap_ms = time_ms - self._read_ms
        if time_ms > self._since_ms:
            self._silent_ms[LEVEL_NUMBER[level]] += gap_ms if gap_ms <= 2 * self._interval_ms else self._interval_ms
        self._read_ms = time_ms
        if use:
            self._settle(time_ms - self._interval_ms)
            self._used_ms = time_ms

    def close(self) -> None:
        """End with the last reading; a silence that still runs is what it has been so far."""
        self._settle(self._read_ms)

    def _settle(self, still_ms: int) -> None:
        """Book a silence that lasted until `still_ms`."""
        away = still_ms - self._used_ms > ABSENCE_MS
        book = self.away_ms if away else self.home_ms
        for i, ms in enumerate(self._silent_ms):
            book[i] += ms
        self._silent_ms = [0, 0, 0]
        if away:
            self.absences.append((self._used_ms, self._read_ms))


class Replay:
    """The past of one home under one rule set."""

    def __init__(self, home: Home, rule: RuleSet, *, since_ms: int, interval_ms: int, traced: bool) -> None:
        self.rule = rule
        self.alarm = Alarm(rule)
        self.episodes: list[Episode] = []
        self.tally = Tally(interval_ms=interval_ms, since_ms=since_ms)
        self.trace = Trace() if traced else None
        self.plain_ml = home.values[0] if len(home) else 0  # the register as last read without a doubt
        self._open: dict[Kind, Episode] = {}

    def feed(self, time_ms: int, hour: int, value_ml: int) -> None:
        """Take a reading."""
        before = self.alarm.level
        steps = self.alarm.feed(time_ms, hour, value_ml)
        watch = self.alarm.watch
        if watch.counts:
            if not watch.code:
                self.plain_ml = value_ml
            self.tally.read(time_ms, level=before, use=watch.use)
        for kind, transition in steps:
            self._note(kind, transition, time_ms)
        if self.trace is not None:
            self.trace.add(self.alarm)

    def close(self) -> None:
        """End with the last reading: tell what happened in absences."""
        self.tally.close()
        for episode in self.episodes:
            at_ms = episode.red_ms or episode.opened_ms
            episode.absence = any(begin < at_ms <= end for begin, end in self.tally.absences)

    def _note(self, kind: Kind, transition: Transition, time_ms: int) -> None:
        if transition is Transition.OPENED:
            episode = self._open[kind] = Episode(kind=kind.value, level=Level.YELLOW.value, opened_ms=time_ms)
            if kind is Kind.LEAK:
                episode.leak_ml_h = self.alarm.watch.real_use.leak_ml_h
            self.episodes.append(episode)
        episode = self._open[kind]
        if transition is Transition.CLEARED:
            episode.cleared_ms = time_ms
            del self._open[kind]
        elif kind is Kind.LOW_USAGE and episode.red_ms is None and self.alarm.level is Level.RED:
            watch = self.alarm.watch
            episode.level, episode.red, episode.red_ms = Level.RED.value, watch.red, time_ms
            episode.silent_h, episode.limit_h = round(watch.limit.silent_min / 60, 1), watch.limit.limit_h


def judged_from_ms(home: Home, learn_days: int) -> int:
    """Return when the test begins: after so many days that only teach."""
    return home.times[0] + learn_days * DAY_MS
