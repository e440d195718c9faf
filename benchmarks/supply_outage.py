"""A supply outage seen by the meters of a village: false suspicions a month, and hours until one is suspected.

    python benchmarks/supply_outage.py [--data ../shared/data] [--limit 8] [--quick] [--by-hour] [--json]

Villages: *real* are the 13 homes of the trial on their own common time axis, and 10 or 5 drawn from them, read about
hourly; *shifted* are 10, 20 and 50 made of the same homes by shifts of whole weeks (weekday and hour stay, common
holidays are lost); *family* is one working family on a minute grid, read every 5 min, ten times itself in other weeks:
a village in which everybody has the same habits; *routine* are homes of the simulator (gateway/usage) at 5 min.

The first 60 days only teach. Any suspicion after that is false. Outages begin at random moments, as many at each hour
of day; from then on no register moves for 24 h. A reading that spans the beginning keeps its draw with the chance that
the draw came before. Leaks are those that `RealUse` finds in the home. *bound*: what the theory allows
(agent/detection/supply.py). Delays are median / P90; day is 07 to 21, night 22 to 05 local time.
"""

import argparse
import copy
import csv
import gzip
import heapq
import itertools
import json
import math
import random
import sys
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from datetime import time as clock_time
from pathlib import Path
from zoneinfo import ZoneInfo

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from agent.detection.limit import RealUse
from agent.detection.village import LIMIT, SUPPLY_OUTAGE, VillageWatch
from gateway.usage import Draw, Routine, Variation

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
TAUGHT_MS = 60 * DAY_MS
MONTH_MS = 730.5 * HOUR_MS
OUTAGE_MS = 24 * HOUR_MS
ALICANTE, CANADA = ZoneInfo("Europe/Madrid"), ZoneInfo("America/Vancouver")
FIVE_MIN_MS = 300_000
JITTER_L, JUMP_L = 2_000, 5_000
DAY_HOURS, NIGHT_HOURS = range(7, 21), (22, 23, 0, 1, 2, 3, 4)
INSTANTS = 10  # outages for each hour of day


class Home:
    """The readings of one home: local time in ms (a doubled hour is left out), ml drawn, leak."""

    def __init__(self, readings: Iterable[tuple[int, int]]) -> None:
        self.at_ms, self.used_ml, self.leak_ml_h = array("q"), array("q"), array("q")
        use = RealUse(step_ml=1_000)
        for at_ms, used_ml in readings:
            use.feed(at_ms // 60_000, used_ml=used_ml)
            self.at_ms.append(at_ms)
            self.used_ml.append(used_ml)
            self.leak_ml_h.append(use.leak_ml_h)

    def shifted(self, shift_ms: int, *, period_ms: int) -> "Home":
        """The same home, so much later; what passes the end comes in at the beginning."""
        home = Home(())
        first = self.at_ms[0]
        moved = [
            (first + (at - first + shift_ms) % period_ms, i)
            for i, at in enumerate(self.at_ms)
            if at - first < period_ms
        ]
        cut = min(range(len(moved)), key=lambda i: moved[i][0])
        for at_ms, i in moved[cut:] + moved[:cut]:
            home.at_ms.append(at_ms)
            home.used_ml.append(self.used_ml[i])
            home.leak_ml_h.append(self.leak_ml_h[i])
        home.used_ml[0] = 0
        return home


# ---- homes ----


def local_ms(moment: datetime) -> int:
    return (moment.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def trial_homes(path: Path) -> list[Home]:
    """The 13 homes; jitter and stale copies are still, the interleaved counter of D051 is left out."""
    readings: dict[str, list[tuple[int, int]]] = {}
    top: dict[str, int] = {}
    with gzip.open(path, "rt") as lines:
        for row in csv.DictReader(lines):
            home, litres = row["household"], int(row["litres_cum"])
            at_ms = local_ms(datetime.fromisoformat(row["timestamp_local"]))
            known = readings.setdefault(home, [])
            if known and at_ms <= known[-1][0]:
                continue
            highest = top.setdefault(home, litres)
            if litres < highest - JITTER_L or litres > highest + JUMP_L:
                continue
            known.append((at_ms, max(0, litres - highest) * 1_000))
            top[home] = max(highest, litres)
    return [Home(known) for known in readings.values()]


def family(path: Path) -> Home:
    """The minute grid, read every 5 min."""
    slots: dict[int, int] = {}
    top = None
    with gzip.open(path, "rt") as lines:
        for row in csv.DictReader(lines):
            utc = datetime.fromisoformat(row["timestamp_utc"])
            at_ms = local_ms(utc.astimezone(CANADA).replace(tzinfo=None))
            ml = round(float(row["litres_cum"]) * 1000)
            slot = -(-at_ms // FIVE_MIN_MS)
            slots[slot] = slots.get(slot, 0) + (0 if top is None else max(0, ml - top))
            top = ml if top is None else max(top, ml)
    first, last = min(slots), max(slots)
    return Home((slot * FIVE_MIN_MS, slots.get(slot, 0)) for slot in range(first, last + 1))


def routine_home(number: int, *, days: int) -> Home:
    """An elder of the simulator: 4 to 9 draws a day, each home with its own hours; a 1 L register every 5 min."""
    chance = random.Random(number)
    draws = [
        Draw(clock_time(hour, chance.randrange(60)), chance.randrange(2_000, 15_000), chance.randrange(1, 30) * 60_000)
        for hour in sorted(chance.choices(range(5, 22), k=chance.randrange(4, 10)))
    ]
    variation = Variation(percent=40, minutes=90, seed=f"home {number}")
    tap = Routine(draws, start_ml=0, since_ms=0, timezone=ZoneInfo("UTC"), variation=variation)
    shown = [tap.volume_ml(at) // 1_000 * 1_000 for at in range(0, days * DAY_MS, FIVE_MIN_MS)]
    return Home((i * FIVE_MIN_MS, shown[i] - shown[max(0, i - 1)]) for i in range(len(shown)))


# ---- one village ----


class Village:
    """Some homes, watched as usual; and again and again a copy of the watch in whose world the supply goes off."""

    def __init__(self, homes: Sequence[Home], *, poll_ms: int, limit: float, chance: random.Random) -> None:
        self.homes, self.chance = homes, chance
        self.names = [f"m-{i:02}" for i in range(len(homes))]
        self.watch = VillageWatch(
            buses={"bus": self.names}, poll_every_ms=dict.fromkeys(self.names, poll_ms), limit=limit
        )
        self.rows = list(
            heapq.merge(*([(at, h, i) for i, at in enumerate(home.at_ms)] for h, home in enumerate(homes)))
        )
        self.first_ms = self.rows[0][0] + TAUGHT_MS
        self.months = (self.rows[-1][0] - self.first_ms) / MONTH_MS
        self.false = self.stillnesses = 0
        self.delays: dict[int, list[float]] = {hour: [] for hour in range(24)}

    def run(self, *, instants: int) -> None:
        days = range(self.first_ms // DAY_MS + 1, (self.rows[-1][0] - OUTAGE_MS) // DAY_MS)
        outages = sorted(
            self.chance.choice(days) * DAY_MS + hour * HOUR_MS + self.chance.randrange(HOUR_MS)
            for hour in range(24)
            for _ in range(instants)
        )
        began = None
        for place, (at_ms, home, i) in enumerate(self.rows):
            while outages and outages[0] <= at_ms:
                self._go_off(place, outages.pop(0))
            if began is None and at_ms >= self.first_ms:
                began = self.watch._supply._number  # noqa: SLF001
            self.false += self._feed(self.watch, at_ms, home, i, self.homes[home].used_ml[i]) and began is not None
        self.stillnesses = self.watch._supply._number - (began or 0)  # noqa: SLF001

    def _feed(self, watch: VillageWatch, at_ms: int, home: int, i: int, used_ml: int) -> bool:
        """Tell whether an outage begins to be suspected."""
        leak_ml_h = self.homes[home].leak_ml_h[i]
        changes = watch.feed(self.names[home], at_ms, at_ms // HOUR_MS % 24, used_ml=used_ml, leak_ml_h=leak_ml_h)
        return any(change.kind == SUPPLY_OUTAGE and change.stands for change in changes)

    def _go_off(self, place: int, outage_ms: int) -> None:
        """From here on nothing is drawn, in a copy of the world."""
        watch = copy.deepcopy(self.watch)
        delay_h = math.inf
        for at_ms, home, i in itertools.islice(self.rows, place, None):
            if at_ms > outage_ms + OUTAGE_MS:
                break
            used_ml = self.homes[home].used_ml[i]
            before_ms = self.homes[home].at_ms[i - 1] if i else at_ms
            if used_ml and self.chance.random() * (at_ms - before_ms) >= outage_ms - before_ms:
                used_ml = 0
            if self._feed(watch, at_ms, home, i, used_ml):
                delay_h = (at_ms - outage_ms) / HOUR_MS
                break
        self.delays[outage_ms // HOUR_MS % 24].append(delay_h)


def cost_us(village: Village) -> float:
    """What one reading costs: the best of three runs over the first million."""
    rows = [
        (village.names[h], at, at // HOUR_MS % 24, village.homes[h].used_ml[i], village.homes[h].leak_ml_h[i])
        for at, h, i in village.rows[:1_000_000]
    ]
    polls = dict.fromkeys(village.names, FIVE_MIN_MS)
    best = math.inf
    for _ in range(3):
        feed = VillageWatch(buses={"bus": village.names}, poll_every_ms=polls).feed
        began = time.perf_counter()
        for name, at_ms, hour, used_ml, leak_ml_h in rows:
            feed(name, at_ms, hour, used_ml=used_ml, leak_ml_h=leak_ml_h)
        best = min(best, time.perf_counter() - began)
    return best / len(rows) * 1e6


# ---- the villages ----


def villages(data: Path, *, quick: bool) -> Iterator[tuple[str, list[Sequence[Home]], int]]:
    """Name, several villages of that kind, poll interval."""
    chance = random.Random(11)
    part = 4 if quick else 1
    if data.is_dir():
        homes = trial_homes(data / "households.csv.gz")
        yield "real 13", [homes], HOUR_MS
        yield "real 10", [chance.sample(homes, 10) for _ in range(8 // part)], HOUR_MS
        yield "real 5", [chance.sample(homes, 5) for _ in range(8 // part)], HOUR_MS
        span_ms = max(home.at_ms[-1] for home in homes) - min(home.at_ms[0] for home in homes)
        weeks = span_ms // WEEK_MS
        for size, count in (10, 12), (20, 6), (50, 4):
            made = [
                [
                    home.shifted(chance.randrange(weeks) * WEEK_MS, period_ms=weeks * WEEK_MS)
                    for home in chance.choices(homes, k=size)
                ]
                for _ in range(count // part)
            ]
            yield f"shifted {size}", made, HOUR_MS
        house = family(data / "ampds2_family_minute_changes.csv.gz")
        weeks = (house.at_ms[-1] - house.at_ms[0]) // WEEK_MS
        copies = [house.shifted(k * 10 * WEEK_MS, period_ms=weeks * WEEK_MS) for k in range(10)]
        yield "family 10", [copies], FIVE_MIN_MS
    else:
        print(f"real homes are left out: there is no {data}", file=sys.stderr)
    for size in 10, 20:
        days = 120 if quick else 240
        yield f"routine {size}", [[routine_home(k, days=days) for k in range(size)]], FIVE_MIN_MS


def quantile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def of_hours(found: dict[int, list[float]], hours: Iterable[int]) -> str:
    delays = [delay for hour in hours for delay in found[hour]]
    missed = sum(delay == math.inf for delay in delays) / len(delays)
    return f"{quantile(delays, 0.5):5.1f} / {quantile(delays, 0.9):4.1f} h, {missed:4.0%} never"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"the least surprise that is a suspicion ({LIMIT})")
    parser.add_argument("--quick", action="store_true", help="few villages: shows that it works")
    parser.add_argument("--by-hour", action="store_true", help="also the median delay for each hour of day")
    parser.add_argument("--json", action="store_true", help="print one JSON line a kind of village instead")
    options = parser.parse_args()
    for kind, made, poll_ms in villages(options.data, quick=options.quick):
        done = [
            Village(homes, poll_ms=poll_ms, limit=options.limit, chance=random.Random(i))
            for i, homes in enumerate(made)
        ]
        for village in done:
            village.run(instants=max(2, INSTANTS // len(done)))
        months = sum(village.months for village in done)
        false = sum(village.false for village in done)
        bound = sum(village.stillnesses for village in done) / months * math.exp(-options.limit)
        delays = {hour: [delay for village in done for delay in village.delays[hour]] for hour in range(24)}
        if options.json:
            medians = [quantile(delays[hour], 0.5) for hour in range(24)]
            figures = {"false": false, "months": months, "bound": bound}
            figures |= {"median_h": [None if h == math.inf else round(h, 2) for h in medians]}
            print(json.dumps({"village": kind, **figures}), flush=True)
            continue
        print(
            f"{kind:<11} {false:2} false in {months:5.1f} months = {false / months:.2f} (bound {bound:.2f});"
            f" day {of_hours(delays, DAY_HOURS)}; night {of_hours(delays, NIGHT_HOURS)}",
            flush=True,
        )
        if options.by_hour:
            print("    " + " ".join(f"{hour:02}h {quantile(delays[hour], 0.5):.1f}" for hour in range(24)))
        if kind == "routine 20":
            print(f"a reading costs {cost_us(done[0]):.2f} us")


if __name__ == "__main__":
    main()
