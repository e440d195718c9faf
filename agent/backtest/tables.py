"""Rows of CSV and Parquet files, as texts: one kind of row whatever the file is, read as a stream."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from agent.backtest.columns import Columns, layout
from agent.backtest.problems import BadRows, InputProblem, brief, require

if TYPE_CHECKING:
    from types import ModuleType

SUFFIXES: Final = (".csv", ".csv.gz", ".parquet")
BATCH_ROWS: Final = 65_536
# Bytes of text that a byte of a file stands for, for planning only: meters compress by a factor of about 12.
GZIP_FACTOR: Final = 12
PARQUET_ROW_BYTES: Final = 40

# Number of the row as people count (CSV: line of the file), meter, timestamp, litres.
Row = tuple[int, str, str, str]


class Table:
    """One file of rows. `values` says what its litres are."""

    def __init__(self, path: Path, *, columns: Columns | None, values: str | None, bad: BadRows) -> None:
        """Read the header. Raises InputProblem."""
        self.path = path
        self._bad = bad
        self._is_parquet = path.name.endswith(".parquet")
        try:
            header = self._parquet_header() if self._is_parquet else self._csv_header()
        except FileNotFoundError:
            raise InputProblem(f"{path}: there is no such file") from None
        except _DAMAGE as error:
            raise InputProblem(f"{path}: cannot be read: {error}") from error
        self._layout = layout(header, place=str(path), columns=columns, values=values)
        self.values = self._layout.values

    def place(self, number: int) -> str:
        """Return where a row is: `file:line`, or `file:row n` of a Parquet file."""
        return f"{self.path}:row {number}" if self._is_parquet else f"{self.path}:{number}"

    def rows(self) -> Iterator[Row]:
        """Yield the rows in order. Raises InputProblem for a damaged file."""
        number = 0
        try:
            for row in self._parquet_rows() if self._is_parquet else self._csv_rows():
                number = row[0]
                yield row
        except _DAMAGE as error:
            raise InputProblem(f"{self.place(number + 1)}: the file is damaged from here on: {error}") from error

    def _open_csv(self) -> IO[str]:
        source: Any = gzip.open if self.path.name.endswith(".gz") else open
        lines: IO[str] = source(self.path, "rt", encoding="utf-8-sig", newline="")
        return lines

    def _csv_header(self) -> list[str]:
        with self._open_csv() as lines:
            return next(csv.reader(lines), [])

    def _csv_rows(self) -> Iterator[Row]:
        timestamp, meter, litres = self._layout.timestamp, self._layout.meter, self._layout.litres
        fallback = name_of(self.path)
        with self._open_csv() as lines:
            reader = csv.reader(lines)
            next(reader)
            for row in reader:
                try:
                    name = fallback if meter is None else row[meter]
                    yield reader.line_num, name, row[timestamp], row[litres]
                except IndexError:
                    if row:  # an empty line is no row
                        self._bad.add(self.place(reader.line_num), f"only {len(row)} columns: {brief(','.join(row))!r}")

    def _parquet_header(self) -> list[str]:
        require("pyarrow", "a Parquet file")
        import pyarrow.parquet

        return list(pyarrow.parquet.read_schema(self.path).names)

    def _parquet_rows(self) -> Iterator[Row]:
        import pyarrow.parquet

        found = self._layout
        number = 1
        with pyarrow.parquet.ParquetFile(self.path) as file:
            names = file.schema_arrow.names
            wanted = [names[index] for index in (found.timestamp, found.meter, found.litres) if index is not None]
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
                stamps = self._texts(batch, names[found.timestamp], number=number)
                litres = self._texts(batch, names[found.litres], number=number)
                meters = [name_of(self.path)] * len(litres)
                if found.meter is not None:
                    meters = self._texts(batch, names[found.meter], number=number)
                yield from zip(range(number, number + len(litres)), meters, stamps, litres, strict=True)
                number += len(litres)

    def _texts(self, batch: Any, column: str, *, number: int) -> list[str]:
        """Return a column of a batch whose first row is `number`. Raises InputProblem for lists and the like."""
        import pyarrow

        try:
            return _texts(pyarrow, batch.column(column))
        except pyarrow.ArrowNotImplementedError:
            kind = brief(str(batch.column(column).type))
            raise InputProblem(
                f"{self.place(number)}: the column {column!r} holds {kind}; it should hold one value a row: a text, a"
                " number or a time"
            ) from None


def name_of(path: Path) -> str:
    """Return the name of a file without what its kind adds."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")
    return path.name.removesuffix(suffix)


def files_in(source: Path) -> list[Path]:
    """Return the files that a path names: itself, or those of a folder, in the order of their names.

    Raises InputProblem where there is none.
    """
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.name.endswith(SUFFIXES) and path.is_file())
        if not files:
            raise InputProblem(f"{source}: no file in this folder ends in {', '.join(SUFFIXES)}")
        return files
    if not source.exists():
        raise InputProblem(f"{source}: there is no such file or folder")
    if not source.name.endswith(SUFFIXES):
        raise InputProblem(f"{source}: the name should end in {', '.join(SUFFIXES)}")
    return [source]


def text_bytes(path: Path) -> int:
    """Estimate how many bytes of text a file holds."""
    if path.name.endswith(".parquet"):
        require("pyarrow", "a Parquet file")
        import pyarrow.parquet

        try:
            return int(pyarrow.parquet.read_metadata(path).num_rows) * PARQUET_ROW_BYTES
        except _DAMAGE as error:
            raise InputProblem(f"{path}: cannot be read: {error}") from error
    return path.stat().st_size * (GZIP_FACTOR if path.name.endswith(".gz") else 1)


def _texts(pyarrow: "ModuleType", column: Any) -> list[str]:
    """Return a column as texts; instants in UTC with an offset, to the second; nothing as the empty text."""
    types = pyarrow.types
    if types.is_timestamp(column.type):
        column = column.cast(pyarrow.timestamp("s", "UTC" if column.type.tz else None), safe=False)
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_floating(column.type):
        return ["" if value is None else repr(value) for value in column.to_pylist()]
    return ["" if value is None else value for value in column.cast(pyarrow.string()).to_pylist()]


# What a damaged or foreign file raises; pyarrow's errors are OSError and ValueError.
_DAMAGE = (OSError, EOFError, ValueError, csv.Error, zlib.error)
