"""`shuiwang valve`: options, help, and the words without which nothing moves. What moves is in `valve`."""

import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.exit_codes import ExitCode
from agent.options import JsonOption, finite
from agent.technician.cli import Given, fail, new_console, plan_of, print_json
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
from agent.technician.valve_words import Action

if TYPE_CHECKING:
    from agent.technician.valve import Look, Progress, Report, ValveStation
    from agent.technician.valve_record import ValveRecord

app = typer.Typer()

# The slowest ball valves take about a minute; beyond ten nobody stands there and waits.
WAIT_S_DEFAULT = 60.0
WAIT_S_MAX = 600.0


@app.callback()
def _group() -> None:
    """Keep Typer from making a lone command of the group that `agent.cli` looks into."""


@app.command()
def valve(
    action: Annotated[Action, typer.Argument(help="open 开阀, close 关阀, or status 状态, which moves nothing.")],
    meter: MeterArgument = None,
    config: ConfigOption = None,
    port: PortOption = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help="A profile that names valve commands, or a file. 型号")
    ] = None,
    address: AddressOption = None,
    baudrate: BaudrateOption = None,
    parity: ParityOption = None,
    stop_bits: StopBitsOption = None,
    timeout_ms: TimeoutOption = None,
    confirm: Annotated[
        str | None,
        typer.Option("--confirm", metavar="WORDS", help='Action and address: "close 00000805000001". 确认词'),
    ] = None,
    wait_s: Annotated[
        float,
        typer.Option(
            "--wait",
            metavar="SECONDS",
            min=0,
            max=WAIT_S_MAX,
            callback=finite,
            help="How long it may take to move. 等待",
        ),
    ] = WAIT_S_DEFAULT,
    *,
    as_json: JsonOption = False,
) -> None:
    """Open or close the valve of one meter, or say where it is. CJ/T 188 only. 阀门

    Closing cuts off a home's water. It is done only where the meter's profile names the valve commands
    (cjt188-water-valve, or one of your own), while the service does not hold the line, and when you say in
    words what will happen: on a terminal you are asked, elsewhere they are the value of --confirm.
    With -c the service of that configuration must not run. With --port only a local port is tried for another
    program; whether somebody else uses a network port, such as a service that polls the same serial server, nobody can
    tell: stop it first.

        shuiwang valve status -c shuiwang.toml m-001

        shuiwang valve close -c shuiwang.toml m-001

        shuiwang valve open --port /dev/ttyUSB0 --profile cjt188-water-valve --address 00000805000001

    The meter is read first; if it does not answer, nothing is sent. One command goes out, once; then the meter is read
    until it says twice that the valve is there, or --wait is over. Each attempt is logged, and with -c kept in
    valve.jsonl beside the store. Ctrl-C, SIGTERM and a terminal that goes away end it, and the record says what was
    sent.

    Exit code 0: the meter says that the valve is there; 11: sent, but not confirmed: go and look; 9: no answer, nothing
    was sent; 6: the port cannot be used (the service may hold it); 3: the profile names no valve; 2: not the words.
    """
    from agent import logs
    from agent.technician.valve import ValveStation
    from agent.technician.valve_record import ValveRecord
    from agent.technician.valve_words import GO_AND_LOOK, obstacle
    from gateway.clock import SystemClock

    given = Given(port, profile, address, baudrate, parity, stop_bits, timeout_ms, None)
    plan, settings = plan_of(meter, config, given)
    because = obstacle(plan, action)
    if because is not None:
        fail(ExitCode.CONFIGURATION, f"{because[0].en} {because[0].zh}", because[1])
    clock = SystemClock()
    station = ValveStation(plan, clock=clock)
    _end_like_ctrl_c()
    try:
        if action is Action.STATUS:
            if confirm is not None:
                fail(ExitCode.USAGE, "status moves nothing; leave --confirm out 查状态无需 --confirm")
            _status(station, wall_ms=clock.now().wall_ms, as_json=as_json)
            return
        logs.set_up()
        always = {
            "meter": plan.meter,
            "address": plan.address_text,
            "port": plan.line.port,
            "profile": plan.profile.name,
            "action": action.value,
        }
        record = ValveRecord(settings.gateway.data_dir if settings else None, clock=clock, always=always)
        _have_it_said(station, action, confirm, record)
        _move(station, action, record, wait_s=wait_s, as_json=as_json)
    except KeyboardInterrupt:
        if station.has_begun:
            fail(
                ExitCode.VALVE_UNCONFIRMED,
                "stopped; the command may have been sent 已中断，命令可能已发出",
                [GO_AND_LOOK],
            )
        fail(ExitCode.NO_READING, "stopped, nothing was sent 已中断，未发送任何命令")
    finally:
        station.close()


def _end_like_ctrl_c() -> None:
    """Let SIGTERM and a terminal that goes away end the command like Ctrl-C; what comes later no longer disturbs it.

    Else the record would end with what was asked, whatever was sent.
    """
    signals = [one for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]

    def stop(*_: Any) -> None:
        for one in signals:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    for one in signals:
        signal.signal(one, stop)


def _status(station: "ValveStation", *, wall_ms: int, as_json: bool) -> None:
    """Say where the valve is."""
    from agent.technician import views_valve
    from protocols.cjt188_dialogue import Position

    look = station.look()
    if as_json:
        print_json(views_valve.look_as_json(station.plan, look, station.frames, wall_ms=wall_ms))
    else:
        views_valve.show_look(station.plan, look, station.frames, new_console(stderr=look.error is not None))
    if look.error is not None or look.position is Position.UNKNOWN:
        raise typer.Exit(_code_of(look))


def _have_it_said(station: "ValveStation", action: Action, confirm: str | None, record: "ValveRecord") -> None:
    """Return only if the words were said that name what will happen; else end the command, nothing sent."""
    from agent.technician.valve_words import phrases, says_so

    plan = station.plan
    english, chinese = phrases(plan, action)
    if confirm is None and not sys.stdin.isatty():
        fail(
            ExitCode.USAGE,
            f'nothing was sent 未发送任何命令: say in words what will happen: --confirm "{english}" or 或 "{chinese}"',
        )
    said = _ask(station, action) if confirm is None else confirm
    if says_so(said, plan, action):
        return
    _try_to_record(record, "valve_declined", said=said[:100])
    fail(ExitCode.USAGE, f'nothing was sent 未发送任何命令: that was not "{english}" or 不是 "{chinese}"')


def _ask(station: "ValveStation", action: Action) -> str:
    """Show the meter as it is and what will happen to the home; return what is typed."""
    from agent.technician import views_valve
    from agent.technician.valve_words import after_look, phrases

    plan, console = station.plan, new_console(stderr=True)
    with console.status(f"reading 正在读 {plan.line.port} {plan.line_text}"):
        look = station.look()
    views_valve.show_warning(plan, action, look, console)
    if look.error is not None:
        fail(_code_of(look), "no reading, so nothing was sent 读不到表，未发送任何命令", after_look(plan, look))
    english, chinese = phrases(plan, action)
    console.print("\nNothing has been sent yet. Is this the address on the meter's label?", markup=False)
    console.print("尚未发送任何命令。请与表上的标签核对地址。", markup=False)
    console.print(f"Type 请输入:  {english}   (or 或  {chinese})", markup=False)
    typer.echo("> ", nl=False, err=True)
    return sys.stdin.readline()


def _move(station: "ValveStation", action: Action, record: "ValveRecord", *, wait_s: float, as_json: bool) -> None:
    from agent.technician import views_valve

    assert action.target is not None
    _record_or_refuse(record, action)
    report = station.move(
        action.target,
        limit_s=wait_s,
        progress=_progress(is_quiet=as_json),
        note=lambda frame: _try_to_record(record, "valve_sending", frame=frame.hex(" ").upper()),
    )
    command = report.command
    _try_to_record(
        record,
        "valve_moved" if report.is_confirmed else "valve_unconfirmed" if report.is_sent else "valve_unsent",
        before=report.before.position.value,
        answer=None if command is None else command.status.hex(" ").upper() if command.status else command.reason,
        position=report.position.value,
        took_ms=report.took_ms,
        frame=None if command is None or command.frame is None else command.frame.hex(" ").upper(),
    )
    with contextlib.suppress(OSError):  # a full disk behind stdout must not change what the exit code says
        if as_json:
            print_json(views_valve.as_json(report))
        else:
            views_valve.show(report, new_console())
    if not report.is_confirmed:
        raise typer.Exit(_code_after(report))


def _record_or_refuse(record: "ValveRecord", action: Action) -> None:
    """Note what is about to be sent. What cannot be recorded is not closed; water is given back all the same."""
    try:
        record.write("valve_asked")
    except OSError as error:
        if action is Action.CLOSE:
            fail(
                ExitCode.STORE,
                f"nothing was sent 未发送任何命令: the record beside the store cannot be written: {error}",
            )
        typer.echo(f"warning: valve.jsonl cannot be written 无法写记录: {error}", err=True)


def _try_to_record(record: "ValveRecord", event: str, **fields: object) -> None:
    """Note what happened; by now nothing depends on it."""
    try:
        record.write(event, **fields)
    except OSError as error:
        typer.echo(f"warning: valve.jsonl cannot be written 无法写记录: {error}", err=True)


def _progress(*, is_quiet: bool) -> "Progress":
    """Return what tells a person at a terminal how far it is; anybody else is told the end only."""
    from agent.technician.valve_words import POSITIONS

    console = new_console(stderr=True)
    words = {"look": "reading 正在读表", "command": "sending the command, once 发送命令（一次）"}

    def tell(stage: str, look: "Look | None", elapsed_s: float) -> None:
        if is_quiet or not console.is_terminal:
            return
        where = "" if look is None else str(look.error or POSITIONS[look.position])
        with contextlib.suppress(OSError):  # a terminal that went away must not end the watch
            console.print(f" {words.get(stage, f'{elapsed_s:5.1f} s')}  {where}", style="dim", markup=False)

    return tell


def _code_of(look: "Look") -> ExitCode:
    is_lost = look.error is not None and look.error.reason == "port_lost"
    return ExitCode.PORT if is_lost else ExitCode.NO_READING


def _code_after(report: "Report") -> ExitCode:
    if report.is_sent:
        return ExitCode.VALVE_UNCONFIRMED
    if report.command is not None and report.command.reason == "port_lost":
        return ExitCode.PORT
    return _code_of(report.before)
