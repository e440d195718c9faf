"""How a valve's story looks: where it was, what was sent, what came back, where it is; for people and for programs."""

from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.technician import valve_words, views_reading
from agent.technician.reading import Plan
from agent.technician.trace import Frame
from agent.technician.valve import Command, Look, Report
from agent.technician.valve_words import ACTIONS, POSITIONS, Action
from agent.technician.views_reading import advices, facts, frames_json, heading, plan_json
from agent.technician.words import FLAGS, REASONS, Words, cubic_metres, word
from protocols.cjt188_dialogue import Position
from protocols.contract import instant

_COLOURS = {Position.OPEN: "green", Position.CLOSED: "yellow", Position.FAULT: "red", Position.UNKNOWN: "red"}
_OUTCOMES = {
    True: (Words("已确认", "confirmed"), "green"),
    False: (Words("未确认", "not confirmed"), "red"),
}
_NOTHING_SENT = Words("未发送任何命令", "nothing was sent")


def show_look(plan: Plan, look: Look, frames: tuple[Frame, ...], console: Console) -> None:
    """Print where a meter says that its valve is."""
    console.print(heading(plan))
    grid = facts()
    _add_look(grid, Words("阀门", "valve"), plan, look)
    console.print(Padding(grid, (1, 0, 1, 1)))
    console.print(Padding(views_reading.frames(frames, framing=plan.line.framing), (0, 0, 1, 1)))
    if look.error is not None:
        console.print(advices(valve_words.after_look(plan, look)))


def show(report: Report, console: Console) -> None:
    """Print what moving a valve came to."""
    console.print(heading(report.plan))
    console.print(Group(Text(), _outcome(report)))
    grid = facts()
    _add_look(grid, Words("之前", "before"), report.plan, report.before)
    if report.command is not None:
        grid.add_row(" command 命令", _command(report.command))
    if report.after:
        _add_look(grid, Words("之后", "after"), report.plan, report.after[-1], note=_how_long(report))
    console.print(Padding(grid, (1, 0, 1, 0)))
    console.print(Padding(views_reading.frames(report.frames, framing=report.plan.line.framing), (0, 0, 1, 1)))
    further = valve_words.check_next(report)
    if further:
        console.print(advices(further))


def show_warning(plan: Plan, action: Action, look: Look | None, console: Console) -> None:
    """Print what will happen to the home, before the words are asked for."""
    console.print(heading(plan))
    if look is not None:
        grid = facts()
        _add_look(grid, Words("现在", "now"), plan, look)
        console.print(Padding(grid, (1, 0, 1, 1)))
    title = Words(f"{ACTIONS[action].zh}意味着", f"to {ACTIONS[action].en} the valve means")
    console.print(advices(valve_words.WARNINGS[action], title=title))


def as_json(report: Report) -> dict[str, Any]:
    """Return what moving a valve came to, for programs."""
    plan, command = report.plan, report.command
    return {
        **plan_json(plan),
        "action": "open" if report.target is Position.OPEN else "close",
        "at": instant(report.wall_ms),
        "sent": report.is_sent,
        "confirmed": report.is_confirmed,
        "position": report.position.value,
        "interrupted": report.is_interrupted,
        "before": _look_json(plan, report.before),
        "command": None if command is None else _command_json(command),
        "after": [_look_json(plan, look) for look in report.after],
        "took_ms": report.took_ms,
        "frames": frames_json(report.frames),
        "check_next": valve_words.check_next(report),
    }


def look_as_json(plan: Plan, look: Look, frames: tuple[Frame, ...], *, wall_ms: int) -> dict[str, Any]:
    """Return where a meter says that its valve is, for programs."""
    return {
        **plan_json(plan),
        "action": "status",
        "at": instant(wall_ms),
        **_look_json(plan, look),
        "frames": frames_json(frames),
        "check_next": valve_words.after_look(plan, look),
    }


def _outcome(report: Report) -> Text:
    action = Action.OPEN if report.target is Position.OPEN else Action.CLOSE
    if not report.is_sent:
        return Text.assemble(" ", (f" {_NOTHING_SENT} ", "bold reverse red"), f"  {ACTIONS[action]}")
    words, colour = _OUTCOMES[report.is_confirmed]
    told = f"  {ACTIONS[action]}: the meter says 表报 {POSITIONS[report.position]}"
    return Text.assemble(" ", (f" {words} ", f"bold reverse {colour}"), told)


def _add_look(grid: Table, label: Words, plan: Plan, look: Look, *, note: str = "") -> None:
    if look.error is not None:
        text = Text.assemble((str(word(REASONS, look.error.reason)), "red"), f"  {look.error}{note}")
    else:
        text = Text.assemble((str(POSITIONS[look.position]), f"bold {_COLOURS[look.position]}"))
        if look.volume_ml is not None:
            text.append(f"  {cubic_metres(look.volume_ml, step_ml=plan.profile.head.step_ml)} m³")
        if look.status is not None:
            text.append(f"  ST {look.status.hex(' ').upper()}", "dim")
        for flag in look.flags:
            if flag not in {"valve_closed", "valve_fault"}:
                text.append(f"  ! {word(FLAGS, flag)}", "yellow")
        text.append(note)
    grid.add_row(f" {label}", text)


def _command(command: Command) -> Text:
    if command.status is not None:
        return Text(f"answered 已应答, ST {command.status.hex(' ').upper()}")
    assert command.reason is not None
    sent = "sent once, not repeated 已发一次，不重发" if command.is_sent else str(_NOTHING_SENT)
    return Text.assemble((str(word(REASONS, command.reason)), "red"), f"  {command.text} ({sent})")


def _how_long(report: Report) -> str:
    assert report.command is not None
    elapsed_s = (report.took_ms - report.command.at_ms) / 1000
    failed = sum(look.error is not None for look in report.after)
    stopped = ", stopped 已中断" if report.is_interrupted else ""
    return f"  after {elapsed_s:.1f} s 秒, {len(report.after)} readings 次读数, {failed} failed 次失败{stopped}"


def _look_json(plan: Plan, look: Look) -> dict[str, Any]:
    volume_ml = look.volume_ml
    return {
        "at_ms": look.at_ms,
        "position": look.position.value,
        "volume_ml": volume_ml,
        "volume_m3": None if volume_ml is None else cubic_metres(volume_ml, step_ml=plan.profile.head.step_ml),
        "flags": list(look.flags),
        "status": None if look.status is None else look.status.hex(" ").upper(),
        "error": None if look.error is None else {"reason": look.error.reason, "text": str(look.error)},
    }


def _command_json(command: Command) -> dict[str, Any]:
    return {
        "at_ms": command.at_ms,
        "sent": command.is_sent,
        "status": None if command.status is None else command.status.hex(" ").upper(),
        "error": None if command.reason is None else {"reason": command.reason, "text": command.text},
    }
