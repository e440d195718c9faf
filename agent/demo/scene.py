"""What the demo plays: a village of seven homes, thirty hours, and the files that describe it to the processes.

The homes use more water than people who live alone really do (30 to 90 L a day: the county's rule would hold for most
of them most of the time), so that one home can be seen to fall silent. Nothing else is made up: registers are what the
simulated meters show, alerts are what the agent decides.
"""

import datetime
import json
import time
import zoneinfo
from pathlib import Path
from typing import Final

import msgspec

from gateway.clock import FastClock

GATEWAY: Final = "g-0371522"
COUNTY: Final = "shenxian"
TIMEZONE: Final = zoneinfo.ZoneInfo("Asia/Shanghai")
# One hour in the village lasts 2.4 s; one poll of the line (7 meters, about 0.35 s at 9600 baud) fits 20 minutes.
RATE: Final = 1500
POLL_EVERY_S: Final = 1200
WINDOW_H: Final = 12
THRESHOLD_ML: Final = 100_000
# The dead meter costs the others this much of the line's time, the living ones answer within 20 ms.
DEAD_TIMEOUT_MS: Final = 60
LIVING_TIMEOUT_MS: Final = 150

DAY_ONE: Final = datetime.date(2026, 10, 18)  # the Double Ninth, on which China honours its old people
HOUR_MS: Final = 3_600_000
SILENT: Final = "m-004"
DEAD: Final = "m-006"


def moment_ms(day: int, clock_time: str) -> int:
    """Return a moment of the play, such as day 2 at `06:40`, in milliseconds since 1970."""
    date = DAY_ONE + datetime.timedelta(days=day - 1)
    moment = datetime.datetime.combine(date, datetime.time.fromisoformat(clock_time), TIMEZONE)
    return round(moment.timestamp() * 1000)


# Twelve hours are full before the night, so that the rule is judged when the silence begins.
OPENS_MS: Final = moment_ms(1, "09:00")
FALLS_SILENT_MS: Final = moment_ms(1, "20:15")
# Yellow falls into it. It is short enough, and early enough, that a gateway which waits unluckily long before it calls
# again can still tell of red before the visit.
NETWORK_AWAY_MS: Final = moment_ms(2, "04:45")
NETWORK_BACK_MS: Final = moment_ms(2, "06:35")
# An hour and more after red. The county hears of the visit before the visitor runs any water.
VISITOR_MS: Final = moment_ms(2, "13:20")


class Home(msgspec.Struct, frozen=True, kw_only=True):
    """One home: its meter, where the meter is on the line, and when its people use how much water."""

    meter: str
    profile: str
    address: int
    start_m3: str
    usage: tuple[str, ...]


HOMES: Final = (
    Home(
        meter="m-001",
        profile="usw-dn15-40",
        address=11,
        start_m3="127.113",
        usage=(
            "05:20 40 L in 10 min",
            "06:50 45 L in 15 min",
            "08:30 50 L in 30 min",
            "11:10 35 L in 30 min",
            "13:00 15 L",
            "15:30 20 L in 5 min",
            "17:30 40 L in 30 min",
            "19:20 35 L in 20 min",
            "21:20 55 L in 20 min",
        ),
    ),
    Home(
        meter="m-002",
        profile="xintai",
        address=12,
        start_m3="45.600",
        usage=(
            "05:00 50 L in 15 min",
            "07:10 50 L in 20 min",
            "09:00 45 L in 30 min",
            "11:40 30 L in 20 min",
            "14:00 20 L",
            "16:50 35 L in 20 min",
            "18:30 40 L in 30 min",
            "20:40 60 L in 20 min",
        ),
    ),
    Home(
        meter="m-003",
        profile="usw-dn15-40",
        address=13,
        start_m3="310.482",
        usage=(
            "05:50 55 L in 30 min",
            "07:30 45 L in 10 min",
            "08:50 50 L in 40 min",
            "12:00 35 L in 30 min",
            "17:20 30 L in 20 min",
            "19:10 35 L in 10 min",
            "20:30 45 L in 20 min",
            "21:50 55 L in 20 min",
        ),
    ),
    Home(
        meter=SILENT,
        profile="usw-dn15-40",
        address=14,
        start_m3="88.020",
        usage=(
            "07:00 25 L in 10 min",
            "09:30 20 L in 10 min",
            "11:30 35 L in 20 min",
            # After the visit: a little water, which is real use and ends red, but far below the rule; then all the
            # washing, more than a poll later, which fulfils it.
            "14:10 8 L in 5 min",
            "14:50 150 L in 30 min",
            "17:30 70 L in 20 min",
            "19:40 45 L in 20 min",
        ),
    ),
    Home(
        meter="m-005",
        profile="xintai",
        address=15,
        start_m3="203.907",
        usage=(
            "06:10 60 L in 20 min",
            "07:40 45 L in 10 min",
            "09:10 50 L in 30 min",
            "11:20 40 L in 30 min",
            "13:30 20 L",
            "17:50 50 L in 30 min",
            "20:10 60 L in 20 min",
            "22:30 70 L in 20 min",
        ),
    ),
    Home(meter=DEAD, profile="usw-dn15-40", address=16, start_m3="12.000", usage=()),
    Home(
        meter="m-007",
        profile="tuf-2000",
        address=17,
        start_m3="802.609",
        usage=(
            "04:50 50 L in 15 min",
            "06:20 55 L in 20 min",
            "08:10 45 L in 30 min",
            "11:00 40 L in 30 min",
            "16:10 40 L in 20 min",
            "18:40 55 L in 30 min",
            "21:00 80 L in 20 min",
        ),
    ),
)


def start_clock() -> FastClock:
    """Return the clock of the play; it begins to run now."""
    return FastClock(rate=RATE, real_origin_ms=time.time_ns() // 1_000_000, shown_origin_ms=OPENS_MS)


def village_ms(clock: FastClock, real_ms: int) -> int:
    """Return what the clock showed at a real instant."""
    real_origin_ms, _, shown_origin_ms = str(clock).partition("@")[2].partition(":")
    return int(shown_origin_ms) + round((real_ms - int(real_origin_ms)) * RATE)


def local(wall_ms: int) -> datetime.datetime:
    """Return a moment as the village's clocks show it."""
    return datetime.datetime.fromtimestamp(wall_ms / 1000, TIMEZONE)


def day_of(wall_ms: int) -> int:
    """Return the day of the play, from 1."""
    return (local(wall_ms).date() - DAY_ONE).days + 1


def write_village(folder: Path) -> Path:
    """Write the village file of `shuiwang simulate`; its port will be `line` beside it."""
    path = folder / "village.toml"
    path.write_text(village_text(), encoding="utf-8")
    return path


def village_text() -> str:
    """Return the village file."""
    parts = [f'timezone = "{TIMEZONE.key}"\n\n[line]\nbaudrate = 9600\nlink = "line"\n']
    for home in HOMES:
        draws = "".join(f'    "{draw}",\n' for draw in home.usage)
        parts.append(
            f'\n[[meter]]\nid = "{home.meter}"\nprofile = "{home.profile}"\naddress = "{home.address}"\n'
            f'start_m3 = "{home.start_m3}"\nusage = [\n{draws}]\nsince = {_toml_time(OPENS_MS)}\n'
        )
        if home.meter == SILENT:
            parts.append(f"silent_from = {_toml_time(FALLS_SILENT_MS)}\nsilent_to = {_toml_time(VISITOR_MS)}\n")
        elif home.usage:
            parts.append("vary_percent = 10\nvary_min = 12\n")
        if home.meter == DEAD:
            parts.append('[[meter.fault]]\nkind = "dead"\n')
    return "".join(parts)


def write_configuration(folder: Path, *, broker_port: int) -> Path:
    """Write the configuration of `shuiwang run`."""
    path = folder / "shuiwang.toml"
    parts = [
        (
            f'[gateway]\nid = "{GATEWAY}"\ncounty = "{COUNTY}"\ndata_dir = {_toml_text(folder / "gateway")}\n'
            f'timezone = "{TIMEZONE.key}"\n\n[broker]\nurl = "mqtt://127.0.0.1:{broker_port}"\n\n'
            f'[[bus]]\nname = "rs485-1"\nport = {_toml_text(folder / "line")}\nbaudrate = 9600\n\n'
            f'[detection]\nwindow_h = {WINDOW_H}\nthreshold_m3 = "0.1"\n'
        )
    ]
    for home in HOMES:
        timeout_ms = DEAD_TIMEOUT_MS if home.meter == DEAD else LIVING_TIMEOUT_MS
        parts.append(
            f'\n[[meter]]\nid = "{home.meter}"\nbus = "rs485-1"\nprofile = "{home.profile}"\n'
            f'address = "{home.address}"\npoll_every_s = {POLL_EVERY_S}\ntimeout_ms = {timeout_ms}\n'
        )
    path.write_text("".join(parts), encoding="utf-8")
    return path


def _toml_text(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)  # TOML's basic strings have JSON's escapes


def _toml_time(wall_ms: int) -> str:
    return f"{local(wall_ms):%Y-%m-%dT%H:%M:%S}"
