"""How many readings a second `shuiwang backtest` judges, beside the fixed rule alone as one polars expression.

A village of homes, read every five minutes, as a folder of Parquet files and as one CSV of all homes mixed. polars
answers a smaller question (was there less than 100 L in the 12 h before each reading?) with all cores at once. It holds
the whole village in memory and knows no bad reading, no home's habits and no episode. Both must find the same readings
low.
"""

import argparse
import datetime
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import polars
from households import DAY
from measuring import ROOT, Report, arguments, fail, run

from agent.backtest.rules import DEFAULT
from agent.backtest.splitting import Part, open_part
from agent.backtest.work import Job, work_on
from agent.detection.window import LOW
from gateway.usage import Routine, Variation, parse_draw

ZONE = "Asia/Shanghai"
STEP_MIN = 5
WINDOW_H, THRESHOLD_L = DEFAULT[0].window_ms // 3_600_000, DEFAULT[0].threshold_ml // 1000


def live(folder: Path, *, homes: int, days: int) -> tuple[Path, Path, int]:
    """Write the village; return the folder of Parquet files, the mixed CSV, and how many readings they hold."""
    parquet = folder / "homes"
    parquet.mkdir()
    timezone = zoneinfo.ZoneInfo(ZONE)
    start = datetime.datetime(2026, 1, 1, tzinfo=timezone)
    times = [start + datetime.timedelta(minutes=STEP_MIN * i) for i in range(days * 24 * 60 // STEP_MIN)]
    tables = []
    for number in range(homes):
        routine = Routine(
            [parse_draw(text) for text in DAY],
            start_ml=0,
            since_ms=int(start.timestamp() * 1000),
            timezone=timezone,
            variation=Variation(percent=30, minutes=25, seed=str(number)),
        )
        litres = [routine.volume_ml(int(moment.timestamp() * 1000)) // 1000 for moment in times]
        name = f"m-{number:04}"
        table = polars.DataFrame({"timestamp": times, "meter": [name] * len(times), "litres_cum": litres})
        table.write_parquet(parquet / f"{name}.parquet")
        tables.append(table)
    mixed = folder / "mixed.csv"
    village = polars.concat(tables).sort("timestamp", maintain_order=True)
    village.with_columns(polars.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%S%:z")).write_csv(mixed)
    return parquet, mixed, len(village)


def fixed_rule(parquet: Path) -> polars.DataFrame:
    """The county's rule at every reading: less than so many litres in the window before, where that is known."""
    used = polars.col("litres_cum").diff().fill_null(0).over("meter")
    window = used.rolling_sum_by("timestamp", window_size=f"{WINDOW_H}h").over("meter")
    known = polars.col("timestamp") - polars.col("timestamp").min().over("meter") >= datetime.timedelta(hours=WINDOW_H)
    rows = polars.scan_parquet(parquet / "*.parquet").sort("meter", "timestamp")
    return rows.select(low=(window < THRESHOLD_L) & known).collect()


def low_readings(parquet: Path) -> int:
    """Count the readings that our watch finds low, for comparison."""
    count = 0
    for file in sorted(parquet.iterdir()):
        (home,) = _homes(file)
        watch = DEFAULT[0].watch()
        for reading in zip(home.times, home.hours, home.values, strict=True):
            watch.feed(*reading)
            count += watch.low == LOW
    return count


def _homes(file: Path) -> Any:
    from agent.backtest.homes import gather
    from agent.backtest.moments import LocalClock
    from agent.backtest.problems import BadRows

    bad = BadRows(skip=False)
    rows, values, place = open_part(Part(source=file, path=file), columns=None, values=None, bad=bad)
    return gather(rows, clock=LocalClock(ZONE), values=values, bad=bad, place=place)


def command(source: Path, *options: object) -> tuple[float, dict[str, Any], float]:
    """Run `shuiwang backtest`; return seconds, its report, and the most memory that one process took, in MiB."""
    arguments = ["-m", "agent.cli", "backtest", source, "--timezone", ZONE, "--learn-days", 7, "--json", *options]
    script = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, check=False)\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "sys.stdout.buffer.write(done.stdout); print(json.dumps([done.returncode, peak]), file=sys.stderr)\n"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    took_s = time.perf_counter() - began
    code, peak_kib = json.loads(done.stderr.splitlines()[-1])
    if code:
        fail(done.stderr)
    return took_s, json.loads(done.stdout), peak_kib / 1024


def best(work: Callable[[], object], *, times: int) -> tuple[float, float]:
    """Seconds, and CPU seconds of all threads, of the fastest of some runs."""
    took = []
    for _ in range(times):
        began, cpu_began = time.perf_counter(), time.process_time()
        work()
        took.append((time.perf_counter() - began, time.process_time() - cpu_began))
    return min(wall for wall, _ in took), min(cpu for _, cpu in took)


def measure(chosen: argparse.Namespace, folder: Path) -> Report:
    homes, days = (4, 9) if chosen.quick else (chosen.homes, chosen.days)
    parquet, mixed, readings = live(folder, homes=homes, days=days)
    conditions = {"village": f"{homes} homes, {days} days, every {STEP_MIN} min: {readings:,} readings"}
    report = Report("shuiwang backtest", conditions={**conditions, "polars": polars.__version__})
    found = int(fixed_rule(parquet)["low"].sum())
    if found != low_readings(parquet):
        fail(f"polars finds {found} readings low, the watch {low_readings(parquet)}")
    peer_s, peer_cpu_s = best(lambda: fixed_rule(parquet), times=5)
    peer = readings / peer_s
    against = "polars, the fixed rule alone, all cores"

    one = Job(rules=DEFAULT[:1], timezone=ZONE, learn_days=7)
    parts = [Part(source=file, path=file) for file in sorted(parquet.iterdir())]
    _, read_s = best(lambda: [_homes(part.path) for part in parts], times=2)
    _, judge_s = best(lambda: [work_on(part, one) for part in parts], times=2)
    report.add("CPU: a reading read", read_s / readings * 1e6, "µs")
    report.add("CPU: a reading read and judged", judge_s / readings * 1e6, "µs", against, peer_cpu_s / readings * 1e6)
    single = ("--rules", "home=")
    for what, source, options in (
        ("the command, folder of Parquet, one core", parquet, ("--jobs", 1, *single)),
        ("the command, folder of Parquet, all cores", parquet, single),
        ("the command, one mixed CSV, all cores", mixed, single),
        ("the command, three rule sets, all cores", parquet, ()),
        ("the command, 100 stops a home, all cores", parquet, (*single, "--stops", 100)),
        ("the command, Dask on this machine", parquet, (*single, "--cluster", "local")),
    ):
        took_s, result, peak_mib = command(source, *options)
        if result["readings"] != readings:
            fail(f"{what}: {result['readings']} of {readings} readings were judged")
        report.add(what, readings / took_s, "readings/s", against, peer, note=f"largest process {peak_mib:.0f} MiB")
    fixed_rule(parquet)
    report.notes.append(f"polars in this process, with the village in memory: {_peak_mib():.0f} MiB at most")
    report.notes.append(f"the same {found:,} readings are low for polars and for the watch")
    return report


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    chosen = arguments(
        __doc__,
        ("--homes", {"type": int, "default": 60, "help": "homes in the village"}),
        ("--days", {"type": int, "default": 60, "help": "days of readings"}),
    )
    folder = Path(tempfile.mkdtemp(prefix="shuiwang-benchmark-"))
    try:
        measure(chosen, folder).show(as_json=chosen.json)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    run(main)
