"""The moving picture: the homes, the way to the county, the alert, and what is happening in two languages."""

from typing import Final

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.demo import chart, scene
from agent.demo.chart import AT_COUNTY, AT_GATEWAY, BAD, DIM, GOOD, LEVEL_STYLES, NO_VALUE
from agent.demo.observer import View
from agent.demo.story import CAPTIONS, STATIONS, Act, Alert, Saying, act_of, alert_of, saying_of, stretches_of
from protocols.contract import AlertBody, Kind, Level

COLUMNS_MIN, ROWS_MIN = 80, 24
COLUMNS_WIDE: Final = 98  # from here on the register is shown too
ROWS_TALL: Final = 30  # from here on there are rules and air between the parts
COLUMNS_MAX: Final = 100
_QUIET_MS: Final = 2 * scene.HOUR_MS
_WAITING_PER_MARK: Final = 6
_CAPTION_LINES: Final = 2  # in each language
_SAYING_LINES: Final = 3  # Chinese and English together
# of the stations; together they fit beside the label in the narrowest picture
_STATION_WIDTHS: Final = (14, 14, 14, 15, 13)


def render(view: View, *, width: int, height: int) -> RenderableType:
    """Return the picture for a terminal of this size; at least 80 x 24 shows all of it."""
    columns = min(width, COLUMNS_MAX) - 2
    is_wide, is_tall = width >= COLUMNS_WIDE, height >= ROWS_TALL
    alert = alert_of(view)
    air: list[RenderableType] = [Text()] if is_tall else []
    rule: list[RenderableType] = [Text("─" * columns, style=DIM)] if is_tall else []
    parts: list[RenderableType] = [
        _title(view, columns),
        *air,
        _homes(view, alert, is_wide=is_wide),
        _legend(is_wide=is_wide),
        *rule,
        _way(view, columns),
        *rule,
        _alert(view, alert, columns),
        _saying(saying_of(view), columns),
        *rule,
        *air,
        *_caption(view, columns),
    ]
    return Padding(Group(*parts), (0, 1), expand=False)


def _title(view: View, columns: int) -> Text:
    moment = scene.local(view.now_ms)
    sky = "☼" if 6 <= moment.hour < 18 else "☾"
    day = scene.day_of(view.now_ms)
    clock = f"{sky} 第{day}天 day {day}  {moment:%H:%M}"
    line = Text.assemble(("水望 shuiwang", f"bold {AT_COUNTY}"), ("  七户人家的三十小时", DIM))
    if columns >= COLUMNS_WIDE - 2:
        line.append(" seven homes, thirty hours", style=DIM)
    line.append(" " * max(1, columns - line.cell_len - cell_len(clock)))
    line.append(clock, style="bold")
    return line


def _homes(view: View, alert: Alert, *, is_wide: bool) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=8, no_wrap=True)
    if is_wide:
        table.add_column(width=9, no_wrap=True, justify="right")
    table.add_column(width=chart.WIDTH, no_wrap=True)
    table.add_column(width=6, no_wrap=True, justify="right")
    table.add_column(width=13 if is_wide else 7, no_wrap=True)
    table.add_column(width=16, no_wrap=True)
    days, hours = chart.ruler(view.now_ms)
    register = (Text("读数 m³", style=DIM),) if is_wide else ()
    blank = (Text(),) if is_wide else ()
    table.add_row(
        Text("住户", style=DIM),
        *register,
        days,
        Text("12 h", style=DIM),
        Text("用水 use" if is_wide else "用水", style=DIM),
        Text(),
    )
    table.add_row(Text("home", style=DIM), *blank, hours, Text(), _threshold(is_wide=is_wide), Text())
    rows = chart.Rows(view)
    last = {reading.meter: reading for reading in view.taken}
    values = {reading.meter: reading.volume_ml for reading in view.taken if reading.volume_ml is not None}
    for home in scene.HOMES:
        meter = home.meter
        volume_ml = values.get(meter)
        shown = Text("–" if volume_ml is None else f"{volume_ml / 1e6:.3f}", style=DIM if volume_ml is None else "")
        usage, bar = _usage(view, meter, is_wide=is_wide)
        episode = _episode(view, meter)
        table.add_row(
            Text(meter, style=f"bold {LEVEL_STYLES[episode.level]}" if episode else "bold"),
            *((shown,) if is_wide else ()),
            rows.home(meter, alerts=stretches_of(view) if meter == scene.SILENT else ()),
            usage,
            bar,
            _status(view, meter, answered=meter in last and last[meter].volume_ml is not None, alert=alert),
        )
    table.add_row(Text("网络 net", style=DIM), *blank, rows.network(view.link), Text(), Text(), Text())
    return table


def _threshold(*, is_wide: bool) -> Text:
    return Text(" " * (3 if is_wide else 0) + "↓100 L", style=DIM)


def _usage(view: View, meter: str, *, is_wide: bool) -> tuple[Text, Text]:
    usage = view.usage.get(meter)
    if usage is None:
        return Text("–", style=DIM), Text()
    most_ml = usage.least_ml if usage.most_ml is None else usage.most_ml
    is_low = usage.most_ml is not None and usage.most_ml < scene.THRESHOLD_ML
    style = LEVEL_STYLES[Level.YELLOW] if is_low else DIM if usage.most_ml is None else GOOD
    return Text(f"{most_ml / 1000:.0f} L", style=style), chart.meter_bar(
        most_ml, width=12 if is_wide else 6, style=style
    )


def _episode(view: View, meter: str) -> AlertBody | None:
    """Return the open alert of a home."""
    return next((body for body in view.open_episodes if body.meter == meter), None)


def _status(view: View, meter: str, *, answered: bool, alert: Alert) -> Text:
    usage, episode = view.usage.get(meter), _episode(view, meter)
    if episode:
        red_or_yellow = "红警 RED" if episode.level is Level.RED else "黄警 YELLOW"
        name = "无人看 unwatched" if episode.kind is Kind.METER_SILENT else red_or_yellow
        return Text(name, style=f"bold {LEVEL_STYLES[episode.level]}")
    if not answered:
        polled = any(reading.meter == meter for reading in view.taken)
        return Text("无应答 no answer", style=NO_VALUE) if polled else Text()
    if meter == scene.SILENT and alert.cleared_ms is not None:
        return Text("已解除 ended", style=f"bold {GOOD}")
    if usage and usage.last_use_ms is not None and view.now_ms - usage.last_use_ms > _QUIET_MS:
        quiet_h = (view.now_ms - usage.last_use_ms) / scene.HOUR_MS
        return Text(f"安静 quiet {quiet_h:.0f} h", style=DIM)
    return Text("有水声 ok", style=GOOD)


def _legend(*, is_wide: bool) -> Text:
    space = "   " if is_wide else " "
    return Text.assemble(
        ("▅", AT_COUNTY), " 已到县 at the county", space,
        ("▅", AT_GATEWAY), " 在网关 gateway only", space,
        ("·", DIM), " 没用水 none", space,
        (chart.NO_ANSWER, NO_VALUE), " 无应答 no answer",
    )  # fmt: skip


def _way(view: View, columns: int) -> Table:
    """Meters, gateway, network, county, and how each is."""
    width = columns // 4
    dead = [home.meter for home in scene.HOMES if home.meter not in view.usage]
    living = len(view.usage)
    link_style = GOOD if view.link.is_up else BAD
    table = Table.grid()
    for _ in range(4):
        table.add_column(width=width, no_wrap=True)
    table.add_row(
        _node("水表 meters", width, style=GOOD, line="─"),
        _node("网关 gateway", width, style=link_style, line="─" if view.link.is_up else "┄"),
        _node("网络 network", width, style=link_style, line="─" if view.link.is_up else "┄"),
        Text("县平台 county", style="bold"),
    )
    waiting, away = view.waiting, _away(view)
    idle = act_of(view) is Act.RECONNECTING
    marks = "▮" * min(width - 12, -(-waiting // _WAITING_PER_MARK))
    style = AT_GATEWAY if waiting > 3 else ""
    table.add_row(
        Text(f"{living} 应答，{len(dead) if living else 0} 坏"),
        Text(f"待送 {waiting:<3} {marks}", style=style),
        Text(
            f"断 {away}" if away else "通，等网关连" if idle else "通", style="" if view.link.is_up else f"bold {BAD}"
        ),
        Text(f"已存 {len(view.stored):,} 条读数"),
    )
    table.add_row(
        Text(f"{living} answer, {len(dead) if living else 0} dead", style=DIM),
        Text(f"{waiting} waiting", style=DIM),
        Text(f"away for {away}" if away else "up, nobody calls" if idle else "up", style=DIM),
        Text(f"{len(view.stored):,} readings", style=DIM),
    )
    return table


def _node(name: str, width: int, *, style: str, line: str) -> Text:
    node = Text(f"{name} ", style="bold", no_wrap=True)
    node.append(line * (width - node.cell_len - 2) + "▶ ", style=style)
    return node


def _away(view: View) -> str:
    if view.link.is_up or view.link.away_ms is None:
        return ""
    return f"{(view.now_ms - view.link.away_ms) / scene.HOUR_MS:.1f} h"


def _alert(view: View, alert: Alert, columns: int) -> Table:
    """The stations of the silent home's alert, with the time at which each was reached."""
    table = Table.grid()
    spare = columns - sum(_STATION_WIDTHS)
    first = min(spare, 14)
    table.add_column(width=first, no_wrap=True)
    for width in _STATION_WIDTHS:
        table.add_column(width=width + (spare - first) // len(_STATION_WIDTHS), no_wrap=True)
    yellow, red = (LEVEL_STYLES[level] for level in (Level.YELLOW, Level.RED))
    styles = (yellow, AT_COUNTY, red, AT_COUNTY, GOOD)
    stations, times = [], []
    for name, style, moment_ms in zip(STATIONS, styles, alert, strict=True):
        reached = moment_ms is not None
        stations.append(Text(f"{'●' if reached else '○'} {name}", style=f"bold {style}" if reached else DIM))
        times.append(Text("" if moment_ms is None else f"  {stamp(moment_ms)}"))
    label = "报警 alert" if first >= len("报警 alert") + 3 else "报警"
    saying = saying_of(view)
    speaker = Text(saying.meter, style=f"bold {_saying_style(saying)}") if saying else Text()
    table.add_row(Text(label, style="bold" if saying else DIM), *stations)
    table.add_row(speaker, *times)
    return table


def _saying(saying: Saying | None, columns: int) -> Text:
    """What the alert says of itself, word for word as the county gets it."""
    if saying is None:
        return _block([], style="", lines=_SAYING_LINES)
    texts = [saying.text[language] for language in ("zh", "en") if language in saying.text]
    lines = [line for text in texts for line in wrapped(text, columns)]
    return _block(lines, style=_saying_style(saying), lines=_SAYING_LINES)


def _saying_style(saying: Saying) -> str:
    return GOOD if saying.is_over else LEVEL_STYLES[saying.level]


def _caption(view: View, columns: int) -> list[RenderableType]:
    chinese, english = CAPTIONS[act_of(view)]
    return [
        _block(wrapped(chinese, columns), style="bold", lines=_CAPTION_LINES),
        _block(wrapped(english, columns), style="", lines=_CAPTION_LINES),
    ]


def _block(texts: list[str], *, style: str, lines: int) -> Text:
    """Return lines, always of the same height."""
    return Text("\n".join([*texts, *[""] * lines][:lines]), style=style)


def wrapped(text: str, columns: int) -> list[str]:
    """Break a text into lines, Chinese between characters and English between words."""
    lines = [""]
    for word in _words(text):
        if cell_len(lines[-1] + word) > columns:
            lines.append(word.lstrip())
        else:
            lines[-1] += word
    return lines


def _words(text: str) -> list[str]:
    """Split where a line may break: before a space, and between Chinese characters, but not before punctuation."""
    words: list[str] = []
    for character in text:
        is_wide = cell_len(character) == 2
        if words and (character in "，。：、；！？”" or (not is_wide and character != " " and not _is_wide(words[-1]))):
            words[-1] += character
        else:
            words.append(character)
    return words


def _is_wide(word: str) -> bool:
    return cell_len(word[-1]) == 2


def stamp(wall_ms: int) -> str:
    """Return a moment of the play, such as `第2天 07:40`."""
    return f"第{scene.day_of(wall_ms)}天 {scene.local(wall_ms):%H:%M}"
