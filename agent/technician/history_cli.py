"""`shuiwang history`: options and help. What a meter remembers is read in `history`."""

from typing import TYPE_CHECKING, Annotated

import typer

from agent.exit_codes import ExitCode
from agent.options import JsonOption
from agent.technician.cli import Given, fail, made, new_console, plan_of, print_json
from agent.technician.options import (
    AddressOption,
    BaudrateOption,
    ConfigOption,
    MeterArgument,
    ParityOption,
    PortOption,
    StopBitsOption,
    TimeoutOption,
)

if TYPE_CHECKING:
    from agent.technician.history import HistoryStation, Report

app = typer.Typer()


@app.callback()
def _group() -> None:
    """Keep Typer from making a lone command of the group that `agent.cli` looks into."""


@app.command()
def history(
    meter: MeterArgument = None,
    config: ConfigOption = None,
    port: PortOption = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help="A CJ/T 188 name of `shuiwang profiles`, or a file. 型号")
    ] = None,
    address: AddressOption = None,
    baudrate: BaudrateOption = None,
    parity: ParityOption = None,
    stop_bits: StopBitsOption = None,
    timeout_ms: TimeoutOption = None,
    retries: Annotated[int | None, typer.Option("--retries", min=0, max=5, help="Repeats after silence. 重试")] = None,
    records: Annotated[
        str | None,
        typer.Option("--records", metavar="D120,D200-D20B…", help="Which, in place of 901F,D120-D12B. 记录"),
    ] = None,
    *,
    frames: Annotated[bool, typer.Option("--frames", help="Show the bytes that prove it as well. 显示报文")] = False,
    as_json: JsonOption = False,
) -> None:
    """What a CJ/T 188 meter itself remembers: the last twelve months, and frozen totals. Never writes to it. 历史结算

    The totals of the last twelve settlement days and what was used in between,
    also of months in which no gateway was there to read:

        shuiwang history -c shuiwang.toml m-001

        shuiwang history --port /dev/ttyUSB0 --profile cjt188-water --address 00002020120218

    The one meter on the line, whoever it is; it says its address first:

        shuiwang history --port /dev/ttyUSB0 --profile cjt188-water --address AAAAAAAAAAAAAA

    Meters of 2018 also keep settlements (D200-D2FF, D200 the latest) and
    freezes with their time (D300-D3FF by schedule, D400-D4FF on command):

        shuiwang history -c shuiwang.toml m-001 --records D200-D20B,D300

    A month runs from one settlement day to the next, by the meter's own clock.
    Every total was said twice alike; what the meter refuses or leaves empty
    stands there with the reason, never as 0.

    Exit code 0: at least one remembered total; 9: none; 6: the port cannot be
    used (the service may hold it); 3: no meter whose past totals we can read;
    2: the options make no sense.
    """
    from agent.technician.history import HistoryStation
    from agent.technician.history_records import USUAL, parse_records
    from agent.technician.history_words import obstacle
    from gateway.clock import SystemClock

    identifiers = USUAL if records is None else made(lambda: parse_records(records))
    plan, _ = plan_of(meter, config, Given(port, profile, address, baudrate, parity, stop_bits, timeout_ms, retries))
    because = obstacle(plan)
    if because is not None:
        fail(ExitCode.CONFIGURATION, f"{because[0].en} {because[0].zh}", because[1])
    station = HistoryStation(plan, clock=SystemClock())
    try:
        report = _read_with_patience(station, identifiers, is_quiet=as_json)
    finally:
        station.close()
    _print(report, with_frames=frames, as_json=as_json)
    if not report.remembers:
        is_lost = report.error is not None and report.error.reason == "port_lost"
        raise typer.Exit(ExitCode.PORT if is_lost else ExitCode.NO_READING)


def _read_with_patience(station: "HistoryStation", identifiers: tuple[int, ...], *, is_quiet: bool) -> "Report":
    """Read; on a terminal say meanwhile how far it is: thirteen records take some seven seconds at 2400 bit/s."""
    console = new_console(stderr=True)
    if is_quiet or not console.is_terminal:
        return station.read(identifiers)
    with console.status("…") as status:

        def tell(identifier: int | None, done: int) -> None:
            what = "address 表号" if identifier is None else f"{identifier:04X}  {done + 1}/{len(identifiers)}"
            status.update(f"reading 正在读 {station.plan.line.port}  {what}")

        return station.read(identifiers, progress=tell)


def _print(report: "Report", *, with_frames: bool, as_json: bool) -> None:
    from agent.technician import views_history

    if as_json:
        print_json(views_history.as_json(report))
    else:
        views_history.show(report, new_console(stderr=not report.frames), with_frames=with_frames)
