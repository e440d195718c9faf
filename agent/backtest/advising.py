"""`shuiwang advise`: whose homes, from where."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agent.backtest.advice import Advice, advise
from agent.backtest.advice_view import print_home
from agent.backtest.advice_words import Words, detection_table, sentences, too_short
from agent.backtest.columns import Columns
from agent.backtest.homes import Home, gather
from agent.backtest.moments import LocalClock
from agent.backtest.problems import BadRows, InputProblem
from agent.backtest.rules import RuleSet
from agent.backtest.tables import Table, files_in
from agent.detection.watch import HOUR_MS

if TYPE_CHECKING:
    from agent.settings import Config
    from gateway.store import Store


class Advised(msgspec.Struct, frozen=True):
    """One home, the rule that is ordered for it, and the advice; None where there is too little history."""

    meter: str
    ordered: RuleSet
    advice: Advice | None


def of_file(
    source: Path, *, timezone: str, values: str | None, columns: Columns | None, meters: Sequence[str], skip_bad: bool
) -> list[Advised]:
    """Advise on the homes of a file or folder, under the county's rule as it is by default. Raises InputProblem."""
    clock = LocalClock(timezone)
    ordered = RuleSet(name="ordered")
    bad = BadRows(skip=skip_bad)
    advised: list[Advised] = []
    for file in files_in(source):
        table = Table(file, columns=columns, values=values, bad=bad)
        rows = (row for row in table.rows() if not meters or row[1] in meters)
        homes = gather(rows, clock=clock, values=table.values, bad=bad, place=table.place)
        advised += [Advised(home.meter, ordered, advise(home, clock=clock, ordered=ordered)) for home in homes]
    if not advised:
        raise InputProblem(f"{source}: holds no reading" + (f" of {', '.join(meters)}" if meters else ""))
    return advised


def of_gateway(config: "Config", *, meters: Sequence[str]) -> list[Advised]:
    """Advise on the homes of a gateway, from what its store remembers. Raises InputProblem and StoreError."""
    from agent.service import STORE_NAME
    from gateway.store import Store, StoreError

    known = {meter.id: meter for meter in config.meters}
    for meter in meters:
        if meter not in known:
            raise InputProblem(f"--meter {meter}: {config.path} has no such meter; it has {', '.join(known)}")
    path = config.gateway.data_dir / STORE_NAME
    if not path.exists():
        raise StoreError(f"there is no store at {path}: the agent has not run with this configuration yet")
    clock = LocalClock(config.gateway.timezone)
    store = Store(path, read_only=True)
    try:
        advised = []
        for meter in meters or known:
            detection = known[meter].detection
            ordered = RuleSet(
                name="ordered",
                window_ms=detection.window_ms,
                threshold_ml=detection.threshold_ml,
                cost_h=detection.cost_h,
                cold_h=detection.cold_h,
            )
            home = _remembered(store, meter, clock)
            advised.append(Advised(meter, ordered, advise(home, clock=clock, ordered=ordered)))
        return advised
    finally:
        store.close()


def _remembered(store: "Store", meter: str, clock: LocalClock) -> Home:
    """Return a home as the store remembers it: the last value of each hour, which is dated at the hour's end."""
    home = Home(meter)
    for value in store.hours_of(meter):
        time_ms = (value.hour + 1) * HOUR_MS - 1
        home.times.append(time_ms)
        home.hours.append(clock.hour(time_ms))
        home.values.append(value.volume_ml)
    return home


def as_data(advised: Sequence[Advised]) -> list[dict[str, Any]]:
    """Return everything for machines."""
    return [
        {"meter": one.meter, "advice": one.advice, "words": _words(one), "configuration": _lines(one)}
        for one in advised
    ]


def show(advised: Sequence[Advised]) -> None:
    """Print everything for people."""
    for one in advised:
        print_home(one.advice, _words(one), _lines(one))


def _words(one: Advised) -> list[Words]:
    return [too_short(one.meter)] if one.advice is None else sentences(one.advice, ordered=one.ordered)


def _lines(one: Advised) -> list[str]:
    return [] if one.advice is None else detection_table(one.advice, ordered=one.ordered)
