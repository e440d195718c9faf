"""Which columns of a file hold what, and whether its litres are a register or the use since the row before."""

from collections.abc import Sequence
from typing import Final

import msgspec

from agent.backtest.problems import InputProblem, brief

CUMULATIVE, INTERVAL = "cumulative", "interval"
TIMESTAMP, METER, LITRES = "timestamp", "meter", "litres"
# Names of the column of litres that say themselves what it holds. Plain `litres` does not.
TOLD_BY_NAME: Final = {
    "litres_cum": CUMULATIVE,
    "litres_cumulative": CUMULATIVE,
    "litres_interval": INTERVAL,
}


class Columns(msgspec.Struct, frozen=True):
    """The names of the three columns; an empty `meter` means one home per file, named like the file."""

    timestamp: str
    meter: str
    litres: str


class Layout(msgspec.Struct, frozen=True):
    """Where the columns are in a file, counted from 0 (`meter` None: named like the file), and what litres are."""

    timestamp: int
    meter: int | None
    litres: int
    values: str


def parse_columns(text: str) -> Columns:
    """Return what `--columns TIMESTAMP,METER,LITRES` says. Raises InputProblem."""
    names = [name.strip() for name in text.split(",")]
    if len(names) != 3 or not names[0] or not names[2]:
        raise InputProblem(f"--columns {text!r} should name three columns: TIMESTAMP,METER,LITRES (METER may be empty)")
    return Columns(*names)


def layout(header: Sequence[str], *, place: str, columns: Columns | None, values: str | None) -> Layout:
    """Find the columns in a header. Raises InputProblem where one is missing, or where nothing says what litres are."""
    names = [name.strip() for name in header]
    if columns is None:
        found = [name for name in (LITRES, *TOLD_BY_NAME) if name in names]
        if len(found) > 1:
            raise InputProblem(f"{place}: {' and '.join(found)} both hold litres; say which with --columns")
        columns = Columns(TIMESTAMP, METER, found[0] if found else LITRES)
    for name in filter(None, (columns.timestamp, columns.meter, columns.litres)):
        if names.count(name) != 1:
            what = "is there twice" if name in names else "is missing"
            raise InputProblem(
                f"{place}: the column {name!r} {what}; the header is {brief(','.join(names))!r}."
                " --columns TIMESTAMP,METER,LITRES names others"
            )
    told = TOLD_BY_NAME.get(columns.litres)
    if values is None and told is None:
        raise InputProblem(
            f"{place}: nothing says whether {columns.litres!r} is the meter's register or the use since the row before:"
            f" give --values {CUMULATIVE} or --values {INTERVAL}"
        )
    if values is not None and told is not None and told != values:
        raise InputProblem(f"{place}: the column {columns.litres!r} says {told}, --values says {values}")
    return Layout(
        timestamp=names.index(columns.timestamp),
        meter=names.index(columns.meter) if columns.meter else None,
        litres=names.index(columns.litres),
        values=values or told or "",
    )
