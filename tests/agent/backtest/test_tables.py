"""Rows of CSV, gzip and Parquet come out alike, each with the place where a person finds it."""

import datetime
import gzip

import pyarrow
import pyarrow.parquet
import pytest

from agent.backtest.problems import BadRows, InputProblem
from agent.backtest.tables import Table, files_in, name_of, text_bytes

TEXT = "timestamp,meter,litres_cum\n2026-01-01T00:00:00,a,1\n\n2026-01-01T01:00:00,b,\n2026-01-01T01:00:00,a,2.5\n"
ROWS = [
    (2, "a", "2026-01-01T00:00:00", "1"),
    (4, "b", "2026-01-01T01:00:00", ""),
    (5, "a", "2026-01-01T01:00:00", "2.5"),
]


def table(path, *, skip=False, values=None):
    return Table(path, columns=None, values=values, bad=BadRows(skip=skip))


def test_csv_plain_packed_and_with_a_mark_at_its_head(tmp_path):
    plain, packed, marked = tmp_path / "a.csv", tmp_path / "a.csv.gz", tmp_path / "b.csv"
    plain.write_text(TEXT, encoding="utf-8")
    packed.write_bytes(gzip.compress(TEXT.encode()))
    marked.write_text(TEXT, encoding="utf-8-sig")
    for path in (plain, packed, marked):
        assert list(table(path).rows()) == ROWS
        assert table(path).values == "cumulative"
    assert table(plain).place(4) == f"{plain}:4"


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_parquet_with_naive_times(tmp_path, unit):
    path = tmp_path / "a.parquet"
    moments = [datetime.datetime(2026, 1, 1, 0, 53, 8), datetime.datetime(2026, 1, 1, 1)]
    pyarrow.parquet.write_table(
        pyarrow.table(
            {
                "litres_cum": pyarrow.array([1, None], pyarrow.int64()),
                "meter": pyarrow.array(["a", "b"]).dictionary_encode(),
                "timestamp": pyarrow.array(moments, pyarrow.timestamp(unit)),
            }
        ),
        path,
    )
    assert list(table(path).rows()) == [(1, "a", "2026-01-01 00:53:08", "1"), (2, "b", "2026-01-01 01:00:00", "")]
    assert table(path).place(2) == f"{path}:row 2"


def test_parquet_with_instants_numbers_and_floats(tmp_path):
    path = tmp_path / "a.parquet"
    moment = datetime.datetime(2026, 1, 1, 8, tzinfo=datetime.timezone(datetime.timedelta(hours=8)))
    columns = {
        "timestamp": pyarrow.array([moment], pyarrow.timestamp("ms", "Asia/Shanghai")),
        "meter": pyarrow.array([17]),
        "litres_interval": pyarrow.array([0.1]),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert list(table(path).rows()) == [(1, "17", "2026-01-01 00:00:00Z", "0.1")]


@pytest.mark.parametrize("column", ["timestamp", "meter", "litres_cum"])
@pytest.mark.parametrize("holds", ["list", "struct", "map"])
def test_a_parquet_column_of_what_is_no_value_is_named(tmp_path, column, holds):
    nested = {
        "list": pyarrow.array([[1]]),
        "struct": pyarrow.array([{"litres": 1}]),
        "map": pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    }
    columns = {name: pyarrow.array(["1"]) for name in ("timestamp", "meter", "litres_cum")} | {column: nested[holds]}
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(InputProblem, match=rf"a\.parquet:row 1: the column '{column}' holds {holds}<.*one value a row"):
        list(table(path).rows())


def test_a_long_row_or_header_is_not_told_whole(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("timestamp,meter,litres_cum\n" + "9" * 5_000, encoding="utf-8")
    with pytest.raises(InputProblem, match=r"only 1 columns: '9+… \(5,000 characters\)") as caught:
        list(table(path).rows())
    assert len(str(caught.value)) < 300
    path.write_text("x" * 5_000, encoding="utf-8")
    with pytest.raises(InputProblem, match="'timestamp' is missing") as caught:
        table(path)
    assert len(str(caught.value)) < 400


def test_a_row_that_is_too_short_is_named_or_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("timestamp,meter,litres_cum\n2026-01-01T00:00:00,a\n2026-01-01T01:00:00,a,2\n", encoding="utf-8")
    with pytest.raises(InputProblem, match=r"a\.csv:2: only 2 columns.*--skip-bad"):
        list(table(path).rows())
    bad = BadRows(skip=True)
    assert len(list(Table(path, columns=None, values=None, bad=bad).rows())) == 1
    assert bad.count == 1
    assert "a.csv:2" in bad.first[0]


def test_a_quoted_line_feed_does_not_shift_the_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('note,timestamp,meter,litres_cum\n"two\nlines",t,a,1\nx,t,a,2\n', encoding="utf-8")
    assert [row[0] for row in table(path).rows()] == [3, 4]


@pytest.mark.parametrize("damage", ["cut", "not gzip", "latin-1", "no parquet"])
def test_a_damaged_file_is_said_with_its_place(tmp_path, damage):
    path = tmp_path / ("a.parquet" if damage == "no parquet" else "a.csv" if damage == "latin-1" else "a.csv.gz")
    packed = gzip.compress((TEXT * 500).encode())
    contents = {
        "cut": packed[:-20],
        "not gzip": b"PK" + packed,
        "latin-1": TEXT.encode() * 9 + b"\xe9",
        "no parquet": b"x",
    }
    path.write_bytes(contents[damage])
    with pytest.raises(InputProblem, match=path.name):
        list(table(path, skip=True).rows())


def test_an_empty_file_has_no_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("", encoding="utf-8")
    with pytest.raises(InputProblem, match="'timestamp' is missing"):
        table(path)


def test_files_of_a_folder_come_in_the_order_of_their_names(tmp_path):
    for name in ("b.csv", "a.csv.gz", "c.parquet", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in files_in(tmp_path)] == ["a.csv.gz", "b.csv", "c.parquet"]
    assert [name_of(path) for path in files_in(tmp_path)] == ["a", "b", "c"]
    assert files_in(tmp_path / "b.csv") == [tmp_path / "b.csv"]
    for wrong, message in (("notes.txt", "should end in"), ("d.csv", "no such file")):
        with pytest.raises(InputProblem, match=message):
            files_in(tmp_path / wrong)


def test_sizes_are_estimated_in_bytes_of_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(TEXT, encoding="utf-8")
    assert text_bytes(path) == len(TEXT)
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(TEXT.encode()))
    assert text_bytes(packed) == 12 * packed.stat().st_size
