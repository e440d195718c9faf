"""A picture of one home: register, hours of use, silence against its limit, and the episodes of every rule set.

Four panels over the same days, so that an alert can be followed upwards to what the water did.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib.dates
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from agent.backtest.homes import Home
from agent.backtest.moments import LocalClock
from agent.backtest.replay import Episode, Replay
from agent.backtest.score import RED, YELLOW, HomeScore, figures_of
from agent.detection.watch import DAY_MS, HOUR_MS

DPI: Final = 110
SILENCE_H_MAX: Final = 40  # what is longer is an absence and leaves the panel
BLUE, GREY, YELLOW_INK, RED_INK = "#1f5f99", "#9aa3ab", "#f2c14e", "#c0271d"
AWAY_INK, LEARN_INK = "#dfe3e6", "#eef3f7"
SEEN_DAYS: Final = 1 / 500  # an alert is drawn at least so wide, as a share of the picture


def draw(
    home: Home,
    replays: Sequence[Replay],
    scores: Sequence[HomeScore],
    *,
    clock: LocalClock,
    since_ms: int,
    folder: Path,
) -> Path:
    """Draw a home into `folder` as PNG, under its name; `replays` are closed and traced. Returns the file."""
    figure = Figure(figsize=(15, 9 + 0.35 * len(replays)), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [1.3, 2.4, 2.2, 0.35 * len(replays) + 0.15]
    register, hours, silence, ribbons = figure.subplots(4, 1, sharex=True, height_ratios=heights)
    days = _days(home, clock)
    first = replays[0]
    figure.suptitle(_title(home, first, scores[0], days), x=0.01, ha="left", fontsize=13)
    _register(register, first, days)
    _hours(figure, hours, home, first, days)
    _silence(silence, replays, days)
    _ribbons(ribbons, replays, scores, days, clock)
    begin = _day(since_ms, clock)
    for panel in (register, silence, ribbons):
        if begin > days[0]:
            panel.axvspan(days[0], min(begin, days[-1]), color=LEARN_INK, zorder=0)
        for left, right in first.tally.absences:
            panel.axvspan(_day(left, clock), _day(right, clock), color=AWAY_INK, zorder=0)
    locator = matplotlib.dates.AutoDateLocator()
    ribbons.xaxis.set_major_locator(locator)
    ribbons.xaxis.set_major_formatter(matplotlib.dates.ConciseDateFormatter(locator))
    ribbons.set_xlim(days[0], max(days[-1], days[0] + 1))
    path = folder / f"{file_name(home.meter)}.png"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that this machine has no font for
        figure.savefig(path, dpi=DPI)
    return path


def file_name(meter: str) -> str:
    """Return a meter's name as the name of a file, whatever stands in it."""
    return re.sub(r"[^\w.-]", lambda found: f"%{ord(found[0]):02X}", meter).lstrip(".") or "home"


def _days(home: Home, clock: LocalClock) -> Any:
    """Return when the readings were, in days of matplotlib, by the clocks of the home."""
    times = np.frombuffer(home.times, dtype=np.int64)
    quarters = times // 900_000
    unique, place = np.unique(quarters, return_inverse=True)
    starts = np.array([_day(int(quarter) * 900_000, clock) for quarter in unique])
    return starts[place] + (times - quarters * 900_000) / DAY_MS


def _day(time_ms: int, clock: LocalClock) -> float:
    return float(matplotlib.dates.date2num(clock.local(time_ms)))


def _title(home: Home, replay: Replay, score: HomeScore, days: Any) -> str:
    trace = replay.trace
    assert trace is not None
    litres = (trace.total_ml[-1] - trace.total_ml[0]) / 1000 / max(days[-1] - days[0], 1)
    figures = figures_of(score)
    months = f"{figures.months:.1f} months judged at home" if figures.months else "too short to be judged"
    step = replay.alarm.watch.register.step
    return (
        f"{home.meter}   {len(home):,} readings, {litres:.0f} L a day, step {step / 1000:g} L, {months}"
        f"   (grey: absences, light blue: only teaches)"
    )


def _register(panel: Any, replay: Replay, days: Any) -> None:
    """Draw the count of use that was made of the register, and the readings that were set aside."""
    trace = replay.trace
    assert trace is not None
    total = np.frombuffer(trace.total_ml, dtype=np.int64) / 1e6
    total = total - total[0]
    panel.step(days, total, where="post", color=BLUE, linewidth=1.2)
    panel.fill_between(days, total, step="post", color=BLUE, alpha=0.08)
    aside = np.frombuffer(trace.counts, dtype=np.uint8) == 0
    if aside.any():
        panel.plot(
            days[aside], total[aside], linestyle="none", marker="x", color=RED_INK, markersize=5, label="set aside"
        )
        panel.legend(loc="upper left", frameon=False, fontsize=9)
    panel.set_ylabel("used since the\nbeginning, m³")
    panel.set_ylim(bottom=0)
    panel.margins(y=0.05)


def _hours(figure: Any, panel: Any, home: Home, replay: Replay, days: Any) -> None:
    """Draw what ran in each hour of each day: the home's rhythm, and where it broke."""
    trace = replay.trace
    assert trace is not None
    total = np.frombuffer(trace.total_ml, dtype=np.int64)
    used_l = np.diff(total, prepend=total[0]) / 1000
    first = int(np.floor(days[0]))
    grid = np.full((24, int(np.floor(days[-1])) - first + 1), np.nan)
    day, hour = np.floor(days).astype(int) - first, np.frombuffer(home.hours, dtype=np.uint8)
    grid[hour, day] = 0
    np.add.at(grid, (hour, day), used_l)
    panel.set_facecolor(AWAY_INK)
    extent = (first, first + grid.shape[1], 24, 0)
    panel.imshow(np.where(np.isnan(grid), np.nan, 1.0), extent=extent, aspect="auto", cmap="gray", vmin=0, vmax=1)
    drawn = np.where(grid > 0, grid, np.nan)
    most = max(float(np.nanmax(drawn)) if np.isfinite(drawn).any() else 10.0, 10.0)
    image = panel.imshow(
        drawn, extent=extent, aspect="auto", cmap="YlGnBu", norm=LogNorm(vmin=0.5, vmax=most), interpolation="nearest"
    )
    bar = figure.colorbar(image, ax=panel, pad=0.01, aspect=15)
    ticks = [tick for tick in (1, 10, 100, 1_000, 10_000) if tick <= most]
    bar.set_ticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    bar.set_label("L in the hour\n(white: none, grey: not read)", fontsize=8)
    panel.set_yticks([0, 6, 12, 18, 24])
    panel.set_ylabel("hour of day")


def _silence(panel: Any, replays: Sequence[Replay], days: Any) -> None:
    """Draw the hours since the last real use under the limits that held, and where red rose."""
    trace = replays[0].trace
    assert trace is not None
    silent = np.frombuffer(trace.silent_min, dtype=np.int32) / 60
    # A bar for each silence, as long as it got: the sawtooth itself is a smear over a year.
    ends = np.flatnonzero(np.append(np.diff(silent) < 0, True))
    ends = ends[silent[ends] >= 1]
    lengths = np.minimum(silent[ends], SILENCE_H_MAX)
    limits = np.frombuffer(trace.limit_h, dtype=np.uint8)[ends].astype(float)
    over = silent[ends] >= limits
    panel.vlines(days[ends][~over], 0, lengths[~over], color=GREY, linewidth=0.7, alpha=0.8)
    panel.vlines(days[ends][over], 0, lengths[over], color=RED_INK, linewidth=1.4)
    handles = [
        Line2D([], [], color=GREY, label="length of a silence"),
        Line2D([], [], color=RED_INK, label="beyond its limit"),
    ]
    panel.plot(days[ends], limits, linestyle="none", marker="_", markersize=4, markeredgewidth=1.1, color=BLUE)
    label = "its limit" if replays[0].rule.fixed_h else "its limit: the home's own for the hour at which it began"
    handles.append(Line2D([], [], color=BLUE, linestyle="none", marker="_", label=f"{label} ({replays[0].rule.name})"))
    for replay in replays[1:]:
        if replay.rule.fixed_h is not None and replay.rule.red:
            panel.axhline(replay.rule.fixed_h, color="black", linewidth=0.7, linestyle=(0, (6, 4)))
            panel.annotate(
                f" {replay.rule.name}",
                (1, replay.rule.fixed_h),
                xycoords=("axes fraction", "data"),
                fontsize=8,
                va="center",
            )
    panel.set_ylim(0, SILENCE_H_MAX)
    panel.set_yticks([0, 6, 12, 18, 24, 36])
    panel.set_ylabel("silence, hours")
    panel.legend(handles=handles, loc="upper left", ncols=3, fontsize=8, framealpha=0.9)


def _ribbons(panel: Any, replays: Sequence[Replay], scores: Sequence[HomeScore], days: Any, clock: LocalClock) -> None:
    """Draw when alerts stood, a row for each rule set."""
    least = (days[-1] - days[0]) * SEEN_DAYS
    labels = []
    for row, (replay, score) in enumerate(zip(replays, scores, strict=True)):
        low = [episode for episode in replay.episodes if episode.kind == "low_usage"]
        panel.broken_barh(
            [_span(e.opened_ms, e, days, clock) for e in low], (row - 0.4, 0.8), color=YELLOW_INK, linewidth=0
        )
        reds = [_span(e.red_ms, e, days, clock) for e in low if e.red_ms is not None]
        panel.broken_barh(
            [(left, max(width, least)) for left, width in reds], (row - 0.4, 0.8), color=RED_INK, linewidth=0
        )
        for episode in replay.episodes:
            if episode.kind != "low_usage":
                left, width = _span(episode.opened_ms, episode, days, clock)
                panel.broken_barh([(left, max(width, least))], (row + 0.28, 0.12), color=BLUE, linewidth=0)
        per_month = figures_of(score).per_month
        shown = [("–" if per_month[level] is None else f"{per_month[level]:.1f}") for level in (YELLOW, RED)]
        labels.append(f"{replay.rule.name}\n{shown[0]} yellow, {shown[1]} red a month")
    panel.set_yticks(range(len(replays)), labels=labels, fontsize=8)
    panel.set_ylim(len(replays) - 0.4, -0.6)
    names = ((YELLOW_INK, "yellow stands"), (RED_INK, "red stands"), (BLUE, "leak, burst, reverse flow"))
    panel.legend(
        handles=[Patch(color=color, label=name) for color, name in names], loc="upper center", ncols=3, fontsize=8,
        bbox_to_anchor=(0.5, -0.35), frameon=False,
    )  # fmt: skip


def _span(begin_ms: int | None, episode: Episode, days: Any, clock: LocalClock) -> tuple[float, float]:
    assert begin_ms is not None
    left = _day(begin_ms, clock)
    right = float(days[-1]) if episode.cleared_ms is None else _day(episode.cleared_ms, clock)
    return left, max(right - left, HOUR_MS / DAY_MS / 4)
