"""What `shuiwang backtest` prints for people."""

from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from agent.backtest.run import Report
from agent.backtest.score import RED, YELLOW, DelayFigures, Figures

HOMES_SHOWN: Final = 30


def print_report(report: Report) -> None:
    """Print the rule sets, the figures over all homes, and those of each home or of the worst."""
    console = Console(highlight=False)
    homes = len(report.homes)
    console.print(
        f"[bold]{report.source}[/bold]: {homes:,} {'home' if homes == 1 else 'homes'}, {report.readings:,} readings,"
        f" clocks of {report.timezone}; the first {report.learn_days} days only teach",
        soft_wrap=True,
    )
    for name, words in report.rules.items():
        console.print(f"  [bold]{name}[/bold]  {words}", soft_wrap=True)
    table = _table(report, "rules\n规则")
    for name, figures in report.total.items():
        table.add_row(name, *_cells(report, figures))
    console.print(table)
    if homes > 1:
        console.print(_homes(report))
    for line in _notes(report):
        console.print(line, soft_wrap=True, markup=False)


def _homes(report: Report) -> Table:
    """Return the table of the homes: all, or those with the most red alerts a month under the first rule set."""
    first = next(iter(report.rules))
    worst = sorted(report.homes, key=lambda home: -(home.rules[first].per_month[RED] or 0))
    shown = report.homes if len(report.homes) <= HOMES_SHOWN else tuple(worst[:HOMES_SHOWN])
    table = _table(report, "home\n住户", "rules\n规则")
    for home in shown:
        for i, (name, figures) in enumerate(home.rules.items()):
            table.add_row(
                home.meter if i == 0 else "", name, *_cells(report, figures), end_section=i == len(home.rules) - 1 > 0
            )
    if len(shown) < len(report.homes):
        table.title = f"the {len(shown)} homes with the most red alerts a month under {first}; --json has all"
    return table


def _table(report: Report, *names: str) -> Table:
    """Return an empty table that fits into 80 columns, as long as homes and rules have short names."""
    right = ["mon.\n月", "yellow\n/month", "red\n/month", "yellow\n%", "red\n%"]
    if report.stops:
        right += ["h→yellow\nP50/⌀/P90", "h→red\nP50/⌀/P90", "never"]
    columns = [Column(name, no_wrap=True) for name in names]
    columns += [Column(name, justify="right", no_wrap=True) for name in right]
    return Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), collapse_padding=True, pad_edge=False)


def _cells(report: Report, figures: Figures) -> list[str]:
    if not figures.months:
        return ["too short", *[""] * (7 if report.stops else 4)]
    cells = [
        f"{figures.months:.1f}",
        _number(figures.per_month[YELLOW]),
        _number(figures.per_month[RED]),
        _percent(figures.standing[YELLOW]),
        _percent(figures.standing[RED]),
    ]
    if figures.delays is not None:
        red = figures.delays[RED]
        cells += [_delay(figures.delays[YELLOW]), _delay(red), f"{red.missed:,}"]
    return cells


def noticed(delays: DelayFigures) -> int:
    """Return after how many stops the alarm came."""
    return delays.stops - delays.standing - delays.missed


def _notes(report: Report) -> list[str]:
    away = _absences(report)
    notes = [
        f"Months are time at home: silences of more than 36 h are absences, whose alerts are not counted ({away})."
    ]
    if report.stops:
        standing = "; ".join(
            f"{name}: yellow {_standing(figures.delays[YELLOW])}, red {_standing(figures.delays[RED])};"
            f" {noticed(figures.delays[RED]):,} were told red"
            for name, figures in report.total.items()
            if figures.delays is not None
        )
        notes.append(
            f"Stops: up to {report.stops:,} a home, seed {report.seed}; where an alarm stood already there is no delay"
            f" to count ({standing})."
        )
    others = {kind: count for kind, count in next(iter(report.total.values())).others.items() if count}
    if others:
        notes.append("Other alerts: " + ", ".join(f"{count:,} {kind}" for kind, count in others.items()) + ".")
    if report.too_short:
        notes.append(
            f"Homes of no more than {report.learn_days} days, of which nothing was judged: {report.too_short:,}."
        )
    if report.missing:
        notes.append(f"{report.missing:,} rows had no value: the meter was not read.")
    if report.bad_rows:
        notes.append(f"{report.bad_rows:,} bad rows were left out, such as: " + "; ".join(report.bad_first))
    return notes


def _absences(report: Report) -> str:
    return "; ".join(f"{name}: {figures.absence_alerts[RED]:,} red" for name, figures in report.total.items())


def _standing(delays: DelayFigures) -> str:
    return f"{delays.standing:,} of {delays.stops:,}"


def _delay(delays: DelayFigures) -> str:
    if delays.median_h is None or delays.mean_h is None or delays.p90_h is None:
        return "–"
    return f"{delays.median_h:.3g}/{delays.mean_h:.1f}/{delays.p90_h:.3g}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.1f}"
