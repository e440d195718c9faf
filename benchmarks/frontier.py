"""The frontier of the silence rules: false alarms a month against hours until help, on real homes with real faults.

    python benchmarks/frontier.py [--data ../shared/data] [--jobs 2] [--curves]

Protocol, the same for every rule (research/domain.md, OWN operating points): hourly readings; the first 60 days only
teach; what is learned is refitted weekly on the last 60 days. A false alarm is the onset of an alarm in a silence that
ended within 36 h (longer ones were absences; their hours are no time at home). A stop: from the full hour on nobody
draws water. Every observed hour of the test is one stop, so nothing is sampled; a stop counts where no alarm stood
already. Homes weigh the same in the delays, months in the false alarms. Delays in whole hours, as readings are hourly.
"""

import argparse
import csv
import gzip
import math
import random
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from silence_rules import NEVER_H, RULES, TAUGHT_H, Home, Silence, quantile

from agent.detection.limit import COST_H, LONGEST_H, HomeLimit, RealUse

TRAINING, REPORT = ("D001", "D014", "D047"), ("D051", "D067")
COUPLES = ("D009", "D019", "D034", "D035", "D054", "D072", "D080", "D088")  # two to four residents, for comparison
GROUPS = {"training": TRAINING, "report": REPORT, "2-4 residents": COUPLES}
MONTH_H = 730.5
TARGETS = (2.7, 1.0, 0.5)
STOPS_WITH_LEAK = 600  # per home and leak
ZONE = ZoneInfo("Europe/Madrid")


@dataclass
class Score:
    alarms: int
    months: float
    delays: Counter[int]
    standing: int


# ---- readings ----


def load(path: Path, household: str) -> Home:
    """Read one home into hourly bins; jitter, stale copies and the interleaved counter of D051 are left out."""
    bins: dict[int, int] = {}
    top = before = None
    with gzip.open(path, "rt") as lines:
        for row in csv.DictReader(lines):
            if row["household"] != household:
                continue
            local = datetime.fromisoformat(row["timestamp_local"])
            seconds = local.replace(tzinfo=ZONE).timestamp()
            if before is not None and seconds < before:  # the doubled hour in October
                seconds = local.replace(tzinfo=ZONE, fold=1).timestamp()
            before = seconds
            litres = int(row["litres_cum"])
            if top is None or 0 <= litres - top <= 5_000:
                top = litres
            elif litres < top - 2_000 or litres > top:
                continue  # another counter
            bins[int(seconds // 3600)] = top
    first, last = min(bins), max(bins)
    home = Home([], [], [], [], first)
    read_at = first
    for h in range(first, last + 1):
        at = datetime.fromtimestamp(h * 3600 + 1800, UTC).astimezone(ZONE)
        home.hour.append(at.hour)
        home.weekday.append(at.weekday())
        home.used.append(bins[h] - bins[read_at] if h in bins else None)
        home.span.append(h - read_at if h in bins else 0)
        read_at = h if h in bins else read_at
    return home


def two_litres(home: Home) -> list[bool | None]:
    """The real use of the known figures: 2 L in the hour above the 10 % quantile of the last seven days."""
    proofs: list[bool | None] = []
    for i, used in enumerate(home.used):
        if used is None:
            proofs.append(None)
            continue
        past = sorted(
            u / s for u, s in zip(home.used[max(0, i - 168) : i], home.span[max(0, i - 168) : i], strict=True) if s
        )
        floor = quantile(past, 0.1) if i >= 24 and past else 0
        proofs.append(used - floor * home.span[i] >= 2)
    return proofs


def real_use(home: Home) -> list[bool | None]:
    """Our real use: `RealUse` on the register's 1 L steps."""
    watch = RealUse(step_ml=1_000)
    return [
        None if used is None else watch.feed((home.first_h + i + 1) * 60, used_ml=used * 1_000)
        for i, used in enumerate(home.used)
    ]


def silences(home: Home, proofs: Sequence[bool | None]) -> list[Silence]:
    uses = [i for i, proof in enumerate(proofs) if proof]
    found = []
    for use, following in pairwise(uses):
        start, hours = use + 1, following - use - 1
        observed = [u for u in range(hours + 1) if proofs[start + u] is not None]
        still = [u + 1 for u in observed if u < hours]
        found.append(Silence(start, hours, home.hour[start], still, observed))
    return found


# ---- scores ----


def score(proofs: Sequence[bool | None], all_silences: list[Silence], deadlines: list[int]) -> Score:
    result = Score(0, 0.0, Counter(), 0)
    at_home = sum(p is not None for p in proofs[TAUGHT_H:])
    for s, deadline in zip(all_silences, deadlines, strict=True):
        if s.start < TAUGHT_H:
            continue
        if s.hours > LONGEST_H:
            at_home -= len(s.stops)
        elif s.still and s.still[-1] >= deadline:
            result.alarms += 1
        waiting = [deadline - u for u in s.stops if u < deadline]
        result.delays.update(waiting)
        result.standing += len(s.stops) - len(waiting)
    result.months = at_home / MONTH_H
    return result


def county(home: Home, all_silences: list[Silence], *, window_h: int, litres: int) -> Score:
    """Less than `litres` in `window_h`: its onsets, and the hours from a stop to the condition."""
    register = [0]
    for used in home.used:
        register.append(register[-1] + (used or 0))
    away = {i for s in all_silences if s.hours > LONGEST_H for i in range(s.start, s.start + s.hours + 1)}
    observed = [i for i in range(TAUGHT_H, len(home.used)) if home.used[i] is not None and i not in away]
    result = Score(0, len(observed) / MONTH_H, Counter(), 0)
    stood = False
    for i in observed:
        stands = register[i] - register[i - window_h] < litres
        result.alarms += stands and not stood
        stood = stands
        if stands:
            result.standing += 1
            continue
        wait = next(e for e in range(1, window_h + 1) if register[i] - register[i + e - window_h] < litres)
        result.delays[wait] += 1
    return result


def leak_delays(home: Home, *, litres_h: float, swing: float, cost_h: int) -> tuple[Counter[int], int, int]:
    """Delays of random stops with a leak that swings through the day; stops at which an alarm stood; missed ones."""
    leaked = [0.0]
    for hour in home.hour:
        leaked.append(leaked[-1] + litres_h * (1 + swing * math.sin(hour * math.pi / 12)))
    usable = [i for i in range(TAUGHT_H, len(home.used) - 2 * NEVER_H) if home.used[i] is not None]
    stops = set(random.Random(20).sample(usable, STOPS_WITH_LEAK))
    watch, learner = RealUse(step_ml=1_000), HomeLimit(cost_h=cost_h)
    delays, standing, missed, read = Counter[int](), 0, 0, 0

    def feed(use: RealUse, limit: HomeLimit, i: int, litres: int) -> bool:
        at_min = (home.first_h + i + 1) * 60
        drawn = use.feed(at_min, used_ml=litres * 1_000)
        return limit.feed(at_min, hour=home.hour[min(i + 1, len(home.hour) - 1)], use=drawn)

    alarm = False
    for i, used in enumerate(home.used):
        if i in stops and alarm:
            standing += 1
        elif i in stops:
            use, limit, before = RealUse.load(watch.dump()), HomeLimit.load(learner.dump()), read
            for e in range(1, NEVER_H + 1):
                if feed(use, limit, i + e - 1, int(leaked[i + e]) - int(leaked[before])):
                    delays[e] += 1
                    break
                before = i + e
            else:
                missed += 1
        if used is not None:
            alarm = feed(watch, learner, i, used + int(leaked[i + 1]) - int(leaked[read]))
            read = i + 1
    return delays, standing, missed


# ---- tables ----


def figures(scores: Sequence[Score]) -> tuple[float, float, float, float, float]:
    """False alarms a month, median, mean, P90 of the delay, and the share of time an alarm stood."""
    alarms = sum(s.alarms for s in scores) / sum(s.months for s in scores)
    shares: Counter[int] = Counter()
    for s in scores:
        for delay, n in s.delays.items():
            shares[delay] += n / s.delays.total() / len(scores)
    mean = sum(delay * share for delay, share in shares.items())
    standing = sum(s.standing / (s.standing + s.delays.total()) for s in scores) / len(scores)
    return alarms, percentile(shares, 0.5), mean, percentile(shares, 0.9), standing


def percentile(shares: Counter[int], p: float) -> float:
    total, reached = sum(shares.values()), 0.0
    for delay in sorted(shares):
        reached += shares[delay]
        if reached >= p * total - 1e-9:
            return delay
    raise AssertionError


def at_target(points: list[tuple[float, ...]], target: float) -> str:
    """The frontier at so many false alarms, between the two settings around it."""
    points = sorted(points)
    for below, above in pairwise(points):
        if below[0] <= target <= above[0]:
            share = (target - below[0]) / (above[0] - below[0]) if above[0] > below[0] else 0
            return " / ".join(f"{b + share * (a - b):4.1f}" for b, a in zip(below[1:4], above[1:4], strict=True))
    return "not reached".center(18)


Result = tuple[dict[str, dict[str, dict[float, Score]]], dict[str, Score], dict[tuple[float, float], tuple]]
LEAKS = ((0, 0), (1, 0), (1.5, 0), (3, 0), (5, 0), (10, 0), (3, 0.15), (10, 0.15), (0.1, 0), (0.35, 0), (0.75, 0))


def judge(household: str, *, data: Path, cost_h: int) -> Result:
    """Everything about one home."""
    home = load(data / "households.csv.gz", household)
    by_proof: dict[str, dict[str, dict[float, Score]]] = {}
    for name, proofs in (("2 L an hour", two_litres(home)), ("lone litres", real_use(home))):
        all_silences = silences(home, proofs)
        by_proof[name] = {
            rule: {
                setting: score(proofs, all_silences, deadlines)
                for setting, deadlines in method(home, proofs, all_silences).items()
            }
            for rule, method in RULES.items()
        }
    by_county = {
        f"less than {litres} L in {window_h} h": county(home, all_silences, window_h=window_h, litres=litres)
        for window_h, litres in ((12, 100), (12, 10), (24, 10))
    }
    leaks = {
        (rate, swing): leak_delays(home, litres_h=rate, swing=swing, cost_h=cost_h)
        for rate, swing in (LEAKS if household in TRAINING + REPORT else ())
    }
    return by_proof, by_county, leaks


def show(group: str, results: list[Result], *, curves: bool) -> None:
    print(f"\n== {group}: {len(results)} homes; median / mean / P90 hours at so many false alarms a month")
    print(f"{'real use':12} {'rule':36}" + "".join(f"{t:^20}" for t in TARGETS))
    for proof in ("2 L an hour", "lone litres"):
        for rule in RULES:
            settings = results[0][0][proof][rule]
            points = [figures([r[0][proof][rule][s] for r in results]) for s in settings]
            print(f"{proof:12} {rule:36}" + "  ".join(f"{at_target(points, t):18}" for t in TARGETS))
            if curves or (rule == "the home's own limit (ours)" and proof == "lone litres"):
                for setting, (alarms, median, mean, p90, standing) in zip(settings, points, strict=True):
                    each = " ".join(f"{s.alarms / s.months:.1f}" for s in (r[0][proof][rule][setting] for r in results))
                    print(
                        f"{setting:>20}: {alarms:5.2f} a month, {median:.0f} / {mean:.1f} / {p90:.0f} h, "
                        f"standing {standing:.1%}; by home {each}"
                    )
    for rule in results[0][1]:
        alarms, median, mean, p90, standing = figures([r[1][rule] for r in results])
        print(f"{rule:49}{alarms:.1f} a month, {median:.0f} / {mean:.1f} / {p90:.0f} h, standing {standing:.0%}")
    for leak in LEAKS if results[0][2] else ():
        delays = sum((r[2][leak][0] for r in results), Counter[int]())
        mean = sum(d * n for d, n in delays.items()) / delays.total()
        print(
            f"leak {leak[0]:4} L/h, swinging {leak[1]:.0%}: {percentile(delays, 0.5):.0f} / {mean:.1f} / "
            f"{percentile(delays, 0.9):.0f} h, longest {max(delays)} h, never {sum(r[2][leak][2] for r in results)} "
            f"of {delays.total()} stops"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cost", type=int, default=COST_H, help="cost_h of the leak table")
    parser.add_argument("--curves", action="store_true", help="print every point of every rule")
    parser.add_argument("--groups", nargs="*", default=list(GROUPS), choices=list(GROUPS))
    chosen = parser.parse_args()
    if not chosen.data.is_dir():
        sys.exit(f"no data in {chosen.data}: give --data")
    work = partial(judge, data=chosen.data, cost_h=chosen.cost)
    results = {}
    with ProcessPoolExecutor(chosen.jobs) as pool:
        for group in chosen.groups:
            results[group] = list(pool.map(work, GROUPS[group]))
            show(group, results[group], curves=chosen.curves)
    if {"training", "report"} <= results.keys():
        show("all one-resident homes", results["training"] + results["report"], curves=chosen.curves)


if __name__ == "__main__":
    main()
