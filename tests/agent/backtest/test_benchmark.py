"""The benchmark runs, and polars and the watch find the same readings low; its figures mean little here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.e2e
@pytest.mark.timeout(180)
def test_it_measures_what_works():
    command = [sys.executable, ROOT / "benchmarks" / "backtest.py", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    found = {row["what"]: row["figure"] for row in report["rows"]}
    assert found.pop("CPU: a reading read") < found.pop("CPU: a reading read and judged") < 200
    assert len(found) == 6
    assert min(found.values()) > 100
    assert any("readings are low for polars and for the watch" in note for note in report["notes"])
