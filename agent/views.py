"""What `check` and `status` print for people."""

import datetime
import zoneinfo

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from agent.settings import Config, duration_in_words, rule_in_words
from agent.status import MeterStatus, Status, StreamReport

_REASONS = {
    "no_response": "no answer 无应答",
    "garbled": "garbled 乱码",
    "wrong_answer": "wrong answer 错答",
    "refused": "refused 拒绝",
    "meter_fault": "meter fault 表故障",
    "port_lost": "port lost 串口丢失",
}
_STATES = {"ok": ("ok 正常", "green"), "stale": ("stale 过期", "yellow"), "never": ("never read 未读到", "red")}


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
    register = Column("register 读数 m³", justify="right")
    table = Table("meter 水表", "state 状态", register, "read 读于", "last poll 最近一次")
    for meter in status.meters:
        table.add_row(*_meter_row(meter))
    console.print(table)
    for name, stream in status.outbox.items():
        console.print(_stream_line(name, stream, status.timezone), soft_wrap=True)
    if status.not_understood:
        console.print(Text(f"{status.not_understood} messages were stored by the county but not understood", "red"))
    for alert in status.open_alerts:
        colour = "red" if alert.level == "red" else "yellow"
        console.print(
            Text(f"{alert.level}: {alert.kind} {alert.meter} since {_local(alert.since, status.timezone)}", colour)
        )
    if not status.open_alerts:
        console.print("no open alerts 无未解除告警")


def _meter_row(meter: MeterStatus) -> tuple[str, Text, str, str, Text]:
    text, colour = _STATES[meter.state]
    volume = "" if meter.volume_ml is None else f"{meter.volume_ml / 1e6:,.3f}"
    reason = (
        Text(_REASONS.get(meter.last_reason, meter.last_reason), "red") if meter.last_reason else Text("value 有值")
    )
    return meter.meter, Text(text, colour), volume, _age(meter.value_age_s), reason


def _stream_line(name: str, stream: StreamReport, timezone: str) -> Text:
    waiting = Text(f"{stream.waiting} waiting 待确认", "yellow" if stream.waiting else "green")
    acked = f"acknowledged up to {stream.acked_seq} of {stream.last_seq}"
    return Text.assemble(f"{name}: ", waiting, f", {acked}, last at {_local(stream.acked_at, timezone) or 'never'}")


def _local(instant: str | None, timezone: str) -> str:
    """Return an instant in the gateway's time zone, to the second."""
    if instant is None:
        return ""
    return f"{datetime.datetime.fromisoformat(instant).astimezone(zoneinfo.ZoneInfo(timezone)):%Y-%m-%d %H:%M:%S}"


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
