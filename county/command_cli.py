"""`shuiwang-county command`: options and help."""

import asyncio
import datetime
import logging
import math
import re
import sys
import time
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from county.command import Asking, new_command_id
from county.display import printable
from county.errors import ConfigurationError, ExitCode
from county.link import BrokerAddress, Link, parse_address
from protocols import contract
from protocols.absence import daily_hours, local_time
from protocols.contract import (
    ABSENCE_DAYS_MAX,
    ABSENCE_MS_MAX,
    AbsenceCommand,
    AcknowledgeCommand,
    Command,
    PresentCommand,
    ReadNowCommand,
    ResolveCommand,
    Result,
)
from protocols.errors import ContractError

WAIT_S: Final = 30.0
# A meter is read in its turn: every five minutes by default.
READ_NOW_WAIT_S: Final = 360.0

app = typer.Typer(
    no_args_is_help=True,
    help="Ask a gateway and wait for its reply: who is away, what a visit found, a reading now. 向网关下达命令\n\n"
    "shuiwang-county command --broker URL --county shenxian --gateway g-0371522 absence m-001 --until 2026-12-01\n\n"
    "While no reply comes the command is published again, with the same id: a gateway does it once. After the deadline"
    " (--wait) nobody does it any more.\n\n"
    "Exit code 0: done; 6: refused, the text says why; 7: no reply in time; 5: no broker.",
)
MeterArgument = Annotated[str, typer.Argument(help="The meter's id, such as m-001. 表号")]
AlertArgument = Annotated[str, typer.Argument(help="The alert's id, as `show --json` has it. 报警编号")]


class Connecting(msgspec.Struct, frozen=True, kw_only=True):
    """What all commands share."""

    address: BrokerAddress
    county: str
    gateway: str
    wait_s: float | None
    json: bool
    timezone: datetime.tzinfo | None


@app.callback()
def connect(
    context: typer.Context,
    broker: Annotated[str, typer.Option(help="mqtt://HOST[:PORT], or mqtts://HOST[:PORT] with TLS.")],
    county: Annotated[str, typer.Option(help="The county, as in the gateway's configuration.")],
    gateway: Annotated[str, typer.Option(help="The gateway that reads the meter.")],
    wait: Annotated[
        float | None,
        typer.Option(min=1, max=86_400, metavar="SECONDS", help="Deadline. Default: 30, of read-now 360. 期限"),
    ] = None,
    ca_file: Annotated[Path | None, typer.Option(help="Certificates to trust (PEM); default: the system's.")] = None,
    cert_file: Annotated[Path | None, typer.Option(help="Our own certificate (PEM).")] = None,
    key_file: Annotated[Path | None, typer.Option(help="The key of our own certificate (PEM).")] = None,
    username: Annotated[str | None, typer.Option(help="User name at the broker.")] = None,
    password_file: Annotated[Path | None, typer.Option(help="File that holds the password alone.")] = None,
    timezone: Annotated[
        str | None, typer.Option(help="Of the dates given, such as Asia/Shanghai. Default: the machine's own.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the reply as JSON, for other programs.")] = False,  # noqa: FBT002
) -> None:
    """Take the options that all commands share."""
    for option, name in (("--county", county), ("--gateway", gateway)):
        if not re.fullmatch(contract.NAME_PATTERN, name):
            raise ConfigurationError(f"{option} {name!r}: a-z, 0-9 and - only; a command goes to one gateway")
    if wait is not None and not math.isfinite(wait):
        raise ConfigurationError(f"--wait {wait}: not a number of seconds")
    address = parse_address(
        broker,
        client_id=f"shuiwang-county-command-{new_command_id()[-8:].lower()}",
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
        username=username,
        password_file=password_file,
    )
    context.obj = Connecting(
        address=address, county=county, gateway=gateway, wait_s=wait, json=json, timezone=timezone_of(timezone)
    )


@app.command()
def absence(
    context: typer.Context,
    meter: MeterArgument,
    until: Annotated[
        str, typer.Option(metavar="TIME", help="The last day, 2026-12-01 (to its end), or '2026-12-01 18:30'. 止")
    ],
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="The first day, or a time; absent: now. 起")
    ] = None,
    quiet: Annotated[
        str | None, typer.Option(metavar="HH:MM-HH:MM", help="Only these hours of every day. 每日安静时段")
    ] = None,
    by: Annotated[str, typer.Option(help="Who says so: a role, never a name. 登记人角色")] = "duty-officer",
) -> None:
    """Say that nobody is at home until a day, 90 days ahead at most; use of water ends it. 登记外出"""
    connecting: Connecting = context.obj
    zone = connecting.timezone
    _ask(
        connecting,
        lambda envelope: AbsenceCommand(
            **envelope,
            meter=meter,
            until=contract.instant(local_time(until, zone=zone, is_end=True)),
            declared_by=by,
            start=None if start is None else contract.instant(local_time(start, zone=zone, is_end=False)),
            daily=None if quiet is None else daily_hours(quiet),
        ),
    )


@app.command()
def present(context: typer.Context, meter: MeterArgument) -> None:
    """Say that somebody is at home again: ends the absence; where there is none, the quiet hours. 结束外出"""
    _ask(context.obj, lambda envelope: PresentCommand(**envelope, meter=meter))


@app.command()
def acknowledge(context: typer.Context, alert: AlertArgument) -> None:
    """Say that somebody takes care of an alert: a red one is repeated every 24 h, not every 6 h. 确认报警"""
    _ask(context.obj, lambda envelope: AcknowledgeCommand(**envelope, alert=alert))


@app.command()
def resolve(
    context: typer.Context,
    alert: AlertArgument,
    result: Annotated[Result, typer.Option(help="What was found at the door. 上门结果")],
    why: Annotated[
        str | None, typer.Option(help="In words, 500 characters at most; required for `false`. No names. 说明")
    ] = None,
) -> None:
    """Say what a visit found: fine, helped, or that the alert was false, and why. 上门结果"""
    _ask(context.obj, lambda envelope: ResolveCommand(**envelope, alert=alert, result=result, why=why))


@app.command("read-now")
def read_now(context: typer.Context, meter: MeterArgument) -> None:
    """Have a meter read, and wait for its value. 立即抄表"""
    _ask(context.obj, lambda envelope: ReadNowCommand(**envelope, meter=meter), wait_s=READ_NOW_WAIT_S)


def timezone_of(name: str | None) -> datetime.tzinfo | None:
    """Return a time zone by its name, None for the machine's own. Raises ConfigurationError."""
    if name is None:
        return None
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigurationError(f"--timezone {name!r} is not a known time zone; for example Asia/Shanghai") from error


def _ask(connecting: Connecting, make: Callable[[dict[str, Any]], Command], *, wait_s: float = WAIT_S) -> None:
    wait_s = connecting.wait_s or wait_s
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    command = _made(make, wait_s=wait_s)
    asking = Asking(Link(connecting.address, is_lasting=False), county=connecting.county, gateway=connecting.gateway)
    reply = asyncio.run(asking.ask(command, wait_s=wait_s))
    if connecting.json:
        sys.stdout.write(contract.encode(reply).decode() + "\n")
    else:
        for text in (reply.text or {"": "done" if reply.done else f"refused: {reply.reason}"}).values():
            typer.echo(printable(text), err=not reply.done)
    if not reply.done:
        raise typer.Exit(ExitCode.REFUSED)


def _made(
    make: Callable[[dict[str, Any]], Command], *, wait_s: float, now_ns: Callable[[], int] = time.time_ns
) -> Command:
    """Return the command, or say what of it is wrong before anybody is asked. Raises ConfigurationError."""
    now_ms = now_ns() // 1_000_000
    deadline = contract.instant(now_ms + round(wait_s * 1000))
    try:
        command = make({"schema": contract.COMMAND_SCHEMA, "id": new_command_id(), "deadline": deadline})
        contract.decode(contract.Leaf.COMMAND, contract.encode(command))
    except (ValueError, ContractError) as error:
        raise ConfigurationError(str(error)) from error
    # A gateway refuses it; whoever is told here need not wait for that.
    if isinstance(command, AbsenceCommand) and contract.wall_ms(command.until) > now_ms + ABSENCE_MS_MAX:
        raise ConfigurationError(
            f"--until {command.until} is more than {ABSENCE_DAYS_MAX} days ahead: declare at most that, and again after"
            f" it. 最多登记 {ABSENCE_DAYS_MAX} 天，到期可再次登记。"
        )
    return command
