"""The silence rules that `frontier.py` compares. Each gives, for each of its settings, the hours of silence after which
it alarms: one figure for each silence of a home."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from agent.detection.limit import LONGEST_H, HomeLimit

WEEK_H, TAUGHT_H = 168, 60 * 24
NEVER_H = 72


@dataclass
class Home:
    """Hourly bins: litres drawn (None: not read), hours that a reading stands for, local hour and weekday."""

    used: list[int | None]
    span: list[int]
    hour: list[int]
    weekday: list[int]
    first_h: int


@dataclass
class Silence:
    """It begins with the bin after a use. `still` are the observed still hours, `stops` where a stop may fall."""

    start: int
    hours: int
    hour: int
    still: list[int]
    stops: list[int]


Deadlines = dict[float, list[int]]
Rule = Callable[[Home, Sequence[bool | None], list[Silence]], Deadlines]


def quantile(ordered: Sequence[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    low = int(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def fixed(_home: Home, _proofs: Sequence[bool | None], all_silences: list[Silence]) -> Deadlines:
    return {n: [n] * len(all_silences) for n in range(6, 27)}


def weekly(all_silences: list[Silence], end: int) -> Iterable[tuple[int, list[int]]]:
    """Each week of the test and the silences (by index) that begin in it."""
    for week in range(TAUGHT_H, end, WEEK_H):
        yield week, [k for k, s in enumerate(all_silences) if week <= s.start < week + WEEK_H]


def taught(all_silences: list[Silence], week: int) -> list[Silence]:
    return [s for s in all_silences if s.start >= week - TAUGHT_H and s.start + s.hours < week and s.hours <= LONGEST_H]


def gap_quantile(home: Home, _proofs: Sequence[bool | None], all_silences: list[Silence]) -> Deadlines:
    settings = (0.8, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.999, 1.0)
    deadlines = {q: [NEVER_H] * len(all_silences) for q in settings}
    for week, now in weekly(all_silences, len(home.used)):
        lengths = sorted(s.hours for s in taught(all_silences, week) if s.hours)
        for q in settings if lengths else ():
            for k in now:
                deadlines[q][k] = int(quantile(lengths, q)) + 1
    return deadlines


def hour_quantile(
    home: Home, _proofs: Sequence[bool | None], all_silences: list[Silence], *, margin_h: int = 0
) -> Deadlines:
    """Elapsed silence at this hour of the clock is beyond its quantile (and beyond that by a margin)."""
    settings = (0.8, 0.9, 0.93, 0.95, 0.965, 0.975, 0.985, 0.99, 0.995, 1.0)
    elapsed: list[int | None] = [None] * (len(home.used) + 1)
    for s in all_silences:
        if s.hours <= LONGEST_H:
            elapsed[s.start : s.start + s.hours + 1] = [*range(1, s.hours + 1), 0]
    deadlines = {q: [NEVER_H] * len(all_silences) for q in settings}
    for week, now in weekly(all_silences, len(home.used)):
        seen: list[list[int]] = [[] for _ in range(24)]
        for i in range(week - TAUGHT_H, week):
            if (e := elapsed[i]) is not None:
                seen[home.hour[i]].append(e)
        for q in settings:
            limits = [quantile(sorted(x), q) + margin_h if x else 16 for x in seen]
            for k in now:
                hour = all_silences[k].hour
                deadlines[q][k] = next((e for e in range(1, NEVER_H) if e > limits[(hour + e - 1) % 24]), NEVER_H)
    return deadlines


def hazard_sum(home: Home, proofs: Sequence[bool | None], all_silences: list[Silence]) -> Deadlines:
    """The sum, over the silent hours, of -ln(1 - how often this hour of the day sees use) reaches theta."""
    settings = (2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 10, 12)
    deadlines: Deadlines = {theta: [NEVER_H] * len(all_silences) for theta in settings}
    for week, now in weekly(all_silences, len(home.used)):
        used, seen = [0.5] * 24, [1.0] * 24
        for i in range(week - TAUGHT_H, week):
            if proofs[i] is not None:
                used[home.hour[i]] += bool(proofs[i])
                seen[home.hour[i]] += 1
        for k in now:
            total, e = 0.0, 0
            for theta in settings:
                while total < theta and e < NEVER_H:
                    hour = (all_silences[k].hour + e) % 24
                    total -= math.log1p(-used[hour] / seen[hour])
                    e += 1
                deadlines[theta][k] = e
    return deadlines


def inactivity_score(home: Home, _proofs: Sequence[bool | None], all_silences: list[Silence]) -> Deadlines:
    """Wilhelm & Wahl 2024 (Sensors 24:6583), one certain sensor: the score is the elapsed silence; the threshold is the
    highest score within an hour of this time of day on the last 30 days of the same kind (working day, weekend), cut at
    the upper quartile + 1.5 interquartile ranges, times a factor (published: 1.1)."""
    settings = (0.8, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
    score = [0] * (len(home.used) + NEVER_H)
    for s in all_silences:
        score[s.start : s.start + s.hours] = range(1, s.hours + 1)
    peak = [max(score[max(0, i - 1) : i + 2]) for i in range(len(home.used))]
    known: dict[int, float] = {}

    def threshold(i: int) -> float:
        if i not in known:
            same = home.weekday[min(i, len(home.used) - 1)] >= 5
            days = [i - 24 * d for d in range(1, 31)]
            past = sorted(peak[j] for j in days if 0 <= j < len(peak) and (home.weekday[j] >= 5) == same)
            low, high = (quantile(past, 0.25), quantile(past, 0.75)) if past else (0, 0)
            known[i] = min(past[-1], high + 1.5 * (high - low)) if past else 16
        return known[i]

    deadlines: Deadlines = {f: [NEVER_H] * len(all_silences) for f in settings}
    for k, s in enumerate(all_silences):
        for f in settings if s.start >= TAUGHT_H else ():
            deadlines[f][k] = next((e for e in range(1, NEVER_H) if e > f * threshold(s.start + e - 1)), NEVER_H)
    return deadlines


def own_limit(home: Home, proofs: Sequence[bool | None], _silences: list[Silence]) -> Deadlines:
    """Ours: `HomeLimit`, streamed."""
    settings = (100, 150, 200, 250, 300, 350, 420, 500, 600, 800, 1_000, 1_200, 1_500, 1_800, 2_200)
    settings += (3_000, 4_000, 5_000, 6_500, 8_000)
    return {cost_h: own_limits(home, proofs, cost_h=cost_h) for cost_h in settings}


def own_limits(home: Home, proofs: Sequence[bool | None], *, cost_h: int) -> list[int]:
    """The limit of each silence, as the home had taught it by then."""
    learner = HomeLimit(cost_h=cost_h)
    limits = []
    for i, proof in enumerate(proofs):
        if proof is not None:
            learner.feed((home.first_h + i + 1) * 60, hour=home.hour[min(i + 1, len(proofs) - 1)], use=proof)
            if proof:
                limits.append(learner.limit_h)
    return limits[:-1]  # the silence after the last use has no end yet


RULES: dict[str, Rule] = {
    "fixed N hours": fixed,
    "own gap quantile": gap_quantile,
    "own quantile by hour of day": hour_quantile,
    "own quantile by hour of day + 3 h": partial(hour_quantile, margin_h=3),
    "hazard sum": hazard_sum,
    "Inactivity Score (2024)": inactivity_score,
    "the home's own limit (ours)": own_limit,
}
