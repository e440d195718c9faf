"""The moving picture: the homes, the way to the county, the alert, and what is happening in two languages."""

from typing import Final

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.demo import chart, scene
from agent.demo.chart import AT_COUNTY, AT_GATEWAY, BAD, DIM, GOOD
from agent.demo.observer import View
from agent.demo.story import CAPTIONS, STATIONS, Act, Alert, act_of, alert_of
from protocols.contract import Kind

COLUMNS_MIN, ROWS_MIN = 80, 24
COLUMNS_WIDE: Final = 98  # from here on the register is shown too
ROWS_TALL: Final = 30  # from here on there is air between the parts
COLUMNS_MAX: Final = 100
_QUIET_MS: Final = 2 * scene.HOUR_MS
_WAITING_PER_MARK: Final = 6
_CAPTION_LINES: Final = 2  # in each language


def render(view: View, *, width: int, height: int) -> RenderableType:
    """Return the picture for a terminal of this size; at least 80 x 24 shows all of it."""
    columns = min(width, COLUMNS_MAX) - 2
    is_wide, is_tall = width >= COLUMNS_WIDE, height >= ROWS_TALL
    alert = alert_of(view)
    air: list[RenderableType] = [Text()] if is_tall else []
    parts: list[RenderableType] = [
        _title(view, columns),
        *air,
        _homes(view, alert, is_wide=is_wide),
        _legend(is_wide=is_wide),
        Text("─" * columns, style=DIM),
        *air,
        _way(view, columns),
        *air,
        *([Text("─" * columns, style=DIM)] if is_tall else []),
        *air,
        _alert(alert, columns),
        *air,
        Text("─" * columns, style=DIM),
        *air,
        *_caption(view, columns),
    ]
    return Padding(Group(*parts), (0, 1), expand=False)


def _title(view: View, columns: int) -> Text:
    moment = scene.local(view.now_ms)
    sky = "☼" if 6 <= moment.hour < 18 else "☾"
    day = scene.day_of(view.now_ms)
    clock = f"{sky} 第{day}天 day {day}  {moment:%H:%M}"
    line = Text.assemble(("水望 shuiwang", f"bold {AT_COUNTY}"), ("  七户人家的一天半", DIM))
    if columns >= COLUMNS_WIDE - 2:
        line.append(" seven homes, a day and a half", style=DIM)
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
        is_silent = meter == scene.SILENT
        stretch = (alert.raised_ms, alert.cleared_ms or view.now_ms) if is_silent and alert.raised_ms else None
        table.add_row(
            Text(meter, style=f"bold {BAD}" if _in_alert(view, meter) else "bold"),
            *((shown,) if is_wide else ()),
            rows.home(meter, alert=stretch),
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
    style = BAD if is_low else DIM if usage.most_ml is None else GOOD
    return Text(f"{most_ml / 1000:.0f} L", style=style), chart.meter_bar(
        most_ml, width=12 if is_wide else 6, style=style
    )


def _in_alert(view: View, meter: str) -> bool:
    return any(body.meter == meter and body.kind is Kind.LOW_USAGE for body in view.open_episodes)


def _status(view: View, meter: str, *, answered: bool, alert: Alert) -> Text:
    usage = view.usage.get(meter)
    if _in_alert(view, meter):
        return Text("报警 ALERT", style=f"bold {BAD}")
    if not answered:
        polled = any(reading.meter == meter for reading in view.taken)
        return Text("无应答 no answer", style=BAD) if polled else Text()
    if meter == scene.SILENT and alert.cleared_ms is not None:
        return Text("已解除 cleared", style=f"bold {GOOD}")
    if usage and usage.last_use_ms is not None and view.now_ms - usage.last_use_ms > _QUIET_MS:
        quiet_h = (view.now_ms - usage.last_use_ms) / scene.HOUR_MS
        return Text(f"安静 quiet {quiet_h:.0f} h", style=DIM if quiet_h < 8 else AT_GATEWAY)
    return Text("有水声 ok", style=GOOD)


def _legend(*, is_wide: bool) -> Text:
    space = "   " if is_wide else " "
    return Text.assemble(
        ("▅", AT_COUNTY), " 已到县 at the county", space,
        ("▅", AT_GATEWAY), " 在网关 gateway only", space,
        ("·", DIM), " 没用水 none", space,
        (chart.NO_ANSWER, BAD), " 无应答 no answer",
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


def _alert(alert: Alert, columns: int) -> Table:
    """The four stations of the alert, with the time at which each was reached."""
    table = Table.grid()
    is_wide = columns >= COLUMNS_WIDE - 2
    first = 14 if is_wide else 8
    width = (columns - first) // 4
    table.add_column(width=first, no_wrap=True)
    for _ in range(4):
        table.add_column(width=width, no_wrap=True)
    stations, times = [], []
    for name, moment_ms in zip(STATIONS, alert, strict=True):
        reached = moment_ms is not None
        style = (GOOD if name.startswith("解") else BAD) if reached else DIM
        stations.append(Text(f"{'●' if reached else '○'} {name}", style=f"bold {style}" if reached else DIM))
        times.append(Text("" if moment_ms is None else f"  {stamp(moment_ms)}"))
    label = Text("报警 alert" if is_wide else "报警", style="bold" if alert.raised_ms else DIM)
    table.add_row(label, *stations)
    table.add_row(Text(scene.SILENT if alert.raised_ms else "", style=f"bold {BAD}"), *times)
    return table


def _caption(view: View, columns: int) -> list[RenderableType]:
    chinese, english = CAPTIONS[act_of(view)]
    return [_block(chinese, columns, style="bold"), _block(english, columns, style="")]


def _block(text: str, columns: int, *, style: str) -> Text:
    """Return a text wrapped to the width, always of the same height."""
    lines = wrapped(text, columns)
    lines += [""] * (_CAPTION_LINES - len(lines))
    return Text("\n".join(lines[:_CAPTION_LINES]), style=style)


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
