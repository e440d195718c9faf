"""`shuiwang backtest` and `shuiwang advise` as people call them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer.testing

from agent.backtest import cli, problems
from agent.exit_codes import ExitCode

ROOT = Path(__file__).parents[3]
ZONE = ("--timezone", "Asia/Shanghai")


def call(*arguments):
    return typer.testing.CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def village(tmp_path_factory, life, write_csv):
    homes = [life("m-001", days=40), life("m-002", days=40, away=((30, 33),)), life("m-003", days=8)]
    return write_csv(tmp_path_factory.mktemp("village") / "all.csv", homes, by_time=True)


def report(source, *options):
    done = call("backtest", source, *ZONE, "--learn-days", 10, "--jobs", 1, "--json", *options)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_a_report_for_machines(village):
    found = report(village, "--stops", 30, "--seed", 5)
    assert [home["meter"] for home in found["homes"]] == ["m-001", "m-002", "m-003"]
    assert list(found["total"]) == ["home", "fixed-12", "fixed-16"]
    assert found["too_short"] == 1
    assert found["readings"] == (40 + 40 + 8) * 24
    total = found["total"]["fixed-16"]
    assert total["absence_alerts"]["red"] == 1
    assert total["delays"]["red"]["stops"] == 60
    assert total["delays"]["red"]["median_h"] <= 16
    assert found == report(village, "--stops", 30, "--seed", 5)
    assert found != report(village, "--stops", 30, "--seed", 6)


def test_a_report_for_people(village, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    done = call("backtest", village, *ZONE, "--learn-days", 10, "--stops", 20, "--jobs", 1)
    assert done.exit_code == 0
    for words in ("3 homes", "m-002", "too short", "fixed-16", "nothing was judged: 1."):
        assert words in done.stdout


def test_one_home_under_rules_of_one_s_own(village):
    found = report(village, "--meter", "m-002", "--rules", "a=threshold_m3:0.01", "--rules", "b=red:off")
    assert [home["meter"] for home in found["homes"]] == ["m-002"]
    assert list(found["rules"]) == ["a", "b"]
    assert found["total"]["b"]["alerts"]["red"] == 0
    assert found["total"]["a"]["delays"] is None


def test_episodes_are_one_json_line_each(village, tmp_path):
    path = tmp_path / "episodes.jsonl"
    found = report(village, "--episodes", path)
    episodes = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {episode["rules"] for episode in episodes} == {"home", "fixed-12", "fixed-16"}
    reds = [e for e in episodes if e["rules"] == "home" and e["red_at"] and e["red_at"] > "2026-01-11T00:00:00"]
    assert len(reds) == sum(found["total"]["home"][key]["red"] for key in ("alerts", "absence_alerts"))
    (away,) = [e for e in reds if e["absence"]]
    assert away["meter"] == "m-002"
    assert away["red_at"].startswith("2026-01-31T")
    assert away["red_at"].endswith("+08:00")


def test_a_picture_for_each_home(village, tmp_path):
    folder = tmp_path / "pictures"
    report(village, "--plot", folder)
    pictures = sorted(folder.iterdir())
    assert [path.name for path in pictures] == ["m-001.png", "m-002.png", "m-003.png"]
    for path in pictures:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.stat().st_size > 20_000


def test_a_picture_s_file_stays_in_its_folder_whatever_the_home_is_called(tmp_path, life, write_csv):
    source = write_csv(tmp_path / "a.csv", [life("../../老王", days=12)])
    report(source, "--plot", tmp_path / "pictures")
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["%2F..%2F老王.png"]


def test_bad_rows_are_refused_or_counted(village, tmp_path):
    bad = tmp_path / "bad.csv"
    lines = village.read_text(encoding="utf-8").splitlines()
    lines[5] = "gone,m-001,1"
    bad.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = call("backtest", bad, *ZONE, "--jobs", 1)
    assert done.exit_code == ExitCode.USAGE
    assert f"{bad}:6: 'gone' is no time" in done.stderr
    assert report(bad, "--skip-bad")["bad_rows"] == 1


def test_a_meter_in_two_files_is_refused(tmp_path, life, write_csv):
    for name in ("a.csv", "b.csv"):
        write_csv(tmp_path / name, [life("m-001", days=2)])
    done = call("backtest", tmp_path, *ZONE, "--jobs", 1)
    assert done.exit_code == ExitCode.USAGE
    assert "meter m-001 is in" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backtest", "none.csv", *ZONE], "no such file"),
        (["backtest", "FILE"], "--timezone is missing"),
        (["backtest", "FILE", "--timezone", "Mars"], "Asia/Shanghai"),
        (["backtest", "FILE", *ZONE, "--values", "both"], "cumulative or interval"),
        (["backtest", "FILE", *ZONE, "--values", "interval"], "says cumulative"),
        (["backtest", "FILE", *ZONE, "--rules", "x"], "NAME=key:value"),
        (["backtest", "FILE", *ZONE, "--meter", "m-9"], "holds no reading of these meters"),
        (["backtest", "FILE", *ZONE, "--meter", "m-9", "--meter", "m-001"], "holds no meter m-9"),
        (["backtest", "FILE", *ZONE, "--episodes", "no/such/folder/x"], "cannot write"),
        (["advise"], "either a file with readings or -c CONFIG"),
        (["advise", "FILE", *ZONE, "--meter", "m-9"], "holds no reading of m-9"),
        (["advise", "-c", "x.toml", *ZONE], "leave these options out"),
    ],
)
def test_what_cannot_be_used_is_one_line(village, arguments, message):
    done = call(*(village if argument == "FILE" else argument for argument in arguments))
    assert done.exit_code == ExitCode.USAGE
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("library", "options"),
    [("matplotlib", ["--plot", "x"]), ("distributed", ["--cluster", "local"]), ("pyarrow", [])],
)
def test_without_the_extra_the_command_says_what_to_install(village, tmp_path, monkeypatch, library, options):
    monkeypatch.setattr(problems.importlib.util, "find_spec", lambda _name: None)
    source = village
    if library == "pyarrow":
        source = tmp_path / "a.parquet"
        source.write_bytes(b"")
    done = call("backtest", source, *ZONE, *options)
    assert done.exit_code == ExitCode.USAGE
    assert f"needs {library}, which is not installed: pip install 'shuiwang[backtest]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_csv_needs_no_extra(village):
    """It runs on the gateway, where none of these is installed."""
    blocked = ["numpy", "pandas", "pyarrow", "matplotlib", "dask", "distributed", "polars"]
    script = f"import sys; sys.modules.update(dict.fromkeys({blocked})); from agent.cli import main; main()"
    options = ["--learn-days", "10", "--stops", "5", "--json", *ZONE]
    command = [sys.executable, "-c", script, "backtest", str(village), *options, "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["homes"]) == 3


def test_intervals_and_registers_give_the_same_answer(tmp_path, life, write_csv):
    home = life(days=30)
    cumulative = write_csv(tmp_path / "a.csv", [home])
    for i in range(len(home) - 1, 0, -1):
        home.values[i] -= home.values[i - 1]
    interval = write_csv(tmp_path / "b.csv", [home], header="timestamp,meter,litres_interval")
    assert report(cumulative)["total"] == report(interval)["total"]


def test_a_folder_of_parquet_gives_the_same_answer_as_one_csv(village, tmp_path):
    import pyarrow.compute
    import pyarrow.csv
    import pyarrow.parquet

    table = pyarrow.csv.read_csv(village)
    for meter in ("m-001", "m-002", "m-003"):
        rows = table.filter(pyarrow.compute.equal(table["meter"], meter))
        pyarrow.parquet.write_table(rows, tmp_path / f"{meter}.parquet")
    assert report(tmp_path)["homes"] == report(village)["homes"]


def test_the_shared_households_file_runs_as_it_is(households):
    options = ["--timezone", "Europe/Madrid", "--columns", "timestamp_local,household,litres_cum", "--jobs", "1"]
    options += ["--meter", "D001", "--rules", "home=", "--json"]
    done = call("backtest", households, *options)
    assert done.exit_code == 0, done.stderr
    (home,) = json.loads(done.stdout)["homes"]
    assert (home["readings"], home["missing"]) == (7989, 0)
