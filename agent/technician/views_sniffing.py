"""How an overheard line looks: the stations with their answers, the latest frames, and what is remarkable."""

import datetime
import math
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from agent.technician import modbus_wire
from agent.technician.fits import Fit
from agent.technician.sniffing import Heard, Sniffer, Station
from agent.technician.words import PROTOCOLS, Words, cubic_metres, name_of

_KINDS: Final = {
    "request": Words("请求", "request"),
    "answer": Words("应答", "answer"),
    "refusal": Words("拒绝", "refusal"),
    "acknowledgement": Words("确认", "ack"),
    "damaged": Words("损坏", "damaged"),
    "noise": Words("不成帧", "no frame"),
}
_COLOURS: Final = {
    "request": "cyan",
    "answer": "green",
    "refusal": "yellow",
    "acknowledgement": "green",
    "damaged": "red",
    "noise": "dim",
}
_LOAD_CELLS: Final = 10
WIDE: Final = 96  # from here on there is room for the profile's name
# A line that talks more than this has no room left for another master.
_BUSY: Final = 0.6


def live(
    sniffer: Sniffer, recent: Sequence[Heard], *, title: str, elapsed_ms: float, width: int, height: int
) -> RenderableType:
    """Return the moving picture for a terminal of this size."""
    stations_shown = max(3, height // 2 - 5)
    rows = max(1, height - 7 - min(len(sniffer.stations), stations_shown + 1))  # heading, captions; "… more"
    head = heading(sniffer, title=title, elapsed_ms=elapsed_ms)
    table = stations(sniffer, at_most=stations_shown, width=width)
    tail = [frame_line(heard, width=width) for heard in recent[-rows:]]
    for line in tail:  # a note that wraps would push the rest out of the picture
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(
        head, table, Text(" recent 最近", "bold"), *tail,
        Text(" Ctrl-C 结束并显示总表 ends it and shows the summary", "dim"),
    )  # fmt: skip


def heading(sniffer: Sniffer, *, title: str, elapsed_ms: float) -> Text:
    """Return one line: port, time, how busy the line is, what was heard."""
    load, totals = sniffer.load(elapsed_ms), sniffer.totals
    filled = math.ceil(load * _LOAD_CELLS)
    colour = "yellow" if load > _BUSY else "green"
    bar = Text.assemble(("▇" * filled, colour), ("▁" * (_LOAD_CELLS - filled), "dim"))
    clock = f"{datetime.timedelta(seconds=int(elapsed_ms / 1000))}"[2:]
    line = Text.assemble((title, "bold"), f"  {clock}  load 占用 ", bar, f" {load:.0%}\n")
    line.append(f" {totals.frames} frames 帧")
    line.append(f", {totals.damaged} damaged 损坏", "red" if totals.damaged else "")
    line.append(f", {totals.unknown_bytes} stray bytes 杂散字节", "yellow" if totals.unknown_bytes else "")
    if totals.writes:
        line.append(f", {totals.writes} WRITES 写表", "bold red")
    return line


def stations(sniffer: Sniffer, *, at_most: int | None = None, width: int = 80) -> RenderableType:
    """Return the table of who is asked, how well and how fast it answers, and what it shows."""
    known = [station for station in sniffer.stations.values() if station.requests or station.answers or station.late]
    if not known:
        return Text(" nothing decoded yet 尚未解出任何帧", "dim")
    table = Table(
        "station 站",
        Column("asked\n问", justify="right"),
        Column("answered\n答", justify="right"),
        Column("ms min/mid/max\n应答延时", justify="right"),
        Column("every\n周期", justify="right"),
        Column("shows\n读数", no_wrap=True),
        box=None,
        padding=(0, 2 if width >= WIDE else 1, 0, 0),
        header_style="dim",
    )
    for station in known[:at_most]:
        table.add_row(*_row(station, is_wide=width >= WIDE))
    if at_most is not None and len(known) > at_most:
        table.add_row(Text(f"… {len(known) - at_most} more 更多", "dim"))
    return table


def frame_line(heard: Heard, *, width: int) -> Text:
    """Return one line for one frame: time, direction, station, what it is, its bytes as far as they fit."""
    line = Text.assemble((f" +{heard.at_ms / 1000:08.3f} ", "dim"), (heard.mark, _COLOURS[heard.kind]))
    who = f"{name_of(heard.protocol, heard.framing)} {heard.station}".strip() or "?"
    line.append(f" {who} ", "bold" if heard.station else "dim")
    line.append(f"{_KINDS[heard.kind]} ", _COLOURS[heard.kind])
    if heard.latency_ms is not None:
        line.append(f"{heard.latency_ms:.0f} ms ")
    if heard.note:
        line.append(f"{heard.note} ", "bold yellow")
    if heard.fits:
        line.append(f"{reading(heard.fits[0])} ", "bold")
    room = width - line.cell_len - 1
    dump = modbus_wire.shown(heard.data, heard.framing)
    if len(dump) > room:
        dump = dump[: max(0, (room - 1) // 3 * 3)] + "…" if room > 3 else ""
    line.append(dump, "dim")
    return line


def reading(fit: Fit) -> str:
    """Return a reading as on the dial."""
    return f"{cubic_metres(fit.volume_ml, step_ml=1000)} m³"


def advice(sniffer: Sniffer) -> list[Words]:
    """Return what a technician should know of this line, the gravest first."""
    totals, words = sniffer.totals, []
    if totals.writes:
        words.append(
            Words(
                "有主机在写表：查清是谁，水望从不写表",
                "A master writes to meters: find out which one; shuiwang never does",
            )
        )
    if not totals.bytes:
        words.append(
            Words(
                "线上没有任何字节：没有主机在问，或 A、B 未接好；要主动查找用 `shuiwang scan`",
                "Nothing on the line: no master asks, or A and B are not connected; `shuiwang scan` looks for meters",
            )
        )
    elif not totals.frames:
        words.append(
            Words(
                "有字节但解不出帧：换 --baudrate 与 --parity，或省略它们让程序自己试",
                "Bytes, but no frames: try another --baudrate and --parity, or leave both out and let the program try",
            )
        )
    if sniffer.parity:
        bits = f"7{sniffer.parity}1"
        words.append(
            Words(
                f"线路是 {bits}（Modbus ASCII），却按 8 位旁听：--data-bits 7 --parity {sniffer.parity}",
                f"The line is {bits} (Modbus ASCII) but heard with 8 bits: --data-bits 7 --parity {sniffer.parity}",
            )
        )
    for station in sniffer.stations.values():
        name = f"{PROTOCOLS[station.protocol]} {station.address}"
        if station.requests >= 3 and not station.answers + station.refusals + station.damaged:
            words.append(
                Words(f"{name} 从不应答：表坏、断线或地址错", f"{name} never answers: dead, cut off, or not there")
            )
        elif station.damaged:
            words.append(
                Words(
                    f"{name} 的应答有损坏：查屏蔽、终端电阻与重复地址",
                    f"{name}: damaged answers; look at shield, termination, and whether two meters share the address",
                )
            )
        if station.late:
            words.append(
                Words(f"{name} 应答迟到：主机的超时太短", f"{name} answers late: the master's timeout is too short")
            )
        if station.unclear:
            words.append(
                Words(
                    f"{name}：前一个请求没有应答，下一个应答长度相同，可能是迟到的，不作读数；请延长主机的超时",
                    f"{name}: an answer that would fit the unanswered request before just as well is no reading; give"
                    " the master a longer timeout",
                )
            )
        if station.unselected:
            words.append(
                Words(
                    f"{name} 在选中别的表时应答：查掩码是否选中两块表，或表号重复",
                    f"{name} answers where another meter was selected: a selection that means both, or one that was not"
                    " obeyed",
                )
            )
    return words


def as_json(heard: Heard) -> dict[str, Any]:
    """Return one frame for programs."""
    return {
        "kind": heard.kind,
        "at_ms": round(heard.at_ms, 1),
        "protocol": heard.protocol or None,
        "framing": heard.framing,
        "station": heard.station or None,
        "latency_ms": None if heard.latency_ms is None else round(heard.latency_ms, 1),
        "hex": heard.data.hex(" ").upper(),
        "fits": [{"profile": fit.profile, "volume_ml": fit.volume_ml} for fit in heard.fits],
        "note": heard.note,
    }


def summary_json(sniffer: Sniffer, *, port: str, line: str, elapsed_ms: float) -> dict[str, Any]:
    """Return the final table for programs."""
    totals = sniffer.totals
    return {
        "kind": "summary",
        "port": port,
        "line": line,
        "elapsed_ms": round(elapsed_ms),
        "load": round(sniffer.load(elapsed_ms), 4),
        "bytes": totals.bytes,
        "stray_bytes": totals.unknown_bytes,
        "frames": totals.frames,
        "damaged": totals.damaged,
        "writes": totals.writes,
        "stations": [_station_json(station) for station in sniffer.stations.values()],
        "check_next": advice(sniffer),
    }


def _station_json(station: Station) -> dict[str, Any]:
    latency = station.latency_ms
    return {
        "protocol": station.protocol,
        "address": station.address,
        "requests": station.requests,
        "answers": station.answers,
        "refusals": station.refusals,
        "damaged": station.damaged,
        "late": station.late,
        "silent": station.silent,
        "unclear": station.unclear,
        "unselected": station.unselected,
        "latency_ms": None
        if latency is None
        else dict(zip(("min", "median", "max"), (round(x, 1) for x in latency), strict=True)),
        "period_s": station.period_s,
        "fits": [{"profile": fit.profile, "volume_ml": fit.volume_ml} for fit in station.fits],
    }


def _row(station: Station, *, is_wide: bool) -> tuple[RenderableType, ...]:
    rate, latency = station.answer_rate, station.latency_ms
    answered = Text("–", "dim")
    if rate is not None:
        answered = Text(f"{rate:.0%}", "green" if rate > 0.98 else "yellow" if rate > 0.5 else "red")
    faults = [
        f"{count} {name}"
        for count, name in (
            (station.refusals, "refused 拒绝"),
            (station.damaged, "damaged 损坏"),
            (station.late, "late 迟到"),
            (station.unclear, "unclear 不明"),
            (station.unselected, "not selected 未选中"),
        )
        if count
    ]
    shows = Text()
    if station.fits:
        best = station.fits[0]
        same = [fit.profile for fit in station.fits if fit.volume_ml == best.volume_ml]
        others = len(station.fits) - len(same)
        shows = Text(reading(best), "bold")
        if is_wide:
            shows.append(f" {same[0]}", "dim not bold")
            shows.append(f" +{others} 其他 others" if others else "", "dim not bold")
    if faults:
        shows.append(("  " if shows else "") + ", ".join(faults), "red" if station.damaged else "yellow")
    return (
        Text.assemble((station.address, "bold"), (f" {PROTOCOLS[station.protocol]}", "dim")),
        str(station.requests),
        answered,
        "–" if latency is None else " / ".join(f"{value:.0f}" for value in latency),
        "–" if station.period_s is None else f"{station.period_s:.1f} s",
        shows,
    )
