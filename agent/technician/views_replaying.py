"""How a replay looks: each exchange with its bytes and its meaning, and whether it comes out as it was recorded."""

from typing import Any

from rich.console import Console
from rich.text import Text

from agent.technician import views_sniffing
from agent.technician.capture import Capture
from agent.technician.lines import line_text
from agent.technician.replaying import Outcome, Replay
from agent.technician.views_sniffing import frame_line


def show(capture: Capture, replay: Replay, console: Console) -> None:
    """Print everything."""
    how = "our own readings 主动读数" if capture.is_active else "overheard 旁听"
    console.print(Text.assemble((capture.where, "bold"), (f"  {line_text(capture.line)}  {how}", "dim")))
    waiting = list(replay.outcomes)
    for heard in replay.heard:
        while capture.is_active and waiting and waiting[0].at_ms <= round(heard.at_ms) and heard.kind == "request":
            console.print(_begin(waiting[0]))
            console.print(_outcome(waiting.pop(0)))
        console.print(frame_line(heard, width=console.width))
        while waiting and waiting[0].heard is heard:
            console.print(_outcome(waiting.pop(0)))
    for outcome in waiting:
        console.print(_outcome(outcome))
    console.print(_summary(replay))


def as_json(capture: Capture, replay: Replay) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "file": capture.where,
        "line": line_text(capture.line),
        "active": capture.is_active,
        "compared": replay.compared,
        "differing": replay.differing,
        "outcomes": [
            {
                "at_ms": outcome.at_ms,
                "station": outcome.station,
                "recorded": outcome.recorded,
                "now": outcome.now,
                "same": outcome.is_same,
                "request_differs": outcome.request_differs,
            }
            for outcome in replay.outcomes
        ],
        "frames": [views_sniffing.as_json(heard) | {"direction": heard.mark} for heard in replay.heard],
    }


def _begin(outcome: Outcome) -> Text:
    return Text(f" +{outcome.at_ms / 1000:08.3f} read 读 {outcome.station}", "bold")


def _outcome(outcome: Outcome) -> Text:
    line = Text("            == ")
    line.append(outcome.now or "nothing any more 现在没有", "bold" if outcome.is_same is not False else "bold red")
    if outcome.is_same:
        line.append("  as recorded 与录制一致", "green")
    elif outcome.is_same is False:
        line.append(f"\n            recorded 当时为: {outcome.recorded}", "red")
    if outcome.request_differs:
        line.append("\n            we would ask otherwise today 现在的请求不同", "yellow")
    return line


def _summary(replay: Replay) -> Text:
    if replay.differing:
        return Text(
            f"{replay.differing} of {replay.compared} come out otherwise 与录制不一致: "
            "find out which of the two is right before you keep it 请先查清哪个正确",
            "bold red",
        )
    if replay.compared:
        return Text(f"all {replay.compared} as recorded 全部与录制一致", "bold green")
    return Text("nothing recorded to compare with 没有可比较的结果", "yellow")
