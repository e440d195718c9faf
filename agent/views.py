"""What `check` and `status` print for people."""

import datetime
import zoneinfo
from collections.abc import Collection

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from agent.detection.limit import EARLY_MIN
from agent.settings import Config, duration_in_words, rule_in_words, volume_in_words
from agent.standing import Standing
from agent.status import MeterStatus, Status, StreamReport
from protocols.contract import AbsenceNotice, AlertBody, Kind, Level

_REASONS = {
    "no_response": "no answer 无应答",
    "garbled": "garbled 乱码",
    "wrong_answer": "wrong answer 错答",
    "refused": "refused 拒绝",
    "meter_fault": "meter fault 表故障",
    "port_lost": "port lost 串口丢失",
}
_STATES = {"ok": ("ok 正常", "green"), "stale": ("stale 过期", "yellow"), "never": ("never read 未读到", "red")}

_LEVELS = {"red": ("红色", "bold red"), "yellow": ("黄色", "yellow")}


def print_check(config: Config) -> None:
    """Print what a good configuration means."""
    console = Console()
    console.print(
        f"[bold]{config.path}[/bold] is right: {_count(len(config.meters), 'meter')} on"
        f" {_count(len(config.buses), 'bus', 'buses')}, alerts go to {config.broker.url}"
    )
    table = Table("meter", "bus", "address", "profile", "every", "low usage")
    for meter in config.meters:
        every = duration_in_words(round(meter.poll_every_s * 1000))
        rule = rule_in_words(meter.detection)
        table.add_row(meter.id, meter.bus, meter.address_text, meter.profile.name, every, rule)
    console.print(table)


def print_status(status: Status) -> None:
    """Print the state of the agent."""
    console = Console()
    running = Text("running 运行中", "green") if status.running else Text("not running 未运行", "red")
    console.print(Text.assemble((status.gateway, "bold"), "  ", running, f"  {_local(status.at, status.timezone)}"))
    away = {one.meter for one in status.absences if one.daily is None and one.start <= status.at}
    red = {alert.meter for alert in status.open_alerts if alert.kind is Kind.LOW_USAGE and alert.level is Level.RED}
    console.print(_meter_table(status, away=away, red=red))
    for meter in status.meters:
        console.print(_unjudged(meter), end="")
    for absence in status.absences:
        console.print(_absence_line(absence, status))
    for name, stream in status.outbox.items():
        console.print(_stream_line(name, stream, status.timezone), soft_wrap=True)
    if status.not_understood:
        console.print(_not_understood(status))
    for alert in sorted(status.open_alerts, key=lambda alert: alert.level is not Level.RED):
        console.print(_alert_head(alert, status.timezone))
        if alert.text:
            console.print(_alert_words(alert, status.timezone))
    if not status.open_alerts:
        console.print("no open alerts 无未解除告警")


def _meter_table(status: Status, *, away: Collection[str], red: Collection[str | None]) -> Table:
    right = [Column(name, justify="right") for name in ("register\n读数 m³", "silent\n无用水", "limit\n上限")]
    table = Table("meter\n水表", "state\n状态", right[0], "read\n读于", *right[1:], box=box.SIMPLE, pad_edge=False)
    for meter in status.meters:
        silence = _silence(meter.home, is_away=meter.meter in away, is_red=meter.meter in red)
        table.add_row(*_meter_row(meter), *silence)
    return table


def _meter_row(meter: MeterStatus) -> tuple[str, Text, str, str]:
    text, colour = _STATES[meter.state]
    state = Text(text, colour)
    if meter.last_reason:
        state.append(f"\n{_REASONS.get(meter.last_reason, meter.last_reason)}", "red")
    volume = "" if meter.volume_ml is None else f"{meter.volume_ml / 1e6:,.3f}"
    return meter.meter, state, volume, _age(meter.value_age_s)


def _silence(home: Standing | None, *, is_away: bool, is_red: bool) -> tuple[Text, Text]:
    """Return how long a home has been without real use, and how long it may be."""
    if home is None or home.silent_min is None:
        return Text("unknown 未知", "dim"), Text("")
    silent = Text(f"{(home.silent_min + EARLY_MIN) // 60} h", "bold red" if is_red else "")
    if is_away:
        return silent, Text("away 外出")
    return silent, Text(f"{home.limit_h} h" if home.limit_learned else f"{home.limit_h} h fixed 初定")


def _unjudged(meter: MeterStatus) -> Text:
    """Return which levels a register is too coarse for; an empty text where it is fine enough."""
    if meter.home is None or not meter.home.unjudged:
        return Text()
    step = volume_in_words(meter.home.step_ml)
    levels = " and ".join(meter.home.unjudged)
    colours = "、".join(_LEVELS[level][0] for level in meter.home.unjudged)
    return Text(
        f"{meter.meter} counts in steps of {step}: {levels} cannot be judged on it. Fit a meter that counts litres."
        f" 步长 {step}，无法判断{colours}警报，请换装以升计数的水表。\n",
        "yellow",
    )


def _absence_line(absence: AbsenceNotice, status: Status) -> Text:
    what = f"quiet hours 安静时段 {absence.daily}" if absence.daily else "away 外出"
    start = "" if absence.start <= status.at else f" from 自 {_minute(absence.start, status.timezone)}"
    return Text(f"{absence.meter} {what}{start} until 至 {_minute(absence.until, status.timezone)}", "cyan")


def _alert_head(alert: AlertBody, timezone: str) -> Text:
    """Return what an open alert is, since when, and whether somebody has it in hand."""
    name, colour = _LEVELS[alert.level]
    subject = alert.meter or alert.evidence.get("bus") or ""
    head = f"{alert.level} {name}: {alert.kind} {subject} since 自 {_minute(alert.since, timezone)}"
    said = alert.evidence.get("county", {})
    if "result" in said:
        head += f", visited 已上门: {said['result']}"
    elif "acknowledged_at" in said:
        head += ", in hand 已有人处理"
    return Text(" ".join(head.split()), colour)


def _alert_words(alert: AlertBody, timezone: str) -> Padding:
    """Return the sentence of an open alert in both languages, and when it was told: its `today` was the day then."""
    words = alert.text or {}
    sentences = [words[language] for language in ("zh", "en") if language in words]
    return Padding(Text("\n".join([*sentences, f"(told 告于 {_minute(alert.at, timezone)})"])), (0, 0, 0, 4))


def _not_understood(status: Status) -> Text:
    """Return what the county stored without understanding it; the newest by name."""
    count = _count(status.not_understood, "message")
    lines = Text(f"not understood by the county 平台未能解读: {count}; the newest 最新:", "red")
    for one in status.not_understood_newest:
        lines.append(f"\n  {one.stream} {one.seq}: {one.reason}", "red")
    return lines


def _stream_line(name: str, stream: StreamReport, timezone: str) -> Text:
    waiting = Text(f"{stream.waiting} waiting 待确认", "yellow" if stream.waiting else "green")
    acked = f"acknowledged up to {stream.acked_seq} of {stream.last_seq}"
    return Text.assemble(f"{name}: ", waiting, f", {acked}, last at {_local(stream.acked_at, timezone) or 'never'}")


def _local(instant: str | None, timezone: str) -> str:
    """Return an instant in the gateway's time zone, to the second."""
    if instant is None:
        return ""
    return f"{datetime.datetime.fromisoformat(instant).astimezone(zoneinfo.ZoneInfo(timezone)):%Y-%m-%d %H:%M:%S}"


def _minute(instant: str, timezone: str) -> str:
    """Return an instant in the gateway's time zone, to the minute."""
    return _local(instant, timezone)[:-3]


def _age(seconds: int | None) -> str:
    """Return how long ago that was, in the largest unit of which there are at least two."""
    if seconds is None:
        return ""
    for unit_s, name in ((86_400, "d 天"), (3600, "h 小时"), (60, "min 分")):
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s} {name}"
    return f"{seconds} s 秒"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
