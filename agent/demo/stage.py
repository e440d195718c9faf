"""Where the play is shown: a picture that moves, or one line of log per event."""

from typing import Final, Protocol, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agent.demo import chart, picture, scene
from agent.demo.checks import Check
from agent.demo.observer import View
from agent.demo.story import CAPTIONS, STATIONS, Act, act_of, alert_of
from protocols.contract import Level, Transition

_STATUS_EVERY_MS: Final = 6 * scene.HOUR_MS


class Stage(Protocol):
    """A context in which views are shown."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def show(self, view: View) -> None:
        """Show what is to be seen now."""
        ...


def fits(console: Console) -> bool:
    """Tell whether the picture can be shown: a terminal that moves its cursor, of 80 x 24 at least."""
    is_big = console.width >= picture.COLUMNS_MIN and console.height >= picture.ROWS_MIN
    return console.is_terminal and not console.is_dumb_terminal and is_big


class LiveStage:
    """A terminal of its own while the play lasts; its last picture stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, screen=True, auto_refresh=False)
        self._view = View(now_ms=scene.OPENS_MS)

    def __enter__(self) -> Self:
        self._live.start()
        self.show(self._view)
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()
        if self._view.taken:
            self._console.print(self._picture())

    def show(self, view: View) -> None:
        """Draw it."""
        self._view = view
        self._live.update(self._picture(), refresh=True)

    def _picture(self) -> RenderableType:
        return picture.render(self._view, width=self._console.width, height=self._console.height)


class LogStage:
    """Lines for a log: what begins, in words, and now and then how things stand."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._act: Act | None = None
        self._status_due_ms = 0
        self._reached: set[str] = set()
        self._told = 0  # how many steps of alerts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def show(self, view: View) -> None:
        """Print what is new."""
        act = act_of(view)
        if act is not self._act:
            self._act = act
            self._say(view, " ".join(CAPTIONS[act]))
        for name, moment_ms in zip(STATIONS, alert_of(view), strict=True):
            if moment_ms is not None and name not in self._reached:
                self._reached.add(name)
                self._say(view, f"{name}: {scene.SILENT}, {picture.stamp(moment_ms)}")
        for step in view.steps[self._told :]:
            self._say(
                view, f"县里收到 told: {step.meter} {step.level} {step.transition}: {' '.join(step.text.values())}"
            )
        self._told = len(view.steps)
        if view.now_ms >= self._status_due_ms:
            self._status_due_ms = view.now_ms + _STATUS_EVERY_MS
            values = len({reading.meter for reading in view.taken if reading.volume_ml is not None})
            self._say(
                view,
                f"{values} 块表有数 meters read, {len(view.taken)} 次读数 readings,"
                f" {len(view.stored)} 条已到县 at the county, {view.waiting} 条待送 waiting",
            )

    def _say(self, view: View, text: str) -> None:
        self._console.print(f"{picture.stamp(view.now_ms)}  {text}", markup=False, soft_wrap=True)


def print_summary(console: Console, checks: list[Check], *, view: View, took_s: float) -> None:
    """Say what was proved, with the figures that prove it."""
    hours = (view.now_ms - scene.OPENS_MS) / scene.HOUR_MS
    title = f"村里 {hours:.0f} 小时，用时 {took_s:.0f} 秒 · {hours:.0f} h of the village in {took_s:.0f} s"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("证明了什么 what was proved", overflow="fold")
    table.add_column("数字 figures", overflow="fold")
    for check in checks:
        mark = Text("✓", "green") if check.holds else Text("✗ FAILED", "bold red")
        table.add_row(mark, f"{check.chinese}\n{check.english}", check.figures)
    _print_told(console, view)
    console.print(table)


def _print_told(console: Console, view: View) -> None:
    """Print every step of every alert, in the words that the county got."""
    console.print("县里收到的每一句话 Every word that the county was told", style="italic")
    for step in view.steps:
        is_over = step.transition == Transition.CLEARED
        style = chart.GOOD if is_over else chart.LEVEL_STYLES[Level(step.level)]
        head = f"{picture.stamp(step.at_ms)}  {step.meter}  {step.level} {step.transition}"
        console.print(Text(head, style=f"bold {style}"))
        for language in ("zh", "en"):
            for line in picture.wrapped(step.text.get(language, ""), console.width - 4):
                console.print(Text(f"    {line}", style=style))
