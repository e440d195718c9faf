"""The benchmarks run: too small for their figures to mean much, but each finds what it measures at work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
ROOT = Path(__file__).parents[2]


def rows(name, *options):
    """What a quick run finds, by name."""
    command = [sys.executable, ROOT / "benchmarks" / name, "--quick", "--json", *options]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert {"date", "commit", "machine", "versions"} <= report["conditions"].keys()
    assert all(row["figure"] >= 0 for row in report["rows"])
    return {row["what"]: row for row in report["rows"]}


@pytest.mark.parametrize(
    ("line", "title", "peers"),
    [
        ("modbus", "Modbus", ["bare pyserial, no checks", "minimalmodbus alone", "pymodbus client"]),
        ("cjt188", "CJ/T 188", ["bare pyserial, no checks"]),
    ],
)
def test_poll_cycle(line, title, peers):
    found = rows("poll_cycle.py", "--only", line)
    ours = ["our bus and meter reader", "our agent: poll, judge, commit", "our agent, usual cycle"]
    for what in [*ours, *peers]:
        row = found[f"{title}: {what}"]
        # All of these keep the silence between frames or more: none can beat the line, unless the line does not pace.
        assert 0.2 < row["ratio"] < 1.005, row
    # A quick run ends before the mean is that of the steady state: it holds the hold-off after the first questions.
    usual, mean = (found[f"{title}: our agent, {which} cycle"]["figure"] for which in ("usual", "mean"))
    assert mean > usual, "the dead were never asked"


def test_reading_cost():
    found = rows("reading_cost.py")
    for what in ["judge and commit, CPU", "bytes handed to the kernel"]:
        assert 1 < found[what]["ratio"] < 100, found[what]
    assert found["start: the judge rebuilt"]["ratio"] > 1
    if syncs := found.get("syncs per commit"):
        assert syncs["figure"] == 1


def test_memory():
    found = rows("memory.py")
    assert 10 < found["started, empty store"]["figure"] <= found["highest until then"]["figure"] + 5
    assert found["import: (the interpreter)"]["figure"] < found["started, empty store"]["figure"]


def test_a_benchmark_that_cannot_measure_says_so(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "reading_cost.py", "--start-from", tmp_path / "none" / "none.db"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 1
    assert "none.db" in result.stderr
