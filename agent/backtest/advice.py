"""What each rule would have done in one home last month, and which settings suit it.

Nothing here is learned from other homes. The last month is judged with what the days before it had taught, so a history
of less than `LEARN_DAYS` before it is said to be too short.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

import msgspec

from agent.backtest.homes import Home
from agent.backtest.moments import LocalClock
from agent.backtest.pricing import expected_reds, suitable_cost_h
from agent.backtest.replay import Replay
from agent.backtest.rules import RuleSet
from agent.backtest.score import MONTH_H, RED, YELLOW, Figures, figures_of, score
from agent.backtest.stops import MINUTE_MS, Delays, choose, simulate
from agent.detection.limit import COST_H, LEARN_MIN
from agent.detection.watch import DAY_MS, HOUR_MS, STANDS

MONTH_DAYS: Final = 30
LEARN_DAYS: Final = LEARN_MIN // (24 * 60)
# Half of what was learned has faded after five weeks: what is older than this says nothing any more.
HISTORY_DAYS: Final = 120
LEAST_DAYS: Final = 3  # below that not even a median can be said
STOPS: Final = 100
SEED: Final = 1
COSTS_H: Final = (400, COST_H, 4_000)
VOLUME_WINDOW_MS: Final = 12 * HOUR_MS
TOLERABLE_STANDING: Final = 0.05  # a county's rule that stands no longer needs no finer one
SLOWER_H: Final = 1  # that much later red may come for the sake of less yellow


class RuleAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """What one rule would have done.

    `level` is the one that counts for it; `judged` is false where the register's steps are coarser than its threshold.
    Hours are those from a stop at a random moment to the alert. `red_cost_h` is that of a home's own limit; of such a
    rule `past_reds` counts the red alerts while somebody was at home in `Advice.past_months`, and `expected_reds` are
    those of a month to come.
    """

    name: str
    level: str
    as_ordered: bool
    red_cost_h: int | None
    judged: bool
    alerts: int
    absence_alerts: int
    standing: float | None
    median_h: float | None
    p90_h: float | None
    missed: int
    past_reds: int | None = None
    expected_reds: float | None = None


class Finer(msgspec.Struct, frozen=True, kw_only=True):
    """A rule of fewer litres, under which yellow would have stood at most half as long as under the one as ordered.

    Red needs the county's rule as well, so a finer rule can make red late: hours from a stop to red, in the median and
    for 9 of 10, under it and as ordered.
    """

    window_h: float
    threshold_m3: str
    standing: float
    ordered_standing: float
    red_median_h: float | None
    red_p90_h: float | None
    ordered_median_h: float | None
    ordered_p90_h: float | None

    @property
    def delays_red(self) -> bool:
        """Whether red would come more than `SLOWER_H` later, or not at all."""
        pairs = ((self.red_median_h, self.ordered_median_h), (self.red_p90_h, self.ordered_p90_h))
        return any(finer is None or ordered is None or finer > ordered + SLOWER_H for finer, ordered in pairs)


class Recommended(msgspec.Struct, frozen=True, kw_only=True):
    """Settings for `[meter.detection]`. `finer` is a rule in litres that was weighed against the one as ordered."""

    red_cost_h: int
    finer: Finer | None = None

    @property
    def is_finer(self) -> bool:
        """Whether the finer rule is recommended in place of the one as ordered."""
        return self.finer is not None and not self.finer.delays_red


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """One home: what it is like, what each rule would have done, what suits it.

    `limits_h` is the home's own limit by the local hour at which its silences began, as last set. `past_months` is the
    time at home from which the price of red is judged: all but the days that taught. `recommended` is None where the
    month saw no real use: nothing suits a home in which nobody is.
    """

    meter: str
    begins: str
    ends: str
    days: float
    month_days: float
    readings: int
    step_ml: int
    litres_per_day: float | None
    window_p10_ml: int | None
    window_median_ml: int | None
    leak_ml_h: int
    leaks: int
    absences: int
    learned: bool
    past_months: float
    limits_h: dict[int, int]
    rules: tuple[RuleAdvice, ...]
    recommended: Recommended | None


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that is tried; `level` is the one that counts for it."""

    rule: RuleSet
    level: str
    as_ordered: bool = False


def candidates(ordered: RuleSet) -> tuple[Candidate, ...]:
    """Return the rules that are tried: the county's as ordered, finer ones, fixed hours, the home's own limit."""
    litres = [(12 * HOUR_MS, 100_000), (12 * HOUR_MS, 10_000), (24 * HOUR_MS, 10_000)]
    as_ordered = (ordered.window_ms, ordered.threshold_ml)
    if as_ordered not in litres:
        litres.insert(0, as_ordered)
    yellow = []
    for window_ms, threshold_ml in litres:
        name = f"{threshold_ml / 1_000_000:g} m³ / {window_ms / HOUR_MS:g} h"
        rule = RuleSet(name=name, window_ms=window_ms, threshold_ml=threshold_ml, red=False)
        yellow.append(Candidate(rule=rule, level=YELLOW, as_ordered=(window_ms, threshold_ml) == as_ordered))
    fixed = [msgspec.structs.replace(ordered, name=f"no use {hours} h", fixed_h=hours) for hours in (12, 16, 24)]
    costs = sorted({*COSTS_H, ordered.cost_h})
    own = [msgspec.structs.replace(ordered, name=f"own limit, red_cost_h {cost}", cost_h=cost) for cost in costs]
    return (*yellow, *(Candidate(rule=rule, level=RED) for rule in (*fixed, *own)))


def advise(home: Home, *, clock: LocalClock, ordered: RuleSet) -> Advice | None:
    """Judge a home's last month under every rule; None where there are less than `LEAST_DAYS` of history.

    `ordered` is the county's rule as it is configured for this home.
    """
    home = _tail(home)
    if len(home) < 2 or home.times[-1] - home.times[0] < LEAST_DAYS * DAY_MS:
        return None
    end_ms = home.times[-1]
    since_ms = max(home.times[0], end_ms - MONTH_DAYS * DAY_MS)
    month_days = (end_ms - since_ms) / DAY_MS
    month = _Month(home, clock=clock, since_ms=since_ms)
    replays = {candidate.rule.name: month.replay(candidate.rule) for candidate in candidates(ordered)}
    own, figures = replays[f"own limit, red_cost_h {ordered.cost_h}"]
    taught_ms = home.times[0] + LEARN_DAYS * DAY_MS
    past_months = months_at_home(home, own.tally.absences, since_ms=taught_ms)
    rules = [
        _rule_advice(candidate, *replays[candidate.rule.name], taught_ms=taught_ms, past_months=past_months)
        for candidate in candidates(ordered)
    ]
    watch = own.alarm.watch
    volumes = _window_volumes(home, own, since_ms=since_ms)
    used_ml = _used_ml(home, own, since_ms=since_ms)
    recommended = None
    # A register that is too coarse to show use does not show that there was none either.
    if watch.is_blind or watch.limit.silent_min * MINUTE_MS < end_ms - since_ms:
        recommended = _recommended(month, ordered, rules, past_months=past_months, month_days=month_days)
    return Advice(
        meter=home.meter,
        begins=clock.instant(home.times[0]),
        ends=clock.instant(end_ms),
        days=round((end_ms - home.times[0]) / DAY_MS, 1),
        month_days=round(month_days, 1),
        readings=len(home),
        step_ml=watch.register.step,
        litres_per_day=round(used_ml / 1000 / month_days, 1),
        window_p10_ml=volumes[len(volumes) // 10] if volumes else None,
        window_median_ml=volumes[len(volumes) // 2] if volumes else None,
        leak_ml_h=watch.real_use.leak_ml_h if watch.flow.leak == STANDS else 0,
        leaks=figures.others["leak"],
        absences=len([end for _, end in own.tally.absences if end > since_ms]),
        learned=watch.limit.learned,
        past_months=round(past_months, 2),
        limits_h=_limits_h(own),
        rules=tuple(rules),
        recommended=recommended,
    )


def reds_since(replay: Replay, since_ms: int) -> int:
    """Count the red alerts of a replay, closed, that came after a time and while somebody was at home."""
    return sum(
        episode.red_ms is not None and episode.red_ms > since_ms and not episode.absence for episode in replay.episodes
    )


def months_at_home(home: Home, absences: Sequence[tuple[int, int]], *, since_ms: int) -> float:
    """Return the months after a time, absences aside; a gap in the readings counts as one usual interval."""
    interval_ms = home.interval_ms
    home_ms = 0
    for earlier_ms, later_ms in zip(home.times, home.times[1:], strict=False):
        if later_ms > since_ms and not any(begin_ms < later_ms <= end_ms for begin_ms, end_ms in absences):
            gap_ms = later_ms - earlier_ms
            home_ms += gap_ms if gap_ms <= 2 * interval_ms else interval_ms
    return home_ms / (MONTH_H * HOUR_MS)


class _Month:
    """The last month of a home, and the same stops in it for every rule."""

    def __init__(self, home: Home, *, clock: LocalClock, since_ms: int) -> None:
        self._home, self._clock, self._since_ms = home, clock, since_ms
        self._interval_ms = home.interval_ms
        self._stops = frozenset(choose(home, since_ms=since_ms, stops=STOPS, seed=SEED))

    def replay(self, rule: RuleSet) -> tuple[Replay, Figures]:
        """Replay the whole history under a rule; the figures are those of the month."""
        home, interval_ms = self._home, self._interval_ms
        replay = Replay(home, rule, since_ms=self._since_ms, interval_ms=interval_ms, traced=True)
        yellow, red = Delays(), Delays()
        for i, (time_ms, hour, value_ml) in enumerate(zip(home.times, home.hours, home.values, strict=True)):
            replay.feed(time_ms, hour, value_ml)
            if i in self._stops:
                simulate(replay, time_ms=time_ms, interval_ms=interval_ms, clock=self._clock, yellow=yellow, red=red)
        replay.close()
        return replay, figures_of(score(replay, since_ms=self._since_ms, yellow=yellow, red=red))


def _recommended(
    month: _Month, ordered: RuleSet, rules: Sequence[RuleAdvice], *, past_months: float, month_days: float
) -> Recommended:
    reds = {rule.red_cost_h: rule.past_reds or 0 for rule in rules if rule.red_cost_h is not None}
    cost_h = suitable_cost_h(reds, months=past_months, configured=ordered.cost_h)
    finer = _finer(month, ordered, rules, cost_h=cost_h) if month_days >= LEARN_DAYS else None
    return Recommended(red_cost_h=cost_h, finer=finer)


def _finer(month: _Month, ordered: RuleSet, rules: Sequence[RuleAdvice], *, cost_h: int) -> Finer | None:
    """Return the first rule of fewer litres that makes no red late, else the last that does; None where none is needed.

    `rules` are the figures of `candidates(ordered)`, in their order.
    """
    county = next(rule for rule in rules if rule.as_ordered)
    own = next(rule for rule in rules if rule.red_cost_h == cost_h)
    finer = None
    if not county.judged or county.standing is None or county.standing <= TOLERABLE_STANDING:
        return None
    for candidate, rule in zip(candidates(ordered), rules, strict=True):
        coarser = candidate.rule.threshold_ml >= ordered.threshold_ml or not rule.judged
        if rule.level != YELLOW or coarser or rule.standing is None or rule.standing > county.standing / 2:
            continue
        both = msgspec.structs.replace(candidate.rule, cost_h=cost_h, cold_h=ordered.cold_h, red=True)
        _, figures = month.replay(both)
        delays = figures.delays[RED] if figures.delays else None
        finer = Finer(
            window_h=candidate.rule.window_ms / HOUR_MS,
            threshold_m3=f"{candidate.rule.threshold_ml / 1_000_000:g}",
            standing=rule.standing,
            ordered_standing=county.standing,
            red_median_h=delays.median_h if delays else None,
            red_p90_h=delays.p90_h if delays else None,
            ordered_median_h=own.median_h,
            ordered_p90_h=own.p90_h,
        )
        if not finer.delays_red:
            return finer
    return finer


def _tail(home: Home) -> Home:
    """Return the last `HISTORY_DAYS` of a home."""
    if not len(home):
        return home
    begin = bisect_right(home.times, home.times[-1] - HISTORY_DAYS * DAY_MS)
    tail = Home(home.meter)
    tail.times, tail.hours, tail.values = home.times[begin:], home.hours[begin:], home.values[begin:]
    return tail


def _rule_advice(
    candidate: Candidate, replay: Replay, figures: Figures, *, taught_ms: int, past_months: float
) -> RuleAdvice:
    level = candidate.level
    delays = figures.delays[level] if figures.delays else None
    cost_h = candidate.rule.cost_h if level == RED and candidate.rule.fixed_h is None else None
    past_reds = None if cost_h is None else reds_since(replay, taught_ms)
    expected = None
    if cost_h is not None and past_reds is not None:
        expected = round(expected_reds(cost_h, reds=past_reds, months=past_months), 2)
    return RuleAdvice(
        name=candidate.rule.name,
        level=level,
        as_ordered=candidate.as_ordered,
        red_cost_h=cost_h,
        judged=level == RED or not replay.alarm.watch.is_refused,
        alerts=figures.alerts[level],
        absence_alerts=figures.absence_alerts[level],
        standing=figures.standing[level],
        median_h=delays.median_h if delays else None,
        p90_h=delays.p90_h if delays else None,
        missed=delays.missed if delays else 0,
        past_reds=past_reds,
        expected_reds=expected,
    )


def _window_volumes(home: Home, replay: Replay, *, since_ms: int) -> list[int]:
    """Return what ran in the 12 h before each last reading of an hour, sorted; a gap at the beginning is no figure."""
    trace = replay.trace
    assert trace is not None
    slack_ms = 2 * home.interval_ms
    volumes = []
    for i in choose(home, since_ms=since_ms, stops=len(home), seed=SEED):
        begin_ms = home.times[i] - VOLUME_WINDOW_MS
        first = bisect_right(home.times, begin_ms) - 1
        if first >= 0 and begin_ms - home.times[first] < slack_ms:
            volumes.append(trace.total_ml[i] - trace.total_ml[first])
    return sorted(volumes)


def _limits_h(replay: Replay) -> dict[int, int]:
    trace = replay.trace
    assert trace is not None
    last = dict(zip(trace.began_hour, trace.limit_h, strict=True))
    return dict(sorted(last.items()))


def _used_ml(home: Home, replay: Replay, *, since_ms: int) -> int:
    trace = replay.trace
    assert trace is not None
    return trace.total_ml[-1] - trace.total_ml[max(0, bisect_right(home.times, since_ms) - 1)]
