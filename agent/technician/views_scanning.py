"""How a scan looks: what is asked and how long it still takes, what was found, and the table at the end."""

import datetime
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.technician import proposal
from agent.technician.fits import Fit
from agent.technician.lines import line_text
from agent.technician.scan_found import Found
from agent.technician.scan_plan import Step
from agent.technician.scanning import Scan, Told
from agent.technician.views_sniffing import frame_line, reading
from agent.technician.words import FLAGS, PROTOCOLS, word

FITS_SHOWN: Final = 4


def duration(seconds: float) -> str:
    """Return `0:42` or `9:05`."""
    return f"{datetime.timedelta(seconds=max(0, round(seconds)))}".removeprefix("0:")


def step_text(step: Step | None) -> str:
    """Return what is being asked, for the progress bar."""
    if step is None:
        return "listening 先听"
    return line_text(step.line) if step.wire == "tcp" else f"{line_text(step.line)} {PROTOCOLS[step.protocol]}"


def found_line(found: Found) -> Text:
    """Return one line for one meter as soon as it is found."""
    line = Text.assemble(("● ", "green"), (f"{PROTOCOLS[found.protocol]} {found.address}", "bold"))
    line.append(f"  {line_text(found.line)}", "dim")
    if found.fits:
        best = found.fits[0]
        line.append(f"  {reading(best)}", "bold cyan")
        line.append(f"  {best.profile}", "")
        line.append("" if found.is_decided else f"  ? {_open_question(found)}", "yellow")
    else:
        line.append("  no profile reads it 没有合适的型号", "yellow")
    return line


def told_lines(told: Told, *, width: int) -> RenderableType:
    """Return something to know, Chinese above English, and the frames that show it."""
    colour = "bold yellow" if told.is_grave else "yellow"
    text = Text.assemble(("! ", colour), (told.words.zh, colour), "\n  ", (told.words.en, "dim"))
    return Group(text, *(Padding(frame_line(one, width=width - 2), (0, 0, 0, 1)) for one in told.heard))


def table(scan: Scan) -> RenderableType:
    """Return the table of what was found."""
    if not scan.found:
        return Text("no meter found 没有找到水表", "bold red")
    rows = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("address 地址", "protocol 协议", "line 线路", "shows 读数", "profile 型号"):
        rows.add_column(heading, overflow="fold", no_wrap=heading.startswith(("shows", "line")))
    for one in scan.found:
        rows.add_row(
            Text(one.address, "bold"),
            PROTOCOLS[one.protocol],
            line_text(one.line),
            _values(one),
            _profiles(one),
        )
    ports = sorted({one.line.port for one in scan.found})
    count = f"{len(scan.found)} {'meter' if len(scan.found) == 1 else 'meters'} 块表"
    steps = [Text(step, "yellow") for one in scan.found if not one.fits for step in _what_next(one)]
    return Group(Text.assemble((count, "bold green"), f"  {', '.join(ports)}"), rows, *steps)


def as_json(scan: Scan, *, is_complete: bool) -> dict[str, Any]:
    """Return the outcome for programs."""
    return {
        "complete": is_complete and scan.is_complete,
        "requests": scan.requests,
        "found": [
            {
                "port": one.line.port,
                "baudrate": one.line.baudrate,
                "parity": one.line.parity,
                "stop_bits": one.line.stop_bits,
                "data_bits": one.line.data_bits,
                "framing": one.line.framing,
                "protocol": one.protocol,
                "address": one.address,
                "fits": [
                    {"profile": fit.profile, "volume_ml": fit.volume_ml, "flags": list(fit.flags)} for fit in one.fits
                ],
                "decided": one.is_decided,
                "reason": one.reason,
                "timeout_ms": one.timeout_ms,
                "meter_type": one.meter_type,
            }
            for one in scan.found
        ],
        "told": [
            {
                "port": told.port,
                "zh": told.words.zh,
                "en": told.words.en,
                "grave": told.is_grave,
                "gap": told.is_gap,
                "frames": [{"direction": one.mark, "hex": one.data.hex(" ").upper()} for one in told.heard],
            }
            for told in scan.told
        ],
    }


def _by_value(fits: Sequence[Fit]) -> dict[int, list[Fit]]:
    by_value: dict[int, list[Fit]] = {}
    for fit in fits:
        by_value.setdefault(fit.volume_ml, []).append(fit)
    return by_value


def _open_question(found: Found) -> str:
    """Say why no profile is proposed outright."""
    if found.meter_type is not None:
        return f"heeds type {found.meter_type:02X} only 只应答此表类型"
    if not any(fit.volume_ml for fit in found.fits):
        return "or another profile, all at 0: let water run, scan again 都为 0：放些水再查"
    return "or another profile: see the dial 还有别的型号，请对表盘"


def _what_next(found: Found) -> list[str]:
    why = f"{PROTOCOLS[found.protocol]} {found.address}: {found.reason}" if found.reason else ""
    return [*([why] if why else []), *(f"  {row}" for row in proposal.next_step(found))]


def _values(found: Found) -> Text:
    groups = list(_by_value(found.fits).values())[:FITS_SHOWN]
    best = "bold cyan" if found.is_decided else "bold yellow"
    lines = [Text(reading(group[0]), best if index == 0 else "dim") for index, group in enumerate(groups)]
    return Text("\n").join(lines) if lines else Text("–", "dim")


def _profiles(found: Found) -> Text:
    if not found.fits:
        return Text("none 无", "yellow")
    groups = list(_by_value(found.fits).values())
    lines = []
    for index, group in enumerate(groups[:FITS_SHOWN]):
        same = f" (+{len(group) - 1})" if len(group) > 1 else ""
        flags = "".join(f" {word(FLAGS, flag)}" for flag in group[0].flags)
        lines.append(Text.assemble((group[0].profile + same, "" if index == 0 else "dim"), (flags, "yellow")))
    if len(groups) > FITS_SHOWN:
        lines.append(Text(f"… {len(groups) - FITS_SHOWN} more 更多", "dim"))
    if not found.is_decided:
        lines.append(Text(f"? {_open_question(found)}", "yellow"))
    return Text("\n").join(lines)
