"""The command line. Data goes to stdout, talk to stderr; exit codes are those of `agent.exit_codes`."""

import asyncio
import contextlib
import errno
import faulthandler
import importlib
import io
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import msgspec
import typer
from typer.core import TyperGroup

from agent import logs
from agent.exit_codes import ExitCode
from agent.options import JsonOption
from protocols.errors import ProfileError, ShuiwangError

if TYPE_CHECKING:
    from agent.settings import Config
    from gateway.clock import Clock

# Which module has the Typer app with each of the technician's commands. `shuiwang run` never imports them.
TECHNICIAN = {
    "read": "agent.technician.cli",
    "decode": "agent.technician.cli",
    "profiles": "agent.technician.profiles_cli",
    "scan": "agent.technician.field_cli",
    "sniff": "agent.technician.field_cli",
    "record": "agent.technician.field_cli",
    "replay": "agent.technician.field_cli",
    "doctor": "agent.technician.field_cli",
    "valve": "agent.technician.valve_cli",
    "history": "agent.technician.history_cli",
    "absence": "agent.absence_cli",
    "backtest": "agent.backtest.cli",
    "advise": "agent.backtest.cli",
}


class _Commands(TyperGroup):
    """Our commands, and the technician's, which are imported when one of them is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *TECHNICIAN]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in TECHNICIAN:
            return super().get_command(ctx, cmd_name)
        group: Any = typer.main.get_command(importlib.import_module(TECHNICIAN[cmd_name]).app)
        return group.get_command(ctx, cmd_name)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "水望 shuiwang watches over people who live alone, by their water meters.\n\n"
        "First steps: `shuiwang demo` shows it all on this machine; `shuiwang check -c FILE` tells what is wrong with a"
        " configuration; `shuiwang run -c FILE` is the service; `shuiwang status -c FILE` says how it is."
    ),
)

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", help="The configuration, one TOML file.", envvar="SHUIWANG_CONFIG"),
]
FastClockOption = Annotated[
    str | None,
    typer.Option("--fast-clock", metavar="RATE@REAL_MS:SHOWN_MS", help="A fast clock for demonstrations.", hidden=True),
]
DEFAULT_CONFIG = Path("/etc/shuiwang/shuiwang.toml")
# What writing to stdout says where it goes to a full disk, or to a terminal that went away.
_OUTPUT_LOST = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@app.command()
def run(
    config: ConfigOption = DEFAULT_CONFIG,
    fast_clock: FastClockOption = None,
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Log every exchange with the broker library too.")] = False,
) -> None:
    """Poll the meters, judge them, and bring alerts and readings to the county, until SIGTERM."""
    # sqlite-utils imports these wherever they are installed, for features that we do not use: up to 75 MiB.
    for name in ("numpy", "pandas"):
        sys.modules.setdefault(name, cast("ModuleType", None))
    from agent.service import Service
    from gateway.lock import AlreadyLocked, FolderLock
    from gateway.store import StoreError
    from gateway.systemd import Notifier

    logs.set_up(debug=debug)
    faulthandler.enable()  # systemd's watchdog aborts us; the journal then says where we hung
    settings = _load(config)
    try:
        settings.gateway.data_dir.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(settings.gateway.data_dir)
    except AlreadyLocked as error:
        _fail(ExitCode.ALREADY_RUNNING, f"{error}. Stop it first: systemctl stop shuiwang")
    except OSError as error:
        _fail(ExitCode.STORE, f"data_dir {settings.gateway.data_dir} cannot be used: {error}")
    try:
        asyncio.run(Service(settings, clock=_clock(fast_clock), notifier=Notifier()).run())
    except StoreError as error:
        _fail(ExitCode.STORE, f"{error}. Check free space (df) and permissions, then start again")
    finally:
        lock.release()


@app.command()
def check(config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """Check a configuration: every problem with its line, what is wrong and what would be right."""
    from agent import views
    from agent.settings import summary

    settings = _load(config)
    for warning in settings.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        _print_json(summary(settings))
    else:
        views.print_check(settings)


@app.command()
def status(
    config: ConfigOption = DEFAULT_CONFIG, fast_clock: FastClockOption = None, *, as_json: JsonOption = False
) -> None:
    """Say what is polled, what is stale, and what waits for the county."""
    from agent import views
    from agent.status import status as status_of
    from gateway.store import StoreError

    settings = _load(config)
    try:
        report = status_of(settings, _clock(fast_clock))
    except StoreError as error:
        _fail(ExitCode.STORE, str(error))
    if as_json:
        _print_json(report)
    else:
        views.print_status(report)


@app.command()
def simulate(
    village: Annotated[Path, typer.Argument(help="The village: meters, their line, and how water is used (TOML).")],
    fast_clock: FastClockOption = None,
) -> None:
    """Simulate the meters of a village on a pseudo-terminal; prints the port for the bus table of a configuration.

    Example: shuiwang simulate docs/village.example.toml
    """
    from gateway.simulator import run as run_simulator

    logs.set_up()
    try:
        asyncio.run(run_simulator(village, _clock(fast_clock), on_ready=typer.echo))
    except (ShuiwangError, ValueError) as error:
        _fail(ExitCode.CONFIGURATION, str(error))
    except BrokenPipeError:  # stdout, not the port
        raise
    except OSError as error:
        _fail(ExitCode.PORT, str(error))


@app.command()
def demo(
    *,
    live: Annotated[bool, typer.Option("--live/--no-live", help="Show a moving picture, or plain log lines.")] = True,
) -> None:
    """Show the whole way on this machine: six homes, a power cut of the network, one resident who falls silent."""
    from agent.demo import run_demo

    raise typer.Exit(run_demo(live=live))


def main() -> None:
    """Run the command line; a failure that we foresee is one line and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Chinese still gets the English
    try:
        app()
    except OSError as error:
        if error.filename is None and error.errno in _OUTPUT_LOST:
            _end_without_output(None, error)
        raise
    except SystemExit as end:
        if end.code == ExitCode.BUG and isinstance(end.__context__, BrokenPipeError):
            _end_without_output(None, end.__context__)  # typer and rich end with 1 where nobody reads any more
        try:
            sys.stdout.flush()
        except OSError as error:
            _end_without_output(end.code, error)
        raise


def _end_without_output(code: object, error: OSError) -> NoReturn:
    """End the process where stdout takes nothing more; an exit code that says more than that stands."""
    if isinstance(error, BrokenPipeError):
        os._exit(code if isinstance(code, int) and code else ExitCode.OUTPUT_CLOSED)
    with contextlib.suppress(OSError):
        print(f"the output cannot be written 无法输出: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201
    # Not sys.exit: what is in the buffer would be tried once more.
    os._exit(code if isinstance(code, int) and code else ExitCode.USAGE)


def _load(path: Path) -> "Config":
    from agent.config import ConfigError, load

    try:
        return load(path)
    except (ConfigError, ProfileError) as error:
        _fail(ExitCode.CONFIGURATION, str(error))


def _clock(fast_clock: str | None) -> "Clock":
    from gateway.clock import SystemClock, parse_fast_clock

    if fast_clock is None:
        return SystemClock()
    try:
        return parse_fast_clock(fast_clock)
    except ValueError as error:
        _fail(ExitCode.USAGE, f"--fast-clock {fast_clock!r}: {error}")


def _print_json(value: object) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))  # bytes: JSON is UTF-8 everywhere


def _fail(code: ExitCode, message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
