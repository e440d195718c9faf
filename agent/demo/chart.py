"""One line of the picture per home: how much water ran in each hour, and whether the county knows it already."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from rich.text import Text

from agent.demo import scene
from agent.demo.observer import Link, View
from agent.demo.story import Stretch
from protocols.contract import Level
from protocols.reading import Reading

WIDTH: Final = 36  # hours; the play lasts 31, and later ones push the first out
BARS: Final = "▁▂▃▄▅▆▇█"
FULL_ML: Final = 64_000  # the hour that fills its cell
NO_WATER, NO_ANSWER, IN_ALERT, NET_UP, NET_AWAY = "·", "×", "!", "━", "╳"
AT_COUNTY, AT_GATEWAY, BAD, DIM, GOOD = "bright_cyan", "magenta", "bright_red", "bright_black", "green"
NO_VALUE: Final = "yellow"
LEVEL_STYLES: Final = {Level.YELLOW: "yellow", Level.RED: BAD}


def first_hour(now_ms: int) -> int:
    """Return the hour (since 1970) of the leftmost cell."""
    opens = scene.OPENS_MS // scene.HOUR_MS
    return max(opens, now_ms // scene.HOUR_MS - WIDTH + 1)


def ruler(now_ms: int) -> tuple[Text, Text]:
    """Return two lines above the cells: days, and every sixth hour."""
    days, hours = [" "] * WIDTH, ["┈"] * WIDTH
    for cell in range(WIDTH):
        moment_ms = (first_hour(now_ms) + cell) * scene.HOUR_MS
        hour = scene.local(moment_ms).hour
        if cell == 0 or hour == 0:
            _put(days, cell, f"day {scene.day_of(moment_ms)}")
        if hour % 6 == 0:
            _put(hours, cell, f"{hour:02}")
    return Text("".join(days), style="bold"), Text("".join(hours), style=DIM)


class Rows:
    """The lines of all homes for one view."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._first = first_hour(view.now_ms)
        self._known = {(row.meter, row.at_ms) for row in view.stored}
        self._of: dict[str, list[Reading]] = defaultdict(list)
        for reading in view.taken:
            self._of[reading.meter].append(reading)

    def home(self, meter: str, *, alerts: Sequence[Stretch]) -> Text:
        """Return the line of one home; `alerts` are the stretches of time for which an alert of it was open."""
        used_ml: dict[int, int] = defaultdict(int)
        polled: dict[int, bool] = {}  # hour -> whether a value came
        held_back: set[int] = set()  # hours of which the county does not know everything
        before: int | None = None
        for reading in self._of[meter]:
            hour = reading.at.wall_ms // scene.HOUR_MS
            polled[hour] = polled.get(hour, False) or reading.volume_ml is not None
            if (meter, reading.at.wall_ms) not in self._known:
                held_back.add(hour)
            if reading.volume_ml is not None:
                used_ml[hour] += 0 if before is None else reading.volume_ml - before
                before = reading.volume_ml
        line = Text(no_wrap=True)
        for hour in range(self._first, self._first + WIDTH):
            if hour not in polled:
                line.append(" ")
                continue
            style = AT_GATEWAY if hour in held_back else AT_COUNTY
            if not polled[hour]:
                line.append(NO_ANSWER, style=AT_GATEWAY if hour in held_back else NO_VALUE)
            elif used_ml[hour] > 0:
                line.append(_bar(used_ml[hour]), style=style)
            elif level := self._level(alerts, hour):
                line.append(IN_ALERT, style=f"bold {LEVEL_STYLES[level]}")
            else:
                line.append(NO_WATER, style=AT_GATEWAY if hour in held_back else DIM)
        return line

    def _level(self, alerts: Sequence[Stretch], hour: int) -> Level | None:
        """Return the last level at which an alert was open within an hour."""
        start_ms, end_ms = hour * scene.HOUR_MS, (hour + 1) * scene.HOUR_MS
        open_then = [
            stretch.level
            for stretch in alerts
            if stretch.start_ms < end_ms and start_ms < (stretch.end_ms or self._view.now_ms)
        ]
        return open_then[-1] if open_then else None

    def network(self, link: Link) -> Text:
        """Return the line of the network: up or away, hour by hour."""
        line = Text(no_wrap=True)
        started = self._view.taken[0].at.wall_ms if self._view.taken else self._view.now_ms
        for hour in range(self._first, self._first + WIDTH):
            start_ms, end_ms = hour * scene.HOUR_MS, (hour + 1) * scene.HOUR_MS
            if start_ms > self._view.now_ms or end_ms <= started:
                line.append(" ")
            elif _overlaps(link, start_ms, end_ms):
                line.append(NET_AWAY, style=f"bold {BAD}")
            else:
                line.append(NET_UP, style=GOOD)
        return line


def meter_bar(volume_ml: int, *, width: int, style: str) -> Text:
    """Return a bar with a mark in its middle, at the threshold."""
    cells = min(width, math.ceil(volume_ml * width / (2 * scene.THRESHOLD_ML)))
    middle = width // 2
    bar = Text(no_wrap=True)
    for cell in range(width):
        if cell == middle:
            bar.append("┃", style="bold")
        bar.append("■" if cell < cells else "·", style=style if cell < cells else DIM)
    return bar


def _bar(volume_ml: int) -> str:
    return BARS[min(len(BARS) - 1, volume_ml * len(BARS) // FULL_ML)]


def _overlaps(link: Link, start_ms: int, end_ms: int) -> bool:
    if link.away_ms is None:
        return False
    back_ms = end_ms if link.back_ms is None else link.back_ms
    return min(end_ms, back_ms) - max(start_ms, link.away_ms) > 0


def _put(cells: list[str], at: int, text: str) -> None:
    if at + len(text) <= len(cells):
        cells[at : at + len(text)] = text
