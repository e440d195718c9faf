"""One file of many homes becomes parts, each meter wholly in one, its rows in order and still named by their lines."""

import pytest

from agent.backtest import splitting
from agent.backtest.problems import BadRows, InputProblem
from agent.backtest.splitting import SPILLS_MIN, Part, open_part, parts


def rows_of(part):
    rows, values, place = open_part(part, columns=None, values=None, bad=BadRows(skip=False))
    rows = list(rows)
    assert values == "cumulative"
    return [(meter, time, litres, place(number)) for number, meter, time, litres in rows]


def divided(source, tmp_path):
    return parts(source, spill=tmp_path / "spill", columns=None, values=None, bad=BadRows(skip=False))


def test_a_mixed_file_is_divided_by_meter(tmp_path, life, write_csv):
    homes = [life(f"m-{n}", days=3) for n in range(SPILLS_MIN + 10)]
    source = write_csv(tmp_path / "all.csv", homes, by_time=True)
    found = divided(source, tmp_path)
    assert len(found) == SPILLS_MIN
    lines = source.read_text(encoding="utf-8").splitlines()
    seen = {}
    for part in found:
        for meter, time, litres, place in rows_of(part):
            seen.setdefault(meter, []).append(time)
            path, _, number = place.rpartition(":")
            assert path == str(source)
            assert lines[int(number) - 1] == f"{time},{meter},{litres}"
    assert {meter: len(times) for meter, times in seen.items()} == {home.meter: len(home) for home in homes}
    assert all(times == sorted(times) for times in seen.values())


def test_the_division_does_not_depend_on_the_order_of_other_meters(tmp_path, life, write_csv):
    homes = [life(f"m-{n}", days=3) for n in range(5)]
    by_meter = divided(write_csv(tmp_path / "a.csv", homes), tmp_path / "1")
    by_time = divided(write_csv(tmp_path / "b.csv", homes, by_time=True), tmp_path / "2")
    assert [[row[:3] for row in rows_of(part)] for part in by_meter] == [
        [row[:3] for row in rows_of(part)] for part in by_time
    ]


def test_a_folder_s_small_files_are_parts_as_they_are_and_large_ones_are_divided(
    tmp_path, life, write_csv, monkeypatch
):
    folder = tmp_path / "homes"
    folder.mkdir()
    write_csv(folder / "small.csv", [life("m-1", days=2)])
    large = write_csv(folder / "large.csv", [life(f"m-{n}", days=20) for n in (2, 3)])
    monkeypatch.setattr(splitting, "WHOLE_BYTES_MAX", large.stat().st_size - 1)
    found = divided(folder, tmp_path)
    assert [part.source.name for part in found] == ["large.csv", "large.csv", "small.csv"]
    assert [part.path == part.source for part in found] == [False, False, True]
    assert [{row[0] for row in rows_of(part)} for part in found] == [{"m-2"}, {"m-3"}, {"m-1"}]


def test_no_more_files_are_open_than_a_process_may_have(tmp_path, life, write_csv, monkeypatch):
    monkeypatch.setattr(splitting, "SPILLS_MIN", 1)
    monkeypatch.setattr(splitting, "SPILL_BYTES", 100)
    monkeypatch.setattr(splitting, "SPILLS_MAX", 3)
    source = write_csv(tmp_path / "all.csv", [life(f"m-{n}", days=1) for n in range(10)])
    assert len(divided(source, tmp_path)) == 3


def test_a_tab_within_a_value_is_a_bad_row(tmp_path):
    source = tmp_path / "a.csv"
    source.write_text("timestamp,meter,litres_cum\n2026-01-01T00:00:00,a\tb,1\n", encoding="utf-8")
    with pytest.raises(InputProblem, match=r"a\.csv:2: a tab"):
        divided(source, tmp_path)


def test_a_spill_folder_that_cannot_be_written_is_said(tmp_path, life, write_csv):
    source = write_csv(tmp_path / "a.csv", [life(days=1)])
    (tmp_path / "spill").write_text("in the way", encoding="utf-8")
    with pytest.raises(InputProblem, match="--spill DIR"):
        divided(source, tmp_path)


def test_a_part_of_a_parquet_file_names_rows(tmp_path):
    part = Part(source=tmp_path / "a.parquet", path=tmp_path / "0.tsv", values="interval", by_row=True)
    part.path.write_text("7\ta\t2026-01-01T00:00:00\t1\n", encoding="utf-8")
    rows, values, place = open_part(part, columns=None, values=None, bad=BadRows(skip=False))
    assert (list(rows), values) == ([(7, "a", "2026-01-01T00:00:00", "1")], "interval")
    assert place(7) == f"{part.source}:row 7"
