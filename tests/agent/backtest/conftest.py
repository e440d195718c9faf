import math
import random
from pathlib import Path

import pytest

from agent.backtest.homes import Home
from agent.backtest.moments import LocalClock

HOUR = 3_600_000
START_MS = 1_767_196_800_000  # 2026-01-01 00:00 in Shanghai
SHARED = Path(__file__).parents[4] / "shared" / "data" / "households.csv.gz"


@pytest.fixture(scope="session")
def shanghai():
    return LocalClock("Asia/Shanghai")


@pytest.fixture(scope="session")
def households():
    if not SHARED.exists():
        pytest.skip("the shared household data are not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def life():
    """A function that makes a home: up at 7, to bed at 22, each hour with or without use by chance, none in `away`."""

    def live(meter="m-001", *, days=90, seed=1, every_min=60, away=(), leak_l_h=0, step_l=1, still=0.45):
        chance = random.Random(f"{meter}{seed}")
        clock = LocalClock("Asia/Shanghai")
        home = Home(meter)
        litres = 1000.0
        for minute in range(0, days * 1440, every_min):
            time_ms = START_MS + minute * 60_000
            hour = clock.hour(time_ms)
            gone = any(begin <= minute / 1440 < end for begin, end in away)
            litres += leak_l_h * every_min / 60
            if not gone and 7 <= hour < 22 and chance.random() < 1 - math.pow(still, every_min / 60):
                litres += chance.choice((2, 4, 6, 9, 15))
            home.times.append(time_ms)
            home.hours.append(hour)
            home.values.append(int(litres // step_l * step_l * 1000))
        return home

    return live


@pytest.fixture(scope="session")
def write_csv():
    """A function that writes homes to a CSV file: by meter, or as a gateway's table would be, by time."""

    def write(path, homes, *, by_time=False, header="timestamp,meter,litres_cum"):
        clock = LocalClock("Asia/Shanghai")
        rows = [
            (time_ms, f"{clock.local(time_ms).isoformat()},{home.meter},{value / 1000:g}")
            for home in homes
            for time_ms, value in zip(home.times, home.values, strict=True)
        ]
        if by_time:
            rows.sort(key=lambda row: row[0])
        path.write_text("\n".join([header, *(row for _, row in rows)]) + "\n", encoding="utf-8")
        return path

    return write
