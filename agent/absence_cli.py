"""`shuiwang absence`: who is away, said in the village. The service does it; see `agent.command_folder`."""

import asyncio
import difflib
import zoneinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from agent.exit_codes import ExitCode
from agent.options import JsonOption, finite
from protocols import contract
from protocols.absence import Absence, daily_hours, local_time
from protocols.contract import ABSENCE_DAYS_MAX, ABSENCE_MS_MAX, AbsenceCommand, Command, Daily, PresentCommand, Reply
from protocols.errors import ContractError, ProfileError

if TYPE_CHECKING:
    from agent.settings import Config
    from gateway.clock import Clock

app = typer.Typer()
absence_app = typer.Typer(
    no_args_is_help=True,
    help="Say that nobody is at home, so that no use raises no alarm. Always with an end. 登记外出\n\n"
    "shuiwang absence add m-001 --until 2026-12-01     away to the end of that day 外出至当天结束\n\n"
    "shuiwang absence list                             who is away 谁外出\n\n"
    "shuiwang absence end m-001                        back before that 提前回来\n\n"
    "Water that is used ends an absence by itself. While somebody is away nobody would notice a fall in that home: "
    "never declare one to silence a false alarm. 外出期间无法发现跌倒，切勿用它来消除误报。",
)
app.add_typer(absence_app, name="absence")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The configuration. 配置文件", envvar="SHUIWANG_CONFIG")
]
MeterArgument = Annotated[str, typer.Argument(help="The meter's id in the configuration, such as m-001. 表号")]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait", min=0, max=600, callback=finite, metavar="SECONDS", help="How long to wait for the service. 等待"
    ),
]
DEFAULT_CONFIG: Final = Path("/etc/shuiwang/shuiwang.toml")
WAIT_S: Final = 10.0
LOOK_S: Final = 0.1


@absence_app.command("add")
def add(
    meter: MeterArgument,
    until: Annotated[
        str | None,
        typer.Option(
            help="The last day, 2026-12-01 (to its end), or a time, '2026-12-01 18:30'; 90 days at most. 止",
            metavar="TIME",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="The first day (from its beginning) or a time; absent: now. 起", metavar="TIME"),
    ] = None,
    quiet: Annotated[
        str | None,
        typer.Option(
            help="Only these hours of every day, in which nobody uses water, such as a night shift. 每日安静时段",
            metavar="HH:MM-HH:MM",
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="Who says so: a role, never a name. 登记人角色")] = "technician",
    config: ConfigOption = DEFAULT_CONFIG,
    wait: WaitOption = WAIT_S,
    *,
    as_json: JsonOption = False,
) -> None:
    """Declare that nobody is at home (or, with --quiet, that nobody uses water in these hours). 登记外出

    Away to the end of 1 December, from now on:

        shuiwang absence add m-001 --until 2026-12-01

    In hospital from Monday morning:

        shuiwang absence add m-001 --from '2026-11-23 08:00' --until 2026-12-05

    A night shift, for a month:

        shuiwang absence add m-001 --quiet 22:00-06:00 --until 2026-12-20

    Dates are those of the gateway's time zone. A newer absence takes the place of the meter's earlier one, newer quiet
    hours that of the earlier ones. Works while the service runs (the answer comes at once) and while it does not (it
    takes effect at the next start).

    Exit code 0: done, or kept for the next start; 2: the times or the meter make no sense; 12: the service refused,
    or keeps it and tries again: the answer says which.
    """
    settings, clock = _load(config), _clock()
    zone = zoneinfo.ZoneInfo(settings.gateway.timezone)
    now_ms = clock.now().wall_ms
    until_ms = _end(until, zone=zone, now_ms=now_ms)
    start_ms = None if start is None else _time(start, "--from", zone=zone, is_end=False)
    if start_ms is not None and start_ms >= until_ms:
        _fail(ExitCode.USAGE, f"--from {start} is not before --until {until}. 起始时间须早于截止时间。")
    command = AbsenceCommand(
        **_envelope(now_ms, not_after_ms=until_ms),
        meter=_known(meter, settings),
        until=contract.instant(until_ms),
        declared_by=by,
        start=None if start_ms is None else contract.instant(start_ms),
        daily=None if quiet is None else _hours(quiet),
    )
    _ask(command, settings=settings, clock=clock, wait_s=wait, as_json=as_json)


@absence_app.command("end")
def end(
    meter: MeterArgument,
    config: ConfigOption = DEFAULT_CONFIG,
    wait: WaitOption = WAIT_S,
    *,
    as_json: JsonOption = False,
) -> None:
    """Say that somebody is at home again: ends the absence; where there is none, the quiet hours. 结束外出

    shuiwang absence end m-001
    """
    settings, clock = _load(config), _clock()
    command = PresentCommand(**_envelope(clock.now().wall_ms), meter=_known(meter, settings))
    _ask(command, settings=settings, clock=clock, wait_s=wait, as_json=as_json)


@absence_app.command("list")
def list_(config: ConfigOption = DEFAULT_CONFIG, *, as_json: JsonOption = False) -> None:
    """Show who is away and since when, what ended lately, and what waits for the service. 查看外出登记"""
    from agent import command_folder
    from agent.service import STORE_NAME
    from gateway.store import Store, StoreError

    settings, clock = _load(config), _clock()
    path = settings.gateway.data_dir / STORE_NAME
    try:
        absences = []
        if path.exists():
            store = Store(path, read_only=True)
            absences = store.absences()
            store.close()
        waiting = command_folder.waiting(settings.gateway.data_dir)
    except StoreError as error:
        _fail(ExitCode.STORE, f"{error} 无法读取登记")
    except OSError as error:
        _fail(
            ExitCode.STORE, f"{error}: check the permissions of data_dir, or use sudo 请检查 data_dir 权限，或用 sudo"
        )
    rows = [_row(absence, now_ms=clock.now().wall_ms) for absence in absences]
    rows += [row for payload in waiting if (row := _waiting_row(payload))]
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
    else:
        _print_rows(rows, zone=zoneinfo.ZoneInfo(settings.gateway.timezone))


# -- asking the service ------------------------------------------------------------------------------------------------


def _ask(command: Command, *, settings: "Config", clock: "Clock", wait_s: float, as_json: bool) -> None:
    """Hand a command to the service, and show what it answers."""
    from agent import command_folder
    from gateway.lock import is_locked

    data_dir = settings.gateway.data_dir
    try:
        contract.decode(contract.Leaf.COMMAND, contract.encode(command))  # says what is wrong before anybody is asked
    except ContractError as error:
        _fail(ExitCode.USAGE, f"{error}. 参数有误")
    try:
        file = command_folder.send(data_dir, command)
        if not is_locked(data_dir):
            _say_kept(command, file, as_json=as_json)
            return
        reply = asyncio.run(_wait(command, data_dir=data_dir, clock=clock, wait_s=wait_s))
    except FileNotFoundError:
        _fail(
            ExitCode.STORE, f"data_dir {data_dir} does not exist: start the service once 目录不存在：请先启动一次服务"
        )
    except (OSError, ContractError) as error:
        _fail(ExitCode.STORE, f"data_dir {data_dir} cannot be used: {error}. 无法写入：请检查权限，或用 sudo")
    if as_json:
        _print_outcome(command, reply, is_running=True)
    elif reply is not None:
        for text in (reply.text or {}).values():
            typer.echo(text, err=not reply.done)
    if reply is None:
        _fail(
            ExitCode.NOT_DONE,
            f"服务 {wait_s:g} 秒内未应答；登记仍在 {file}，服务恢复后执行。no answer from the service within"
            f" {wait_s:g} s; the command stays there and is done when the service gets to it. Look at:"
            " journalctl -u shuiwang",
        )
    if not reply.done:
        raise typer.Exit(ExitCode.NOT_DONE)


async def _wait(command: Command, *, data_dir: Path, clock: "Clock", wait_s: float) -> Reply | None:
    from agent import command_folder

    console = Console(stderr=True)
    began_ms = clock.now().boottime_ms
    with console.status("等待服务应答 waiting for the service"):
        while True:
            reply = command_folder.reply_to(data_dir, command)
            if reply is not None or clock.now().boottime_ms - began_ms > wait_s * 1000:
                return reply
            await clock.sleep(LOOK_S)


def _say_kept(command: Command, file: Path, *, as_json: bool) -> None:
    if as_json:
        _print_outcome(command, None, is_running=False)
    else:
        typer.echo(f"服务未运行；已保存，下次启动时生效：{file}")
        typer.echo("The service is not running; this is kept and takes effect at its next start.")


def _print_outcome(command: Command, reply: Reply | None, *, is_running: bool) -> None:
    outcome = {"command": command, "service_running": is_running, "reply": reply}
    typer.echo(msgspec.json.format(msgspec.json.encode(outcome), indent=2).decode())


def _envelope(now_ms: int, *, not_after_ms: int | None = None) -> dict[str, Any]:
    """Return what every command says of itself; the deadline leaves a stopped service a week to be started again."""
    from agent.commands import DEADLINE_AHEAD_MS_MAX
    from gateway.ulid import new_ulid

    deadline_ms = now_ms + DEADLINE_AHEAD_MS_MAX - 60_000
    deadline = contract.instant(min(deadline_ms, not_after_ms or deadline_ms))
    return {"schema": contract.COMMAND_SCHEMA, "id": new_ulid(now_ms), "deadline": deadline}


# -- what was typed ----------------------------------------------------------------------------------------------------


def _end(text: str | None, *, zone: zoneinfo.ZoneInfo, now_ms: int) -> int:
    if text is None:
        _fail(
            ExitCode.USAGE,
            "an absence always has an end: add --until, such as --until 2026-12-01 (its last day). When nobody knows"
            " it, say a week and declare it again. 必须给出截止时间 --until；不确定时先登记一周，到期再续。",
        )
    until_ms = _time(text, "--until", zone=zone, is_end=True)
    if until_ms <= now_ms:
        _fail(ExitCode.USAGE, f"--until {text} is over already. 截止时间已过。")
    if until_ms > now_ms + ABSENCE_MS_MAX:
        _fail(
            ExitCode.USAGE,
            f"--until {text} is more than {ABSENCE_DAYS_MAX} days ahead: declare at most that, and again after it."
            f" 最多登记 {ABSENCE_DAYS_MAX} 天，到期可再次登记。",
        )
    return until_ms


def _time(text: str, option: str, *, zone: zoneinfo.ZoneInfo, is_end: bool) -> int:
    try:
        return local_time(text, zone=zone, is_end=is_end)
    except ValueError as error:
        _fail(ExitCode.USAGE, f"{option} {error}")


def _hours(text: str) -> Daily:
    try:
        return daily_hours(text)
    except ValueError as error:
        _fail(ExitCode.USAGE, f"--quiet {error}")


def _known(meter: str, settings: "Config") -> str:
    names = [one.id for one in settings.meters]
    if meter not in names:
        close = difflib.get_close_matches(meter, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names[:5])}{' …' if names[5:] else ''}"
        _fail(ExitCode.USAGE, f"{settings.path} has no meter {meter!r}; {hint} 配置中没有这块表。")
    return meter


def _load(path: Path) -> "Config":
    from agent.config import ConfigError, load

    try:
        return load(path)
    except (ConfigError, ProfileError) as error:
        _fail(ExitCode.CONFIGURATION, str(error))


def _clock() -> "Clock":
    from gateway.clock import SystemClock

    return SystemClock()


def _fail(code: ExitCode, message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


# -- what is shown -----------------------------------------------------------------------------------------------------


def _row(absence: Absence, *, now_ms: int) -> dict[str, Any]:
    """Return an absence as `list --json` shows it."""
    if absence.ended_by is not None:
        state = f"ended_by_{absence.ended_by}"
    elif absence.until_ms <= now_ms:
        state = "ended_by_time"
    else:
        state = "stands" if absence.start_ms <= now_ms else "to_come"
    return {
        "meter": absence.meter,
        "from": contract.instant(absence.start_ms),
        "until": contract.instant(absence.until_ms),
        "quiet_hours": None if absence.daily is None else str(absence.daily),
        "declared_by": absence.declared_by,
        "ended_at": None if absence.ended_ms is None else contract.instant(absence.ended_ms),
        "state": state,
    }


def _waiting_row(payload: bytes) -> dict[str, Any] | None:
    """Return a declaration that the service has not taken up yet, None for any other command."""
    try:
        command = contract.decode(contract.Leaf.COMMAND, payload)
    except ContractError:
        return None
    if not isinstance(command, AbsenceCommand):
        return None
    return {
        "meter": command.meter,
        "from": command.start,
        "until": command.until,
        "quiet_hours": None if command.daily is None else str(command.daily),
        "declared_by": command.declared_by,
        "ended_at": None,
        "state": "waits_for_service",
    }


_STATE_TEXT: Final = {
    "stands": ("生效 stands", "yellow"),
    "to_come": ("未开始 to come", ""),
    "waits_for_service": ("等待服务 waits for the service", "magenta"),
    "ended_by_use": ("已用水，结束 ended: water was used", "dim"),
    "ended_by_command": ("已结束 ended: declared over", "dim"),
    "ended_by_time": ("已到期 ended: its time was over", "dim"),
    "ended_by_replaced": ("被取代 replaced by a newer one", "dim"),
}


def _print_rows(rows: list[dict[str, Any]], *, zone: zoneinfo.ZoneInfo) -> None:
    if not rows:
        typer.echo("没有外出登记 nobody is away")
        return
    console = Console()
    for row in rows:
        text, style = _STATE_TEXT[row["state"]]
        what = f"安静时段 quiet hours {row['quiet_hours']}" if row["quiet_hours"] else "外出 away"
        start, until = _local(row["from"], zone=zone) or "即时 now", _local(row["until"], zone=zone)
        line = f"{row['meter']}  {what}  {start} – {until}  {text}  ({row['declared_by']})"
        console.print(Text(line, style), soft_wrap=True)


def _local(instant: str | None, *, zone: zoneinfo.ZoneInfo) -> str:
    from agent.command_texts import Words

    return "" if instant is None else Words(zone).local(contract.wall_ms(instant))
