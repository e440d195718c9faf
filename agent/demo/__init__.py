"""`shuiwang demo`: the whole way on one machine, in a minute, on real parts; it watches and proves."""

import asyncio
import importlib.util
import io
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rich.console import Console

from agent.demo.play import DemoFailed, Interrupted, Play
from agent.demo.stage import LiveStage, LogStage, Stage, fits, print_summary
from agent.exit_codes import ExitCode

# A play lasts about 80 s; one that waits unluckily long before it calls again, 100 s. Beyond this something hangs.
DEADLINE_S: Final = 150.0

__all__ = ["run_demo"]


def run_demo(*, live: bool, watch: Callable[[Play], None] = lambda _: None) -> ExitCode:
    """Play, prove, and say what happened; return OK only if every claim was proved.

    `watch` is called after every look, for who wants to take pictures.
    """
    talk = Console(stderr=True, highlight=False, soft_wrap=True)
    if importlib.util.find_spec("amqtt") is None:
        talk.print(
            "演示要一个消息服务器，还没有装。The demo needs the embedded broker amqtt, which is not installed: "
            "pip install 'shuiwang[demo]'",
            markup=False,
        )
        return ExitCode.DEMO_FAILED
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows what it can
    console = Console(highlight=False)
    stage: Stage = LiveStage(console) if live and fits(console) else LogStage(console)
    folder = Path(tempfile.mkdtemp(prefix="shuiwang-demo-"))

    def look(play: Play) -> None:
        stage.show(play.view)
        watch(play)

    play = Play(folder, watch=look)
    try:
        with stage:
            asyncio.run(_bounded(play))
    except Interrupted:
        shutil.rmtree(folder, ignore_errors=True)
        talk.print("演示中断。Interrupted: every process is stopped, nothing was left behind, nothing was proved.")
        return ExitCode.DEMO_FAILED
    except DemoFailed as failure:
        talk.print(f"演示失败。The demo failed while {play.step}: {failure}", markup=False)
        talk.print(f"日志和数据在 Logs and data are in {folder}", markup=False)
        return ExitCode.DEMO_FAILED
    checks = play.checks
    print_summary(console, checks, view=play.view, took_s=play.took_s)
    if all(check.holds for check in checks):
        shutil.rmtree(folder, ignore_errors=True)
        return ExitCode.OK
    talk.print(f"演示失败。Not everything was proved. Logs and data are in {folder}", markup=False)
    return ExitCode.DEMO_FAILED


async def _bounded(play: Play) -> None:
    """Run a play within the deadline. Raises DemoFailed, or Interrupted for Ctrl-C and its like."""
    playing = asyncio.current_task()
    assert playing is not None
    loop = asyncio.get_running_loop()
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        playing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await play.run()
    except TimeoutError:
        raise DemoFailed(f"it was not over after {DEADLINE_S:.0f} s") from None
    except asyncio.CancelledError:
        if interrupted:
            raise Interrupted from None
        raise
