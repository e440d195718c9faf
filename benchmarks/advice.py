"""Does `shuiwang advise` keep its word? Its price of a false red alert, from a home's past, against the month after it.

    python benchmarks/advice.py [--data ../shared/data]

Real homes, hourly readings. A window is a history (60 days, which a gateway remembers, or 120) and the 30 days after
it; a new one begins every 15 days. The watch starts empty with the history. Red alerts are those of silences that ended
within 36 h, months are months at home. *Quiet month*: what a rule would have done that goes down to 400 where the last
30 days had not one red alert at 400.
"""

import argparse
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from agent.backtest.advice import COSTS_H, LEARN_DAYS, MONTH_DAYS, months_at_home, reds_since
from agent.backtest.columns import Columns
from agent.backtest.homes import Home, gather
from agent.backtest.moments import LocalClock
from agent.backtest.pricing import suitable_cost_h
from agent.backtest.problems import BadRows
from agent.backtest.replay import Replay
from agent.backtest.rules import RuleSet
from agent.backtest.tables import Table
from agent.detection.limit import COST_H
from agent.detection.watch import DAY_MS

GROUPS = {
    "training": ("D001", "D014", "D047"),
    "report": ("D051", "D067"),
    "2-4 residents": ("D009", "D019", "D034", "D035", "D054", "D072", "D080", "D088"),
}
CHEAP_H = min(COSTS_H)


@dataclass
class Window:
    """What is recommended after a history, and the red alerts of the month after it, by price."""

    meter: str
    recommended: int
    quiet_month: bool
    next_reds: dict[int, int]
    next_months: float


def load(path: Path, meters: Sequence[str]) -> list[Home]:
    """Return some homes of the DAIAD trial."""
    bad = BadRows(skip=False)
    columns = Columns("timestamp_local", "household", "litres_cum")
    table = Table(path, columns=columns, values=None, bad=bad)
    rows = (row for row in table.rows() if row[1] in meters)
    return gather(rows, clock=LocalClock("Europe/Madrid"), values=table.values, bad=bad, place=table.place)


def windows(home: Home, *, history_days: int, every_days: int) -> Iterator[Window]:
    """Yield the windows of a home."""
    now_ms = home.times[0] + history_days * DAY_MS
    while now_ms + MONTH_DAYS * DAY_MS <= home.times[-1]:
        begin = bisect_left(home.times, now_ms - history_days * DAY_MS)
        end = bisect_left(home.times, now_ms + MONTH_DAYS * DAY_MS)
        part = Home(home.meter)
        part.times, part.hours, part.values = home.times[begin:end], home.hours[begin:end], home.values[begin:end]
        yield _window(part, now_ms)
        now_ms += every_days * DAY_MS


def _window(home: Home, now_ms: int) -> Window:
    since_ms = home.times[0] + LEARN_DAYS * DAY_MS
    replays = {cost_h: _replayed(home, cost_h) for cost_h in COSTS_H}
    # Whether somebody was at home does not depend on the price.
    absences = replays[COST_H].tally.absences
    later = {cost_h: reds_since(replay, now_ms) for cost_h, replay in replays.items()}
    past = {cost_h: reds_since(replay, since_ms) - later[cost_h] for cost_h, replay in replays.items()}
    next_months = months_at_home(home, absences, since_ms=now_ms)
    months = months_at_home(home, absences, since_ms=since_ms) - next_months
    cheap = replays[CHEAP_H]
    return Window(
        meter=home.meter,
        recommended=suitable_cost_h(past, months=months, configured=COST_H),
        quiet_month=reds_since(cheap, now_ms - MONTH_DAYS * DAY_MS) == later[CHEAP_H],
        next_reds=later,
        next_months=next_months,
    )


def _replayed(home: Home, cost_h: int) -> Replay:
    rule = RuleSet(name=f"{cost_h}", cost_h=cost_h)
    replay = Replay(home, rule, since_ms=home.times[0], interval_ms=home.interval_ms, traced=False)
    for time_ms, hour, value_ml in zip(home.times, home.hours, home.values, strict=True):
        replay.feed(time_ms, hour, value_ml)
    replay.close()
    return replay


def total(found: Sequence[Window], price: Callable[[Window], int]) -> float:
    """Return the red alerts a month in the months after, at the price of each window."""
    return sum(window.next_reds[price(window)] for window in found) / sum(window.next_months for window in found)


def main() -> None:
    """Print a table for each length of history."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    path = parser.parse_args().data / "households.csv.gz"
    homes = {home.meter: home for home in load(path, [meter for meters in GROUPS.values() for meter in meters])}
    for history_days in (60, 120):
        known = {meter: list(windows(home, history_days=history_days, every_days=15)) for meter, home in homes.items()}
        one = (*GROUPS["training"], *GROUPS["report"])
        for group, meters in {**GROUPS, "one resident": one}.items():
            found = [window for meter in meters for window in known[meter]]
            print(f"{history_days} days of history, {group}")
            _line("as recommended", found, price=lambda window: window.recommended)
            for cost_h in COSTS_H:
                chosen = [window for window in found if window.recommended == cost_h]
                _line(f"  {cost_h} recommended", chosen, price=lambda window: window.recommended)
            _line("quiet month", [window for window in found if window.quiet_month], price=lambda _: CHEAP_H)
            _line(f"always {CHEAP_H}", found, price=lambda _: CHEAP_H)


def _line(name: str, found: Sequence[Window], *, price: Callable[[Window], int]) -> None:
    if found:
        default = total(found, lambda _: COST_H)
        print(f"  {name:18} {len(found):4} windows, next month {total(found, price):.2f} (at {COST_H}: {default:.2f})")


if __name__ == "__main__":
    main()
