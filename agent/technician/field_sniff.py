"""`shuiwang sniff` on the terminal: a moving picture, or a line for each frame, and the table at the end."""

from collections import deque
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.live import Live

from agent.exit_codes import ExitCode
from agent.technician import cli, views_reading, views_sniffing
from agent.technician.lines import is_network, line_text
from agent.technician.overhearing import NO_TAP, Moment, overhear
from agent.technician.sniffing import Heard
from agent.technician.words import Words
from gateway.line import LineSettings
from protocols.errors import PortLost

REFRESH_PER_S = 5
RECENT_MAX = 100  # frames that the moving picture may show


def run(lines: Sequence[LineSettings], *, seconds: float | None, as_json: bool) -> ExitCode:
    """Overhear and print; return the exit code."""
    console = cli.new_console()
    warn_of_tcp(lines[0])
    last: Moment | None = None
    recent: deque[Heard] = deque(maxlen=RECENT_MAX)
    lost: PortLost | None = None
    is_moving = console.is_terminal and not as_json
    live = Live(console=console, refresh_per_second=REFRESH_PER_S, transient=True) if is_moving else None
    try:
        if live:
            live.start()
        for moment in overhear(lines, seconds=seconds):
            if last is not None and last.line != moment.line:
                recent.clear()
            last = moment
            recent.extend(moment.heard)
            if live:
                live.update(_picture(moment, recent, console))
            else:
                _print(moment, console, as_json=as_json)
    except KeyboardInterrupt:
        pass  # that is how it ends
    except PortLost as error:
        lost = error
    finally:
        if live:
            live.stop()
    if last is None:
        assert lost is not None
        cli.port_failed(lines[0], lost)
    last.sniffer.finish()
    _summarize(last, recent, console, as_json=as_json)
    if lost is not None:
        cli.port_failed(last.line, lost)
    return ExitCode.OK if last.sniffer.totals.frames else ExitCode.NO_READING


def warn_of_tcp(line: LineSettings) -> None:
    """Say what cannot be overheard on a port in the network."""
    if is_network(line.port):
        cli.new_console(stderr=True).print(NO_TAP.zh, NO_TAP.en, sep="\n", style="yellow")


def _picture(moment: Moment, recent: Sequence[Heard], console: Console) -> RenderableType:
    return views_sniffing.live(
        moment.sniffer,
        list(recent),
        title=_title(moment.line),
        elapsed_ms=moment.elapsed_ms,
        width=console.width,
        height=console.height,
    )


def _print(moment: Moment, console: Console, *, as_json: bool) -> None:
    for heard in moment.heard:
        if as_json:
            cli.print_json(views_sniffing.as_json(heard), is_line=True)
        else:
            console.print(views_sniffing.frame_line(heard, width=console.width))


def _summarize(moment: Moment, recent: Sequence[Heard], console: Console, *, as_json: bool) -> None:
    sniffer = moment.sniffer
    if as_json:
        line = line_text(moment.line)
        summary = views_sniffing.summary_json(sniffer, port=moment.line.port, line=line, elapsed_ms=moment.elapsed_ms)
        cli.print_json(summary, is_line=True)
        return
    if console.is_terminal:
        for heard in list(recent)[-8:]:
            console.print(views_sniffing.frame_line(heard, width=console.width))
    console.print()
    console.print(views_sniffing.heading(sniffer, title=_title(moment.line), elapsed_ms=moment.elapsed_ms))
    console.print(views_sniffing.stations(sniffer, width=console.width))
    words = views_sniffing.advice(sniffer)
    if words:
        console.print(views_reading.advices(words, title=Words("请注意", "worth a look")))


def _title(line: LineSettings) -> str:
    return f" {line.port}  {line_text(line)}"
