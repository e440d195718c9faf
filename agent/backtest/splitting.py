"""Parts of the input that fit into memory: a file of a folder as it is, a file of many meters split by meter.

    one file, meters in any order ──▶ spill/000.tsv … each meter wholly in one of them ──▶ one part each
    folder: a file with whole homes, up to WHOLE_BYTES_MAX of text               ──────▶ one part
    folder: a larger file                                                        ──────▶ split like one file

At any time a process holds the homes of one part. Splitting holds one row of each spill file and the names of the
meters; it needs as much disk as the file has text.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, TextIO

import msgspec

from agent.backtest.columns import Columns
from agent.backtest.problems import BadRows, InputProblem
from agent.backtest.tables import Row, Table, files_in, text_bytes

# 17 bytes of memory for about 40 bytes of text: some 30 MiB for a part of this size.
WHOLE_BYTES_MAX: Final = 64 * 1024 * 1024
SPILL_BYTES: Final = 16 * 1024 * 1024
# At least: work for every core. At most: files that a process may hold open (1,024 on most systems).
SPILLS_MIN, SPILLS_MAX = 64, 512


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of work: `path` is `source` itself, or a spill of it."""

    source: Path
    path: Path
    values: str | None = None  # of a spill: what its litres are
    by_row: bool = False  # of a spill: rows of a Parquet file, not lines


def parts(
    source: Path,
    *,
    spill: Path,
    columns: Columns | None,
    values: str | None,
    bad: BadRows,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Part]:
    """Divide a file or folder; `progress` is called with the number of rows split so far. Raises InputProblem."""
    files = files_in(source)
    found: list[Part] = []
    for index, file in enumerate(files):
        size = text_bytes(file)
        if source.is_dir() and size <= WHOLE_BYTES_MAX:
            found.append(Part(source=file, path=file))
        else:
            table = Table(file, columns=columns, values=values, bad=bad)
            count = min(max(size // SPILL_BYTES + 1, SPILLS_MIN), SPILLS_MAX)
            found += _split(table, spill / f"{index:05}", count=count, bad=bad, progress=progress)
    return found


def open_part(
    part: Part, *, columns: Columns | None, values: str | None, bad: BadRows
) -> tuple[Iterable[Row], str, Callable[[int], str]]:
    """Return the rows of a part, what its litres are, and what says where a row stands. Raises InputProblem."""
    if part.path == part.source:
        table = Table(part.path, columns=columns, values=values, bad=bad)
        return table.rows(), table.values, table.place
    prefix = f"{part.source}:row " if part.by_row else f"{part.source}:"
    return _spilled(part.path), part.values or "", lambda number: f"{prefix}{number}"


def _split(table: Table, folder: Path, *, count: int, bad: BadRows, progress: Callable[[int], None]) -> Iterator[Part]:
    try:
        folder.mkdir(parents=True)
        paths = _spill(table, folder, count=count, bad=bad, progress=progress)
    except OSError as error:
        raise InputProblem(
            f"{folder}: the rows cannot be split there: {error}. --spill DIR names another folder"
        ) from error
    by_row = table.path.name.endswith(".parquet")
    for path in paths:
        yield Part(source=table.path, path=path, values=table.values, by_row=by_row)


def _spill(table: Table, folder: Path, *, count: int, bad: BadRows, progress: Callable[[int], None]) -> list[Path]:
    """Write each meter's rows, in their order, to one of `count` files; meters take turns as they first appear."""
    spill_of: dict[str, int] = {}
    paths = [folder / f"{index:03}.tsv" for index in range(count)]
    with contextlib.ExitStack() as stack:
        files: list[TextIO] = []
        for rows, (number, meter, timestamp, litres) in enumerate(table.rows()):
            index = spill_of.setdefault(meter, len(spill_of) % count)
            if index == len(files):
                files.append(stack.enter_context(paths[index].open("w", encoding="utf-8", newline="")))
            line = f"{number}\t{meter}\t{timestamp}\t{litres}\n"
            if line.count("\t") != 3 or line.count("\n") != 1 or "\r" in line:
                bad.add(table.place(number), "a tab or line feed within a value")
                continue
            files[index].write(line)
            if rows & 0xFFFF == 0:
                progress(rows)
    return paths[: len(files)]


def _spilled(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            number, meter, timestamp, litres = line.rstrip("\n").split("\t")
            yield int(number), meter, timestamp, litres
