"""How a check-up looks: a sign for each thing that was looked at, what was found, and what to check next."""

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.technician.finding import Finding
from agent.technician.words import Words

SIGNS: Final = {"ok": ("✔", "green"), "note": ("•", "cyan"), "warn": ("!", "yellow"), "bad": ("✘", "bold red")}
TOPICS: Final = {
    "port": Words("串口", "port"),
    "adapter": Words("适配器", "adapter"),
    "silence": Words("静默", "silence"),
    "echo": Words("回显", "echo"),
    "meter": Words("水表", "meter"),
    "meters": Words("水表", "meter"),
    "service": Words("服务", "service"),
    "clock": Words("时钟", "clock"),
    "disk": Words("磁盘", "disk"),
    "store": Words("存储", "store"),
    "broker": Words("平台", "broker"),
}


def render(finding: Finding) -> RenderableType:
    """Return one finding, Chinese above English, and what to check next."""
    sign, colour = SIGNS[finding.level]
    topic = TOPICS[finding.topic]
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column(width=9, no_wrap=True)
    grid.add_column(overflow="fold")
    english = "" if finding.level in {"warn", "bad"} else "dim"
    grid.add_row(Text(sign, colour), Text(topic.zh, "bold"), Text(finding.says.zh, colour if english == "" else ""))
    grid.add_row("", Text(topic.en, "dim"), Text(finding.says.en, "dim"))
    parts: list[RenderableType] = [grid]
    if finding.next:
        steps = Table.grid(padding=(0, 1))
        steps.add_column(width=1)
        steps.add_column(overflow="fold")
        for step in finding.next:
            steps.add_row(Text("→", "cyan"), Text(step.zh))
            steps.add_row("", Text(step.en, "dim"))
        parts.append(Padding(steps, (0, 0, 0, 12)))
    return Group(*parts)


def summary(findings: Sequence[Finding], *, is_complete: bool = True) -> Text:
    """Return one line: how many things are well and how many are not."""
    counts = {level: sum(finding.level == level for finding in findings) for level in SIGNS}
    if counts["bad"]:
        line = Text(f"{counts['bad']} wrong 处故障", "bold red")
    elif not is_complete:
        line = Text("stopped before the end 未查完", "bold yellow")
    elif counts["warn"]:
        line = Text("works, with warnings 可用，但有隐患", "bold yellow")
    else:
        line = Text("all well 一切正常", "bold green")
    return line.append(
        f"   {counts['ok']} ok, {counts['note']} notes, {counts['warn']} warnings, {counts['bad']} wrong",
        "dim not bold",
    )


def as_json(findings: Sequence[Finding], code: int, *, is_complete: bool = True) -> dict[str, Any]:
    """Return the same for programs; `complete` is false where somebody stopped it."""
    return {
        "exit_code": int(code),
        "complete": is_complete,
        "findings": [
            {
                "topic": finding.topic,
                "level": finding.level,
                "zh": finding.says.zh,
                "en": finding.says.en,
                "check_next": finding.next,
                "data": finding.data,
            }
            for finding in findings
        ],
    }
