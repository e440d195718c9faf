"""The figures of a backtest: per home and rule set, and over all homes.

Over all homes, alerts are counted per month that somebody was at home (long-lived homes count more); in delays and
shares of time each home weighs the same, so that one home with much data does not speak for the others.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from agent.backtest.replay import Replay
from agent.backtest.stops import Delays
from agent.detection.watch import HOUR_MS
from protocols.contract import Kind, Level

MONTH_H: Final = 730.5
YELLOW, RED = Level.YELLOW.value, Level.RED.value


class DelayFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Hours from a stop to an alarm (None: no stop had one to wait for), and the stops without a delay."""

    stops: int
    standing: int
    missed: int
    median_h: float | None
    mean_h: float | None
    p90_h: float | None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One rule set on one home, or on all.

    `alerts` counts alerts by level while somebody was at home, `absence_alerts` those of absences; one that became red
    counts in both levels. `others` counts leak, burst and reverse flow. `standing` is the share of the time at home.
    """

    months: float
    away_months: float
    alerts: dict[str, int]
    absence_alerts: dict[str, int]
    per_month: dict[str, float | None]
    standing: dict[str, float | None]
    others: dict[str, int]
    delays: dict[str, DelayFigures] | None = None


class HomeScore(msgspec.Struct, frozen=True, kw_only=True):
    """What the work on one home under one rule set gives back; figures are made of it."""

    home_ms: tuple[int, int, int]
    away_ms: int
    alerts: dict[str, int]
    absence_alerts: dict[str, int]
    others: dict[str, int]
    yellow: Delays | None
    red: Delays | None


def score(replay: Replay, *, since_ms: int, yellow: Delays | None, red: Delays | None) -> HomeScore:
    """Count what a replay, closed, has seen since the test began."""
    alerts = {YELLOW: 0, RED: 0}
    absence_alerts = {YELLOW: 0, RED: 0}
    others = {kind.value: 0 for kind in (Kind.LEAK, Kind.BURST, Kind.REVERSE_FLOW)}
    for episode in replay.episodes:
        if episode.kind in others:
            others[episode.kind] += episode.opened_ms > since_ms
            continue
        if episode.opened_ms > since_ms:
            (absence_alerts if _in(replay, episode.opened_ms) else alerts)[YELLOW] += 1
        if episode.red_ms is not None and episode.red_ms > since_ms:
            (absence_alerts if episode.absence else alerts)[RED] += 1
    tally = replay.tally
    home_ms = tally.home_ms
    return HomeScore(
        home_ms=(home_ms[0], home_ms[1], home_ms[2]),
        away_ms=sum(tally.away_ms),
        alerts=alerts,
        absence_alerts=absence_alerts,
        others=others,
        yellow=yellow,
        red=red,
    )


def _in(replay: Replay, time_ms: int) -> bool:
    return any(begin < time_ms <= end for begin, end in replay.tally.absences)


class Sum:
    """Adds up the scores of homes under one rule set, in memory that does not grow with the number of homes."""

    def __init__(self) -> None:
        self._home_ms = self._away_ms = 0
        self._alerts: Counter[str] = Counter()
        self._absence_alerts: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._shares = {YELLOW: 0.0, RED: 0.0}
        self._homes = 0
        self._delays: dict[str, _DelaySum] | None = None

    def add(self, home: HomeScore) -> None:
        """Add one home."""
        total_ms = sum(home.home_ms)
        self._home_ms += total_ms
        self._away_ms += home.away_ms
        self._alerts.update(home.alerts)
        self._absence_alerts.update(home.absence_alerts)
        self._others.update(home.others)
        if total_ms:
            self._homes += 1
            self._shares[YELLOW] += (home.home_ms[1] + home.home_ms[2]) / total_ms
            self._shares[RED] += home.home_ms[2] / total_ms
        if home.yellow is not None and home.red is not None:
            if self._delays is None:
                self._delays = {YELLOW: _DelaySum(), RED: _DelaySum()}
            self._delays[YELLOW].add(home.yellow)
            self._delays[RED].add(home.red)

    def figures(self) -> Figures:
        """Return the figures of what was added."""
        months = self._home_ms / HOUR_MS / MONTH_H
        return Figures(
            months=round(months, 3),
            away_months=round(self._away_ms / HOUR_MS / MONTH_H, 3),
            alerts={level: self._alerts[level] for level in (YELLOW, RED)},
            absence_alerts={level: self._absence_alerts[level] for level in (YELLOW, RED)},
            per_month={level: round(self._alerts[level] / months, 3) if months else None for level in (YELLOW, RED)},
            standing={
                level: round(share / self._homes, 4) if self._homes else None for level, share in self._shares.items()
            },
            others=dict(self._others),
            delays=None if self._delays is None else {level: d.figures() for level, d in self._delays.items()},
        )


def figures_of(home: HomeScore) -> Figures:
    """Return the figures of one home."""
    alone = Sum()
    alone.add(home)
    return alone.figures()


class _DelaySum:
    def __init__(self) -> None:
        self._shares: Counter[int] = Counter()  # minutes -> homes' shares, added up
        self._standing = self._missed = self._noticed = 0

    def add(self, delays: Delays) -> None:
        noticed = delays.minutes.total()
        for minutes, count in delays.minutes.items():
            self._shares[minutes] += count / noticed  # type: ignore[assignment]
        self._standing += delays.standing
        self._missed += delays.missed
        self._noticed += noticed

    def figures(self) -> DelayFigures:
        total = sum(self._shares.values())
        ordered = sorted(self._shares)
        mean = sum(minutes * self._shares[minutes] for minutes in ordered) / total if total else None
        return DelayFigures(
            stops=self._noticed + self._standing + self._missed,
            standing=self._standing,
            missed=self._missed,
            median_h=_hours(_percentile(self._shares, ordered, 0.5)),
            mean_h=_hours(mean),
            p90_h=_hours(_percentile(self._shares, ordered, 0.9)),
        )


def _percentile(shares: Mapping[int, float], ordered: Sequence[int], part: float) -> float | None:
    total, reached = sum(shares.values()), 0.0
    for minutes in ordered:
        reached += shares[minutes]
        if reached >= part * total - 1e-9:
            return minutes
    return None


def _hours(minutes: float | None) -> float | None:
    return None if minutes is None else round(minutes / 60, 2)
