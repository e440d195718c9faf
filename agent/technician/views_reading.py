"""How a reading looks: the value as on the dial and everything that proves it; or what went wrong, what to check."""

import datetime
import errno
import os
from collections.abc import Iterable
from typing import Any, Final

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.technician import advice, modbus_wire
from agent.technician.reading import Attempt, Change, Plan, Report
from agent.technician.trace import Frame
from agent.technician.words import FLAGS, QUALITIES, REASONS, Words, cubic_metres, millilitres, word
from protocols.contract import instant
from protocols.errors import NoResponse

# Three lines of box drawing for each character of a number, so that it can be compared with the dial from a step away.
_BIG: Final = {
    "0": ("┏━┓", "┃ ┃", "┗━┛"),
    "1": (" ━┓", "  ┃", "  ╹"),
    "2": ("╺━┓", "┏━┛", "┗━╸"),
    "3": ("╺━┓", " ━┫", "╺━┛"),
    "4": ("╻ ╻", "┗━┫", "  ╹"),
    "5": ("┏━╸", "┗━┓", "╺━┛"),
    "6": ("┏━╸", "┣━┓", "┗━┛"),
    "7": ("╺━┓", "  ┃", "  ╹"),
    "8": ("┏━┓", "┣━┫", "┗━┛"),
    "9": ("┏━┓", "┗━┫", "╺━┛"),
    ".": (" ", " ", "▪"),
}
_COLOURS: Final = {"ok": "green", "suspect": "yellow", "missing": "red"}


def show(report: Report, console: Console) -> None:
    """Print one reading."""
    console.print(heading(report.plan))
    if report.answered_by is not None:
        console.print(who_answered(report.answered_by))
    if report.measurement is not None:
        console.print(_value(report, big=console.is_terminal))
    else:
        console.print(_failure(report))
    if report.frames:
        shown = frames(report.frames, framing=report.plan.line.framing, attempts=report.attempts)
        console.print(Padding(shown, (1, 0, 1, 1)))
    else:
        console.print()
    if report.error is not None:
        console.print(advices(advice.after(report)))
    else:
        console.print(_profile_says(report.plan))


def heading(plan: Plan) -> Text:
    """Return which meter it is, on which line, and as what it is read."""
    address = "" if plan.meter == plan.address_text else f"  address 地址 {plan.address_text}"
    return Text.assemble(
        (plan.meter, "bold"), (f"  {plan.line.port}  {plan.line_text}  {plan.profile.name}{address}", "dim")
    )


def who_answered(number: str) -> Text:
    """Return which meter it was, where any was asked."""
    return Text(f" the meter on this line 线上的表: {number}", "bold")


def facts() -> Table:
    """Return a table for labels and what there is to say to each, still empty."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column()
    return grid


def frames(shown: Iterable[Frame], *, framing: str, attempts: Iterable[Attempt] = ()) -> Table:
    """Return the bytes with their direction and time, the attempts that failed between them."""
    grid = Table.grid(padding=(0, 1))
    for _ in range(2):
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    ends = [(attempt.at_ms + attempt.took_ms, attempt.reason) for attempt in attempts if attempt.reason]
    for frame in shown:
        while ends and ends[0][0] < frame.at_ms:
            _add_failure(grid, *ends.pop(0))
        _add_frame(grid, frame, framing=framing)
    for end in ends:
        _add_failure(grid, *end)
    return grid


def advices(words: list[Words], *, title: Words | None = None) -> Group:
    """Return numbered advice, Chinese above English."""
    heading = title or Words("请依次检查", "check next")
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, justify="right", style="bold cyan", min_width=2)
    grid.add_column()
    for number, sentence in enumerate(words, 1):
        grid.add_row(str(number), Text(sentence.zh))
        grid.add_row("", Text(sentence.en, "dim"))
    return Group(Text(f" {heading.en} {heading.zh}", "bold"), grid)


def watch_line(report: Report, since_last: Change | None, since_first: Change | None) -> Text:
    """Return one line for one of many readings: time, value, difference, flow."""
    at = datetime.datetime.fromtimestamp(report.wall_ms / 1000, datetime.UTC).astimezone()
    line = Text.assemble((f"{at:%H:%M:%S} ", "dim"))
    if report.measurement is None:
        assert report.error is not None
        reason = word(REASONS, report.error.reason)
        return line.append_text(Text.assemble((f" {reason}", "red"), (f"  {_short(str(report.error))}", "dim")))
    step_ml = report.plan.profile.head.step_ml
    line.append(f"{cubic_metres(report.measurement.volume_ml, step_ml=step_ml):>14} m³", "bold")
    if since_last is not None:
        colour = "red" if since_last.volume_ml < 0 else "cyan" if since_last.volume_ml else "dim"
        line.append(f"  {since_last.volume_ml / 1000:+10.3f} L", colour)
        line.append(f"  {since_last.flow_l_h:8.1f} ±{since_last.flow_error_l_h:.1f} L/h", colour)
    if since_first is not None:
        line.append(f"  avg 平均 {since_first.flow_l_h:.1f} L/h", "dim")
    for flag in report.measurement.flags:
        line.append(f"  {word(FLAGS, flag)}", "yellow")
    return line


def watch_summary(readings: int, missed: int, total: Change | None) -> Text:
    """Return what a series of readings came to."""
    line = Text.assemble(
        (f"{readings} readings 次读数", "bold"),
        f", {missed} failed 次失败",
    )
    if total is not None:
        span = datetime.timedelta(seconds=round(total.elapsed_s))
        line.append(f", {total.volume_ml / 1000:+.3f} L in {span}, avg 平均 {total.flow_l_h:.1f} L/h")
    return line


def as_json(report: Report, since_last: Change | None = None) -> dict[str, Any]:
    """Return a reading for programs."""
    plan, measurement, error = report.plan, report.measurement, report.error
    step_ml = plan.profile.head.step_ml
    return {
        **plan_json(plan),
        "answered_by": report.answered_by,
        "read_at": instant(report.wall_ms),
        "quality": report.quality,
        "volume_ml": measurement.volume_ml if measurement else None,
        "volume_m3": cubic_metres(measurement.volume_ml, step_ml=step_ml) if measurement else None,
        "step_ml": step_ml,
        "flags": list(measurement.flags) if measurement else [],
        "took_ms": report.took_ms,
        "answer_ms": report.answer_ms,
        "attempts": [
            {"at_ms": attempt.at_ms, "took_ms": attempt.took_ms, "reason": attempt.reason, "text": attempt.text}
            for attempt in report.attempts
        ],
        "frames": frames_json(report.frames),
        "error": None if error is None else {"reason": error.reason, "text": str(error)},
        "check_next": advice.after(report),
        **({} if since_last is None else {"difference_ml": since_last.volume_ml, "flow_l_h": since_last.flow_l_h}),
    }


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return which meter it is and how it is read, for programs."""
    return {
        "meter": plan.meter,
        "port": plan.line.port,
        "line": plan.line_text,
        "profile": plan.profile.name,
        "protocol": plan.profile.head.protocol,
        "address": plan.address_text,
    }


def frames_json(frames: Iterable[Frame]) -> list[dict[str, Any]]:
    """Return every byte with its direction and time, for programs."""
    return [
        {"at_ms": frame.at_ms, "direction": frame.direction, "hex": frame.data.hex(" ").upper()} for frame in frames
    ]


def _value(report: Report, *, big: bool) -> Group:
    assert report.measurement is not None
    step_ml = report.plan.profile.head.step_ml
    text = cubic_metres(report.measurement.volume_ml, step_ml=step_ml)
    exact = millilitres(report.measurement.volume_ml)
    colour = _COLOURS[report.quality]
    summary = Text.assemble(
        " ",
        (f" {QUALITIES[report.quality]} ", f"bold reverse {colour}"),
        f"  {_how(report)}",
    )
    for flag in report.measurement.flags:
        summary.append(f"\n  ! {word(FLAGS, flag)}", "bold yellow")
    if not big:
        return Group(Text(f"\n {text} m³   = {exact}"), summary)
    return Group(Text(), *_big_lines(text, exact), Text(), summary)


def _big_lines(text: str, exact: str) -> list[Text]:
    """Return the number in three lines, in black and red as on the dial: whole cubic metres, and the rest."""
    lines = [Text("  "), Text("  "), Text("  ")]
    style = "bold"
    for character in text:
        if character == ".":
            style = "bold red"
        for line, part in zip(lines, _BIG[character], strict=True):
            line.append(f"{part} ", style)
    lines[2].append(" m³", "bold")
    lines[2].append(f"   = {exact}", "dim")
    return lines


def _how(report: Report) -> str:
    attempts = len(report.attempts)
    parts = [f"{attempts} attempt{'s' if attempts != 1 else ''} 次"]
    if report.answer_ms is not None:
        parts.append(f"answer after 应答 {report.answer_ms} ms")
    parts.append(f"took 用时 {report.took_ms / 1000:.2f} s")
    return ", ".join(parts)


def _failure(report: Report) -> Group:
    assert report.error is not None
    reason = word(REASONS, report.error.reason)
    how = "" if report.error.reason == "port_lost" else f"  {_how(report)}"
    heading = Text.assemble(" ", (f" {reason} ", "bold reverse red"), how)
    return Group(Text(), heading, Padding(Text(error_text(report), "red"), (0, 1)))


def error_text(report: Report) -> str:
    """Return what went wrong; the system's own words for a port, which pyserial would repeat three times."""
    cause = report.error.__cause__ if report.error else None
    number = getattr(cause, "errno", None)
    if number in {errno.EAGAIN, errno.EBUSY}:  # the system says "Resource temporarily unavailable"
        return f"{report.plan.line.port}: another program holds it 正被其他程序占用"
    if number:
        return f"{report.plan.line.port}: {os.strerror(number)}"
    text = str(report.error)
    return f"{text} ({report.plan.timeout_ms} ms)" if isinstance(report.error, NoResponse) else text


def _profile_says(plan: Plan) -> Table:
    grid = facts()
    head = plan.profile.head
    grid.add_row(" profile 型号", Text(head.title))
    grid.add_row(
        " step 分度", Text(f"{cubic_metres(head.step_ml, step_ml=head.step_ml)} m³ = {millilitres(head.step_ml)}")
    )
    if head.note:
        grid.add_row(" note 备注", Text(head.note))
    return grid


def _add_frame(grid: Table, frame: Frame, *, framing: str) -> None:
    colour = "cyan" if frame.direction == "tx" else "green"
    text = modbus_wire.shown(frame.data, framing)
    grid.add_row(Text(f"+{frame.at_ms:04d}", "dim"), Text(frame.mark, colour), Text(text, colour))


def _add_failure(grid: Table, at_ms: int, reason: str) -> None:
    grid.add_row(Text(f"+{at_ms:04d}", "dim"), Text("--", "red"), Text(str(word(REASONS, reason)), "red"))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
