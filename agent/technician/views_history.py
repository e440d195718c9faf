"""How a meter's memory looks: a line for each total, what was used in between, and a bar to compare months by."""

import datetime
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.technician import history_words, views_reading
from agent.technician.history import Entry, Report, Use
from agent.technician.history_records import kind_of, settlements_ago
from agent.technician.history_words import CLOCKS, FELL, MISSING, WHY_FELL
from agent.technician.views_reading import advices, facts, frames_json, heading, plan_json, who_answered
from agent.technician.words import FLAGS, Words, cubic_metres, word
from protocols.cjt188_data import ADDRESS, CURRENT, SETTLED_MONTHS, ClockState
from protocols.contract import instant
from protocols.errors import MeterError

BAR_CELLS: Final = 20
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_DAY_S: Final = 86_400


def show(report: Report, console: Console, *, with_frames: bool) -> None:
    """Print what a meter remembers; the frames too where it said nothing."""
    console.print(heading(report.plan))
    if report.answered_by is not None:
        console.print(who_answered(report.answered_by))
    if report.has_spoken:
        console.print(Padding(_table(report), (1, 0, 0, 1)))
    console.print(Padding(_facts(report), (1, 0, 0, 0)))
    if report.frames and (with_frames or not report.has_spoken):
        console.print(Padding(_frames(report), (1, 0, 0, 1)))
    further = history_words.check_next(report)
    if further:
        console.print()
        console.print(advices(further))


def as_json(report: Report) -> dict[str, Any]:
    """Return what a meter remembers, for programs."""
    return {
        **plan_json(report.plan),
        "answered_by": report.answered_by,
        "read_at": instant(report.wall_ms),
        "took_ms": report.took_ms,
        "step_ml": report.plan.profile.head.step_ml,
        "interrupted": report.is_interrupted,
        "clock": _clock(report),
        "records": [_entry_json(report, entry) for entry in report.entries],
        "address_frames": frames_json(report.address_frames),
        "error": _error_json(report.error),
        "check_next": history_words.check_next(report),
    }


def bar(volume_ml: int, *, most_ml: int) -> str:
    """Return a bar of at most BAR_CELLS cells, in eighths; any use at all is seen, none is empty."""
    if volume_ml <= 0 or most_ml <= 0:
        return ""
    whole, rest = divmod(max(1, round(volume_ml * BAR_CELLS * 8 / most_ml)), 8)
    return "█" * whole + _EIGHTHS[rest].strip()


def _table(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("record 记录", no_wrap=True)
    table.add_column("", no_wrap=True, style="dim")
    table.add_column("total 总量 m³", no_wrap=True, justify="right")
    table.add_column("use 用水 m³", no_wrap=True, justify="right")
    table.add_column("")
    uses = {entry.identifier: report.use_of(entry) for entry in report.entries}
    most_ml = max((use.volume_ml for use in uses.values() if use and use.is_next), default=0)
    step_ml = report.plan.profile.head.step_ml
    for entry in report.entries:
        name, identifier = str(history_words.name_of(entry.identifier)), f"{entry.identifier:04X}"
        if entry.total_ml is None:
            reason = Text(str(word(MISSING, entry.reason or "")), "red" if entry.is_asked else "dim")
            table.add_row(name, identifier, Text("—", "dim"), "", reason)
            continue
        use = uses[entry.identifier]
        used = Text("—", "dim") if use is None else Text(cubic_metres(use.volume_ml, step_ml=step_ml))
        total = Text(cubic_metres(entry.total_ml, step_ml=step_ml), "bold")
        table.add_row(name, identifier, total, used, _beside(entry, use, most_ml=most_ml))
    return table


def _beside(entry: Entry, use: Use | None, *, most_ml: int) -> Text:
    """Return what stands beside a total: the bar of its use, or what there is to say of it."""
    if use is not None and use.volume_ml < 0:
        return Text(f"! {FELL}", "yellow")
    if use is not None and not use.is_next:
        return Text(f"since 自 {use.since:04X}", "dim")
    if use is not None:
        # A period that is not over is no month to compare with.
        return Text(bar(use.volume_ml, most_ml=most_ml), "dim cyan" if entry.identifier == CURRENT else "cyan")
    return _frozen(entry)


def _frozen(entry: Entry) -> Text:
    """Return what a freeze says besides its total: when, the flow and the water's temperature."""
    record = entry.record
    if record is None or entry.identifier == CURRENT or record.clock_state is None:
        return Text()
    when = f"{record.clock:%Y-%m-%d %H:%M:%S}" if record.clock else str(word_of_clock(record.clock_state))
    parts = [when]
    if record.flow_l_h is not None:
        parts.append(f"{record.flow_l_h.normalize():f} L/h")
    if record.temperature_c is not None:
        parts.append(f"{record.temperature_c} °C")
    return Text("  ".join(parts))


def word_of_clock(state: ClockState) -> Words:
    """Return why there is no clock."""
    return CLOCKS.get(state, Words(state.value, state.value))


def _facts(report: Report) -> Table:
    grid = facts()
    asked = [entry for entry in report.entries if entry.is_asked]
    good = sum(entry.total_ml is not None for entry in asked)
    took_s = report.took_ms / 1000
    twice = ", each said twice alike 两次读数一致" if good else ""
    grid.add_row(" totals 总量", f"{good} of {len(report.entries)}{twice}; {took_s:.1f} s 秒")
    for reason, whys in _missing(report).items():
        for text, identifiers in whys.items():
            grid.add_row(f" {word(MISSING, reason)}", Text(f"{ranges(identifiers)}: {text}", "red"))
    if any((use := report.use_of(entry)) and use.volume_ml < 0 for entry in report.entries):
        grid.add_row(f" {FELL}", Text(str(WHY_FELL), "yellow"))
    if (ended := history_words.ended(report)) is not None:
        grid.add_row(" ended 提前结束", Text(str(ended), "yellow"))
    if report.current is not None:
        _add_current(grid, report, report.current)
    return grid


def _missing(report: Report) -> dict[str, dict[str, list[int]]]:
    """Return the records that were asked for and have no total, by reason and by what there is to say of it."""
    found: dict[str, dict[str, list[int]]] = {}
    if report.error is not None and not any(entry.is_asked for entry in report.entries):
        address = Entry(identifier=ADDRESS, error=report.error)
        found[report.error.reason] = {history_words.why(report, address): [ADDRESS]}
    for entry in report.entries:
        if entry.is_asked and entry.reason is not None:
            whys = found.setdefault(entry.reason, {})
            whys.setdefault(history_words.why(report, entry), []).append(entry.identifier)
    return found


def ranges(identifiers: Sequence[int]) -> str:
    """Return identifiers as they are named on the command line: `D121, D123-D12B`."""
    runs: list[list[int]] = []
    for identifier in identifiers:
        if runs and identifier == runs[-1][-1] + 1:
            runs[-1].append(identifier)
        else:
            runs.append([identifier])
    return ", ".join(f"{run[0]:04X}" if len(run) == 1 else f"{run[0]:04X}-{run[-1]:04X}" for run in runs)


def _add_current(grid: Table, report: Report, entry: Entry) -> None:
    """Add what only the current reading says: the meter's clock, its status, its last settled total."""
    record, clock = entry.record, _clock(report)
    assert record is not None
    if clock is not None:
        here = datetime.datetime.fromtimestamp(_said_at_ms(report, entry) / 1000, datetime.UTC).astimezone()
        if record.clock is None:
            grid.add_row(" clock 表时钟", str(word_of_clock(ClockState(clock["state"]))))
        else:
            grid.add_row(" clock 表时钟", f"{record.clock:%Y-%m-%d %H:%M:%S}   here 本机 {here:%Y-%m-%d %H:%M:%S}")
            if abs(clock["ahead_s"]) > _DAY_S:
                grid.add_row("", Text(f"! {history_words.WRONG_CLOCK}", "yellow"))
    if record.status is not None:
        text = Text(f"ST {record.status.hex(' ').upper()}")
        for flag in record.flags:
            text.append(f"  ! {word(FLAGS, flag)}", "yellow")
        grid.add_row(" status 状态", text)
    if record.settled_ml is not None:
        months = {other.identifier: other.total_ml for other in report.entries}
        last_ml = months.get(SETTLED_MONTHS[0])
        sign = "=" if last_ml == record.settled_ml else "≠"
        agrees = "" if last_ml is None else f"  {sign} {SETTLED_MONTHS[0]:04X}"
        settled = cubic_metres(record.settled_ml, step_ml=report.plan.profile.head.step_ml)
        grid.add_row(" settled 结算日", f"{settled} m³, as 901F says 901F 所报{agrees}")
    elif record.settled_fault is not None:
        grid.add_row(" settled 结算日", Text(f"{history_words.NO_SETTLED}: {record.settled_fault}", "yellow"))


def _clock(report: Report) -> dict[str, Any] | None:
    """Return the meter's own clock, and how far it is ahead of this machine's local time; None where it says none."""
    entry = report.current
    if entry is None or entry.record is None or entry.record.clock_state is None:
        return None
    meters = entry.record.clock
    here = datetime.datetime.fromtimestamp(_said_at_ms(report, entry) / 1000, datetime.UTC).astimezone()
    ahead_s = None if meters is None else round((meters - here.replace(tzinfo=None)).total_seconds())
    return {
        "state": entry.record.clock_state.value,
        "meter": None if meters is None else meters.isoformat(),
        "here": here.isoformat(timespec="seconds"),
        "ahead_s": ahead_s,
    }


def _said_at_ms(report: Report, entry: Entry) -> int:
    """Return about when the answer came, by this machine's clock."""
    return report.wall_ms + entry.at_ms + entry.took_ms


def _frames(report: Report) -> Group:
    """Return the bytes of each record under its identifier."""
    proofs = [(ADDRESS, report.address_frames), *((entry.identifier, entry.frames) for entry in report.entries)]
    lines: list[Text | Padding] = []
    for identifier, frames in proofs:
        if frames:
            lines.append(Text(f"{identifier:04X}", "dim"))
            lines.append(Padding(views_reading.frames(frames, framing=report.plan.line.framing), (0, 0, 0, 1)))
    return Group(*lines)


def _entry_json(report: Report, entry: Entry) -> dict[str, Any]:
    record, use = entry.record, report.use_of(entry)
    step_ml, kind = report.plan.profile.head.step_ml, kind_of(entry.identifier)
    assert kind is not None
    return {
        "identifier": f"{entry.identifier:04X}",
        "kind": kind.value,
        "settlements_ago": settlements_ago(entry.identifier),
        "total_ml": entry.total_ml,
        "total_m3": None if entry.total_ml is None else cubic_metres(entry.total_ml, step_ml=step_ml),
        # Said twice alike, or by a register that turns between two that enclose it; nothing else is given as a total.
        "confirmed": record is not None,
        "use_ml": use.volume_ml if use else None,
        "use_since": f"{use.since:04X}" if use else None,
        "reason": entry.reason,
        "error": _error_json(entry.error),
        "settled_ml": record.settled_ml if record else None,
        "settled_fault": record.settled_fault if record else None,
        "status": record.status.hex(" ").upper() if record and record.status is not None else None,
        "flags": list(record.flags) if record else [],
        "clock": record.clock.isoformat() if record and record.clock else None,
        "clock_state": record.clock_state.value if record and record.clock_state else None,
        "flow_l_h": _decimal(record.flow_l_h if record else None),
        "temperature_c": _decimal(record.temperature_c if record else None),
        "pressure": _decimal(record.pressure if record else None),
        "at_ms": entry.at_ms,
        "took_ms": entry.took_ms,
        "frames": frames_json(entry.frames),
    }


def _decimal(number: Any) -> str | None:
    return None if number is None else f"{number:f}"


def _error_json(error: MeterError | None) -> dict[str, str] | None:
    return None if error is None else {"reason": error.reason, "text": str(error)}
