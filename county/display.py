"""Events as lines for a duty officer: Chinese first, English beside it, times in local time.

Everything that came over the network is printed as plain text, without control characters: what a gateway sends can
neither colour a line nor move the cursor.
"""

import datetime
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.text import Text

from county.events import (
    AbsenceChange,
    AlertStep,
    CommandAnswered,
    Event,
    GatewayChange,
    MessageSetAside,
    MessagesSkipped,
    ReadingsDropped,
)
from protocols.contract import AbsenceNotice, AlertBody, AlertState, Ending, Kind, Level, Result, Transition, wall_ms
from protocols.errors import ContractError

KIND_TEXT: Final = {
    Kind.LOW_USAGE: "用水过少 low usage",
    Kind.METER_SILENT: "水表无应答 meter silent",
    Kind.LEAK: "疑似漏水 leak",
    Kind.BURST: "疑似爆管 burst",
    Kind.REVERSE_FLOW: "水流倒流 reverse flow",
    Kind.BUS_FAULT: "总线故障 bus fault",
    Kind.SUPPLY_OUTAGE: "停水 supply outage",
    Kind.STORAGE_DEGRADED: "网关存储降级 storage degraded",
    Kind.CLOCK_UNTRUSTED: "网关时钟不可信 clock untrusted",
}
STATE_TEXT: Final = {
    AlertState.OPEN: "新警 OPEN",
    AlertState.ESCALATED: "升级 ESCALATED",
    AlertState.CLEARED: "解除 CLEARED",
}
TRANSITION_TEXT: Final = {
    Transition.OPENED: STATE_TEXT[AlertState.OPEN],
    Transition.ESCALATED: STATE_TEXT[AlertState.ESCALATED],
    Transition.REMINDED: "再次提醒 REMINDED",
    Transition.CLEARED: STATE_TEXT[AlertState.CLEARED],
}
ENDING_TEXT: Final = {
    Ending.USE: "已用水 water was used",
    Ending.COMMAND: "人工结束 declared over",
    Ending.TIME: "到期 its time was over",
    Ending.REPLACED: "被新登记取代 a newer one took its place",
}
RESULT_TEXT: Final = {Result.FINE: "平安 fine", Result.HELPED: "已救助 helped", Result.FALSE: "误报 false"}
DO_TEXT: Final = {
    "absence": "登记外出 absence",
    "present": "结束外出 present",
    "acknowledge": "确认 acknowledge",
    "resolve": "上门结果 resolve",
    "read_now": "立即抄表 read now",
}
LEVEL_TEXT: Final = {Level.YELLOW: "黄 YELLOW", Level.RED: "红 RED"}
_LEVEL_STYLE: Final = {Level.YELLOW: "yellow", Level.RED: "bold red"}
# One line stays one line: more figures than this are in the database and in --json.
_EVIDENCE_CHARACTERS_MAX: Final = 240


class Display:
    """Prints events to stdout, as lines for people or one JSON object a line."""

    def __init__(self, console: Console, *, json: bool, timezone: datetime.tzinfo | None = None) -> None:
        """`timezone` None means the machine's own."""
        self._console = console
        self._json = json
        self._timezone = timezone

    def show(self, event: Event) -> None:
        """Print one event and hand it to the reader at once."""
        if self._json:
            self._console.file.write(msgspec.json.encode(event).decode() + "\n")
        else:
            # soft_wrap: one event is one line, whatever the terminal's width and whoever reads the pipe.
            self._console.print(describe(event, timezone=self._timezone), soft_wrap=True, highlight=False)
        self._console.file.flush()


def describe(event: Event, *, timezone: datetime.tzinfo | None = None) -> Text:
    """Return the line that tells an event."""
    line = Text()
    _add(line, f"{local_time(event.received_at, timezone=timezone)}  ")
    where = f"{event.gateway} ({event.county})" if event.gateway else ""
    match event:
        case AlertStep():
            _describe_alert(line, event, timezone=timezone)
        case GatewayChange(online=True):
            store = "; 新存储 NEW STORE, 编号从 1 重新开始 numbering begins anew" if event.new_store else ""
            _add(line, f"网关上线 gateway online  {where}{_about(event)}{store}", style="green")
        case GatewayChange():
            _add(line, f"网关离线 GATEWAY OFFLINE  {where}{_about(event)}", style="bold magenta")
        case AbsenceChange():
            _add(
                line, f"{event.absence.meter} @ {where}  {absence_text(event.absence, timezone=timezone)}", style="cyan"
            )
        case CommandAnswered():
            _describe_answer(line, event, where)
        case ReadingsDropped():
            span = f"{local_time(event.start, timezone=timezone)} – {local_time(event.end, timezone=timezone)}"
            _add(
                line,
                f"读数已丢弃 readings dropped  {where}  {event.readings} 条 readings, {span}"
                ": 网关存储已满 its store was full",
            )
        case MessagesSkipped():
            _add(
                line,
                f"序号跳过 messages skipped  {where}  {event.stream} {event.first}–{event.last}: "
                "曾由另一数据库确认 acknowledged by another database, not in this one",
            )
        case MessageSetAside():
            _add(line, f"无法理解 NOT UNDERSTOOD  {where or event.topic}  ×{event.count}: {event.reason}", style="cyan")
        case _:
            _add(line, repr(event))
    return line


def local_time(instant: str, *, timezone: datetime.tzinfo | None = None) -> str:
    """Return a contract instant as local time to the minute, or as it stands where it is none."""
    try:
        milliseconds = wall_ms(instant)
    except ContractError:
        return instant
    moment = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC).astimezone(timezone)
    return f"{moment:%Y-%m-%d %H:%M}"


def utc_offset(instant: str) -> str:
    """Return how far the machine's own clock is from UTC at a contract instant: `+08:00`. Raises ContractError."""
    moment = datetime.datetime.fromtimestamp(wall_ms(instant) / 1000, datetime.UTC).astimezone()
    return moment.isoformat(timespec="minutes")[-6:]


def printable(text: str) -> str:
    """Return a text in which every control or formatting character is a visible mark of one column."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def evidence_text(evidence: dict[str, Any], *, timezone: datetime.tzinfo | None = None) -> str:
    """Return what an alert rests on: the low-usage rule in words, any other figures with the unit of their names."""
    used = (evidence.get("usage_min_ml"), evidence.get("usage_max_ml"), evidence.get("threshold_ml"))
    if all(isinstance(figure, int) for figure in used):
        least, most, threshold = used
        span = _litres(most) if least == most else f"{_litres(least)}–{_litres(most)}"
        text = f"{evidence.get('window_h', '?')} h 用水 used {span} L"
        text += f", 阈值 limit {_litres(threshold)} L"
        bounds = evidence.get("last_use_after"), evidence.get("last_use_before")
        if all(isinstance(bound, str) for bound in bounds):
            after, before = (local_time(str(bound), timezone=timezone) for bound in bounds)
            text += f", 最后用水 last use {after}–{before.removeprefix(after[:11])}"
    else:
        text = ", ".join(_figure(name, value, timezone=timezone) for name, value in evidence.items())
    return text if len(text) <= _EVIDENCE_CHARACTERS_MAX else text[: _EVIDENCE_CHARACTERS_MAX - 1] + "…"


def absence_text(absence: AbsenceNotice, *, timezone: datetime.tzinfo | None = None) -> str:
    """Return who is away until when, and what ended it."""
    what = f"安静时段 quiet hours {absence.daily}" if absence.daily else "外出 away"
    start, until = (local_time(one, timezone=timezone) for one in (absence.start, absence.until))
    if absence.ended_by is None or absence.ended_at is None:
        return f"{what}  {start} – {until}"
    ended = local_time(absence.ended_at, timezone=timezone)
    return f"{what} 已结束 ended {ended}: {ENDING_TEXT[absence.ended_by]}"


def said_text(alert: AlertBody, *, timezone: datetime.tzinfo | None = None) -> str:
    """Return what an alert says: in the gateway's words, or, where it has none, the figures of its evidence."""
    words = [alert.text[language] for language in ("zh", "en") if alert.text and language in alert.text]
    return " ".join(words) or evidence_text(alert.evidence, timezone=timezone)


def _describe_answer(line: Text, event: CommandAnswered, where: str) -> None:
    outcome = "已执行 done" if event.done else f"未执行 NOT DONE ({event.reason})"
    asked = DO_TEXT.get(event.do or "", "命令 command")
    subject = event.meter or event.alert or event.id
    result = f" {event.result}" if event.result else ""
    words = " ".join((event.text or {}).values())
    _add(line, f"{asked}{result} {outcome}  {subject} @ {where}  {words}", style="green" if event.done else "magenta")


def _describe_alert(line: Text, event: AlertStep, *, timezone: datetime.tzinfo | None) -> None:
    alert = event.alert
    ended = alert.state is AlertState.CLEARED
    style = "dim" if event.historical else "green" if ended else _LEVEL_STYLE[alert.level]
    if event.historical:
        _add(line, "[历史 historical] ", style="dim")
    if event.standing:
        _add(line, "[未解除 still open] ")
    state = STATE_TEXT[alert.state] if alert.transition is None else TRANSITION_TEXT[alert.transition]
    _add(line, f"{LEVEL_TEXT[alert.level]}  {state}  {KIND_TEXT[alert.kind]}", style=style)
    _add(line, f"  {alert.meter or '网关 gateway'} @ {event.gateway} ({event.county})")
    _add(line, f"  自 since {local_time(alert.since, timezone=timezone)}")
    if alert.evidence or alert.text:
        _add(line, f"  |  {said_text(alert, timezone=timezone)}")


def _add(line: Text, text: str, style: str = "") -> None:
    line.append(printable(text), style=style)


def _about(event: GatewayChange) -> str:
    facts = [event.reason, event.agent, None if event.meters is None else f"{event.meters} 块表 meters"]
    known = ", ".join(fact for fact in facts if fact)
    return f"  {known}" if known else ""


def _figure(name: str, value: object, *, timezone: datetime.tzinfo | None) -> str:
    """Return one figure of the evidence; by the house rule a name ends in its unit."""
    if isinstance(value, int) and not isinstance(value, bool) and name.endswith("_ml"):
        return f"{name.removesuffix('_ml')} {_litres(value)} L"
    if isinstance(value, str) and len(value) == len("2026-11-21T20:39:00.000Z"):
        return f"{name} {local_time(value, timezone=timezone)}"
    return f"{name} {value}"


def _litres(millilitres: object) -> str:
    """Return litres, exact to the millilitre, without zeros at the end."""
    assert isinstance(millilitres, int)
    whole, rest = divmod(abs(millilitres), 1000)
    sign = "-" if millilitres < 0 else ""
    return f"{sign}{whole}" + (f".{rest:03d}".rstrip("0") if rest else "")
